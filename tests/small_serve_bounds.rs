//! A clone of the pool that needs more than it may have ends alone, with a word; its control group goes with it, and those of a
//! daemon that was killed with the next start.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::path::PathBuf;

use common::groups::{groups_of, setting};
use common::processes::wait_until_gone;
use common::serve::{Daemon, kill, receive};
use common::{GUEST_FAILED, Place, ember, finish, is_root, wait_until};
use rustix::process::Signal;
use serde_json::json;

/// Writes this many pages of a guest.
fn write_pages(pages: usize) -> String {
    format!("write 0 {pages} 1")
}

/// Once so many shells wait, the groups of each.
fn groups_of_shells(daemon: &Daemon, count: usize) -> Vec<Vec<PathBuf>> {
    daemon.await_shells(count as u64);
    daemon.shells().into_iter().map(groups_of).collect()
}

#[test]
fn a_clone_that_needs_more_memory_than_it_may_have_ends_alone_and_its_caller_is_told() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let daemon = Daemon::start_with(place.path(), &["--memory-max", "24MiB"]);
    daemon.register("toucher", &place.bake_in("64MiB", "toucher", &[]));
    daemon.register_with("faulty", &place.bake("faulty"), json!({ "event_timeout_ms": 4000 }));
    let neighbour = daemon.begin("faulty", "spin");
    wait_until("it is served", || daemon.metric("ember_events{function=\"faulty\",state=\"running\"}") == 1);
    let words = "it needed more memory than --memory-max allows";
    let ended = daemon.invoke("toucher", &write_pages(15_000));
    ended.fails(502, "platform", words);
    assert_eq!(ended.json()["error"]["kind"], "guest_failed", "{ended:?}");
    daemon.invoke("toucher", &write_pages(1000)).answers("0x0");
    let mut run = ember(["run", "toucher", "--event-text", &write_pages(15_000), "--pool"]);
    finish(run.arg(&daemon.socket)).fails(GUEST_FAILED, words);
    assert_eq!(receive(neighbour).status, 504, "the neighbour came to its own end");
    daemon.invoke("faulty", "exit 0").answers("exiting");
    assert_eq!(daemon.get("/health").status, 200);
}

#[test]
fn each_shell_waits_in_a_group_of_its_own_with_the_bounds_that_were_asked_for() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let bounds = ["--memory-max", "64MiB", "--memory-high", "48MiB", "--cpu-max", "50", "--cpu-weight", "50"];
    let daemon = Daemon::start_with(place.path(), &bounds);
    daemon.register("echo", &place.bake("echo"));
    let groups = groups_of_shells(&daemon, 2);
    assert_eq!(groups.len(), 2);
    for own in &groups {
        assert_eq!(setting(own, ["memory.max", "memory.limit_in_bytes"]), (64 << 20).to_string());
        assert_eq!(setting(own, ["memory.high", "memory.soft_limit_in_bytes"]), (48 << 20).to_string());
        let quota = setting(own, ["cpu.max", "cpu.cfs_quota_us"]);
        assert!(["50000 100000", "50000"].contains(&quota.as_str()), "{quota}");
        assert!(["50", "512"].contains(&setting(own, ["cpu.weight", "cpu.shares"]).as_str()));
        assert_eq!(setting(own, ["pids.max", "pids.max"]), "64");
    }
    assert!(groups[0].iter().all(|group| !groups[1].contains(group)), "{groups:?}");
    assert!(groups_of(daemon.id().cast_signed()).is_empty(), "the daemon is in none of them");
    daemon.invoke("echo", "bounded").answers("bounded");
}

#[test]
fn groups_go_with_their_clones_and_those_of_a_killed_daemon_with_the_next_start() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let bounded = ["--memory-max", "64MiB"];
    let daemon = Daemon::start_with(place.path(), &bounded);
    daemon.register("echo", &place.bake("echo"));
    let waiting = groups_of_shells(&daemon, 2);
    assert!(waiting.iter().all(|own| !own.is_empty()), "{waiting:?}");
    daemon.invoke("echo", "x").answers("x");
    let is_gone = |own: &Vec<PathBuf>| !own.iter().any(|group| group.exists());
    wait_until("the groups of the clone that answered are gone", || waiting.iter().any(is_gone));
    daemon.await_shells(2);
    daemon.shells().into_iter().for_each(kill);
    wait_until("so are those of shells that were killed", || waiting.iter().all(is_gone));

    let left = groups_of_shells(&daemon, 2).concat();
    let group = daemon.id();
    daemon.signal(Signal::KILL);
    daemon.end();
    wait_until_gone(group);
    // What has just ended may be in its group for a moment.
    wait_until("groups of the killed daemon are gone with a start", || {
        drop(Daemon::start(place.path()));
        !left.iter().any(|group| group.exists())
    });
}

#[test]
fn a_daemon_that_is_told_to_end_takes_its_groups_with_it() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let daemon = Daemon::start_with(place.path(), &["--memory-max", "64MiB"]);
    daemon.register_with("faulty", &place.bake("faulty"), json!({ "event_timeout_ms": 2000 }));
    daemon.await_shells(2);
    let serving = daemon.begin("faulty", "spin");
    wait_until("it is served", || daemon.metric("ember_events{function=\"faulty\",state=\"running\"}") == 1);
    // Its clone's, and those of the one that waits meanwhile.
    let groups = groups_of_shells(&daemon, 1);
    assert!(groups.len() == 2 && groups.iter().all(|own| !own.is_empty()), "{groups:?}");
    let groups = groups.concat();
    daemon.signal(Signal::TERM);
    assert_eq!(receive(serving).status, 504);
    daemon.end().succeeds();
    let left: Vec<_> = groups.iter().filter(|group| group.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn events_and_answers_take_no_more_of_the_daemon_s_memory_than_they_may() {
    let place = Place::new();
    let daemon = Daemon::start_with(place.path(), &["--held-max", "16KiB"]);
    daemon.register("echo", &place.bake("echo"));
    let words = "as much of the daemon's memory as --held-max allows, 16 KiB";
    let post = |bytes: usize| daemon.request("POST", "/functions/echo/invoke", &[], &vec![b'x'; bytes]);
    for _ in 0..3 {
        let refused = post((16 << 10) + 1);
        refused.fails(503, "platform", words);
        assert_eq!(refused.header("retry-after"), Some("1"));
        // Its answer, beside it, is what is too much.
        post(10 << 10).fails(503, "platform", words);
        assert_eq!(post(8 << 10).body.len(), 8 << 10);
    }
    // Nobody takes it: it is refused before it is read.
    let unknown = daemon.request("POST", "/functions/none/invoke", &[], &vec![b'x'; 512 << 10]);
    unknown.fails(404, "request", "There is no function none");
}

#[test]
fn a_function_s_answer_ends_at_its_limit() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    let bundle = place.bake("faulty");
    daemon.register_with("faulty", &bundle, json!({ "answer_max_bytes": 6 }));
    daemon.invoke("faulty", "exit 0").fails(
        502,
        "platform",
        "It is longer than the 6 bytes that answer_max_bytes allows",
    );
    daemon.register_with("faulty", &bundle, json!({ "answer_max_bytes": 7 }));
    daemon.invoke("faulty", "exit 0").answers("exiting");
}
