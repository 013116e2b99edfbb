//! Linux guests answer through a daemon's pool as they do through `ember run`, each clone its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::serve::Daemon;
use common::{Place, ember, finish, wait_until};
use linux::{example_bundle, lambda, shell};
use serde_json::json;

const HANDLER: &str = r#"
import socket
calls = 0

def handler(event, context):
    global calls
    calls += 1
    if event.get("fail"):
        raise ValueError("as asked")
    print("logged", flush=True)
    with open("/proc/sys/kernel/random/boot_id") as boot:
        return {"calls": calls, "host": socket.gethostname(), "echo": event.get("echo")}
"#;

#[test]
fn a_lambda_function_answers_through_the_pool_and_every_clone_is_its_own() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register("function", &lambda("pooled", HANDLER, ""));
    let mut hosts = Vec::new();
    for n in 0..3 {
        let answer = daemon.invoke("function", &json!({ "echo": n }).to_string());
        assert_eq!(answer.status, 200, "{answer:?}");
        let told = answer.json();
        assert_eq!((&told["calls"], &told["echo"]), (&json!(1), &json!(n)));
        assert!(answer.header("ember-log").is_some(), "{answer:?}");
        hosts.push(told["host"].as_str().unwrap().to_owned());
    }
    hosts.sort();
    hosts.dedup();
    assert_eq!(hosts.len(), 3, "{hosts:?}");
    let failed = daemon.invoke("function", r#"{"fail": true}"#);
    failed.fails(500, "function", "as asked");
    let mut run = ember(["run", "function", "--event-json", r#"{"echo": "x"}"#, "--hostname", "mine"]);
    let ended = finish(run.arg("--pool").arg(&daemon.socket));
    assert_eq!(ended.succeeds().json(), json!({ "calls": 1, "host": "mine", "echo": "x" }));
    assert!(ended.errors.contains("logged"), "{ended:?}");
}

#[test]
fn a_command_s_output_errors_and_code_come_through_the_pool() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register("shell", &shell());
    let mut run = ember(["run", "shell", "--event-text", "echo out; echo err >&2; exit 3"]);
    let ended = finish(run.arg("--pool").arg(&daemon.socket));
    assert_eq!((ended.code(), ended.text(), ended.errors.as_str()), (3, "out\n", "err\n"));
    // Its root can be written, and nobody else sees that.
    for _ in 0..2 {
        let answer =
            daemon.invoke("shell", "cat /file 2>/dev/null || echo none; echo mine > /file; sync; cat /file");
        answer.answers("none\nmine\n");
    }
}

#[test]
fn of_a_log_as_much_is_passed_on_as_may_be() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register_with("shell", &shell(), json!({ "log_max_bytes": 5 }));
    let answer = daemon.invoke("shell", "echo error >&2; echo more >&2; echo out");
    answer.answers("out\n");
    let log = BASE64_STANDARD.decode(answer.header("ember-log").unwrap()).unwrap();
    let log = String::from_utf8(log).unwrap();
    assert!(log.starts_with("error") && log.contains("log_max_bytes") && !log.contains("more\n"), "{log:?}");
}

#[test]
fn a_clone_that_waits_for_its_next_event_stands_still() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register_with("shell", &shell(), json!({ "reuse": 3 }));
    let busy = "(while :; do :; done) >/dev/null 2>&1 & echo $! >/busy; echo begun";
    daemon.invoke("shell", busy).answers("begun\n");
    wait_until("no processor works for any clone", || {
        let worked = || daemon.shells().into_iter().map(processor_time).collect::<Vec<u64>>();
        let before = worked();
        std::thread::sleep(Duration::from_secs(1));
        !before.is_empty() && before == worked()
    });
    daemon.invoke("shell", "kill -0 $(cat /busy) && echo still there").answers("still there\n");
}

/// Clock ticks that a process has worked so far.
fn processor_time(process: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // Its name, in parentheses, is the second field; user and system time are the 14th and 15th (proc(5)).
    let (_, behind) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = behind.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_web_server_s_answers_come_with_their_status_beside_ember_s() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register("site", &example_bundle("http"));
    let get =
        |path: &str| daemon.request("POST", "/functions/site/invoke", &[&format!("Ember-Path: {path}")], &[]);
    let found = get("/index.html");
    assert_eq!((found.status, found.header("ember-status")), (200, Some("200")), "{found:?}");
    assert!(found.header("content-type").unwrap().starts_with("text/html"), "{found:?}");
    let missing = get("/nowhere");
    missing.fails(500, "function", "");
    assert_eq!(missing.header("ember-status"), Some("404"));
    let mut run = ember(["run", "site", "--path", "/index.html", "--include"]);
    let ended = finish(run.arg("--pool").arg(&daemon.socket));
    assert!(ended.succeeds().text().starts_with("HTTP/1.1 200\n"), "{ended:?}");
}
