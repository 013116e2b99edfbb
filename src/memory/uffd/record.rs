//! Which pages of its memory a clone touches.
//!
//! The clone's memory is empty and userfaultfd tells of every page's first touch. Nothing else is exact: the kernel maps
//! neighbours of a page of a file with it, so that neither mincore() nor pagemap can tell what was read. Which pages were
//! written userfaultfd cannot tell: KVM brings in pages for a guest that waits as if it wrote them (asynchronous page faults).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use userfaultfd::{Event, Uffd};

use super::super::place::{Mapped, address_of, mapped, offset_of};
use super::door::{self, Door, UffdError};
use super::fill::{self, FillError, PAGE};
use crate::memory::{GuestMemory, MapError, anonymous};

/// Why a clone's pages cannot be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// No userfaultfd for this user.
    #[error(transparent)]
    Unavailable(#[from] UffdError),
    /// Guest memory could not be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The kernel does not watch this memory.
    #[error("Cannot watch the clone's memory")]
    Watch(#[source] userfaultfd::Error),
    /// A page could not be brought in.
    #[error("Cannot bring in the page at {offset:#x} of the memory file")]
    Page {
        /// Where it lies in the file.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread that serves the pages.
    #[error("Cannot serve the clone's pages")]
    Thread(#[source] io::Error),
}

/// What happened to a page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Touch {
    /// Nothing.
    #[default]
    None,
    /// It was read only.
    Read,
    /// It was written.
    Written,
}

/// Serves a clone's pages and notes which they are.
#[derive(Debug)]
pub struct Recorder {
    stop: Arc<OwnedFd>,
    failed: Arc<OwnedFd>,
    touched: Arc<Mutex<Vec<Touch>>>,
    /// Its server comes back with what came of it: once the userfaultfd is closed a missing page is one of zeros, which the guest must
    /// never see for one of the file's.
    thread: JoinHandle<(Server, Result<(), RecordError>)>,
}

/// The memory of a clone that is watched, `bytes` long with the content of `file`.
///
/// # Errors
/// The host has no room, or does not let this user watch.
pub fn recorded(file: File, bytes: u64) -> Result<(GuestMemory, Recorder), RecordError> {
    let memory = anonymous(bytes)?;
    let uffd = door::open(Door::Host)?;
    let mapped = mapped(&memory);
    for region in &mapped {
        let (start, len) = (region.addresses.start, region.addresses.len());
        uffd.register(start as *mut _, len).map_err(RecordError::Watch)?;
    }
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let event = || eventfd(0, flags).map(Arc::new).map_err(|e| RecordError::Thread(e.into()));
    let (stop, failed) = (event()?, event()?);
    let pages = usize::try_from(bytes / PAGE as u64).unwrap_or_default();
    let touched = Arc::new(Mutex::new(vec![Touch::None; pages]));
    let mut server = Server { uffd, stop: stop.clone(), file, mapped, touched: touched.clone() };
    let told = failed.clone();
    let serve = move || {
        let served = server.serve();
        if let Err(error) = &served {
            // Whoever waits for the guest otherwise waits until its event's time is over.
            rustix::io::write(&told, &1u64.to_ne_bytes()).unwrap_or_default();
            server.serve_zeros(error);
        }
        (server, served)
    };
    let thread =
        std::thread::Builder::new().name("recorder".to_owned()).spawn(serve).map_err(RecordError::Thread)?;
    Ok((memory, Recorder { stop, failed, touched, thread }))
}

impl Recorder {
    /// What was touched so far, a page each, in the memory file's order.
    pub fn so_far(&self) -> Vec<Touch> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Readable once a page could not be brought in. Whatever touches one from then on finds zeros, because nobody may wait for ever, not
    /// even whoever is to read this: what the clone says is worth nothing any more.
    pub fn failure(&self) -> BorrowedFd<'_> {
        self.failed.as_fd()
    }

    /// Whether a page could not be brought in.
    pub fn has_failed(&self) -> bool {
        let mut fds = [PollFd::new(&self.failed, PollFlags::IN)];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    /// Ends the watch. The machine must stand still for good: nobody brings in pages from now on.
    ///
    /// # Errors
    /// A page could not be brought in.
    pub fn finish(self) -> Result<(), RecordError> {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes()).map_err(|e| RecordError::Thread(e.into()))?;
        let ended = || RecordError::Thread(io::Error::other("the thread ended"));
        let (_server, served) = self.thread.join().map_err(|_| ended())?;
        served
    }
}

#[derive(Debug)]
struct Server {
    uffd: Uffd,
    stop: Arc<OwnedFd>,
    file: File,
    mapped: Vec<Mapped>,
    touched: Arc<Mutex<Vec<Touch>>>,
}

impl Server {
    fn serve(&mut self) -> Result<(), RecordError> {
        loop {
            match self.uffd.read_event().map_err(RecordError::Watch)? {
                Some(Event::Pagefault { addr, .. }) => self.fault(addr as usize)?,
                Some(_) => {}
                None if self.is_stopped().map_err(RecordError::Thread)? => return Ok(()),
                None => {}
            }
        }
    }

    /// Gives zeros to whoever waits for the page of `error`, and to whoever touches another, until the end.
    fn serve_zeros(&mut self, error: &RecordError) {
        if let RecordError::Page { offset, .. } = error
            && let Some((address, _)) = address_of(&self.mapped, *offset)
        {
            fill::zero(&self.uffd, address, PAGE).unwrap_or_default();
        }
        loop {
            match self.uffd.read_event() {
                Ok(Some(Event::Pagefault { addr, .. })) => {
                    fill::zero(&self.uffd, addr as usize & !(PAGE - 1), PAGE).unwrap_or_default();
                }
                Ok(Some(_)) => {}
                Ok(None) if self.is_stopped().is_ok_and(|stopped| !stopped) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Waits for a fault or the end.
    fn is_stopped(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.uffd, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {
                Ok(fds[0].revents().is_empty() && !fds[1].revents().is_empty())
            }
            Err(e) => Err(e.into()),
        }
    }

    fn fault(&mut self, address: usize) -> Result<(), RecordError> {
        let address = address & !(PAGE - 1);
        let Some(offset) = offset_of(&self.mapped, address) else { return Ok(()) };
        let page = usize::try_from(offset / PAGE as u64).unwrap_or(usize::MAX);
        if let Some(noted) = self.touched.lock().unwrap_or_else(PoisonError::into_inner).get_mut(page) {
            *noted = Touch::Read;
        }
        match fill::copy(&self.uffd, address, &self.content(offset)?) {
            Ok(()) | Err(FillError::Gone) => Ok(()),
            Err(FillError::Refused(source)) => Err(RecordError::Page { offset, source }),
        }
    }

    fn content(&self, offset: u64) -> Result<[u8; PAGE], RecordError> {
        let mut page = [0; PAGE];
        self.file.read_exact_at(&mut page, offset).map_err(|source| RecordError::Page { offset, source })?;
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Bytes, GuestAddress};

    #[test]
    fn a_page_that_cannot_be_brought_in_is_told_and_nobody_waits_for_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 << 20).unwrap();
        let cut = file.try_clone().unwrap();
        let (memory, recorder) = recorded(file, 2 << 20).unwrap();
        assert!(!recorder.has_failed());
        cut.set_len(4096).unwrap();
        let reader = memory.clone();
        let reader = std::thread::spawn(move || reader.read_obj::<u8>(GuestAddress(8192)).unwrap());
        let mut fds = [PollFd::from_borrowed_fd(recorder.failure(), PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        assert!(recorder.has_failed());
        assert_eq!(reader.join().unwrap(), 0);
        // As the thread that is told of it does.
        assert_eq!(memory.read_obj::<u8>(GuestAddress(1 << 20)).unwrap(), 0);
        assert!(matches!(recorder.finish(), Err(RecordError::Page { offset: 8192, .. })));
    }

    #[test]
    fn every_page_that_is_touched_is_noted_and_has_the_file_s_content() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 << 20).unwrap();
        file.write_all_at(&[7; 4096], 8 * 4096).unwrap();
        let (memory, recorder) = recorded(file, 2 << 20).unwrap();
        let at = |page: u64| GuestAddress(page * 4096 + 5);
        assert_eq!(memory.read_obj::<u8>(at(8)).unwrap(), 7);
        assert_eq!(memory.read_obj::<u8>(at(3)).unwrap(), 0);
        memory.write_obj(1u8, at(20)).unwrap();
        let touched = recorder.so_far();
        recorder.finish().unwrap();
        let noted =
            touched.iter().enumerate().filter(|(_, touch)| **touch != Touch::None).map(|(page, _)| page);
        assert_eq!(noted.collect::<Vec<_>>(), [3, 8, 20]);
    }
}
