//! One connection of the client, which it keeps for many requests.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::request::{Body, HEAD_MAX, Refusal, Request, Route};
use crate::control::retry;

/// Room for one read, bytes.
const READ: usize = 32 << 10;

/// Where a connection is between two requests.
#[derive(Debug)]
pub enum Phase {
    /// Its next request has not come whole.
    Head,
    /// Its request's body is on the way.
    Body { route: Route, body: Body, kept: Vec<u8> },
    /// It waits for an invocation.
    AwaitsNext,
    /// It waits for the restore.
    AwaitsRestore,
    /// It has answered the event and is told so once the host has been.
    Answered,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    pub phase: Phase,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    close: bool,
}

impl Connection {
    pub fn new(socket: OwnedFd) -> Self {
        let (input, output) = (Vec::with_capacity(READ), Vec::with_capacity(READ));
        Connection { socket, phase: Phase::Head, input, output, sent: 0, close: false }
    }

    pub fn wanted(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = if self.is_sending() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        (self.socket.as_fd(), flags)
    }

    /// Reads once; false when the client has hung up.
    pub fn read(&mut self) -> bool {
        // A client that waits for an answer has no more to say than its next request.
        if self.input.len() > HEAD_MAX + READ {
            return false;
        }
        self.input.reserve(READ / 2);
        match retry(|| rustix::io::read(&self.socket, spare_capacity(&mut self.input))) {
            Ok(n) => n > 0,
            Err(error) => error == Errno::AGAIN,
        }
    }

    /// Takes the next request off the input, when it is whole.
    pub fn take_request(&mut self) -> Result<Option<Request>, Refusal> {
        let Some((request, len)) = Request::parse(&self.input)? else { return Ok(None) };
        self.input.drain(..len);
        self.close = request.close;
        Ok(Some(request))
    }

    /// Gives `take` what has come of the request's body; tells whether that was the last of it.
    pub fn take_body<E: From<guest_protocol::ChunkedError>>(
        &mut self,
        mut take: impl FnMut(&[u8], &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<bool, E> {
        let Phase::Body { body, kept, .. } = &mut self.phase else { return Ok(false) };
        let mut input = self.input.as_slice();
        while let Some(piece) = body.next(&mut input)? {
            take(piece, kept)?;
        }
        let used = self.input.len() - input.len();
        let complete = body.is_complete();
        self.input.drain(..used);
        Ok(complete)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Answers its request and looks forward to the next.
    pub fn reply(&mut self, status: &str, body: &str) {
        let close = if self.close { "Connection: close\r\n" } else { "" };
        self.send(b"HTTP/1.1 ");
        self.send(status.as_bytes());
        self.send(b"\r\nContent-Type: application/json\r\n");
        self.send(close.as_bytes());
        self.send(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        self.send(body.as_bytes());
        self.phase = Phase::Head;
    }

    /// Has the connection closed once everything is sent.
    pub fn close_after_reply(&mut self) {
        self.close = true;
    }

    pub fn is_sending(&self) -> bool {
        self.sent < self.output.len()
    }

    /// Sends what the client takes; false when it has hung up, or nothing is to be said to it any more.
    pub fn flush(&mut self) -> bool {
        while let Some(rest) = self.output.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match retry(|| send(&self.socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)) {
                Ok(n) => self.sent += n,
                Err(error) => return error == Errno::AGAIN,
            }
        }
        self.output.clear();
        self.sent = 0;
        !(self.close && matches!(self.phase, Phase::Head))
    }
}
