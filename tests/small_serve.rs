//! `ember serve` answers events through jailed shells, says what went wrong and whose fault it was, bounds what it takes on, and
//! ends when it is told to.
//!
//! Small guests: the whole daemon, without Linux in the guest.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use common::serve::{Daemon, as_user, kill, receive, serve_command};
use common::{HOST_CANNOT, Place, TIMEOUT, USAGE, api, ember, finish, is_root, wait_until};
use rustix::process::Signal;
use serde_json::json;

const NOBODY: u32 = 65534;

#[test]
fn curl_registers_lists_invokes_and_removes_a_function() {
    let place = Place::new();
    let (bundle, daemon) = (place.bake("echo"), Daemon::start(place.path()));
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail-with-body", "--unix-socket"]).arg(&daemon.socket);
        finish(command.args(arguments))
    };
    // The guest never reads the end of the long event below.
    let settings = json!({ "bundle": bundle, "event_timeout_ms": 3000 }).to_string();
    curl(&["-X", "PUT", "http://ember/functions/echo", "-d", &settings]).succeeds();
    let listed = curl(&["http://ember/functions"]).json();
    assert_eq!(listed["functions"][0]["name"], "echo");
    assert_eq!(listed["functions"][0]["interface"], "port");
    curl(&["http://ember/functions/echo/invoke", "-d", "hello"]).answers("hello");
    // Beyond a megabyte curl asks first whether it may send the rest, and a small guest takes less than that.
    let long = place.join("long");
    fs::write(&long, vec![b'x'; 2 << 20]).unwrap();
    let sent = format!("@{}", long.display());
    let ended = curl(&["http://ember/functions/echo/invoke", "--data-binary", &sent]);
    assert!(ended.status.code().is_some_and(|code| code == 0 || code == 22), "{ended:?}");
    curl(&["-X", "DELETE", "http://ember/functions/echo"]).answers("");
    let gone = curl(&["http://ember/functions/echo/invoke", "-d", "hello"]);
    assert_eq!(gone.code(), 22, "{gone:?}");
    assert!(gone.text().contains("There is no function echo"), "{gone:?}");
}

#[test]
fn a_function_s_failure_is_told_from_the_platform_s_and_the_caller_s() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register_with("faulty", &place.bake("faulty"), json!({ "event_timeout_ms": 1000 }));
    let answered = daemon.invoke("faulty", "exit 0");
    answered.answers("exiting");
    assert_eq!((answered.header("ember-exit-code"), answered.header("ember-error")), (Some("0"), None));
    let failed = daemon.invoke("faulty", "exit 7");
    failed.fails(500, "function", "exiting");
    assert_eq!(failed.header("ember-exit-code"), Some("7"));
    let broken = daemon.invoke("faulty", "fault");
    broken.fails(502, "platform", "The guest reset");
    assert_eq!(broken.json()["error"]["kind"], "guest_failed");
    daemon.invoke("faulty", "spin").fails(504, "platform", "");
    let endless = daemon.invoke("faulty", "flood");
    assert!([502, 504].contains(&endless.status), "{}", endless.status);
    daemon.invoke("nothing", "x").fails(404, "request", "There is no function nothing");
    let named = daemon.request("POST", "/functions/faulty/invoke", &["Ember-Path: /x"], b"exit 0");
    named.fails(400, "request", "belong to the http interface");
    let count = |outcome: &str| {
        daemon.metric(&format!("ember_events_total{{function=\"faulty\",outcome=\"{outcome}\"}}"))
    };
    assert_eq!((count("answered"), count("function_failed")), (1, 1));
    assert!(count("platform_failed") >= 3);
    assert_eq!((count("bad_request"), count("abandoned")), (1, 0));
}

#[test]
fn a_function_that_is_registered_again_serves_no_more_at_once() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    let (bundle, path) = (place.bake("faulty"), "/functions/faulty");
    let register = |concurrency: usize| {
        let settings =
            json!({ "concurrency": concurrency, "queue_timeout_ms": 50, "event_timeout_ms": 600_000 });
        daemon.register_with("faulty", &bundle, settings);
    };
    let running = || daemon.get(path).json()["running"].as_u64().unwrap();
    register(1);
    // None waits for a shell longer than for its turn.
    daemon.await_shells(2);
    let serving = daemon.begin("faulty", "spin");
    wait_until("it is served", || running() == 1);
    register(1);
    assert_eq!(running(), 1);
    daemon.invoke("faulty", "exit 0").fails(503, "platform", "did not come in time");
    daemon.request("DELETE", path, &[], &[]);
    register(1);
    daemon.invoke("faulty", "exit 0").fails(503, "platform", "did not come in time");
    register(2);
    daemon.await_shells(2);
    daemon.invoke("faulty", "exit 0").answers("exiting");
    drop(serving);
    wait_until("it is served no more", || running() == 0);
    register(1);
    daemon.await_shells(2);
    daemon.invoke("faulty", "exit 0").answers("exiting");
}

#[test]
fn what_cannot_be_registered_is_refused_and_what_is_there_stays() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register("echo", &place.bake("echo"));
    let put =
        |name: &str, body: &str| daemon.request("PUT", &format!("/functions/{name}"), &[], body.as_bytes());
    put("echo", "{").fails(400, "request", "not understood");
    put("echo", r#"{"bundle": "relative"}"#).fails(400, "request", "must be absolute");
    put("echo", r#"{"bundle": "/", "surprise": 1}"#).fails(400, "request", "surprise");
    put("a%20b", r#"{"bundle": "/"}"#).fails(400, "request", "letters");
    put("echo", &json!({ "bundle": place.join("none") }).to_string()).fails(400, "request", "Cannot open");
    let damaged = place.bake("toucher");
    fs::write(damaged.join("manifest.json"), b"{").unwrap();
    let refused = put("damaged", &json!({ "bundle": damaged }).to_string());
    refused.fails(400, "request", "");
    assert_eq!(refused.json()["error"]["kind"], "bad_bundle", "{refused:?}");
    daemon.invoke("echo", "still").answers("still");
}

#[test]
fn more_than_a_function_may_serve_waits_and_more_than_may_wait_is_turned_away() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    // What waits is looked for meanwhile, which takes its time in an emulated host.
    let settings =
        json!({ "concurrency": 1, "queue": 1, "queue_timeout_ms": 4000, "event_timeout_ms": 9000 });
    daemon.register_with("faulty", &place.bake("faulty"), settings);
    let serving = daemon.begin("faulty", "spin");
    let state =
        |state: &str| daemon.metric(&format!("ember_events{{function=\"faulty\",state=\"{state}\"}}"));
    wait_until("it is served", || state("running") == 1);
    let waiting = daemon.begin("faulty", "exit 0");
    wait_until("the next one waits", || state("waiting") == 1);
    let turned_away = daemon.invoke("faulty", "exit 0");
    turned_away.fails(429, "platform", "As many");
    assert_eq!(turned_away.header("retry-after"), Some("1"));
    let late = receive(waiting);
    late.fails(503, "platform", "did not come in time");
    assert_eq!(late.header("retry-after"), Some("1"));
    assert_eq!(receive(serving).status, 504);
    daemon.invoke("faulty", "exit 0").answers("exiting");
}

#[test]
fn every_event_finds_a_clone_that_nobody_has_used() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register("toucher", &place.bake("toucher"));
    daemon.register("counter", &place.bake("counter"));
    for _ in 0..10 {
        daemon.invoke("toucher", "write 0 8 1").answers("0x0");
        let verdict = daemon.invoke("counter", "verdict");
        assert!(verdict.text().starts_with("ok "), "{verdict:?}");
    }
}

#[test]
fn a_clone_that_is_reused_serves_so_many_events_and_no_more() {
    let place = Place::new();
    let bundle = place.bake("toucher");
    let registered = format!("as-flags-say={}", bundle.display());
    let daemon = Daemon::start_with(place.path(), &["--register", &registered, "--reuse", "3"]);
    daemon.register_with("toucher", &bundle, json!({ "reuse": 3 }));
    for function in ["toucher", "as-flags-say"] {
        for sum in ["0x0", "0x8", "0x10", "0x0", "0x8", "0x10"] {
            daemon.invoke(function, "write 0 8 1").answers(sum);
        }
    }
    // One that waits for its next event is killed: the event finds another.
    daemon.invoke("toucher", "write 0 8 1").answers("0x0");
    let killed = daemon.shells();
    killed.iter().for_each(|shell| kill(*shell));
    wait_until("they are gone", || daemon.children().iter().all(|pid| !killed.contains(pid)));
    daemon.invoke("toucher", "write 0 8 1").answers("0x0");
}

#[test]
fn a_clone_that_was_asked_to_be_somebody_serves_nobody_else() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register_with("toucher", &place.bake("toucher"), json!({ "reuse": 9 }));
    let path = "/functions/toucher/invoke";
    for own in
        ["Ember-Env: SECRET=x", "Ember-Hostname: own", "Ember-Machine-Id: 0123456789abcdef0123456789abcdef"]
    {
        for _ in 0..2 {
            daemon.request("POST", path, &[own], b"write 0 8 1").answers("0x0");
        }
    }
    for sum in ["0x0", "0x8"] {
        daemon.invoke("toucher", "write 0 8 1").answers(sum);
    }
    daemon.request("POST", path, &["Ember-Hostname: own"], b"write 0 8 1").answers("0x0");
    daemon.invoke("toucher", "write 0 8 1").answers("0x10");
    daemon.await_shells(2);
    wait_until("one clone is left, which waits for its next event", || daemon.shells().len() == 3);
}

#[test]
fn a_clone_that_waits_too_long_for_its_next_event_ends() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register_with("toucher", &place.bake("toucher"), json!({ "reuse": 9, "keep_ms": 1 }));
    daemon.invoke("toucher", "write 0 8 1").answers("0x0");
    daemon.await_shells(2);
    wait_until("it has ended", || daemon.shells().len() == 2);
    daemon.invoke("toucher", "write 0 8 1").answers("0x0");
}

#[test]
fn a_run_through_the_pool_prints_and_ends_as_one_without() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    let (echo, faulty) = (place.bake("echo"), place.bake("faulty"));
    daemon.register("echo", &echo);
    daemon.register_with("faulty", &faulty, json!({ "event_timeout_ms": 1000 }));
    let pooled = |words: &[&str]| finish(ember(["run", "--pool"]).arg(&daemon.socket).args(words));
    pooled(&["echo", "--event-text", "hello"]).answers("hello");
    let ended = pooled(&["faulty", "--event-text", "exit 7"]);
    assert_eq!((ended.code(), ended.text(), ended.errors.as_str()), (7, "exiting", ""));
    for event in ["fault", "halt"] {
        let alone = finish(ember(["run", "--event-text", event]).arg(&faulty));
        let ended = pooled(&["faulty", "--event-text", event]);
        assert_eq!((ended.code(), &ended.errors, ended.text()), (alone.code(), &alone.errors, alone.text()));
    }
    pooled(&["faulty", "--event-text", "spin"]).fails(TIMEOUT, "");
    pooled(&["none", "--event-text", "x"]).fails(USAGE, "There is no function none");
    pooled(&["echo", "--event-json", "{"]).fails(USAGE, "is not valid JSON");
    pooled(&["echo", "--count", "2"]).status.code().filter(|code| *code == USAGE).unwrap();
    let told = pooled(&["echo", "--json", "--timing", "--event-text", "x"]).json();
    assert_eq!((&told["answer"]["output"], &told["exit_code"]), (&json!("x"), &json!(0)));
    assert!(told["timing"]["answered_us"].as_f64().unwrap() > 0.0, "{told}");
    let nobody = place.join("nobody");
    finish(ember(["run", "--event-text", "x", "echo", "--pool"]).arg(nobody))
        .fails(HOST_CANNOT, "Cannot reach");
}

#[test]
fn bytes_of_every_value_and_number_come_back_as_they_went() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register("echo", &place.bake("echo"));
    let event: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let path = "/functions/echo/invoke";
    assert!(daemon.request("POST", path, &[], &event).body == event);
    let frames = daemon.request("POST", path, &["Accept: application/vnd.ember.frames"], b"x");
    assert_eq!(frames.header("ember-interface"), Some("port"));
    daemon.request("POST", path, &["Content-Length: 5"], b"x").fails(400, "request", "two Content-Lengths");
}

#[test]
fn what_is_no_request_is_answered_and_harms_nobody() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register("echo", &place.bake("echo"));
    for garbage in [&b"\r\n\r\n"[..], b"GET", b"\xff\xfe\x00\x00\r\n\r\n", &[b'A'; 200_000]] {
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        // The daemon may hang up before it has read everything.
        stream.write_all(garbage).ok();
        stream.shutdown(std::net::Shutdown::Write).ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    }
    daemon.request("POST", "/health", &[], &[]).fails(405, "request", "");
    daemon.get("/elsewhere").fails(404, "request", "");
    daemon.invoke("echo", "fine").answers("fine");
}

#[test]
fn requests_on_one_connection_are_answered_one_by_one_and_none_hides_in_another() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register("echo", &place.bake("echo"));
    let answers = |text: &str| {
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).unwrap();
        answers
    };
    let last = "GET /health HTTP/1.1\r\nConnection: x, close\r\n\r\n";
    // Neither may have a body: its bytes would be taken for the next answer.
    let told =
        answers(&format!("HEAD /health HTTP/1.1\r\n\r\nDELETE /functions/echo HTTP/1.1\r\n\r\n{last}"));
    let told: Vec<&str> = told.splitn(4, "\r\n\r\n").collect();
    let statuses: Vec<&str> = told.iter().map(|head| head.get(..12).unwrap_or_default()).take(3).collect();
    assert_eq!(statuses, ["HTTP/1.1 405", "HTTP/1.1 204", "HTTP/1.1 200"], "{told:?}");
    assert!(!told[1].contains("Content-Length"), "{told:?}");
    for unclear in [
        "GET /health HTTP/1.1\r\nA: b\n\r\n",
        "GET /health HTTP/1.0\r\n\r\n",
        "POST /functions/echo/invoke HTTP/1.1\r\nContent-Length: +0\r\n\r\n",
    ] {
        let told = answers(&format!("{unclear}{last}"));
        assert!(told.starts_with("HTTP/1.1 400 ") && told.matches("HTTP/1.1 ").count() == 1, "{told}");
    }
}

#[test]
fn a_function_is_described_and_each_path_names_the_methods_that_it_has() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    let bundle = place.bake("echo");
    daemon.register_with("echo", &bundle, json!({ "queue": 7, "event_timeout_ms": 1234 }));
    let told = daemon.get("/functions/echo");
    assert_eq!((told.status, told.header("content-type")), (200, Some("application/json")));
    let function = told.json();
    assert_eq!((&function["name"], &function["interface"]), (&json!("echo"), &json!("port")));
    assert_eq!((&function["memory_bytes"], &function["vcpus"]), (&json!(2 << 20), &json!(1)));
    assert_eq!((&function["running"], &function["waiting"]), (&json!(0), &json!(0)));
    let settings = &function["settings"];
    assert_eq!((&settings["bundle"], &settings["queue"]), (&json!(bundle), &json!(7)), "{function}");
    assert_eq!((&settings["event_timeout_ms"], &settings["reuse"]), (&json!(1234), &json!(1)), "{function}");
    assert_eq!(daemon.get("/functions").json()["functions"], json!([function]));
    daemon.get("/functions/none").fails(404, "request", "There is no function none");

    for (method, path, allowed) in [
        ("GET", "/functions/echo/invoke", "POST"),
        ("PUT", "/functions/none/invoke", "POST"),
        ("POST", "/functions/echo", "GET, PUT, DELETE"),
        ("DELETE", "/functions", "GET"),
        ("POST", "/metrics", "GET"),
    ] {
        let refused = daemon.request(method, path, &[], &[]);
        refused.fails(405, "request", "no such method");
        assert_eq!(refused.header("allow"), Some(allowed), "{method} {path}");
    }
}

#[test]
fn every_setting_that_the_api_describes_can_be_given() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    let bundle = place.bake("echo");
    let schemas = api::component("/components/schemas/Settings/properties").as_object().unwrap();
    let given = schemas.iter().map(|(name, schema)| {
        let value = if name == "bundle" { json!(bundle) } else { schema["minimum"].clone() };
        (name.clone(), value)
    });
    let given: serde_json::Value = given.collect::<serde_json::Map<_, _>>().into();
    assert_eq!(daemon.request("PUT", "/functions/echo", &[], given.to_string().as_bytes()).status, 201);
    assert_eq!(daemon.get("/functions/echo").json()["settings"], given);
    // And by default those that are told.
    daemon.register("echo", &bundle);
    let settings = daemon.get("/functions/echo").json()["settings"].take();
    for (name, schema) in schemas.iter().filter(|(_, schema)| schema.get("default").is_some()) {
        assert_eq!(settings[name], schema["default"], "{name}");
    }
}

#[test]
fn only_the_users_it_was_told_of_may_use_it() {
    if !is_root() {
        eprintln!("only root can be another user; the emulated host runs this as root");
        return;
    }
    let place = Place::new();
    let bundle = place.bake("echo");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (allowed, expected) in [(false, 403), (true, 200)] {
        let socket = place.join(&format!("socket-{allowed}"));
        let mut command = serve_command(&socket);
        command.args(["--mode", "666", "--register"]).arg(format!("echo={}", bundle.display()));
        if allowed {
            command.args(["--allow-uid", &NOBODY.to_string()]);
        }
        let daemon = Daemon::run(&mut command, socket);
        // Whoever is refused hears it before he has asked.
        let say_nothing = || receive(UnixStream::connect(&daemon.socket).unwrap());
        let answer = as_user(NOBODY, || if allowed { daemon.invoke("echo", "x") } else { say_nothing() });
        assert_eq!(answer.status, expected, "{answer:?}");
        assert_eq!(daemon.invoke("echo", "x").status, 200, "its own user may");
    }
    let socket = place.join("socket");
    let daemon = Daemon::run(&mut serve_command(&socket), socket);
    let mode = fs::metadata(&daemon.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Ports of TCP at which a process listens.
fn ports(process: u32) -> Vec<u16> {
    let open = fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten();
    let open: Vec<_> = open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
    let port = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_own = open.contains(&format!("socket:[{}]", words[9]).into());
        (words[3] == "0A" && is_own).then(|| u16::from_str_radix(words[1].split(':').nth(1)?, 16).ok())?
    };
    sockets.lines().skip(1).filter_map(port).collect()
}

#[test]
fn tcp_is_for_those_only_whom_it_was_opened_to() {
    let place = Place::new();
    assert!(ports(Daemon::start(place.path()).id()).is_empty());
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = free.to_string();
    let without_a_word = finish(serve_command(&place.join("none")).args(["--tcp", &address]));
    assert!(without_a_word.errors.contains("--tcp-token"), "{without_a_word:?}");
    assert_eq!(without_a_word.code(), USAGE);
    let (token, register) = (place.join("token"), format!("echo={}", place.bake("echo").display()));
    fs::write(&token, "short\n").unwrap();
    let by_token = ["--tcp", &address, "--tcp-token", token.to_str().unwrap(), "--register", &register];
    finish(serve_command(&place.join("short")).args(by_token)).fails(USAGE, "has no token");
    fs::write(&token, "0123456789abcdef\n").unwrap();
    let ask = |more: &[&str]| {
        let url = format!("http://{address}/functions/echo/invoke");
        let mut curl = Command::new("curl");
        finish(curl.args(["--silent", "--fail-with-body", "-d", "x"]).args(more).arg(url))
    };
    let daemon = Daemon::start_with(place.path(), &by_token);
    assert_eq!(ports(daemon.id()), [free.port()]);
    ask(&["-H", "Authorization: Bearer 0123456789abcdef"]).answers("x");
    for wrong in [&[][..], &["-H", "Authorization: Bearer 0123456789abcdeF"]] {
        let refused = ask(wrong);
        assert!(refused.code() == 22 && refused.text().contains("--tcp-token"), "{refused:?}");
    }
    daemon.invoke("echo", "unix").answers("unix");
    drop(daemon);
    let open = ["--tcp", &address, "--tcp-open", "--register", &register];
    let daemon = Daemon::start_with(place.path(), &open);
    ask(&[]).answers("x");
    daemon.signal(Signal::TERM);
    assert!(daemon.end().errors.contains("whoever reaches it may use the daemon"));
}

#[test]
fn whoever_connects_by_tcp_and_says_nothing_leaves_room_for_who_may_use_the_socket() {
    let place = Place::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let socket = place.join("socket");
    let mut command = serve_command(&socket);
    command.args(["--tcp", &free.to_string(), "--tcp-open", "--idle", "600s"]);
    command.args(["--register", &format!("echo={}", place.bake("echo").display())]);
    // Enough for fewer connections than there will be.
    let daemon = Daemon::run_with_descriptors(&command, 96, socket);
    let silent: Vec<_> = (0..64).map(|_| TcpStream::connect(free).unwrap()).collect();
    let is_heard_within = |mut stream: &TcpStream, seconds| {
        stream.write_all(b"GET /health HTTP/1.1\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(seconds))).unwrap();
        stream.read(&mut [0; 64]).is_ok_and(|read| read > 0)
    };
    for _ in 0..3 {
        daemon.invoke("echo", "unix").answers("unix");
    }
    assert!(is_heard_within(&silent[0], 20), "the first were let in");
    assert!(!is_heard_within(&silent[63], 1), "the last wait");
    drop(silent);
    // Those before it have to be let in first, few at a time.
    assert!(is_heard_within(&TcpStream::connect(free).unwrap(), 20), "the next are let in");
}

#[test]
fn sigterm_lets_events_end_and_takes_no_more() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register_with("faulty", &place.bake("faulty"), json!({ "event_timeout_ms": 1500 }));
    let serving = daemon.begin("faulty", "spin");
    wait_until("it is served", || daemon.metric("ember_events{function=\"faulty\",state=\"running\"}") == 1);
    let group = daemon.id();
    daemon.signal(Signal::TERM);
    let socket = daemon.socket.clone();
    wait_until("nobody can connect", || UnixStream::connect(&socket).is_err());
    assert_eq!(receive(serving).status, 504, "the event went on to its end");
    let ended = daemon.end();
    assert_eq!((ended.code(), ended.errors.as_str()), (0, ""));
    common::processes::wait_until_gone(group);
    assert!(!socket.exists());
}

#[test]
fn a_daemon_that_ends_leaves_the_socket_of_one_that_has_taken_its_place() {
    let place = Place::new();
    let first = Daemon::start(place.path());
    fs::remove_file(&first.socket).unwrap();
    let second = Daemon::start(place.path());
    first.signal(Signal::TERM);
    assert_eq!(first.end().code(), 0);
    assert_eq!(second.get("/health").status, 200);
    let socket = second.socket.clone();
    second.signal(Signal::TERM);
    assert_eq!(second.end().code(), 0);
    assert!(!socket.exists(), "its own goes with it");
}

#[test]
fn a_drain_that_takes_too_long_ends_what_is_left() {
    let place = Place::new();
    let daemon = Daemon::start_with(place.path(), &["--drain", "300ms"]);
    daemon.register_with("faulty", &place.bake("faulty"), json!({ "event_timeout_ms": 600_000 }));
    let serving = daemon.begin("faulty", "spin");
    wait_until("it is served", || daemon.metric("ember_events{function=\"faulty\",state=\"running\"}") == 1);
    let group = daemon.id();
    daemon.signal(Signal::TERM);
    let ended = daemon.end();
    assert_eq!((ended.code(), ended.errors.as_str()), (0, ""));
    common::processes::wait_until_gone(group);
    // Whether its caller is still told depends on who is faster.
    let mut answer = Vec::new();
    (&serving).read_to_end(&mut answer).ok();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 502 "), "{answer:?}");
}

#[test]
fn a_second_daemon_is_refused_and_the_socket_of_a_dead_one_is_not_in_the_way() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    finish(&mut serve_command(&daemon.socket)).fails(USAGE, "listens at");
    let group = daemon.id();
    daemon.signal(Signal::KILL);
    let socket = daemon.socket.clone();
    daemon.end();
    common::processes::wait_until_gone(group);
    assert!(socket.exists());
    drop(Daemon::run(&mut serve_command(&socket), socket));
    let file = place.join("file");
    fs::write(&file, "mine").unwrap();
    finish(&mut serve_command(&file)).fails(USAGE, "no socket");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}
