//! What a signal must not leave behind: the directory of an unfinished bundle.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::failure::{Failure, Kind};

static UNFINISHED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Removes `directory` when the process is told to end, then ends as the signal would have.
///
/// # Errors
/// The signals cannot be taken, or the host has no room for a thread.
pub fn clean_up_on_signal(directory: PathBuf) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::new(Kind::HostCannot, &e);
    *UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner) = Some(directory);
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let watch = move || {
        if let Some(signal) = signals.forever().next() {
            clean_up();
            signal_hook::low_level::emulate_default_handler(signal).ok();
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map(drop).map_err(failed)
}

/// The directory has its final name: it stays.
pub fn nothing_to_clean_up() {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// Removes what is unfinished.
pub fn clean_up() {
    if let Some(directory) = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A leftover is found and removed by the next bake to the same place.
        std::fs::remove_dir_all(directory).ok();
    }
}
