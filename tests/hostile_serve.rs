//! A caller of `ember serve` who does not read what an attacker's clone answers without end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::io::Read;

use common::attacker::Lair;
use common::serve::Daemon;
use common::{Place, wait_until};
use serde_json::json;

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
    daemon.invoke("attacker", "honest").answers("fine");
    for mut stream in [never, slowly] {
        // The connection has ended, within a piece.
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
}
