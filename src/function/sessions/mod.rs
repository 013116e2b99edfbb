//! Whole conversations with the real agent, which runs beside the test and leaves the machine alone.

mod programs;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use snapshot_format::manifest::{FunctionContract, HttpContract};
use tempfile::TempDir;

use super::*;

/// The agent's binary, built once.
fn agent() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let build = ["build", "--quiet", "--package", "guest-agent"];
        let status = Command::new(env!("CARGO")).args(build).current_dir(env!("CARGO_MANIFEST_DIR")).status();
        assert!(status.unwrap().success(), "the agent does not build");
        // This test is target/PROFILE/deps/NAME.
        let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        [deps.join("../ember-agent"), deps.join("../../debug/ember-agent")]
            .into_iter()
            .find(|path| path.exists())
            .expect("cargo puts binaries there")
    })
}

/// The guest's end of the tests.
struct Guest {
    child: Child,
    stream: UnixStream,
    conversation: Conversation,
    _dir: TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// All that came before the end of an event.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    answer: Vec<u8>,
    status: u16,
    exit_code: i32,
}

impl Guest {
    fn start(contract: &FunctionContract) -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(agent());
        command.arg("--attached").stdin(Stdio::from(OwnedFd::from(theirs))).current_dir(dir.path());
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let conversation = Conversation::cold(contract).unwrap();
        Guest { child, stream, conversation, _dir: dir }
    }

    fn warm(contract: &FunctionContract) -> Self {
        let mut guest = Guest::start(contract);
        loop {
            match guest.next().unwrap() {
                Notice::Warm => return guest,
                Notice::Output { .. } => {}
                notice => panic!("{notice:?}"),
            }
        }
    }

    /// As a clone: the conversation of the bake is forgotten, the agent is where it was.
    fn restored(contract: &FunctionContract, env: &[(&str, &str)]) -> Self {
        let mut guest = Guest::warm(contract);
        guest.conversation.settle().unwrap();
        assert_eq!(guest.next().unwrap(), Notice::Settled);
        guest.freeze();
        let protocol = guest.conversation.protocol().unwrap();
        guest.conversation = Conversation::restored(contract, protocol).unwrap();
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let message = RestoreMessage {
            generation: [9; 16],
            entropy: [1; 64],
            host_name: "clone".to_owned(),
            machine_id: Some([2; 16]),
            env,
        };
        guest.conversation.restore(&message, 1, None).unwrap();
        assert_eq!(guest.next_but_output(), Notice::Acknowledged);
        guest
    }

    fn freeze(&mut self) {
        self.conversation.prepare_freeze().unwrap();
        assert!(matches!(self.next_but_output(), Notice::ReadyToFreeze { mem_free: 1.., .. }));
    }

    fn next_but_output(&mut self) -> Notice {
        loop {
            match self.next().unwrap() {
                Notice::Output { .. } => {}
                notice => return notice,
            }
        }
    }

    fn next(&mut self) -> Result<Notice, SessionError> {
        let mut bytes = vec![0; 100_000];
        loop {
            if let Some(notice) = self.conversation.next_notice() {
                return Ok(notice);
            }
            if let Ok(n @ 1..) = self.stream.write(self.conversation.output()) {
                self.conversation.consume_output(n);
            }
            match self.stream.read(&mut bytes) {
                Ok(n @ 1..) => self.conversation.receive(&bytes[..n])?,
                Ok(_) => panic!("the agent hung up"),
                Err(_) => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    fn ask(&mut self, event: &Event) -> Answer {
        self.conversation.event(event).unwrap();
        let mut answer = Answer::default();
        loop {
            match self.next().unwrap() {
                Notice::Output { stream: Stream::Stdout, bytes } => answer.stdout.extend(bytes),
                Notice::Output { stream: Stream::Stderr, bytes } => answer.stderr.extend(bytes),
                Notice::Answer { bytes } => answer.answer.extend(bytes),
                Notice::Head { status, .. } => answer.status = status,
                Notice::Done { exit_code } => return Answer { exit_code, ..answer },
                notice => panic!("{notice:?}"),
            }
        }
    }

    fn failure(&mut self) -> SessionError {
        loop {
            if let Err(error) = self.next() {
                return error;
            }
        }
    }
}

fn contract(interface: Interface, command: &[&str]) -> FunctionContract {
    FunctionContract {
        interface,
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
        workdir: "/".to_owned(),
        user: None,
        resident: false,
        http: None,
        lambda: None,
        ready_timeout_ms: 20_000,
        event_timeout_ms: 20_000,
    }
}

fn stdin(bytes: &[u8]) -> Event {
    Event::Exec { stdin: bytes.to_vec() }
}

/// As many bytes as an event may have, none like its neighbours.
fn greatest() -> Vec<u8> {
    let byte = |n: u32| n.to_le_bytes().into_iter().fold(0, |a, b| a ^ b);
    (0..32 << 20).map(byte).collect()
}

fn get(path: &str) -> Event {
    Event::Http(HttpRequest { method: "GET".into(), path: path.into(), headers: vec![], body: vec![] })
}

/// The test binary as a function.
fn program(interface: Interface, name: &str) -> FunctionContract {
    let binary = std::env::current_exe().unwrap();
    let mut command = vec![binary.to_str().unwrap()];
    command.extend(programs::ARGUMENTS);
    let mut contract = contract(interface, &command);
    contract.env.insert(programs::PROGRAM.to_owned(), name.to_owned());
    contract
}

/// A program that is to listen on a free port of this machine.
fn http(name: &str) -> FunctionContract {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut contract = program(Interface::Http, name);
    contract.env.insert(programs::PORT.to_owned(), port.to_string());
    contract.http = Some(HttpContract { port, ready_path: "/ready".to_owned() });
    contract
}

#[test]
fn an_exec_event_goes_through_bake_and_restore() {
    for resident in [false, true] {
        let mut contract = contract(Interface::Exec, &["sh", "-c", "cat; echo $A $LATE >&2; exit 5"]);
        contract.resident = resident;
        for (env, stderr) in [(&[][..], "b\n"), (&[("LATE", "c d")], "b c d\n")] {
            let mut guest = Guest::restored(&contract, env);
            let expected = Answer {
                stdout: b"hello".to_vec(),
                stderr: stderr.into(),
                exit_code: 5,
                ..Answer::default()
            };
            assert_eq!(guest.ask(&stdin(b"hello")), expected);
            assert_eq!(guest.ask(&stdin(b"hello")), expected);
        }
    }
}

#[test]
fn an_event_and_an_answer_of_32_mib_pass() {
    let bytes = greatest();
    for resident in [false, true] {
        let mut contract = contract(Interface::Exec, &["cat"]);
        contract.resident = resident;
        let mut guest = Guest::restored(&contract, &[]);
        assert!(guest.ask(&stdin(&bytes)).stdout == bytes);
        assert_eq!(guest.ask(&stdin(b"small")).stdout, b"small");
    }
}

#[test]
fn a_function_that_cannot_start_is_told_by_name() {
    let mut guest = Guest::start(&contract(Interface::Exec, &["/no/such"]));
    let error = guest.failure().to_string();
    assert!(error.starts_with("The function could not be started: /no/such is not in the root"), "{error}");
}

#[test]
fn http_events_are_answered_by_an_ordinary_server() {
    let mut guest = Guest::restored(&http("server"), &[]);
    let Answer { answer, status, exit_code, .. } = guest.ask(&get("/a?b=c"));
    assert_eq!((&answer[..], status, exit_code), (&b"/a?b=c"[..], 200, 0));
    let Answer { answer, status, exit_code, .. } = guest.ask(&get("/none"));
    assert_eq!((&answer[..], status, exit_code), (&b"no"[..], 404, 1));
    assert_eq!(guest.ask(&get("/chunks")).answer, b"abc");
    assert_eq!(
        guest.ask(&get("/hold")).answer,
        b"held",
        "a server that keeps the connection is not waited for"
    );
    assert_eq!(guest.ask(&get("/after")).answer, b"/after");
    guest.conversation.event(&get("/crash")).unwrap();
    let error = guest.failure();
    assert!(
        error.to_string().starts_with("The function ended with exit code 9 while it answered"),
        "{error}"
    );
}

#[test]
fn an_http_body_and_answer_of_32_mib_pass() {
    let mut guest = Guest::restored(&http("server"), &[]);
    let body = greatest();
    let request = HttpRequest { method: "POST".into(), path: "/echo".into(), headers: vec![], body };
    let event = Event::Http(request.clone());
    assert!(guest.ask(&event).answer == request.body);
}

#[test]
fn a_server_that_never_listens_is_reported_with_its_output() {
    let mut contract = http("sleeper");
    contract.ready_timeout_ms = 1000;
    let error = Guest::start(&contract).failure().to_string();
    assert!(
        error.contains("did not get ready")
            && error.contains("; its last output:\n")
            && error.ends_with("busy"),
        "{error}"
    );
}

fn lambda(snap_start: bool) -> FunctionContract {
    let mut contract = program(Interface::Lambda, "client");
    let (handler, function_name) = ("app.handler".to_owned(), "hello".to_owned());
    contract.lambda = Some(snapshot_format::manifest::LambdaContract { handler, function_name, snap_start });
    contract
}

fn invocation(payload: &[u8]) -> Event {
    Event::Lambda(LambdaEvent { payload: payload.to_vec(), request_id: [3; 16], deadline_unix_ms: 77 })
}

#[test]
fn lambda_events_are_answered_by_a_client() {
    for snap_start in [false, true] {
        let mut guest = Guest::restored(&lambda(snap_start), &[]);
        let Answer { stdout, answer, exit_code, .. } = guest.ask(&invocation(b"[1]"));
        assert_eq!((&stdout[..], &answer[..], exit_code), (&b"event 3\n"[..], &b"[1]"[..], 0));
        let Answer { answer, exit_code, .. } = guest.ask(&invocation(b"fail"));
        assert_eq!((&answer[..], exit_code), (&b"fail"[..], 1));
    }
}

#[test]
fn a_lambda_event_and_answer_of_32_mib_pass() {
    let mut guest = Guest::restored(&lambda(false), &[]);
    let payload = greatest();
    assert!(guest.ask(&invocation(&payload)).answer == payload);
}

#[test]
fn a_snapstart_client_that_was_warmed_up_is_started_again() {
    let mut guest = Guest::warm(&lambda(true));
    guest.conversation.warm_up(&invocation(b"[]")).unwrap();
    while !matches!(guest.next().unwrap(), Notice::Done { exit_code: 0 }) {}
    guest.freeze();
}
