//! The agent as a process beside the test, spoken to frame by frame.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may fail loudly too"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest_protocol::{
    Cause, Decoder, EventHead, Restore, RestoreEntries, RestoreEntry, Stream, ToGuest, ToHost, UNIQUE_MAX,
};
use tempfile::TempDir;

/// What the agent said, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Hello(u16),
    Ready,
    Settled,
    Frozen,
    Acknowledge([u8; 16]),
    Output(Stream, Vec<u8>),
    Log(Vec<u8>),
    Answer(Vec<u8>),
    Done(i32),
    Failed(Cause, i32, String),
}

struct Agent {
    child: Child,
    stream: UnixStream,
    decoder: Decoder,
    dir: TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

impl Agent {
    fn start(contract: &str) -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ember-agent"));
        command.arg("--attached").stdin(Stdio::from(OwnedFd::from(theirs))).current_dir(dir.path());
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        drop(command);
        let mut agent = Agent { child, stream, decoder: Decoder::new(), dir };
        assert_eq!(agent.hear(), Said::Hello(2));
        agent.say(&[ToGuest::Contract { last: true, json: contract.as_bytes() }]);
        agent
    }

    fn ready(contract: &str) -> Self {
        let mut agent = Agent::start(contract);
        assert_eq!(agent.hear_next(), Said::Ready);
        agent
    }

    fn say(&mut self, frames: &[ToGuest<'_>]) {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.append_to(&mut bytes));
        self.stream.write_all(&bytes).unwrap();
    }

    fn hear(&mut self) -> Said {
        loop {
            if let Some(raw) = self.decoder.next_frame().unwrap() {
                return own(ToHost::decode(raw).unwrap());
            }
            let mut bytes = [0; 65536];
            let n = self.stream.read(&mut bytes).expect("the agent says something in time");
            assert_ne!(n, 0, "the agent hung up");
            self.decoder.push(&bytes[..n]);
        }
    }

    /// What comes next apart from the function's log.
    fn hear_next(&mut self) -> Said {
        loop {
            match self.hear() {
                Said::Output(..) => {}
                said => return said,
            }
        }
    }

    /// Everything up to the end of the event, bytes of a kind together.
    fn answer(&mut self) -> (Vec<u8>, Vec<u8>, Vec<u8>, i32) {
        let (mut out, mut err, mut answer) = (vec![], vec![], vec![]);
        loop {
            match self.hear() {
                Said::Output(Stream::Stdout, bytes) => out.extend(bytes),
                Said::Output(Stream::Stderr, bytes) => err.extend(bytes),
                Said::Answer(bytes) => answer.extend(bytes),
                Said::Done(code) => return (out, err, answer, code),
                said => panic!("{said:?}"),
            }
        }
    }

    fn ask(&mut self, event: &[u8]) -> (Vec<u8>, Vec<u8>, Vec<u8>, i32) {
        self.say(&[event_frame(event)]);
        self.answer()
    }

    fn freeze(&mut self) {
        self.say(&[ToGuest::Freeze]);
        assert_eq!(self.hear_next(), Said::Frozen);
    }

    fn restore(&mut self, env: &[&str]) {
        let mut entries = Vec::new();
        env.iter().for_each(|variable| RestoreEntry::Env(variable.as_bytes()).append_to(&mut entries));
        self.say(&[restore_frame(1, RestoreEntries::from_bytes(&entries))]);
        assert_eq!(self.hear(), Said::Acknowledge([7; 16]));
    }
}

fn own(frame: ToHost<'_>) -> Said {
    match frame {
        ToHost::Hello(hello) => Said::Hello(hello.protocol),
        ToHost::Ready => Said::Ready,
        ToHost::Settled => Said::Settled,
        ToHost::Frozen { .. } => Said::Frozen,
        ToHost::Acknowledge { generation } => Said::Acknowledge(generation),
        ToHost::Output { stream, bytes } => Said::Output(stream, bytes.to_vec()),
        ToHost::Log { bytes } => Said::Log(bytes.to_vec()),
        ToHost::Answer { bytes } => Said::Answer(bytes.to_vec()),
        ToHost::Done { exit_code } => Said::Done(exit_code),
        ToHost::Failed(failure) => {
            Said::Failed(failure.cause, failure.status, String::from_utf8_lossy(failure.text).into_owned())
        }
    }
}

const ID: &str = "03030303-0303-0303-0303-030303030303";

fn event_frame(event: &[u8]) -> ToGuest<'_> {
    let total = event.len().try_into().unwrap();
    ToGuest::Event { head: EventHead { total, deadline_unix_ms: 12345, request_id: [3; 16] }, first: event }
}

fn restore_frame(unix_time_ns: u64, entries: RestoreEntries<'_>) -> ToGuest<'_> {
    ToGuest::Restore(Restore { generation: [7; 16], entropy: [1; 64], unix_time_ns, entries })
}

fn shell(script: &str, more: &str) -> String {
    let script = script.replace('\\', "\\\\").replace('"', "\\\"");
    format!(r#"{{"interface": "exec", "command": ["sh", "-c", "{script}"]{more}}}"#)
}

#[test]
fn exec_gives_stdin_and_takes_both_outputs_and_the_exit_code() {
    let mut agent = Agent::ready(&shell("cat; echo $A >&2; exit 3", r#", "env": {"A": "b"}"#));
    let expected = (b"hello".to_vec(), b"b\n".to_vec(), vec![], 3);
    assert_eq!(agent.ask(b"hello"), expected);
    assert_eq!(agent.ask(b"hello"), expected);
    agent.say(&[ToGuest::Settle]);
    assert_eq!(agent.hear(), Said::Settled);
}

#[test]
fn a_command_killed_by_a_signal_has_the_shells_exit_code() {
    let mut agent = Agent::ready(&shell("kill -TERM $$", ""));
    assert_eq!(agent.ask(b"").3, 143);
}

#[test]
fn a_command_that_reads_nothing_does_not_hold_the_event_up() {
    let mut agent = Agent::ready(&shell("exec <&-; echo done", ""));
    let big = vec![0; 60_000];
    let head = EventHead { total: 240_000, ..EventHead::default() };
    let data = ToGuest::Data { bytes: &big };
    agent.say(&[ToGuest::Event { head, first: &big }, data, data, data]);
    assert_eq!(agent.answer().0, b"done\n");
    assert_eq!(agent.ask(b"x").0, b"done\n");
}

#[test]
fn a_descendant_that_lives_on_does_not_hold_the_answer_up() {
    let mut agent = Agent::ready(&shell("sleep 60 & echo done", ""));
    assert_eq!(agent.ask(b"").0, b"done\n");
}

#[test]
fn a_resident_process_waits_in_its_read_and_answers_after_the_restore() {
    let mut agent =
        Agent::ready(&shell("echo early; read line; echo $$ $line $LATE", r#", "resident": true"#));
    agent.freeze();
    agent.restore(&[]);
    let (out, _, _, code) = agent.ask(b"now\n");
    let out = String::from_utf8(out).unwrap();
    assert!(out.starts_with("early\n") && out.ends_with("now\n") && code == 0, "{out}");
    // The next process has taken its place.
    let (again, ..) = agent.ask(b"now\n");
    assert_ne!(out.into_bytes(), again);
}

#[test]
fn a_late_environment_reaches_processes_that_are_started_for_it() {
    for more in ["", r#", "resident": true"#] {
        let mut agent = Agent::ready(&shell("read line; echo $line $LATE", more));
        agent.freeze();
        agent.restore(&["LATE=secret"]);
        assert_eq!(agent.ask(b"now\n").0, b"now secret\n", "{more}");
    }
}

#[test]
fn a_resident_process_that_never_reads_is_not_ready() {
    let more = r#", "resident": true, "ready_timeout_ms": 200"#;
    let mut agent = Agent::start(&shell("echo working; sleep 60", more));
    assert_eq!(agent.hear(), Said::Output(Stream::Stdout, b"working\n".to_vec()));
    assert!(matches!(agent.hear(), Said::Failed(Cause::NotReady, 0, _)));
}

#[test]
fn a_frozen_agent_takes_nothing_but_the_restore_message() {
    let mut agent = Agent::ready(&shell("cat", ""));
    agent.freeze();
    agent.say(&[event_frame(b"early")]);
    assert!(matches!(agent.hear(), Said::Failed(Cause::Protocol, ..)));
}

#[test]
fn a_clone_that_cannot_be_made_unique_acknowledges_nothing() {
    let mut agent = Agent::ready(&shell("cat", ""));
    agent.freeze();
    agent.say(&[restore_frame(0, RestoreEntries::EMPTY)]);
    let failure = Said::Failed(Cause::Restore, 0, "The clock cannot be set".to_owned());
    assert_eq!(agent.hear(), failure);
}

#[test]
fn a_clone_takes_its_names() {
    let mut agent = Agent::ready(&shell("cat", ""));
    agent.freeze();
    let mut entries = Vec::new();
    RestoreEntry::MachineId([0x1a; 16]).append_to(&mut entries);
    RestoreEntry::HostName("clone-7").append_to(&mut entries);
    agent.say(&[restore_frame(1, RestoreEntries::from_bytes(&entries))]);
    assert_eq!(agent.hear(), Said::Acknowledge([7; 16]));
    let read = |name: &str| std::fs::read_to_string(agent.dir.path().join(name)).unwrap();
    assert_eq!(read("ember-host-name"), "clone-7");
    assert_eq!(read("ember-machine-id"), format!("{}\n", "1a".repeat(16)));
}

/// Installs programs that run after a restore.
fn install_hooks(agent: &Agent, hooks: &[(&str, &str)]) {
    let directory = agent.dir.path().join("after-restore.d");
    std::fs::create_dir(&directory).unwrap();
    for (name, script) in hooks {
        let path = directory.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
}

#[test]
fn hooks_run_in_order_before_the_acknowledgement() {
    let mut agent = Agent::ready(&shell("cat", r#", "resident": true"#));
    install_hooks(&agent, &[("20-late", "echo two $LATE >&2"), ("10-early", "echo one $EMBER_GENERATION")]);
    agent.freeze();
    let mut entries = Vec::new();
    RestoreEntry::Env(b"LATE=secret").append_to(&mut entries);
    agent.say(&[restore_frame(1, RestoreEntries::from_bytes(&entries)), event_frame(b"x")]);
    assert_eq!(agent.hear(), Said::Log(format!("one {}\n", "07".repeat(16)).into_bytes()));
    assert_eq!(agent.hear(), Said::Log(b"two secret\n".to_vec()));
    assert_eq!(agent.hear(), Said::Acknowledge([7; 16]));
    assert_eq!(agent.answer().0, b"x");
}

#[test]
fn a_hook_that_fails_is_told_and_nothing_acknowledged() {
    for (script, told) in [
        ("echo why; exit 3", "The hook hook ended with exit code 3"),
        ("echo why; kill -9 $$", "The hook hook was killed by signal 9"),
    ] {
        let mut agent = Agent::ready(&shell("cat", ""));
        install_hooks(&agent, &[("hook", script), ("never", "echo never")]);
        agent.freeze();
        agent.say(&[restore_frame(1, RestoreEntries::EMPTY), event_frame(b"x")]);
        assert_eq!(agent.hear(), Said::Log(b"why\n".to_vec()));
        assert_eq!(agent.hear(), Said::Failed(Cause::Restore, 0, told.to_owned()));
    }
}

#[test]
fn a_function_that_ends_while_a_hook_runs_is_noticed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let pid = file.path().display();
    let mut agent =
        Agent::ready(&shell(&format!("echo $$ > {pid}; cat; echo after"), r#", "resident": true"#));
    install_hooks(&agent, &[("hook", &format!("kill -9 $(cat {pid}); sleep 0.1"))]);
    agent.freeze();
    agent.restore(&[]);
    assert_eq!(agent.ask(b"x").3, 137);
}

#[test]
fn what_cannot_start_is_told_before_the_warm_point() {
    for (contract, cause, words) in [
        (
            r#"{"interface": "exec", "command": ["no-such-command"]}"#,
            Cause::Start,
            "no-such-command is not in the root",
        ),
        (r#"{"interface": "exec", "command": ["sh"], "workdir": "/nowhere"}"#, Cause::Start, "/nowhere"),
        (r#"{"interface": "exec", "command": ["sh"], "user": "no-such-user"}"#, Cause::Start, "no-such-user"),
        (r#"{"interface": "exec", "command": []}"#, Cause::Start, "no command"),
        (r#"{"interface": "exec", "command": ["sh"], "new": 1}"#, Cause::Protocol, "unknown field `new`"),
        (r#"{"interface": "http", "command": ["sh"]}"#, Cause::Protocol, "no port"),
        (r#"{"interface": "lambda", "command": ["sh"]}"#, Cause::Protocol, "no handler"),
    ] {
        match Agent::start(contract).hear() {
            Said::Failed(found, 0, text) => {
                assert!(found == cause && text.contains(words), "{found:?} {text}")
            }
            said => panic!("{contract}: {said:?}"),
        }
    }
}

#[test]
fn a_function_that_ends_is_told_with_its_last_words() {
    let contract =
        r#"{"interface": "http", "command": ["sh", "-c", "echo broken >&2; exit 7"], "http": {"port": 1}}"#;
    let mut agent = Agent::start(contract);
    assert_eq!(agent.hear(), Said::Output(Stream::Stderr, b"broken\n".to_vec()));
    assert_eq!(agent.hear(), Said::Failed(Cause::Exited, 7, String::new()));
}

/// A client of the Runtime API in a shell that tells its port and stays; the test is the client.
struct Lambda {
    agent: Agent,
    api: TcpStream,
}

impl Lambda {
    fn start() -> Self {
        let script = "echo $AWS_LAMBDA_RUNTIME_API $_HANDLER $AWS_LAMBDA_INITIALIZATION_TYPE; exec sleep 60";
        let contract =
            shell(script, r#", "lambda": {"handler": "app.handler"}"#).replace("exec\",", "lambda\",");
        let mut agent = Agent::start(&contract);
        let Said::Output(Stream::Stdout, line) = agent.hear() else { panic!("no address") };
        let line = String::from_utf8(line).unwrap();
        let (address, rest) = line.split_once(' ').unwrap();
        assert_eq!(rest, "app.handler snap-start\n");
        let api = TcpStream::connect(address).unwrap();
        api.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Lambda { agent, api }
    }

    fn another(&self) -> TcpStream {
        TcpStream::connect(self.api.peer_addr().unwrap()).unwrap()
    }

    fn send(&mut self, request: &str) {
        self.api.write_all(request.as_bytes()).unwrap();
    }

    fn get(&mut self, path: &str) {
        self.send(&format!("GET /2018-06-01/runtime/{path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    }

    fn post(&mut self, path: &str, body: &str) {
        let len = body.len();
        self.send(&format!(
            "POST /2018-06-01/runtime/{path} HTTP/1.1\r\nContent-Length: {len}\r\n\r\n{body}"
        ));
    }

    fn reply(&mut self) -> (String, String) {
        read_reply(&mut self.api)
    }

    fn warm() -> Self {
        let mut lambda = Lambda::start();
        lambda.get("invocation/next");
        assert_eq!(lambda.agent.hear(), Said::Ready);
        lambda
    }

    fn invoked() -> Self {
        let mut lambda = Lambda::warm();
        lambda.agent.say(&[event_frame(b"{}")]);
        assert_eq!(lambda.reply().1, "{}");
        lambda
    }
}

/// Head and body of one answer.
fn read_reply(stream: &mut TcpStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap_or("0");
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

#[test]
fn an_invocation_comes_with_its_headers_and_its_answer_is_accepted() {
    let mut lambda = Lambda::warm();
    lambda.agent.freeze();
    lambda.agent.restore(&["LATE=1"]);
    assert_eq!(std::fs::read(lambda.agent.dir.path().join("ember-env")).unwrap(), b"LATE=1\0");
    lambda.agent.say(&[event_frame(b"{\"a\":1}")]);
    let (head, body) = lambda.reply();
    assert_eq!(body, "{\"a\":1}");
    for header in [
        "Lambda-Runtime-Aws-Request-Id: 03030303-0303-0303-0303-030303030303",
        "Lambda-Runtime-Deadline-Ms: 12345",
        "Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:us-east-1:000000000000:function:function:1",
        "Lambda-Runtime-Trace-Id: Root=1-03030303-030303030303030303030303;Parent=0303030303030303;Sampled=0",
        "Content-Type: application/json",
    ] {
        assert!(head.contains(&format!("\r\n{header}\r\n")), "{head}");
    }
    lambda.post(&format!("invocation/{ID}/response"), "\"yes\"");
    assert_eq!(lambda.agent.answer(), (vec![], vec![], b"\"yes\"".to_vec(), 0));
    assert!(lambda.reply().0.starts_with("HTTP/1.1 202 "));
    // The connection is kept for the next one.
    lambda.get("invocation/next");
    lambda.agent.say(&[event_frame(b"[]")]);
    assert_eq!(lambda.reply().1, "[]");
}

#[test]
fn an_answer_may_be_streamed_in_chunks() {
    let mut lambda = Lambda::invoked();
    let head = format!(
        "POST /2018-06-01/runtime/invocation/{ID}/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    lambda.send(&format!("{head}4\r\nwiki\r\n"));
    assert_eq!(lambda.agent.hear(), Said::Answer(b"wiki".to_vec()));
    lambda.send("2\r\nzz\r\n0\r\n\r\n");
    assert_eq!(lambda.agent.answer().2, b"zz");
    assert!(lambda.reply().0.starts_with("HTTP/1.1 202 "));
}

#[test]
fn a_streamed_answer_that_ends_in_an_error_is_one() {
    let mut lambda = Lambda::invoked();
    let head = format!(
        "POST /2018-06-01/runtime/invocation/{ID}/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    lambda.send(&format!("{head}1\r\na\r\n0\r\nLambda-Runtime-Function-Error-Type: Oops\r\n\r\n"));
    assert_eq!(lambda.agent.answer(), (vec![], vec![], b"a".to_vec(), 1));
}

#[test]
fn an_error_is_an_answer_with_exit_code_1() {
    let mut lambda = Lambda::invoked();
    lambda.post(&format!("invocation/{ID}/error"), "{\"errorType\":\"E\"}");
    assert_eq!(lambda.agent.answer(), (vec![], vec![], b"{\"errorType\":\"E\"}".to_vec(), 1));
    assert!(lambda.reply().0.starts_with("HTTP/1.1 202 "));
}

#[test]
fn a_client_that_waits_to_be_continued_is() {
    let mut lambda = Lambda::invoked();
    let path = format!("/2018-06-01/runtime/invocation/{ID}/response");
    lambda.send(&format!("POST {path} HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"));
    assert!(lambda.reply().0.starts_with("HTTP/1.1 100 "));
    lambda.send("ok");
    assert_eq!(lambda.agent.answer().2, b"ok");
}

#[test]
fn a_wrong_id_path_or_request_is_refused_and_nothing_lost() {
    let mut lambda = Lambda::invoked();
    for (path, status) in [
        ("invocation/00000000-0000-0000-0000-000000000000/response", "400"),
        ("invocation/1/error", "400"),
        ("nothing", "404"),
    ] {
        lambda.post(path, "no");
        assert!(lambda.reply().0.starts_with(&format!("HTTP/1.1 {status} ")), "{path}");
    }
    let mut other = lambda.another();
    other.write_all(b"nonsense\r\n\r\n").unwrap();
    assert!(read_reply(&mut other).0.starts_with("HTTP/1.1 400 "));
    assert_eq!(other.read(&mut [0]).unwrap(), 0);
    lambda.post(&format!("invocation/{ID}/response"), "yes");
    assert_eq!(lambda.agent.answer().2, b"yes");
}

#[test]
fn a_snapstart_client_runs_its_hooks_before_the_acknowledgement() {
    let mut lambda = Lambda::start();
    lambda.get("restore/next");
    assert_eq!(lambda.agent.hear(), Said::Ready);
    lambda.agent.freeze();
    lambda.api.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(lambda.api.read(&mut [0]).is_err(), "it is answered too early");
    lambda.agent.say(&[restore_frame(1, RestoreEntries::EMPTY)]);
    lambda.api.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert!(lambda.reply().0.starts_with("HTTP/1.1 200 "));
    lambda.agent.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(lambda.agent.stream.read(&mut [0]).is_err(), "it is acknowledged too early");
    lambda.agent.stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    lambda.get("invocation/next");
    assert_eq!(lambda.agent.hear(), Said::Acknowledge([7; 16]));
    lambda.agent.say(&[event_frame(b"{}")]);
    assert_eq!(lambda.reply().1, "{}");
}

#[test]
fn of_several_snapstart_clients_each_runs_its_hooks_before_the_acknowledgement() {
    let mut lambda = Lambda::start();
    lambda.get("restore/next");
    assert_eq!(lambda.agent.hear(), Said::Ready);
    let mut other = lambda.another();
    let mut ask = |path: &str| {
        write!(other, "GET /2018-06-01/runtime/{path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        other.try_clone().unwrap()
    };
    let mut other = ask("restore/next");
    lambda.agent.freeze();
    lambda.agent.say(&[restore_frame(1, RestoreEntries::EMPTY)]);
    assert!(lambda.reply().0.starts_with("HTTP/1.1 200 "));
    assert!(read_reply(&mut other).0.starts_with("HTTP/1.1 200 "));
    lambda.get("invocation/next");
    lambda.agent.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(lambda.agent.stream.read(&mut [0]).is_err(), "the other's hooks are not waited for");
    lambda.agent.stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    ask("invocation/next");
    assert_eq!(lambda.agent.hear(), Said::Acknowledge([7; 16]));
}

#[test]
fn a_warm_up_event_lets_a_snapstart_client_go_first() {
    let mut lambda = Lambda::start();
    lambda.get("restore/next");
    assert_eq!(lambda.agent.hear(), Said::Ready);
    lambda.agent.say(&[event_frame(b"{}")]);
    assert!(lambda.reply().0.starts_with("HTTP/1.1 200 "));
    lambda.get("invocation/next");
    assert_eq!(lambda.reply().1, "{}");
    lambda.post(&format!("invocation/{ID}/response"), "warm");
    assert_eq!(lambda.agent.answer().2, b"warm");
    assert!(lambda.reply().0.starts_with("HTTP/1.1 202 "));
    lambda.get("invocation/next");
    // Clones get a client whose hooks have not run.
    lambda.agent.say(&[ToGuest::Freeze]);
    assert!(matches!(lambda.agent.hear(), Said::Output(Stream::Stdout, _)), "it is started again");
    assert_eq!(lambda.api.read(&mut [0]).unwrap(), 0, "the old one is hung up on");
    lambda.api = lambda.another();
    lambda.get("restore/next");
    assert_eq!(lambda.agent.hear(), Said::Frozen);
}

#[test]
fn an_error_of_initialisation_is_told() {
    let mut lambda = Lambda::start();
    lambda.post("init/error", "{\"errorType\":\"Runtime.ImportModuleError\"}");
    let failure = Said::Failed(Cause::Init, 0, "{\"errorType\":\"Runtime.ImportModuleError\"}".to_owned());
    assert_eq!(lambda.agent.hear(), failure);
    assert!(lambda.reply().0.starts_with("HTTP/1.1 202 "));
}

#[test]
fn an_error_after_the_restore_is_told() {
    let mut lambda = Lambda::start();
    lambda.get("restore/next");
    assert_eq!(lambda.agent.hear(), Said::Ready);
    lambda.agent.freeze();
    lambda.agent.say(&[restore_frame(1, RestoreEntries::EMPTY)]);
    assert!(lambda.reply().0.starts_with("HTTP/1.1 200 "));
    lambda.post("restore/error", "{\"errorType\":\"Hook\"}");
    assert_eq!(
        lambda.agent.hear(),
        Said::Failed(Cause::AfterRestore, 0, "{\"errorType\":\"Hook\"}".to_owned())
    );
}

#[test]
fn a_client_whose_hooks_hang_is_not_acknowledged_however_busy_it_is() {
    let mut lambda = Lambda::start();
    lambda.get("restore/next");
    assert_eq!(lambda.agent.hear(), Said::Ready);
    lambda.agent.freeze();
    let begin = Instant::now();
    lambda.agent.say(&[restore_frame(1, RestoreEntries::EMPTY), event_frame(b"{}")]);
    assert!(lambda.reply().0.starts_with("HTTP/1.1 200 "));
    let mut api = lambda.api.try_clone().unwrap();
    let client = std::thread::spawn(move || {
        // What it has to say wakes the agent, until that hangs up.
        while api.write_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let text = "The runtime client did not ask for invocation/next in time".to_owned();
    assert_eq!(lambda.agent.hear(), Said::Failed(Cause::AfterRestore, 0, text));
    let took = begin.elapsed();
    assert!(took >= UNIQUE_MAX && took < UNIQUE_MAX + Duration::from_secs(2), "{took:?}");
    drop(lambda);
    client.join().unwrap();
}

#[test]
fn a_client_that_hangs_up_within_its_answer_is_told() {
    let mut lambda = Lambda::invoked();
    lambda.send(&format!(
        "POST /2018-06-01/runtime/invocation/{ID}/response HTTP/1.1\r\nContent-Length: 9\r\n\r\nab"
    ));
    assert_eq!(lambda.agent.hear(), Said::Answer(b"ab".to_vec()));
    lambda.api.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(matches!(lambda.agent.hear(), Said::Failed(Cause::Event, ..)));
}
