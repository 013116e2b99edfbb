//! The corpus of the fuzz targets and 100 000 mutations of it through each decoder, on stable and in every test run:
//! no panic, no more memory than the input justifies, and what is accepted encodes to itself again.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

#[path = "../../fuzz/counting.rs"]
mod counting;
mod support;

use snapshot_format::fuzz_entry::{TARGETS, Verdict};
use support::mutate;

/// What a decoder may allocate at once: its own copies, sections as text, and errors.
const fn allowed(input: usize) -> usize {
    (64 << 10) + 32 * input
}

fn run_all(name: &str) {
    let (_, entry) = TARGETS.iter().find(|target| target.0 == name).unwrap();
    counting::run_all(&support::repository(), name, allowed, |input| match entry(input) {
        Verdict::Broken => None,
        verdict => Some(verdict == Verdict::Accepted),
    });
}

#[test]
fn state() {
    run_all("state");
}

#[test]
fn index() {
    run_all("index");
}

#[test]
fn working_set() {
    run_all("working_set");
}

#[test]
fn manifest() {
    run_all("manifest");
}

#[test]
fn every_decoder_is_mutated() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.0).collect();
    assert_eq!(names, ["state", "index", "working_set", "manifest"]);
}
