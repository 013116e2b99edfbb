//! What the interfaces have in common.

use std::time::Instant;

use guest_protocol::{Cause, EventHead, Restore, RestoreEntries};

use crate::contract::{Contract, Interface};
use crate::exec::Exec;
use crate::http::Http;
use crate::io::Io;
use crate::lambda::Lambda;
use crate::process::environ;
use crate::stop::Stop;

/// A function, and how events reach it.
pub trait Runner {
    /// Starts the function and waits until it is ready for events.
    ///
    /// # Errors
    /// It does not start, or is not ready by `deadline`.
    fn start(&mut self, io: &mut Io, deadline: Instant) -> Result<(), Stop>;

    /// Waits until the host says something.
    ///
    /// # Errors
    /// The function has ended, or the control stream has.
    fn idle(&mut self, io: &mut Io) -> Result<(), Stop>;

    /// Answers the event whose bytes [`Io::inbox`] holds; returns its exit code.
    ///
    /// # Errors
    /// The function cannot answer, or the control stream is broken.
    fn event(&mut self, io: &mut Io, head: &EventHead) -> Result<i32, Stop>;

    /// What nobody waits for, after the host was told that the event is over.
    ///
    /// # Errors
    /// The function cannot go on, or the control stream is broken.
    fn after_event(&mut self, io: &mut Io) -> Result<(), Stop>;

    /// Waits until the function is where it may be frozen.
    ///
    /// # Errors
    /// It does not get there by `deadline`.
    fn before_freeze(&mut self, io: &mut Io, deadline: Instant) -> Result<(), Stop>;

    /// Takes the environment of a restore message, before the acknowledgement.
    ///
    /// # Errors
    /// It cannot be passed on.
    fn take_env(&mut self, guest: &dyn Guest, entries: RestoreEntries<'_>) -> Result<(), Stop>;

    /// Lets the function become unique by its own means, before the acknowledgement.
    ///
    /// # Errors
    /// It cannot, or did not by `deadline`.
    fn after_restore(&mut self, _io: &mut Io, _deadline: Instant) -> Result<(), Stop> {
        Ok(())
    }

    /// Lets the function go on after a restore, once it is acknowledged.
    ///
    /// # Errors
    /// It cannot go on, or the control stream is broken.
    fn resume(&mut self, io: &mut Io) -> Result<(), Stop>;
}

/// The runner for a contract. Nothing is started yet.
///
/// # Errors
/// The contract is incomplete, or names what is not there.
pub fn runner(contract: &Contract, guest: &dyn Guest) -> Result<Box<dyn Runner>, Stop> {
    Ok(match contract.interface {
        Interface::Exec => Box::new(Exec::new(contract)?),
        Interface::Http => Box::new(Http::new(contract)?),
        Interface::Lambda => Box::new(Lambda::new(contract, guest)?),
    })
}

/// Stores the environment of a restore message for a function that already runs.
///
/// # Errors
/// It cannot be stored.
pub fn store_env(guest: &dyn Guest, entries: RestoreEntries<'_>, owner: u32) -> Result<(), Stop> {
    if !entries.has_variables() {
        return Ok(());
    }
    guest.store_env(&environ(entries), owner).map_err(|text| Stop::failed(Cause::Restore, text))
}

/// Memory of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryCount {
    /// MemTotal, bytes.
    pub total: u64,
    /// MemFree, bytes.
    pub free: u64,
}

/// The machine around the function. Tests have one that leaves their machine alone.
pub trait Guest {
    /// The port of the Runtime API server; 0 for any.
    fn runtime_api_port(&self) -> u16;

    /// Stores the environment of a restore message where a running function finds it, for the user id `owner` alone.
    ///
    /// # Errors
    /// It cannot be written; a sentence.
    fn store_env(&self, environ: &[u8], owner: u32) -> Result<(), String>;

    /// Where the programs are that a clone runs before it acknowledges its restore message.
    fn hooks_dir(&self) -> &'static str;

    /// Makes this clone's kernel unlike any other's: clock, entropy, names.
    ///
    /// # Errors
    /// One of them cannot be set; a sentence.
    fn make_unique(&mut self, restore: &Restore<'_>) -> Result<(), String>;

    /// Drops clean caches.
    ///
    /// # Errors
    /// The kernel refuses; a sentence.
    fn settle(&mut self) -> Result<(), String>;

    /// Makes free memory zero.
    ///
    /// # Errors
    /// The kernel refuses; a sentence.
    fn zero_free_memory(&mut self) -> Result<(), String>;

    /// Memory as it is.
    fn memory(&self) -> MemoryCount;

    /// Has the scheduler run this process before every other of the guest, or like any. A kernel that cannot makes answers later.
    fn goes_first(&mut self, first: bool);
}
