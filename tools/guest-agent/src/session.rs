//! A session with the host, from the greeting on (docs/guest-protocol.md).

use std::path::Path;
use std::time::{Duration, Instant};

use guest_protocol::{
    CONTRACT_MAX, Cause, EventHead, Failure, Hello, Restore, ToGuest, ToHost, UNIQUE_MAX, VERSION,
};

use crate::contract::Contract;
use crate::control::unexpected;
use crate::hooks::Hooks;
use crate::io::{Io, Patience};
use crate::runner::{Guest, Runner, runner};
use crate::stop::Stop;

/// How long a host that was told of a failure may take to end the machine.
const FAREWELL: Duration = Duration::from_secs(5);

/// Greets the host. `vmgenid` tells whether the kernel reseeds by itself when the VM Generation ID changes.
///
/// # Errors
/// The control stream is broken.
pub fn greet(io: &mut Io, vmgenid: bool) -> Result<(), Stop> {
    let uname = rustix::system::uname();
    let kernel_release = uname.release().to_str().unwrap_or("unknown");
    let agent_version = env!("CARGO_PKG_VERSION");
    io.say(&ToHost::Hello(Hello { protocol: VERSION, agent_version, kernel_release, vmgenid }))?;
    io.flush()
}

/// Takes the contract, starts the function and answers events until something stops it.
pub fn run(io: &mut Io, guest: &mut dyn Guest) -> Stop {
    match contract(io).and_then(|contract| serve(io, guest, &contract)) {
        Ok(never) => match never {},
        Err(stop) => stop,
    }
}

/// Tells the host why the agent stops, and waits until it has heard.
pub fn say_farewell(io: &mut Io, stop: &Stop) {
    let Stop::Failed { cause, status, text } = stop else { return };
    let failure = Failure { cause: *cause, status: *status, text: text.as_bytes() };
    let told = io.say(&ToHost::Failed(failure)).and_then(|()| io.flush());
    let patience = Patience { hear: true, ..Patience::for_at_most(FAREWELL) };
    // The vsock sends in the background: a machine that powers off at once would take the message with it.
    while told.is_ok() && !patience.is_over() {
        let waited = io.wait(&[], None, patience);
        let heard = waited.and_then(|found| if found.host { io.skip() } else { Ok(()) });
        if heard.is_err() {
            return;
        }
    }
}

fn contract(io: &mut Io) -> Result<Contract, Stop> {
    let mut json = Vec::new();
    loop {
        let last = io.next_frame(|frame| match frame {
            ToGuest::Contract { last, json: part } => {
                json.extend_from_slice(part);
                Ok(last)
            }
            frame => Err(unexpected(&frame)),
        })?;
        if json.len() > CONTRACT_MAX {
            return Err(Stop::failed(Cause::Protocol, "The contract is longer than a contract may be"));
        }
        if last {
            let wrong =
                |error| Stop::failed(Cause::Protocol, format_args!("The contract cannot be read: {error}"));
            return serde_json::from_slice(&json).map_err(wrong);
        }
    }
}

/// No value: serving ends by an error alone.
enum Never {}

fn serve(io: &mut Io, guest: &mut dyn Guest, contract: &Contract) -> Result<Never, Stop> {
    let patience = Duration::from_millis(contract.ready_timeout_ms);
    let deadline = || Instant::now().checked_add(patience).unwrap_or_else(Instant::now);
    let mut runner = runner(contract, guest)?;
    runner.start(io, deadline())?;
    io.say(&ToHost::Ready)?;
    loop {
        match next_order(io, &mut *runner)? {
            Order::Event(head) => {
                let exit_code = runner.event(io, &head)?;
                io.say(&ToHost::Done { exit_code })?;
                io.flush()?;
                runner.after_event(io)?;
            }
            Order::Settle => {
                guest.goes_first(false);
                guest.settle().map_err(|text| Stop::failed(Cause::Guest, text))?;
                io.say(&ToHost::Settled)?;
            }
            Order::Freeze => {
                guest.goes_first(false);
                runner.before_freeze(io, deadline())?;
                let hooks = Hooks::find(Path::new(guest.hooks_dir()))?;
                guest.zero_free_memory().map_err(|text| Stop::failed(Cause::Guest, text))?;
                freeze(io, guest, &mut *runner, hooks)?;
            }
            Order::Nothing => {}
        }
    }
}

/// What the host wants.
enum Order {
    Event(EventHead),
    Settle,
    Freeze,
    Nothing,
}

fn next_order(io: &mut Io, runner: &mut dyn Runner) -> Result<Order, Stop> {
    loop {
        let (order, len) = match io.inbox.frame()? {
            Some((ToGuest::Event { head, .. }, len)) => {
                io.inbox.begin_event(&head, len)?;
                return Ok(Order::Event(head));
            }
            Some((ToGuest::Settle, len)) => (Order::Settle, len),
            Some((ToGuest::Freeze, len)) => (Order::Freeze, len),
            // It crossed the end of the answer that it is about.
            Some((ToGuest::Finish, len)) => (Order::Nothing, len),
            Some((frame, _)) => return Err(unexpected(&frame)),
            None => {
                runner.idle(io)?;
                io.hear()?;
                continue;
            }
        };
        io.inbox.consume(len);
        return Ok(order);
    }
}

/// Is frozen within: the clones go on from the read that waits for the restore message. Nothing else is accepted there, so
/// that a clone which was told nothing does nothing.
fn freeze(io: &mut Io, guest: &mut dyn Guest, runner: &mut dyn Runner, mut hooks: Hooks) -> Result<(), Stop> {
    // A clone has to become unique and be on time before a busy function goes on, and an answer to leave before its process has ended.
    // What takes long, of which the kernel complains of one that goes first, is behind it, or ahead of the next freeze.
    guest.goes_first(true);
    let memory = guest.memory();
    io.say(&ToHost::Frozen { mem_total: memory.total, mem_free: memory.free })?;
    io.flush()?;
    let generation = io.next_frame(|frame| match frame {
        ToGuest::Restore(restore) => apply(&restore, guest, runner, &mut hooks).map(|()| restore.generation),
        frame => Err(unexpected(&frame)),
    })?;
    let deadline = Instant::now() + UNIQUE_MAX;
    hooks.run(io, deadline)?;
    runner.after_restore(io, deadline)?;
    io.say(&ToHost::Acknowledge { generation })?;
    io.flush()?;
    runner.resume(io)?;
    // The event is on its way: the host sends it as soon as it has the acknowledgement.
    io.hear_at_once()
}

fn apply(
    restore: &Restore<'_>,
    guest: &mut dyn Guest,
    runner: &mut dyn Runner,
    hooks: &mut Hooks,
) -> Result<(), Stop> {
    guest.make_unique(restore).map_err(|text| Stop::failed(Cause::Restore, text))?;
    hooks.prepare(restore);
    runner.take_env(guest, restore.entries)
}
