//! The `lambda` interface: a client of the AWS Lambda Runtime API, unchanged.
//!
//! The warm point is where the client waits: in `restore/next` when it makes that request (SnapStart), else in its first
//! `invocation/next`. An event while it waits in `restore/next` lets it go on first, which is how warm-up events reach it.
//!
//! The client's own hooks run when `restore/next` is answered: in a clone before the acknowledgement.

mod connection;
mod environment;
mod invocation;
mod request;
mod server;

use std::time::{Duration, Instant};

use guest_protocol::{Cause, EventHead, RestoreEntries};

use crate::contract::Contract;
use crate::io::{Io, Patience};
use crate::process::{Input, Prepared, Process};
use crate::runner::{Guest, Runner, store_env};
use crate::stop::Stop;

use invocation::Invocation;
use server::Server;

/// Between two looks at the clock while the client is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// The `lambda` interface.
#[derive(Debug)]
pub struct Lambda {
    command: Prepared,
    process: Option<Process>,
    server: Server,
    invocation: Invocation,
    /// Whether an event has let the client go on from `restore/next`.
    was_restored: bool,
}

impl Lambda {
    /// # Errors
    /// The command is not there, the contract names no handler, or the server cannot listen.
    pub fn new(contract: &Contract, guest: &dyn Guest) -> Result<Self, Stop> {
        let Some(lambda) = &contract.lambda else {
            return Err(Stop::failed(Cause::Protocol, "The contract of a lambda function names no handler"));
        };
        let (server, port) = Server::listen(guest.runtime_api_port()).map_err(|error| {
            Stop::failed(Cause::Guest, format_args!("Cannot serve the Runtime API: {error}"))
        })?;
        let env = environment::defaults(contract, lambda, guest.memory().total);
        let region = contract.env.get("AWS_REGION").map_or(environment::REGION, String::as_str);
        let contract = environment::with_address(contract, port);
        Ok(Lambda {
            command: Prepared::new(&contract, env, Input::Nothing)?,
            process: None,
            server,
            invocation: Invocation::of(region, &lambda.function_name),
            was_restored: false,
        })
    }

    /// Waits once and serves what has come; tells whether the host has said something.
    fn step(&mut self, io: &mut Io, patience: Patience) -> Result<bool, Stop> {
        let host = self.server.step(io, self.process.as_mut(), patience)?;
        let Some(failure) = self.server.failure() else {
            return self.process.as_mut().map_or(Ok(()), |process| process.must_live(io)).map(|()| host);
        };
        // What it wrote about it came before.
        self.process.as_mut().map_or(Ok(()), |process| process.drain(io))?;
        Err(failure)
    }

    /// Waits until the client asks for something that it may be frozen in.
    fn await_client(&mut self, io: &mut Io, deadline: Instant) -> Result<(), Stop> {
        while !self.server.client_waits() {
            if Instant::now() >= deadline {
                return Err(Stop::failed(
                    Cause::NotReady,
                    "The runtime client asked neither for restore/next nor for invocation/next in time",
                ));
            }
            self.step(io, Patience::for_at_most(LOOK))?;
        }
        Ok(())
    }

    /// Gives the client its invocation: head and first bytes in one write, then the rest as it arrives.
    fn deliver(&mut self, io: &mut Io, head: &EventHead) -> Result<(), Stop> {
        while !self.server.next_waits() {
            self.was_restored |= self.server.release_restore() > 0;
            self.step(io, Patience::FUNCTION)?;
        }
        let client = self.server.begin_delivery(head.request_id);
        self.server.send(client, self.invocation.head(head));
        loop {
            if io.inbox.next_piece()? {
                let len = io.inbox.piece().len();
                self.server.send(client, io.inbox.piece());
                io.inbox.take(len);
            }
            self.server.flush(client);
            while self.server.is_sending(client) {
                self.step(io, Patience::FUNCTION)?;
            }
            if io.inbox.left() == 0 {
                return Ok(());
            }
            if !io.inbox.next_piece()? {
                io.hear()?;
            }
        }
    }
}

impl Runner for Lambda {
    fn start(&mut self, io: &mut Io, deadline: Instant) -> Result<(), Stop> {
        self.process = Some(self.command.start()?);
        self.await_client(io, deadline)
    }

    fn idle(&mut self, io: &mut Io) -> Result<(), Stop> {
        while !self.step(io, Patience::HOST)? {}
        Ok(())
    }

    fn event(&mut self, io: &mut Io, head: &EventHead) -> Result<i32, Stop> {
        self.deliver(io, head)?;
        loop {
            if let Some(exit_code) = self.server.take_answer() {
                return Ok(exit_code);
            }
            self.step(io, Patience::FUNCTION)?;
        }
    }

    fn after_event(&mut self, _io: &mut Io) -> Result<(), Stop> {
        self.server.accept_answer();
        Ok(())
    }

    fn before_freeze(&mut self, io: &mut Io, deadline: Instant) -> Result<(), Stop> {
        if std::mem::take(&mut self.was_restored) {
            // A client that a warm-up event let go has run its hooks and will not run them again. Clones get one that has not.
            if let Some(process) = self.process.take() {
                process.kill_and_wait(io)?;
            }
            self.server.forget_clients();
            self.process = Some(self.command.start()?);
        }
        self.await_client(io, deadline)
    }

    fn take_env(&mut self, guest: &dyn Guest, entries: RestoreEntries<'_>) -> Result<(), Stop> {
        store_env(guest, entries, self.command.uid())
    }

    /// A client runs its hooks between `restore/next` and its next `invocation/next`. Of several each has its own.
    fn after_restore(&mut self, io: &mut Io, deadline: Instant) -> Result<(), Stop> {
        let mut awaited = self.server.waiting_for_next();
        loop {
            awaited += self.server.release_restore();
            if self.server.waiting_for_next() >= awaited.max(1) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Stop::failed(
                    Cause::AfterRestore,
                    "The runtime client did not ask for invocation/next in time",
                ));
            }
            self.step(io, Patience { until: Some(deadline), ..Patience::FUNCTION })?;
        }
    }

    fn resume(&mut self, _io: &mut Io) -> Result<(), Stop> {
        Ok(())
    }
}
