//! Getting a vCPU out of guest mode: a real-time signal to its thread, whose handler sets `immediate_exit`.
//!
//! The handler runs on the vCPU's own thread, so the flag is set whether the signal arrives inside KVM_RUN (which
//! then returns) or just before it (which then does not enter): no kick is lost.

use std::cell::Cell;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

thread_local! {
    /// `immediate_exit` of the vCPU that runs on this thread. Const-initialised, so that the handler allocates nothing.
    static TARGET: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// Why a vCPU could not be kicked.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {what} the signal that interrupts a vCPU")]
pub struct KickError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// The `immediate_exit` byte of one vCPU.
#[derive(Debug)]
pub struct KickTarget(*mut u8);

// SAFETY: the byte is only written, volatile, by the handler of the thread that armed it.
unsafe impl Send for KickTarget {}

impl KickTarget {
    pub(super) fn new(immediate_exit: *mut u8) -> Self {
        KickTarget(immediate_exit)
    }

    /// Makes kicks of the calling thread set this vCPU's flag until [`disarm`](Self::disarm).
    pub fn arm(&self) {
        TARGET.with(|target| target.set(self.0));
    }

    /// Makes kicks of the calling thread do nothing.
    pub fn disarm() {
        TARGET.with(|target| target.set(std::ptr::null_mut()));
    }
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_signal: libc::c_int, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let target = TARGET.with(Cell::get);
    if !target.is_null() {
        // SAFETY: armed by the vCPU loop of this very thread, which disarms before its `kvm_run` is unmapped.
        unsafe { target.write_volatile(1) };
    }
}

/// Installs the handler, once per process, before the first vCPU thread starts.
///
/// # Errors
/// The kernel refused the handler.
pub fn install_kick_handler() -> Result<(), KickError> {
    vmm_sys_util::signal::register_signal_handler(kick_signal(), on_kick)
        .map_err(|e| KickError { what: "install", source: io::Error::from_raw_os_error(e.errno()) })
}

/// Interrupts the vCPU that runs on `thread`.
///
/// # Errors
/// The thread could not be signalled.
pub fn kick<T>(thread: &JoinHandle<T>) -> Result<(), KickError> {
    // SAFETY: a JoinHandle that is neither joined nor dropped keeps its pthread_t valid.
    let errno = unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
    match errno {
        0 => Ok(()),
        // The thread has ended on its own: there is nothing left to interrupt.
        libc::ESRCH => Ok(()),
        errno => Err(KickError { what: "send", source: io::Error::from_raw_os_error(errno) }),
    }
}
