//! The `http` interface: a program that listens on a TCP port. The host writes the requests and reads the responses; the agent
//! carries bytes, so that between restore and answer it does nothing else.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use guest_protocol::{Cause, EventHead, RestoreEntries, ToGuest, ToHost};
use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

use crate::contract::Contract;
use crate::control::{retry, unexpected};
use crate::io::{Io, Patience};
use crate::process::{Input, Prepared, Process};
use crate::runner::{Guest, Runner, store_env};
use crate::stop::Stop;

/// Between two attempts to reach a function that does not listen yet.
const RETRY: Duration = Duration::from_millis(2);
/// How long one readiness request may take.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How long the rest of the answer to it may take: some answers never end.
const REST: Duration = Duration::from_secs(1);
/// Length of the beginning of an answer up to the end of its status: `HTTP/1.1 200`.
const STATUS_LEN: usize = 12;
/// How long an event waits for a function that was ready before and now refuses connections.
const REFUSED: Duration = Duration::from_secs(1);
/// How much later than its connections a function may end.
const LAST_SIGN: Duration = Duration::from_millis(100);

/// The `http` interface.
#[derive(Debug)]
pub struct Http {
    command: Prepared,
    process: Option<Process>,
    address: SocketAddrV4,
    readiness: Vec<u8>,
    /// A connection that was opened before the freeze, so that the function has accepted it already.
    opened: Option<OwnedFd>,
}

impl Http {
    /// # Errors
    /// The command is not there, or the contract names no port.
    pub fn new(contract: &Contract) -> Result<Self, Stop> {
        let Some(http) = &contract.http else {
            return Err(Stop::failed(Cause::Protocol, "The contract of an http function names no port"));
        };
        let path = &http.ready_path;
        if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Stop::failed(
                Cause::Start,
                format_args!("{path:?} is no path for the readiness request"),
            ));
        }
        let port = http.port;
        let readiness = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
        Ok(Http {
            command: Prepared::new(contract, BTreeMap::new(), Input::Nothing)?,
            process: None,
            address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
            readiness: readiness.into_bytes(),
            opened: None,
        })
    }

    fn wait(&mut self, io: &mut Io, patience: Patience) -> Result<bool, Stop> {
        let found = io.wait(&[], self.process.as_mut(), patience)?;
        self.must_live(io)?;
        Ok(found.host)
    }

    fn must_live(&mut self, io: &mut Io) -> Result<(), Stop> {
        self.process.as_mut().map_or(Ok(()), |process| process.must_live(io))
    }

    /// Whether the readiness request is answered with a status below 500. The answer is taken to its end: a function whose client
    /// hangs up in the middle complains, or counts it as an error.
    fn is_ready(&mut self, io: &mut Io) -> Result<bool, Stop> {
        let Ok(connection) = open(self.address) else { return Ok(false) };
        if retry(|| send(&connection, &self.readiness, SendFlags::NOSIGNAL)) != Ok(self.readiness.len()) {
            return Ok(false);
        }
        let mut line = Vec::new();
        let mut patience = Patience::for_at_most(ATTEMPT);
        loop {
            let wanted = [(connection.as_fd(), PollFlags::IN)];
            let found = io.wait(&wanted, self.process.as_mut(), patience)?;
            self.must_live(io)?;
            let mut bytes = [0; 4096];
            match recv(&connection, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((0, _)) => break,
                Ok((n, _)) if line.len() < STATUS_LEN => {
                    line.extend(bytes.iter().take(n.min(STATUS_LEN - line.len())));
                    patience = Patience::for_at_most(REST);
                }
                Ok(_) => {}
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => break,
            }
            if found.wanted == 0 && patience.is_over() {
                break;
            }
        }
        Ok(line.len() == STATUS_LEN && is_below_500(&line))
    }

    /// A connection that ends without an answer is often the first sign of a function that has ended.
    fn hung_up(&mut self, io: &mut Io) -> Result<i32, Stop> {
        let patience = Patience::for_at_most(LAST_SIGN);
        while !patience.is_over() {
            self.wait(io, patience)?;
        }
        Ok(0)
    }

    /// The connection for an event: the one opened before the freeze while the function keeps it, else a new one.
    fn connection(&mut self, io: &mut Io) -> Result<OwnedFd, Stop> {
        if let Some(connection) = self.opened.take().filter(is_open) {
            return Ok(connection);
        }
        let patience = Patience::for_at_most(REFUSED);
        loop {
            match open(self.address) {
                Ok(connection) => return Ok(connection),
                Err(Errno::CONNREFUSED) if !patience.is_over() => {
                    self.wait(io, Patience::for_at_most(RETRY))?
                }
                Err(error) => {
                    let text = format!("Cannot connect to {}: {error}", self.address);
                    return Err(Stop::failed(Cause::Event, text));
                }
            };
        }
    }
}

impl Runner for Http {
    fn start(&mut self, io: &mut Io, deadline: Instant) -> Result<(), Stop> {
        self.process = Some(self.command.start()?);
        while !self.is_ready(io)? {
            if Instant::now() >= deadline {
                let text =
                    format!("No answer below 500 to the readiness request at {} in time", self.address);
                return Err(Stop::failed(Cause::NotReady, text));
            }
            self.wait(io, Patience::for_at_most(RETRY))?;
        }
        Ok(())
    }

    fn idle(&mut self, io: &mut Io) -> Result<(), Stop> {
        while !self.wait(io, Patience::HOST)? {}
        Ok(())
    }

    fn event(&mut self, io: &mut Io, _head: &EventHead) -> Result<i32, Stop> {
        let connection = self.connection(io)?;
        let mut exchange = Exchange { connection, takes: true, answers: false };
        loop {
            exchange.send(io)?;
            let (wanted, hear) = exchange.wanted(io);
            let found = io.wait(&[wanted], self.process.as_mut(), Patience { hear, ..Patience::FUNCTION })?;
            if found.host {
                io.hear()?;
                if exchange.is_finished(io)? {
                    return Ok(0);
                }
            }
            if found.wanted != 0 && !exchange.receive(io)? {
                return if exchange.answers { Ok(0) } else { self.hung_up(io) };
            }
            self.must_live(io)?;
        }
    }

    fn after_event(&mut self, _io: &mut Io) -> Result<(), Stop> {
        Ok(())
    }

    fn before_freeze(&mut self, io: &mut Io, _deadline: Instant) -> Result<(), Stop> {
        self.opened = Some(self.connection(io)?);
        Ok(())
    }

    fn take_env(&mut self, guest: &dyn Guest, entries: RestoreEntries<'_>) -> Result<(), Stop> {
        store_env(guest, entries, self.command.uid())
    }

    fn resume(&mut self, _io: &mut Io) -> Result<(), Stop> {
        Ok(())
    }
}

/// A request on its way in and its response on the way out.
struct Exchange {
    connection: OwnedFd,
    /// Whether the function still reads the request.
    takes: bool,
    /// Whether something of the response has come.
    answers: bool,
}

impl Exchange {
    /// Sends what there is of the request, as much as the connection takes.
    fn send(&mut self, io: &mut Io) -> Result<(), Stop> {
        while self.takes && io.inbox.next_piece()? {
            match retry(|| send(&self.connection, io.inbox.piece(), SendFlags::NOSIGNAL)) {
                Ok(n) => io.inbox.take(n),
                Err(Errno::AGAIN) => break,
                // It may have answered without the rest (RFC 9110, section 15.5.14).
                Err(_) => self.takes = false,
            }
        }
        Ok(())
    }

    fn wanted<'a>(&'a self, io: &Io) -> (crate::io::Wanted<'a>, bool) {
        let full = self.takes && !io.inbox.piece().is_empty();
        let flags = if full { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        ((self.connection.as_fd(), flags), !full)
    }

    /// Passes on what has come of the response; false at its end.
    fn receive(&mut self, io: &mut Io) -> Result<bool, Stop> {
        Ok(match io.relay(ToHost::ANSWER_KIND, &self.connection)? {
            Ok(0) => false,
            Ok(_) => {
                self.answers = true;
                true
            }
            Err(Errno::AGAIN) => true,
            // Reset: the host sees whether the response was complete.
            Err(_) => false,
        })
    }

    /// Whether the host has said that it has the whole response.
    fn is_finished(&self, io: &mut Io) -> Result<bool, Stop> {
        if self.takes && io.inbox.left() > 0 {
            return Ok(false);
        }
        match io.inbox.frame()? {
            None => Ok(false),
            Some((ToGuest::Finish, len)) => {
                io.inbox.consume(len);
                Ok(true)
            }
            Some((frame, _)) => Err(unexpected(&frame)),
        }
    }
}

fn open(address: SocketAddrV4) -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Over the loopback a connection is made or refused at once, however busy the function is.
    retry(|| connect(&socket, &address))?;
    rustix::fs::fcntl_setfl(&socket, OFlags::NONBLOCK)?;
    Ok(socket)
}

/// Whether the other side has neither closed the connection nor said anything.
fn is_open(connection: &OwnedFd) -> bool {
    let mut byte = [0];
    recv(connection, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT).err() == Some(Errno::AGAIN)
}

/// Whether a status line has a status from 100 to 499.
fn is_below_500(line: &[u8]) -> bool {
    let rest = line.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(1..3));
    matches!(rest, Some([b' ', b'1'..=b'4']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_below_500_means_ready() {
        for (line, ready) in [
            (&b"HTTP/1.1 200"[..], true),
            (b"HTTP/1.0 404", true),
            (b"HTTP/1.1 503", false),
            (b"HTTP/1.1", false),
            (b"SSH-2.0-OpenSSH", false),
        ] {
            assert_eq!(is_below_500(line), ready, "{}", line.escape_ascii());
        }
    }
}
