//! An attacker, or a guest that runs wild, in a clone of `ember serve`: its own caller is told, and events of a function beside it
//! are answered meanwhile.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use common::attacker::Lair;
use common::serve::{Daemon, receive};
use common::{Place, rounds, wait_until};
use serde_json::json;

/// How long an attack goes on that nothing but its limit ends. Where another end must come first, nothing on a busy host comes near
/// the function's own.
const LATE: &str = "Ember-Timeout-Ms: 600";
const HONEST: &str = "honest";

/// A daemon with a function that is attacked from, and one beside it.
fn daemon(place: &Place, attacker: &Path) -> Daemon {
    let daemon = Daemon::start(place.path());
    // Of another shape than any attacker.
    daemon.register("neighbour", &place.bake_in("64MiB", "echo", &["--force"]));
    daemon.register_with("attacker", attacker, json!({ "event_timeout_ms": 30_000 }));
    daemon
}

/// Each attack ends with one of these statuses, and while it lasts the neighbour's events are answered.
#[track_caller]
fn harms_nobody(daemon: &Daemon, attacks: &[&str], headers: &[&str], statuses: &[u16]) {
    for attack in attacks {
        let attacking = daemon.send("POST", "/functions/attacker/invoke", headers, attack.as_bytes());
        let ended = std::thread::scope(|scope| {
            let attacking = scope.spawn(|| receive(attacking));
            loop {
                daemon.invoke("neighbour", "fine").answers("fine");
                if attacking.is_finished() {
                    break attacking.join().unwrap();
                }
            }
        });
        let error = ended.header("ember-error");
        assert!(statuses.contains(&ended.status) && error == Some("platform"), "{attack}: {ended:?}");
    }
    assert_eq!(daemon.get("/health").status, 200);
}

/// Nothing is left of the attacks: two shells of each shape wait, and nothing else lives.
#[track_caller]
fn is_as_before(daemon: &Daemon) {
    daemon.await_shells(4);
    wait_until("every clone has ended", || daemon.shells().len() == 4);
}

#[test]
fn an_attacker_among_the_pool_s_clones_fails_alone() {
    let (lair, place) = (Lair::new(), Place::new());
    let daemon = daemon(&place, &lair.bake("", &[]));
    let broken =
        ["garbage", "huge-frame", "reserved", "unknown-kind", "short-payload", "other-generation", "failed"];
    harms_nobody(&daemon, &broken, &[], &[502]);
    daemon.invoke("attacker", HONEST).answers("fine");
    is_as_before(&daemon);
}

#[test]
fn an_attacker_without_an_end_takes_the_time_of_nobody_else() {
    let (lair, place) = (Lair::new(), Place::new());
    let daemon = daemon(&place, &lair.bake("", &[]));
    let endless =
        ["silence", "drip", "errors", "log", "console", "connections", "deaf", "packets", "doorbells"];
    harms_nobody(&daemon, &endless, &[LATE], &[504]);
    // The answer may be too long before it is too late.
    harms_nobody(&daemon, &["output", "answer", "crumbs"], &[LATE], &[502, 504]);
    daemon.invoke("attacker", HONEST).answers("fine");
    is_as_before(&daemon);
}

#[test]
fn a_guest_that_runs_wild_among_the_pool_s_clones_harms_nobody() {
    let (lair, place) = (Lair::new(), Place::new());
    let seeds: Vec<String> =
        (1..=rounds(3)).flat_map(|seed| [format!("{seed}"), format!("deadly {seed}")]).collect();
    let wild = daemon(&place, &place.bake("chaos"));
    let seeds: Vec<&str> = seeds.iter().map(String::as_str).collect();
    harms_nobody(&wild, &seeds, &[LATE], &[502, 504]);
    drop(wild);
    let data = lair.join("data");
    std::fs::write(&data, vec![7; 1 << 20]).unwrap();
    let with_every_device = lair.bake("", &["--drive", &format!("data={}", data.display())]);
    let wild = daemon(&place, &with_every_device);
    harms_nobody(&wild, &["chaos 1", "chaos 2", "chaos 3"], &[LATE], &[502, 504]);
    wild.invoke("attacker", HONEST).answers("fine");
    is_as_before(&wild);
}

#[test]
fn a_caller_who_reads_slowly_or_never_does_not_keep_a_clone_beyond_its_time() {
    let (lair, place) = (Lair::new(), Place::new());
    let daemon = Daemon::start_with(place.path(), &["--idle", "600s"]);
    let settings = json!({ "concurrency": 2, "queue": 0, "event_timeout_ms": 3000 });
    daemon.register_with("attacker", &lair.bake("", &[]), settings);
    let metric = |name: &str| daemon.metric(&format!("ember_events{name}"));
    let running = || metric("{function=\"attacker\",state=\"running\"}");
    let ended = |outcome: &str| metric(&format!("_total{{function=\"attacker\",outcome=\"{outcome}\"}}"));
    let path = "/functions/attacker/invoke";
    let endless = || daemon.send("POST", path, &["Accept: application/vnd.ember.frames"], b"output");
    let (never, mut slowly) = (endless(), endless());
    wait_until("both are served", || running() == 2);
    let mut read = 0;
    wait_until("none is served any more", || {
        // Never silent, and never done.
        read += slowly.read(&mut [0; 64]).unwrap();
        running() == 0
    });
    assert!(read > 0);
    // The one may have come to read that the clone was late.
    wait_until("both have ended", || ended("abandoned") + ended("platform_failed") == 2);
    assert!(ended("abandoned") >= 1);
    daemon.invoke("attacker", HONEST).answers("fine");
    for mut stream in [never, slowly] {
        // The connection has ended, within a piece.
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
}

#[test]
fn a_drive_of_a_pool_s_clone_is_no_faster_than_its_rate() {
    let (lair, place) = (Lair::new(), Place::new());
    let bundle = lair.bake("", &[]);
    let daemon = Daemon::start_with(place.path(), &["--block-rate", "1MiB/s:128KiB"]);
    daemon.register("reader", &bundle);
    // 1 MiB, of which 128 KiB may come at once and one request goes into debt.
    let start = Instant::now();
    daemon.invoke("reader", "read 16").answers("fine");
    assert!(start.elapsed() > Duration::from_millis(800));
    let late = daemon.request("POST", "/functions/reader/invoke", &[LATE], b"read 100");
    late.fails(504, "platform", "while the answer was awaited");
}
