//! Having a long file written to the disk while the rest of it is still being made.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// Bytes that are let grow before the disk is asked to take them: large enough that its file system's journal is written rarely.
const STEP: u64 = 8 << 20;

/// A thread that syncs a file from time to time.
#[derive(Debug)]
pub(super) struct Writeback {
    grown: Sender<()>,
    thread: JoinHandle<io::Result<()>>,
    unwritten: u64,
}

impl Writeback {
    /// Of a file that is about to grow.
    ///
    /// # Errors
    /// The host has no room for a thread, or no descriptor is left.
    pub fn of(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (grown, told) = channel();
        let sync = move || told.iter().try_for_each(|()| file.sync_data());
        let thread = std::thread::Builder::new().name("writeback".to_owned()).spawn(sync)?;
        Ok(Writeback { grown, thread, unwritten: 0 })
    }

    /// The file has `bytes` more.
    pub fn grown(&mut self, bytes: u64) {
        self.unwritten += bytes;
        if self.unwritten >= STEP {
            self.unwritten = 0;
            // A thread that has met an error listens no longer, and tells it at the end.
            self.grown.send(()).unwrap_or_default();
        }
    }

    /// Waits for what the disk was asked to take.
    ///
    /// # Errors
    /// The disk's. Of an error that was met here nobody else is told: the kernel tells each handle of a file once.
    pub fn finish(self) -> io::Result<()> {
        drop(self.grown);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that syncs the file ended")))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn an_error_of_the_disk_is_told_at_the_end() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 4096], 0).unwrap();
        let mut writeback = Writeback::of(&file).unwrap();
        (0..3).for_each(|_| writeback.grown(STEP));
        writeback.finish().unwrap();
        // A pipe cannot be synced.
        let (_, writer) = io::pipe().unwrap();
        let mut writeback = Writeback::of(&File::from(std::os::fd::OwnedFd::from(writer))).unwrap();
        writeback.grown(STEP - 1);
        writeback.grown(1);
        writeback.finish().unwrap_err();
    }
}
