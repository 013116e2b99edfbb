//! Linux guests answer through a daemon's pool as they do through `ember run`, each clone its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/linux.rs"]
mod linux;

use common::serve::Daemon;
use common::{Place, ember, finish};
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
