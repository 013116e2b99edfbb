//! The Runtime API server on the guest's loopback.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use guest_protocol::{Cause, ChunkedError, TEXT_MAX};
use rustix::event::PollFlags;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, accept_with, bind, getsockname, listen, socket_with, sockopt,
};

use super::connection::{Connection, Phase};
use super::request::{Refusal, Request, Route};
use crate::control::retry;
use crate::io::{Io, Patience, WANTED_MAX};
use crate::process::Process;
use crate::stop::Stop;

/// Connections at a time; others wait in the listener's queue.
const CONNECTIONS_MAX: usize = WANTED_MAX - 1;

const ACCEPTED: (&str, &str) = ("202 Accepted", r#"{"status":"OK"}"#);
const WRONG_ID: (&str, &str) =
    ("400 Bad Request", r#"{"errorMessage":"Invalid request ID","errorType":"InvalidRequestID"}"#);
const UNKNOWN: (&str, &str) = ("404 Not Found", r#"{"errorMessage":"No such path","errorType":"NotFound"}"#);
const MALFORMED: (&str, &str) =
    ("400 Bad Request", r#"{"errorMessage":"Not an HTTP request","errorType":"InvalidRequest"}"#);
const TOO_LONG: (&str, &str) = (
    "431 Request Header Fields Too Large",
    r#"{"errorMessage":"The headers are too long","errorType":"InvalidRequest"}"#,
);

/// The server and its connections.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    connections: [Option<Connection>; CONNECTIONS_MAX],
    /// The invocation that is not answered yet.
    current: Option<[u8; 16]>,
    /// Exit code of the answer that the host was not told of yet.
    answer: Option<i32>,
    failure: Option<(Cause, String)>,
}

/// A connection that an event goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client(usize);

/// A body that goes wrong, for the connection or for the session.
enum BodyError {
    Chunked,
    Stop(Stop),
}

impl From<ChunkedError> for BodyError {
    fn from(_: ChunkedError) -> Self {
        BodyError::Chunked
    }
}

impl Server {
    /// Listens on `port` of the loopback, or on any when it is 0; returns which.
    ///
    /// # Errors
    /// The port is taken.
    pub fn listen(port: u16) -> io::Result<(Self, u16)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&listener, true)?;
        bind(&listener, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
        listen(&listener, 64)?;
        let address = SocketAddrV4::try_from(getsockname(&listener)?)?;
        let connections = std::array::from_fn(|_| None);
        Ok((Server { listener, connections, current: None, answer: None, failure: None }, address.port()))
    }

    /// Waits once and serves what has come; tells whether the host has said something.
    pub fn step(
        &mut self,
        io: &mut Io,
        process: Option<&mut Process>,
        patience: Patience,
    ) -> Result<bool, Stop> {
        // Connections first: what the function wrote before its answer is then seen with it.
        let slots =
            self.connections.iter().enumerate().filter_map(|(slot, c)| Some((slot, c.as_ref()?.wanted())));
        let (mut order, mut wanted) =
            ([0; WANTED_MAX], [(self.listener.as_fd(), PollFlags::empty()); WANTED_MAX]);
        let mut used = 0;
        for (to, (slot, want)) in order.iter_mut().zip(&mut wanted).zip(slots) {
            (*to.0, *to.1) = (slot, want);
            used += 1;
        }
        if used < CONNECTIONS_MAX
            && let (Some(slot), Some(want)) = (order.get_mut(used), wanted.get_mut(used))
        {
            (*slot, *want) = (CONNECTIONS_MAX, (self.listener.as_fd(), PollFlags::IN));
            used += 1;
        }
        let found = io.wait(wanted.get(..used).unwrap_or_default(), process, patience)?;
        for (bit, slot) in order.into_iter().take(used).enumerate() {
            if found.wanted & 1 << bit != 0 {
                self.serve(slot, io)?;
            }
        }
        Ok(found.host)
    }

    /// Serves the connection in `slot`, or whoever wants to connect.
    fn serve(&mut self, slot: usize, io: &mut Io) -> Result<(), Stop> {
        let Some(place) = self.connections.get_mut(slot) else {
            self.accept();
            return Ok(());
        };
        let Some(mut connection) = place.take() else { return Ok(()) };
        let open = connection.flush() && connection.read();
        if !open {
            return self.hung_up(&connection);
        }
        self.attend(&mut connection, io)?;
        if connection.flush()
            && let Some(place) = self.connections.get_mut(slot)
        {
            *place = Some(connection);
        }
        Ok(())
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        if let Some(place) = self.connections.iter_mut().find(|place| place.is_none())
            && let Ok(socket) = retry(|| accept_with(&self.listener, flags))
        {
            *place = Some(Connection::new(socket));
        }
    }

    /// A client may hang up between requests and come again, but not within the answer that the host is being given.
    fn hung_up(&mut self, connection: &Connection) -> Result<(), Stop> {
        match &connection.phase {
            Phase::Body { route: Route::Response(id) | Route::Error(id), .. }
                if self.current == Some(*id) =>
            {
                Err(Stop::failed(Cause::Event, "The runtime client hung up within its answer"))
            }
            _ => Ok(()),
        }
    }

    /// Does everything that the connection's input allows.
    fn attend(&mut self, connection: &mut Connection, io: &mut Io) -> Result<(), Stop> {
        loop {
            let moved = match connection.phase {
                Phase::Head => self.attend_head(connection),
                Phase::Body { .. } => self.attend_body(connection, io)?,
                Phase::AwaitsNext | Phase::AwaitsRestore | Phase::Answered => false,
            };
            if !moved {
                return Ok(());
            }
        }
    }

    fn attend_head(&mut self, connection: &mut Connection) -> bool {
        match connection.take_request() {
            Ok(None) => return false,
            Ok(Some(request)) => begin(connection, request),
            Err(refusal) => {
                let (status, body) = if refusal == Refusal::TooLong { TOO_LONG } else { MALFORMED };
                connection.close_after_reply();
                connection.reply(status, body);
                return false;
            }
        }
        true
    }

    fn attend_body(&mut self, connection: &mut Connection, io: &mut Io) -> Result<bool, Stop> {
        let Phase::Body { route, .. } = connection.phase else { return Ok(false) };
        let current = self.current;
        let taken = connection.take_body(|piece, kept| match route {
            Route::Response(id) | Route::Error(id) if current == Some(id) => {
                io.answer(piece).map_err(BodyError::Stop)
            }
            _ => {
                let room = TEXT_MAX.saturating_sub(kept.len()).min(piece.len());
                kept.extend_from_slice(piece.get(..room).unwrap_or_default());
                Ok(())
            }
        });
        match taken {
            Ok(false) => Ok(false),
            Ok(true) => Ok(self.finish(connection)),
            Err(BodyError::Stop(stop)) => Err(stop),
            Err(BodyError::Chunked) => {
                self.hung_up(connection)?;
                connection.close_after_reply();
                connection.reply(MALFORMED.0, MALFORMED.1);
                Ok(false)
            }
        }
    }

    /// The request has come whole. Tells whether the connection's next may be looked at.
    fn finish(&mut self, connection: &mut Connection) -> bool {
        let Phase::Body { route, body, kept } = std::mem::replace(&mut connection.phase, Phase::Head) else {
            return false;
        };
        let failed = body.ended_in_error();
        let (status, text) = match route {
            Route::Next => {
                connection.phase = Phase::AwaitsNext;
                return false;
            }
            Route::RestoreNext => {
                connection.phase = Phase::AwaitsRestore;
                return false;
            }
            Route::Response(id) | Route::Error(id) if self.current == Some(id) => {
                self.current = None;
                self.answer = Some(i32::from(failed || matches!(route, Route::Error(_))));
                connection.phase = Phase::Answered;
                return false;
            }
            Route::InitError => self.fail(Cause::Init, &kept),
            Route::RestoreError => self.fail(Cause::AfterRestore, &kept),
            Route::Response(_) | Route::Error(_) | Route::WrongId => WRONG_ID,
            Route::Unknown => UNKNOWN,
        };
        connection.reply(status, text);
        true
    }

    fn fail(&mut self, cause: Cause, text: &[u8]) -> (&'static str, &'static str) {
        self.failure.get_or_insert_with(|| (cause, String::from_utf8_lossy(text).into_owned()));
        ACCEPTED
    }

    /// What the client said when it gave up.
    pub fn failure(&self) -> Option<Stop> {
        self.failure.as_ref().map(|(cause, text)| Stop::failed(*cause, text))
    }

    fn find(&self, wanted: impl Fn(&Phase) -> bool) -> Option<usize> {
        self.connections.iter().position(|place| place.as_ref().is_some_and(|c| wanted(&c.phase)))
    }

    /// Whether the client waits for an invocation.
    pub fn next_waits(&self) -> bool {
        self.find(|phase| matches!(phase, Phase::AwaitsNext)).is_some()
    }

    /// Whether the client waits for an invocation or for the restore.
    pub fn client_waits(&self) -> bool {
        self.find(|phase| matches!(phase, Phase::AwaitsNext | Phase::AwaitsRestore)).is_some()
    }

    /// How many clients wait for an invocation.
    pub fn waiting_for_next(&self) -> usize {
        let waits = |place: &&Option<Connection>| {
            place.as_ref().is_some_and(|connection| matches!(connection.phase, Phase::AwaitsNext))
        };
        self.connections.iter().filter(waits).count()
    }

    /// Lets all clients go on that wait for the restore; tells how many.
    pub fn release_restore(&mut self) -> usize {
        let mut released = 0;
        while self.reply_where(|phase| matches!(phase, Phase::AwaitsRestore), ("200 OK", "")) {
            released += 1;
        }
        released
    }

    /// Hangs up on every client, those that have connected and were not noticed yet too.
    pub fn forget_clients(&mut self) {
        self.connections = std::array::from_fn(|_| None);
        while retry(|| accept_with(&self.listener, SocketFlags::CLOEXEC)).is_ok() {}
        (self.current, self.answer) = (None, None);
    }

    /// Tells the client that its answer has arrived.
    pub fn accept_answer(&mut self) {
        self.reply_where(|phase| matches!(phase, Phase::Answered), ACCEPTED);
    }

    fn reply_where(&mut self, wanted: impl Fn(&Phase) -> bool, (status, body): (&str, &str)) -> bool {
        let Some(slot) = self.find(wanted) else { return false };
        if let Some(connection) = self.connection(Client(slot)) {
            connection.reply(status, body);
            self.flush(Client(slot));
        }
        true
    }

    /// Takes the waiting client for the invocation `id`.
    pub fn begin_delivery(&mut self, id: [u8; 16]) -> Client {
        let client = Client(self.find(|phase| matches!(phase, Phase::AwaitsNext)).unwrap_or(CONNECTIONS_MAX));
        if let Some(connection) = self.connection(client) {
            connection.phase = Phase::Head;
        }
        (self.current, self.answer) = (Some(id), None);
        client
    }

    fn connection(&mut self, client: Client) -> Option<&mut Connection> {
        self.connections.get_mut(client.0).and_then(Option::as_mut)
    }

    /// Adds bytes for the client. Of one that has hung up the answer will be missing, which the host's clock ends.
    pub fn send(&mut self, client: Client, bytes: &[u8]) {
        if let Some(connection) = self.connection(client) {
            connection.send(bytes);
        }
    }

    /// Sends what the client takes.
    pub fn flush(&mut self, client: Client) {
        if self.connection(client).is_some_and(|connection| !connection.flush())
            && let Some(place) = self.connections.get_mut(client.0)
        {
            *place = None;
        }
    }

    /// Whether bytes for the client wait.
    pub fn is_sending(&mut self, client: Client) -> bool {
        self.connection(client).is_some_and(|connection| connection.is_sending())
    }

    /// The exit code of the answer, once.
    pub fn take_answer(&mut self) -> Option<i32> {
        self.answer.take()
    }
}

fn begin(connection: &mut Connection, request: Request) {
    if request.expects_continue && !request.body.is_complete() {
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n");
    }
    connection.phase = Phase::Body { route: request.route, body: request.body, kept: Vec::new() };
}
