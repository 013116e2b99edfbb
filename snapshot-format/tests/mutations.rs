//! The corpus of the fuzz targets and 100 000 mutations of it through each decoder, on stable and in every test run:
//! no panic, no more memory than the input justifies, and what is accepted encodes to itself again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]
// UNSAFE: a global allocator cannot be written without.
#![allow(unsafe_code)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;

use snapshot_format::fuzz_entry::{TARGETS, Target, Verdict};
use support::Numbers;

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

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = support::repository().join("fuzz/corpus").join(name);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    // The same numbers give the same mutations on every machine.
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// One to eight changes of kinds that have broken decoders before.
fn mutate(seeds: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = seeds[numbers.below(seeds.len())].clone();
    for _ in 0..=numbers.below(8) {
        change(&mut bytes, seeds, numbers);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], numbers: &mut Numbers) {
    const TELLING: [u64; 10] =
        [0, 1, 0x7f, 0xff, 0x1000, 0xffff, 1 << 31, u32::MAX as u64, 1 << 63, u64::MAX];
    if bytes.is_empty() {
        bytes.push(0);
    }
    let (at, kind) = (numbers.below(bytes.len()), numbers.below(9));
    match kind {
        0..=2 => bytes[at] ^= 1 << numbers.below(8),
        3 => bytes[at] = numbers.next().to_le_bytes()[0],
        4 | 5 => {
            let value = TELLING[numbers.below(TELLING.len())].to_le_bytes();
            let width = [1, 2, 4, 8][numbers.below(4)].min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&value[..width]);
        }
        6 => bytes.truncate(at),
        7 => {
            let part = bytes[at..bytes.len().min(at + 1 + numbers.below(64))].to_vec();
            let to = numbers.below(bytes.len());
            bytes.splice(to..to, part);
        }
        _ => {
            let other = &seeds[numbers.below(seeds.len())];
            let from = numbers.below(other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

fn run_all(name: &str) {
    let target = TARGETS.iter().find(|target| target.0 == name).unwrap();
    let seeds = corpus(name);
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
