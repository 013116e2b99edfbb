//! The working set: what an answer touches is recorded, recorded again, brought in without changing an answer, and left alone
//! where it is not this bundle's.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::bundles::{flip, manifest, seal};
use common::{BAD_BUNDLE, Ended, Place, USAGE, bake_command, ember, finish, run_command};
use snapshot_format::manifest::names;
use snapshot_format::working_set::{PageRange, WorkingSet};

const MEMORY: &str = "64MiB";
/// Reads 200 pages, every third.
const READ: &str = "read 16 200 3";
/// Writes 300 pages.
const WRITE: &str = "write 1024 300 2";

/// A guest all of whose pages are content, with the working set of `event`.
fn recorded(place: &Place, event: &str) -> PathBuf {
    let bundle = place.bake_in(MEMORY, "toucher", &["--warm-up", "fill", "--no-record"]);
    finish(ember(["record", "--event-text", event]).arg(&bundle)).succeeds();
    bundle
}

fn working_set(bundle: &Path) -> WorkingSet {
    WorkingSet::decode(&fs::read(bundle.join(names::WORKING_SET)).unwrap()).unwrap()
}

fn run(bundle: &Path, event: &str, more: &[&str]) -> Ended {
    finish(run_command(bundle, event).args(more))
}

/// Puts another working set in the bundle, everything sealed.
fn replace(bundle: &Path, set: &WorkingSet) {
    fs::write(bundle.join(names::WORKING_SET), set.encode().unwrap()).unwrap();
    seal(bundle, manifest(bundle));
}

#[test]
fn what_an_event_reads_and_writes_is_recorded_page_by_page() {
    let place = Place::new();
    let (read, written) =
        (working_set(&recorded(&place, READ)), working_set(&recorded(&Place::new(), WRITE)));
    // The guest's own code, stack and tables are a few pages.
    assert!((200..240).contains(&read.read_pages()), "{read:?}");
    assert!(read.written_pages() < 20, "{read:?}");
    assert!((300..320).contains(&written.written_pages()), "{written:?}");
    assert!(written.read_pages() < 40, "{written:?}");
}

#[test]
fn a_bake_with_warm_up_events_records_and_one_without_does_not() {
    let place = Place::new();
    assert!(place.bake_with("echo", &["--warm-up", "x"]).join(names::WORKING_SET).exists());
    assert!(
        !Place::new().bake_with("echo", &["--warm-up", "x", "--no-record"]).join(names::WORKING_SET).exists()
    );
    assert!(!Place::new().bake("echo").join(names::WORKING_SET).exists());
}

#[test]
fn recording_again_changes_the_working_set_and_nothing_else() {
    let place = Place::new();
    let bundle = recorded(&place, READ);
    let before =
        (fs::read(bundle.join(names::MEMORY)).unwrap(), fs::read(bundle.join(names::STATE)).unwrap());
    let set = working_set(&bundle);
    finish(ember(["record", "--event-text", WRITE]).arg(&bundle)).succeeds();
    assert_ne!(working_set(&bundle), set);
    assert!(
        before
            == (fs::read(bundle.join(names::MEMORY)).unwrap(), fs::read(bundle.join(names::STATE)).unwrap())
    );
    finish(ember(["verify"]).arg(&bundle)).succeeds();
    assert_eq!(place.names().len(), 1, "{:?}", place.names());
}

#[test]
fn what_only_few_of_several_events_touch_is_left_out() {
    let place = Place::new();
    let bundle = recorded(&place, READ);
    let mut command = ember(["record", "--event-text", WRITE]);
    for _ in 0..4 {
        command.args(["--event-text", READ]);
    }
    finish(command.arg(&bundle)).succeeds();
    let set = working_set(&bundle);
    assert!(set.written_pages() < 20, "{set:?}");
    assert!((200..240).contains(&set.read_pages()), "{set:?}");
}

#[test]
fn whoever_bakes_or_records_is_told_how_little_is_confined_there() {
    let place = Place::new();
    let bundle = place.join("told.ember");
    let bake = |more: &[&str]| finish(bake_command("echo", &bundle).args(more));
    assert!(bake(&[]).succeeds().errors.contains("only its vCPUs are confined"));
    assert_eq!(bake(&["--force", "--json"]).succeeds().json()["jail"]["level"], "partial");
    let record = |more: &[&str]| finish(ember(["record", "--event-text", "x"]).args(more).arg(&bundle));
    assert!(record(&[]).succeeds().errors.contains("only vCPUs are confined"));
    assert_eq!(record(&["--json"]).succeeds().json()["jail"]["level"], "partial");
}

#[test]
fn a_recording_without_an_event_is_refused() {
    let place = Place::new();
    let bundle = place.bake("echo");
    finish(ember(["record"]).arg(&bundle)).fails(USAGE, "nothing to record");
}

#[test]
fn prefetching_changes_no_answer() {
    let place = Place::new();
    let bundle = recorded(&place, WRITE);
    let all = format!("read 0 {} 1", (64 << 20) / 4096);
    for event in [READ, WRITE, &all] {
        let plain = run(&bundle, event, &["--prefetch", "none"]);
        for flags in [&["--prefetch", "read"][..], &["--prefetch", "all"], &["--paging", "uffd"]] {
            run(&bundle, event, flags).answers(plain.succeeds().text());
        }
    }
    let told = run(&bundle, WRITE, &["--json", "--timing"]).succeeds().json();
    assert!(told["paging"]["prefetched_bytes"].as_u64().unwrap() >= 300 * 4096, "{told}");
    assert!(told["paging"]["wasted_pages"].as_u64().unwrap() < 20, "{told}");
    let told = run(&bundle, READ, &["--json", "--timing"]).succeeds().json();
    assert!(told["paging"]["wasted_pages"].as_u64().unwrap() >= 250, "{told}");
}

#[test]
fn a_working_set_of_another_machine_is_left_alone_with_a_sentence() {
    let place = Place::new();
    let bundle = recorded(&place, WRITE);
    let beyond = PageRange { first: 1 << 18, count: 512 };
    let set = WorkingSet {
        memory_len: 4 << 30,
        read: vec![beyond],
        write: vec![PageRange { first: 0, count: 1 << 18 }],
        ..WorkingSet::default()
    };
    replace(&bundle, &set);
    let ended = run(&bundle, READ, &[]);
    ended.succeeds();
    assert!(ended.errors.contains("record it again"), "{ended:?}");
    is_left_alone(&bundle);
}

/// Nothing of the bundle's working set is copied or mapped.
fn is_left_alone(bundle: &Path) {
    for paging in ["mmap", "uffd"] {
        let told = run(bundle, READ, &["--json", "--timing", "--paging", paging]).succeeds().json();
        let done = ["prefetched_bytes", "read_ahead_bytes", "mapped_pages"].map(|name| &told["paging"][name]);
        assert!(done.iter().all(|bytes| **bytes == 0), "{told}");
    }
}

#[test]
fn a_working_set_of_another_bundle_is_left_alone_with_a_sentence() {
    let (place, elsewhere) = (Place::new(), Place::new());
    let bundle = recorded(&place, WRITE);
    let warm_up = ["--warm-up", "fill", "--warm-up", "write 5000 1 1", "--no-record"];
    let other = elsewhere.bake_in(MEMORY, "toucher", &warm_up);
    finish(ember(["record", "--event-text", WRITE]).arg(&other)).succeeds();
    fs::copy(other.join(names::WORKING_SET), bundle.join(names::WORKING_SET)).unwrap();
    seal(&bundle, manifest(&bundle));
    let ended = run(&bundle, READ, &[]);
    ended.succeeds();
    assert!(ended.errors.contains("another bundle's memory"), "{ended:?}");
    is_left_alone(&bundle);
    finish(ember(["verify"]).arg(&bundle)).fails(BAD_BUNDLE, "another bundle's memory");
}

#[test]
fn a_damaged_working_set_is_left_alone_with_a_sentence() {
    let place = Place::new();
    let bundle = recorded(&place, WRITE);
    flip(&bundle.join(names::WORKING_SET), 8 * 60);
    let ended = run(&bundle, READ, &[]);
    ended.succeeds();
    assert!(ended.errors.contains("does not match its checksum"), "{ended:?}");
    finish(ember(["verify"]).arg(&bundle)).fails(BAD_BUNDLE, "");
}

#[test]
fn a_damaged_page_that_is_to_be_brought_in_is_found_before_the_start() {
    let place = Place::new();
    let bundle = recorded(&place, WRITE);
    let expected = *working_set(&bundle).write.last().unwrap();
    flip(&bundle.join(names::MEMORY), usize::try_from(8 * expected.bytes().start).unwrap());
    run(&bundle, READ, &["--paging", "mmap", "--verify", "touched"])
        .fails(BAD_BUNDLE, "does not match its index");
}
