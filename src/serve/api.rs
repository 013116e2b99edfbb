//! The HTTP API: which request does what (docs/openapi.yaml).

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::event::PollFlags;
use serde_json::{Value, json};
use snapshot_format::manifest::Interface;

use crate::config::EVENT_MAX;
use crate::failure::{Failure, Kind};
use crate::function::Notice;
use crate::vm::{Request, identity};

use super::budget::Held;
use super::daemon::{Connection, Daemon};
use super::frame::{Done, Frame, MEDIA_TYPE};
use super::http::{self, Head, RequestError};
use super::invoke::{Call, Caller, Refusal, invoke};
use super::job::Identity;
use super::metrics;
use super::registry::{Function, Settings};

/// Longest body of any other request, bytes.
const BODY_MAX: u64 = 64 << 10;
/// Longest answer that is sent as one, bytes; in frames it may be longer.
const WHOLE_MAX: usize = 64 << 20;
/// How much of a log an answer's header brings, bytes.
const LOG_MAX: usize = 4 << 10;
/// When to come again, seconds.
const RETRY_AFTER: &str = "1";

/// An answer that is sent as a whole.
struct Response {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Response {
    fn json(status: u16, value: &Value) -> Self {
        let headers = vec![("Content-Type", "application/json".to_owned())];
        Response { status, headers, body: format!("{value}\n").into_bytes() }
    }

    fn text(status: u16, kind: &str, body: String) -> Self {
        Response { status, headers: vec![("Content-Type", kind.to_owned())], body: body.into_bytes() }
    }

    /// A caller's own mistake.
    fn refusal(status: u16, why: &str) -> Self {
        let value = json!({ "error": { "kind": "request", "message": why } });
        Response::json(status, &value).with("Ember-Error", "request")
    }

    fn failure(failure: &Failure) -> Self {
        let (status, whose) = match failure.kind() {
            Kind::Usage => (400, "request"),
            Kind::Timeout => (504, "platform"),
            Kind::HostCannot | Kind::Internal => (503, "platform"),
            Kind::BadBundle | Kind::GuestFailed | Kind::NotUnique => (502, "platform"),
        };
        let response = Response::blamed(status, whose, failure);
        if status == 503 { response.with("Retry-After", RETRY_AFTER) } else { response }
    }

    /// A failure that is somebody's in particular.
    fn blamed(status: u16, whose: &str, failure: &Failure) -> Self {
        Response::json(status, &failure.to_json()).with("Ember-Error", whose)
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn write(&self, to: &mut impl Write, keep_alive: bool) -> io::Result<()> {
        http::respond(to, self.status, &self.headers, &self.body, keep_alive)
    }
}

/// Tells somebody who may not use the daemon.
///
/// # Errors
/// He does not listen.
pub fn refuse(to: &mut impl Write) -> io::Result<()> {
    Response::refusal(403, "This user may not use this daemon").write(to, false)
}

/// Serves one connection to its end.
pub fn serve(daemon: &Daemon, connection: &Connection) {
    let mut from = BufReader::new(connection);
    while let Some(keep_alive) = serve_one(daemon, connection, &mut from) {
        if !keep_alive {
            return;
        }
    }
}

/// Answers what is not read to its end, and ends the connection.
fn turn_away(connection: &Connection, refusal: &Response) -> Option<bool> {
    let mut to = connection;
    refusal.write(&mut to, false).ok()?;
    connection.hang_up();
    None
}

/// Serves one request; whether the connection goes on, or `None` at its end.
fn serve_one(daemon: &Daemon, connection: &Connection, from: &mut BufReader<&Connection>) -> Option<bool> {
    let mut to = connection;
    // It may be silent before a request; once that has begun, its head has to come.
    if from.fill_buf().ok()?.is_empty() {
        return None;
    }
    let head = match connection.in_time(|| Head::request(from)).ok()? {
        Ok(head) => head?,
        Err(RequestError::Bad { why, status }) => {
            return turn_away(connection, &Response::refusal(status, &why));
        }
        Err(RequestError::Io(_)) => return None,
    };
    if !daemon.allows(connection, head.header("authorization")) {
        // Nor is a body read for him.
        let refusal = Response::refusal(401, "The request does not bring the word that --tcp-token asks for");
        return turn_away(connection, &refusal.with("WWW-Authenticate", "Bearer"));
    }
    let _answering = daemon.answering();
    let keep_alive = head.keeps_alive() && !daemon.is_draining();
    let invoked = invoked(&head);
    let max = if invoked.is_some() { EVENT_MAX } else { BODY_MAX };
    let length = match head.body_length(max) {
        Ok(length) => length,
        Err(RequestError::Bad { why, status }) => {
            return turn_away(connection, &Response::refusal(status, &why));
        }
        Err(RequestError::Io(_)) => return None,
    };
    let event = match invoked.map(|name| daemon.registry.get(name).ok_or(name)) {
        Some(Ok(function)) => Some(function),
        // Nor is an event read that nobody takes.
        Some(Err(name)) => return turn_away(connection, &unknown(name)),
        None => None,
    };
    let mut held = daemon.budget.hold();
    if let Err(failure) = held.grow(length) {
        return turn_away(connection, &Response::failure(&failure));
    }
    if head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        to.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let body = head.body(from, max).ok()?;
    let written = match event {
        Some(function) => answer_event(daemon, connection, &head, &function, body, held, keep_alive),
        None => {
            let mut response = answer(daemon, &head, &body);
            if head.method == "HEAD" {
                // Nobody reads a body after it: it would be taken for the beginning of the next answer.
                response.body.clear();
            }
            response.write(&mut to, keep_alive)
        }
    };
    written.ok().map(|()| keep_alive)
}

/// The function that a request is an event for.
fn invoked(head: &Head) -> Option<&str> {
    let name = head.path.strip_prefix("/functions/")?.strip_suffix("/invoke")?;
    (head.method == "POST").then_some(name)
}

fn answer(daemon: &Daemon, head: &Head, body: &[u8]) -> Response {
    let name = head.path.strip_prefix("/functions/");
    match (head.method.as_str(), head.path.as_str(), name) {
        ("GET", "/health", _) => health(daemon),
        ("GET", "/metrics", _) => {
            let functions = daemon.registry.all();
            let text = metrics::text(&functions, &daemon.pool.figures());
            Response::text(200, "text/plain; version=0.0.4", text)
        }
        ("GET", "/functions", _) => {
            let functions = daemon.registry.all();
            let all: Vec<Value> = functions.iter().map(|function| described(function)).collect();
            Response::json(200, &json!({ "functions": all }))
        }
        (_, _, Some(name)) if name.ends_with("/invoke") => no_such_method("POST"),
        ("GET", _, Some(name)) => match daemon.registry.get(name) {
            Some(function) => Response::json(200, &described(&function)),
            None => unknown(name),
        },
        ("PUT", _, Some(name)) => register(daemon, name, body),
        ("DELETE", _, Some(name)) if daemon.remove(name) => {
            Response { status: 204, headers: Vec::new(), body: Vec::new() }
        }
        ("DELETE", _, Some(name)) => unknown(name),
        (_, "/health" | "/metrics" | "/functions", _) => no_such_method("GET"),
        (_, _, Some(_)) => no_such_method("GET, PUT, DELETE"),
        _ => Response::refusal(404, "There is nothing at this path"),
    }
}

fn no_such_method(allowed: &str) -> Response {
    Response::refusal(405, "This path has no such method").with("Allow", allowed)
}

fn unknown(name: &str) -> Response {
    Response::refusal(404, &format!("There is no function {name}"))
}

fn health(daemon: &Daemon) -> Response {
    let figures = daemon.pool.figures();
    let state = match (daemon.pool.is_alive(), daemon.is_draining(), &figures.refusal) {
        (false, ..) => "broken",
        (true, true, _) => "draining",
        (true, false, Some(_)) => "unable",
        (true, false, None) => "ok",
    };
    let ready: usize = figures.shells.iter().map(|count| count.ready).sum();
    let value =
        json!({ "status": state, "why": figures.refusal, "shells_ready": ready, "jail": figures.jail });
    Response::json(if state == "ok" { 200 } else { 503 }, &value)
}

fn described(function: &Function) -> Value {
    let load = function.gate.load();
    json!({
        "name": function.name,
        "interface": function.bundle.manifest().function.interface,
        "memory_bytes": function.shape.memory_bytes,
        "vcpus": function.shape.vcpus,
        "settings": function.settings,
        "running": load.running,
        "waiting": load.waiting,
    })
}

fn register(daemon: &Daemon, name: &str, body: &[u8]) -> Response {
    let settings: Settings = match serde_json::from_slice(body) {
        Ok(settings) => settings,
        Err(e) => return Response::refusal(400, &format!("The settings are not understood: {e}")),
    };
    match daemon.register(name, settings) {
        Ok(true) => Response::json(201, &json!({ "name": name })),
        Ok(false) => Response::json(200, &json!({ "name": name })),
        // Whatever is wrong with the bundle, it is what this request named.
        Err(failure) if failure.kind() == Kind::BadBundle => Response::blamed(400, "request", &failure),
        Err(failure) => Response::failure(&failure),
    }
}

fn answer_event(
    daemon: &Daemon,
    connection: &Connection,
    head: &Head,
    function: &Function,
    body: Vec<u8>,
    held: Held<'_>,
    keep_alive: bool,
) -> io::Result<()> {
    let mut to = connection;
    let call = match call(head, body) {
        Ok(call) => call,
        Err(why) => return Response::refusal(400, why).write(&mut to, keep_alive),
    };
    let interface = function.bundle.manifest().function.interface;
    if head.header("accept") == Some(MEDIA_TYPE) {
        let mut caller = Streamed { connection, interface, begun: false, keep_alive };
        let outcome = invoke(&daemon.pool, function, call, &mut caller);
        return caller.end(outcome);
    }
    let mut caller = Whole { connection, interface, held, answer: Vec::new(), log: Vec::new(), head: None };
    let outcome = invoke(&daemon.pool, function, call, &mut caller);
    let response = match outcome {
        Ok(done) => caller.response(&done),
        Err(Refusal::Abandoned) => return Err(io::ErrorKind::BrokenPipe.into()),
        Err(refusal) => refused(&refusal),
    };
    // What `caller` holds for it is held until it has been read.
    response.write(&mut to, keep_alive)
}

fn refused(refusal: &Refusal) -> Response {
    let overloaded = |status, why: &str| {
        let value = json!({ "error": { "kind": "overloaded", "message": why } });
        Response::json(status, &value).with("Ember-Error", "platform").with("Retry-After", RETRY_AFTER)
    };
    match refusal {
        Refusal::Full => overloaded(429, "As many events of this function wait as may"),
        Refusal::Late => overloaded(503, "The event's turn did not come in time"),
        Refusal::Failed(failure) => Response::failure(failure),
        Refusal::Abandoned => Response::refusal(400, "The caller has gone"),
    }
}

/// What the headers ask for.
fn call(head: &Head, body: Vec<u8>) -> Result<Call, &'static str> {
    let headers = head.all("ember-header").map(Request::header);
    let env =
        head.all("ember-env").map(|line| line.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned())));
    let request = Request {
        method: head.header("ember-method").map(str::to_owned),
        path: head.header("ember-path").map(str::to_owned),
        headers: headers.collect::<Option<_>>().ok_or("Ember-Header is NAME: VALUE")?,
    };
    let machine_id = match head.header("ember-machine-id") {
        Some(text) => Some(
            identity::parse_machine_id(text)
                .ok_or("Ember-Machine-Id has 32 hexadecimal digits, not all zero")?,
        ),
        None => None,
    };
    let limit = match head.header("ember-timeout-ms").map(str::parse) {
        Some(Ok(ms)) => Some(Duration::from_millis(ms)),
        Some(Err(_)) => return Err("Ember-Timeout-Ms is a number"),
        None => None,
    };
    let identity = Identity {
        host_name: head.header("ember-hostname").map(str::to_owned),
        machine_id,
        env: env.collect::<Option<_>>().ok_or("Ember-Env is NAME=VALUE")?,
    };
    Ok(Call { request, identity, limit, body })
}

/// A caller who gets the answer as a whole: whether the function failed is known at its end only, and the status says it.
struct Whole<'a> {
    connection: &'a Connection,
    interface: Interface,
    /// What event and answer take of the daemon's memory.
    held: Held<'a>,
    answer: Vec<u8>,
    log: Vec<u8>,
    head: Option<(u16, Vec<(String, String)>)>,
}

impl Whole<'_> {
    fn response(&mut self, done: &Done) -> Response {
        let status = if done.exit_code == 0 { 200 } else { 500 };
        let mut response = Response { status, headers: Vec::new(), body: std::mem::take(&mut self.answer) };
        response = response.with("Ember-Exit-Code", &done.exit_code.to_string());
        if done.exit_code != 0 {
            response = response.with("Ember-Error", "function");
        }
        let kind = match &self.head {
            Some((status, headers)) => {
                response = response.with("Ember-Status", &status.to_string());
                let kind = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
                kind.map_or("application/octet-stream", |(_, value)| value)
            }
            None => "application/octet-stream",
        };
        response = response.with("Content-Type", kind);
        if let Some(us) = done.restore_us {
            response = response.with("Ember-Restore-Us", &format!("{us:.0}"));
        }
        if !self.log.is_empty() {
            response = response.with("Ember-Log", &BASE64_STANDARD.encode(&self.log));
        }
        response
    }
}

impl Caller for Whole<'_> {
    fn take(&mut self, piece: Notice, _: Instant) -> Result<(), Refusal> {
        let is_answer = piece.is_answer(self.interface);
        match piece {
            Notice::Output { bytes, .. } | Notice::Answer { bytes } if is_answer => {
                self.held.grow(bytes.len() as u64).map_err(Refusal::Failed)?;
                self.answer.extend(bytes);
            }
            Notice::Output { bytes, .. } | Notice::Log { bytes } => {
                self.log.extend(bytes);
                let surplus = self.log.len().saturating_sub(LOG_MAX);
                self.log.drain(..surplus);
            }
            Notice::Head { status, headers } => self.head = Some((status, headers)),
            _ => {}
        }
        if self.answer.len() > WHOLE_MAX {
            let text = "The answer is longer than 64 MiB; ask for it in frames";
            return Err(Refusal::Failed(Failure::text(Kind::GuestFailed, text)));
        }
        Ok(())
    }

    fn goes(&self) -> (BorrowedFd<'_>, PollFlags) {
        self.connection.goes()
    }
}

/// A caller who gets frames as they come.
struct Streamed<'a> {
    connection: &'a Connection,
    interface: Interface,
    begun: bool,
    keep_alive: bool,
}

impl Streamed<'_> {
    fn frame(&mut self, frame: &Frame, deadline: Option<Instant>) -> io::Result<()> {
        let mut bytes = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            let interface = self.interface.name().to_owned();
            let headers = [("Content-Type", MEDIA_TYPE.to_owned()), ("Ember-Interface", interface)];
            http::begin_chunks(&mut bytes, 200, &headers, self.keep_alive)?;
        }
        http::chunk(&mut bytes, &frame.to_bytes())?;
        if matches!(frame, Frame::Done(_) | Frame::Failed(_)) {
            http::end_chunks(&mut bytes)?;
        }
        self.connection.write_until(&bytes, deadline)
    }

    fn end(mut self, outcome: Result<Done, Refusal>) -> io::Result<()> {
        let mut to = self.connection;
        match outcome {
            Ok(done) => self.frame(&Frame::Done(done), None),
            Err(Refusal::Abandoned) => Err(io::ErrorKind::BrokenPipe.into()),
            // Once pieces are on their way, the status has been said.
            Err(Refusal::Failed(failure)) if self.begun => self.frame(&Frame::Failed(failure), None),
            Err(refusal) => refused(&refusal).write(&mut to, self.keep_alive),
        }
    }
}

impl Caller for Streamed<'_> {
    fn take(&mut self, piece: Notice, deadline: Instant) -> Result<(), Refusal> {
        self.frame(&Frame::Piece(piece), Some(deadline)).map_err(|_| Refusal::Abandoned)
    }

    fn goes(&self) -> (BorrowedFd<'_>, PollFlags) {
        self.connection.goes()
    }
}
