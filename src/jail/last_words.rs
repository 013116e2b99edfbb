//! Ending the machine's process at once, with its reason told: from any thread, and from a signal handler.

use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What a process says when it must end at once. It is made beforehand: a signal handler may neither allocate nor take a lock.
#[derive(Debug, Clone)]
pub struct LastWords {
    /// Descriptors and what to write to each.
    pub words: Vec<(RawFd, Vec<u8>)>,
    /// Exit code.
    pub code: u8,
}

impl LastWords {
    /// Says them and ends the process, without running anything that belongs to its other threads.
    pub fn say(&self) -> ! {
        for (fd, words) in &self.words {
            say_to(*fd, words);
        }
        // SAFETY: ends the process; nothing of it is used afterwards.
        unsafe { libc::_exit(i32::from(self.code)) }
    }
}

/// Writes as much as the descriptor takes.
fn say_to(fd: RawFd, mut words: &[u8]) {
    while !words.is_empty() {
        // SAFETY: the pointer and length are those of a living slice; write(2) is async-signal-safe (signal-safety(7)).
        let written = unsafe { libc::write(fd, words.as_ptr().cast(), words.len()) };
        // Whoever does not listen is not told.
        let Ok(written) = usize::try_from(written) else { return };
        let Some(rest) = words.get(written..).filter(|_| written > 0) else { return };
        words = rest;
    }
}

/// What the handler of SIGBUS needs.
struct Watch {
    ranges: Vec<Range<usize>>,
    words: LastWords,
    before: libc::sigaction,
}

static WATCH: AtomicPtr<Watch> = AtomicPtr::new(std::ptr::null_mut());

/// Watches mapped files: a thread that touches `ranges` (addresses of this process) behind the end of their file, which was
/// cut short since, ends the process with `words`. Without it the process would die of SIGBUS without a word. Once per process.
///
/// # Errors
/// The kernel refuses the handler.
pub fn watch_mapped_files(ranges: Vec<Range<usize>>, words: LastWords) -> io::Result<()> {
    // SAFETY: sigaction is plain data, for which all bits zero is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_bus_error as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: as above.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks for the action in place; the pointer is that of a living structure.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The handler may run at any time until the process ends, so this is never freed.
    let watch = Box::leak(Box::new(Watch { ranges, words, before }));
    WATCH.store(watch, Ordering::SeqCst);
    // SAFETY: the handler is async-signal-safe: it reads what is never freed, writes, and ends the process.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_bus_error(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: null or leaked by `watch_mapped_files`, and not changed since.
    let Some(watch) = (unsafe { WATCH.load(Ordering::SeqCst).as_ref() }) else { return };
    // SAFETY: the kernel hands a living siginfo to a handler with SA_SIGINFO.
    let Some(info) = (unsafe { info.as_ref() }) else { return };
    // SAFETY: si_addr is set for SIGBUS (sigaction(2)).
    let address = unsafe { info.si_addr() } as usize;
    if info.si_code == libc::BUS_ADRERR && watch.ranges.iter().any(|range| range.contains(&address)) {
        watch.words.say();
    }
    // Not ours: the access is tried again, and met by whoever was there before.
    // SAFETY: puts back the action that the kernel gave us; sigaction(2) is async-signal-safe.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const watch.before, std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use memmap2::MmapOptions;

    use super::*;

    /// Set in the process that is to die.
    const CHILD: &str = "EMBER_TEST_CUT_SHORT";

    /// Touches a page whose file has been cut short, watched or not.
    fn lose_a_page(watched: bool) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        // SAFETY: the file is this test's own; that it is cut short below is the test.
        let map = unsafe { MmapOptions::new().map_copy_read_only(&file) }.unwrap();
        let start = map.as_ptr() as usize;
        let ranges = watched.then_some(start..start + 8192).into_iter().collect();
        watch_mapped_files(ranges, LastWords { words: vec![(2, b"Lost\n".to_vec())], code: 121 }).unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(std::hint::black_box(map[0]), 0, "what is left is there");
        std::hint::black_box(map[4096]);
    }

    fn child(what: &str) -> std::process::Output {
        let name = "jail::last_words::tests::a_page_that_is_lost_ends_the_process_with_a_word";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture"]).env(CHILD, what).output().unwrap()
    }

    #[test]
    fn a_page_that_is_lost_ends_the_process_with_a_word() {
        if let Ok(what) = std::env::var(CHILD) {
            lose_a_page(what == "watched");
            return;
        }
        let ended = child("watched");
        assert_eq!(ended.status.code(), Some(121), "{ended:?}");
        assert!(String::from_utf8_lossy(&ended.stderr).contains("Lost\n"), "{ended:?}");
        // What is not the guest's is no business of ours.
        let ended = child("not watched");
        assert_eq!(ended.status.signal(), Some(libc::SIGBUS), "{ended:?}");
        assert!(!String::from_utf8_lossy(&ended.stderr).contains("Lost\n"), "{ended:?}");
    }
}
