//! Files that a user names.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::failure::{Failure, Kind};

/// The content of a file that may be at most `max` bytes long.
///
/// # Errors
/// It cannot be read or is longer.
pub fn read(path: &Path, max: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let result = File::open(path).and_then(|file| file.take(max + 1).read_to_end(&mut bytes));
    if let Err(error) = result {
        return Err(Failure::text(Kind::Usage, format!("Cannot read {}: {error}", path.display())));
    }
    if bytes.len() as u64 > max {
        return Err(Failure::text(Kind::Usage, format!("{} is longer than {max} bytes", path.display())));
    }
    Ok(bytes)
}

/// Opens a file for reading.
///
/// # Errors
/// It cannot be opened.
pub fn open(path: &Path) -> Result<File, Failure> {
    File::open(path)
        .map_err(|error| Failure::text(Kind::Usage, format!("Cannot open {}: {error}", path.display())))
}
