//! Whatever a guest does to its devices' registers and rings, its machine ends as a machine does, or its devices fail; the process
//! never panics, and never grows.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::attacker::{Lair, Watched, beside_a_neighbour, run_command};
use common::{GUEST_FAILED, Place, TIMEOUT, finish, in_rig, rounds};

/// Seeds of one run in CI: each takes as long as [`LIMIT`] says, all together a minute.
const SEEDS: u64 = 22;
const LIMIT: &str = "700ms";

/// Lets the guest of `bundle` run wild as `event` says, while an honest clone of `neighbour` answers beside it.
#[track_caller]
fn run_wild(bundle: &Path, event: &str, ends: &[i32], neighbour: &Path) {
    let ended = beside_a_neighbour(&mut run_command(bundle, event, LIMIT), neighbour);
    assert!(ends.contains(&ended.code()), "{event}: {ended:?}");
}

/// A small guest with a drive that it may write to, and one that it may not.
fn with_drives(place: &Place) -> PathBuf {
    for (name, bytes) in [("data", 1 << 20), ("more", (3 << 20) + 512)] {
        std::fs::write(place.join(name), vec![7; bytes]).unwrap();
    }
    std::fs::write(place.join("ember.toml"), "drives.more = { path = 'more', read_only = true }").unwrap();
    let (config, data) = (place.join("ember.toml"), format!("data={}", place.join("data").display()));
    place.bake_with("chaos", &["--config", config.to_str().unwrap(), "--drive", &data])
}

/// A guest with everything that Linux has.
fn with_all_devices(lair: &Lair) -> PathBuf {
    let data = lair.join("data");
    std::fs::write(&data, vec![7; 1 << 20]).unwrap();
    lair.bake("", &["--drive", &format!("data={}", data.display())])
}

#[test]
fn a_wild_small_guest_meets_the_time_limit() {
    let (place, lair) = (Place::new(), Lair::new());
    let (chaos, neighbour) = (with_drives(&place), with_all_devices(&lair));
    for seed in 1..=rounds_of(SEEDS) {
        run_wild(&chaos, &seed.to_string(), &[TIMEOUT], &neighbour);
    }
}

#[test]
fn a_wild_guest_with_every_device_meets_the_time_limit() {
    let lair = Lair::new();
    let bundle = with_all_devices(&lair);
    for seed in 1..=rounds_of(SEEDS) {
        // Its control stream is gone with the first reset of the device, which is found two seconds later.
        run_wild(&bundle, &format!("chaos {seed}"), &[TIMEOUT], &bundle);
    }
    finish(&mut run_command(&bundle, "honest", "30s")).answers("fine");
}

#[test]
fn a_wild_guest_may_end_itself() {
    let (place, lair) = (Place::new(), Lair::new());
    let (small, all) = (with_drives(&place), with_all_devices(&lair));
    for seed in 1..=rounds_of(SEEDS / 2) {
        // "Done", with an exit code, is among what a small guest may say.
        let ended = beside_a_neighbour(&mut run_command(&small, &format!("deadly {seed}"), LIMIT), &all);
        assert!((0..=255).contains(&ended.code()), "{ended:?}");
        run_wild(&all, &format!("deadly-chaos {seed}"), &[TIMEOUT, GUEST_FAILED], &all);
    }
}

#[test]
fn a_wild_guest_is_not_baked_and_leaves_nothing() {
    let lair = Lair::new();
    for seed in 1..=2 {
        let limits = ["--boot-timeout", "500ms", "--ready-timeout", "200ms"];
        let words = format!("at=greeting do=chaos {seed}");
        let ended = Watched::start(&mut lair.bake_command("b", &words, &limits)).end();
        assert_eq!(ended.code(), TIMEOUT, "{ended:?}");
        assert_eq!(lair.bundles(), [""; 0], "{ended:?}");
    }
}

/// The guests are as many times slower in the emulated host as processes are.
fn rounds_of(seeds: u64) -> u64 {
    if in_rig() { seeds.div_ceil(2) } else { seeds }
}

mod full {
    use super::*;

    /// An hour, in the emulated host a tenth of it; seconds where `cargo test` takes it along with all others.
    #[test]
    fn wild_guests_for_an_hour() {
        let seconds = if std::env::var_os("EMBER_FULL").is_some() { rounds(3600) } else { 5 };
        let (place, lair) = (Place::new(), Lair::new());
        let (small, all) = (with_drives(&place), with_all_devices(&lair));
        let end = Instant::now() + Duration::from_secs(seconds as u64);
        for seed in 1000.. {
            if Instant::now() > end {
                break;
            }
            run_wild(&small, &format!("{seed}"), &[TIMEOUT], &all);
            run_wild(&all, &format!("chaos {seed}"), &[TIMEOUT], &all);
            run_wild(&all, &format!("deadly-chaos {seed}"), &[TIMEOUT, GUEST_FAILED], &all);
        }
    }
}
