//! The corpus of the fuzz targets and 100 000 mutations of it through each decoder, on stable and in every test run:
//! no panic, no more memory than the input justifies, and what is accepted encodes to itself again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]
// UNSAFE: a global allocator cannot be written without.
#![allow(unsafe_code)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use snapshot_format::fuzz_entry::{TARGETS, Target, Verdict};
use support::mutate::{Numbers, corpus, mutate};

const MUTATIONS: usize = 100_000;
/// What a decoder may allocate at once: its own copies, sections as text, and errors.
const fn allowed(input: usize) -> usize {
    (64 << 10) + 32 * input
}

/// Counts what each thread has allocated.
struct Counting;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn grown(bytes: usize) {
    let live = LIVE.get().saturating_add(bytes);
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

fn shrunk(bytes: usize) {
    LIVE.set(LIVE.get().saturating_sub(bytes));
}

// SAFETY: every call goes to the system's allocator as it came; counting neither allocates nor touches the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        shrunk(layout.size());
        // SAFETY: `at` came from `alloc` above, thus from the system's allocator, with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        // Both may live while the content is copied.
        grown(len);
        shrunk(layout.size());
        // SAFETY: as for `dealloc`; the caller's promise about `len` is passed on.
        unsafe { System.realloc(at, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs one input, and fails with what reproduces it.
fn run((name, entry): &Target, input: &[u8], origin: &str) -> Verdict {
    let before = LIVE.get();
    PEAK.set(before);
    let verdict = entry(input);
    let peak = PEAK.get() - before;
    assert!(peak <= allowed(input.len()), "{name}: {peak} bytes for an input of {}: {origin}", input.len());
    assert_ne!(verdict, Verdict::Broken, "{name}: {origin}");
    verdict
}

fn run_all(name: &str) {
    let target = TARGETS.iter().find(|target| target.0 == name).unwrap();
    let seeds = corpus(&support::repository(), name);
    for (number, seed) in seeds.iter().enumerate() {
        assert_eq!(run(target, seed, &format!("corpus file {number}")), Verdict::Accepted);
    }
    let accepted = (0..MUTATIONS)
        .filter(|number| {
            let mutant = mutate(&seeds, &mut Numbers(*number as u64));
            run(target, &mutant, &format!("mutation {number}")) == Verdict::Accepted
        })
        .count();
    // Were all refused, the mutations would have tested the checksums and nothing behind them.
    assert!(accepted > MUTATIONS / 1000, "{name}: {accepted} accepted");
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
