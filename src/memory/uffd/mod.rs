//! Guest memory whose pages a thread of this process brings in, each chunk checked before the guest can see it.
//!
//! Content is registered with userfaultfd for missing pages; zero extents of 64 KiB and more are left to the kernel. Nothing here
//! ever takes a page back, and the descriptor is never closed: a page that is missing and not served would be found zero.

mod bring;
mod door;
mod fill;
mod pager;
mod plan;
mod record;
#[cfg(test)]
mod tests;
mod window;

pub use door::{Door, UffdError, lazy_paging};
pub use pager::{Pager, PagerError, PagerStatistics};
pub use record::{RecordError, Recorder, Touch, recorded};

use std::io;

use userfaultfd::Uffd;

use super::mapping::in_small_pages;
use super::place::{Mapped, address_of, mapped};
use super::source::ChunkSource;
use super::{GuestMemory, MapError, anonymous, layout};
use bring::Served;
use pager::{Server, Shared, Stop};

/// Shortest zero extent that is left to the kernel, bytes.
const HOLE_MIN: u64 = 64 << 10;

/// Why memory cannot be brought in by a pager.
#[derive(Debug, thiserror::Error)]
pub enum PagedError {
    /// There is no userfaultfd.
    #[error(transparent)]
    Uffd(#[from] UffdError),
    /// The memory could not be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The kernel does not serve faults of this memory.
    #[error("Cannot register guest memory with userfaultfd")]
    Register(#[source] io::Error),
    /// The pager could not be started.
    #[error("Cannot start the pager's thread")]
    Thread(#[source] io::Error),
}

/// What is done, on the pager's thread, when it cannot go on. It must end the process: whoever touches a page that is missing
/// waits for ever.
pub type OnFailure = Box<dyn FnOnce(PagerError) + Send>;

/// What the pager's thread does first: it confines itself. Where that fails it serves nothing.
pub type OnStart = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// Memory of a guest of `bytes` bytes whose content comes from `source` as it is touched.
///
/// # Errors
/// See [`PagedError`].
pub fn paged(
    source: Box<dyn ChunkSource>,
    bytes: u64,
    door: Door,
    first: OnStart,
    failed: OnFailure,
) -> Result<(GuestMemory, Pager), PagedError> {
    let uffd = door::open(door)?;
    let memory = anonymous(bytes)?;
    in_small_pages(&memory);
    let mapped = mapped(&memory);
    let registered = plan::registered(&source.content(), &layout::regions(bytes), HOLE_MIN);
    for range in &registered {
        register(&uffd, &mapped, range)?;
    }
    let shared = Shared::new(bytes).map_err(PagedError::Thread)?;
    let served = Served::new(uffd, source, mapped, registered, shared.clone());
    start(Server::new(served, shared.clone()), first, failed).map_err(PagedError::Thread)?;
    Ok((memory, Pager(shared)))
}

fn register(uffd: &Uffd, mapped: &[Mapped], range: &std::ops::Range<u64>) -> Result<(), PagedError> {
    let no_memory = || PagedError::Register(io::ErrorKind::InvalidInput.into());
    let (start, _) = address_of(mapped, range.start).ok_or_else(no_memory)?;
    let len = usize::try_from(range.end - range.start).map_err(|_| no_memory())?;
    uffd.register(start as *mut _, len).map(drop).map_err(|e| PagedError::Register(io::Error::other(e)))
}

fn start(mut server: Server, first: OnStart, failed: OnFailure) -> io::Result<()> {
    let serve = move || {
        match first().map(|()| server.serve()).map_err(PagerError::Confine) {
            Err(error) | Ok(Stop::Failed(error)) => failed(error),
            Ok(_) => {}
        }
        // To drop the server would close its descriptor, and whoever waits for a page would go on with zeros.
        loop {
            std::thread::park();
        }
    };
    std::thread::Builder::new().name("pager".to_owned()).spawn(serve).map(drop)
}
