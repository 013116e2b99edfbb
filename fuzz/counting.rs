//! What the tests of each crate with decoders share beside the mutations: an allocator that counts, and a corpus with 100 000
//! mutations of it through a decoder.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]
// UNSAFE: a global allocator cannot be written without.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use super::mutate::{Numbers, corpus, mutate};

const MUTATIONS: usize = 100_000;

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

/// Runs one input within the bytes that a decoder may allocate at once for so long a one, and fails with what reproduces it. `None` is
/// a decoder that is broken.
fn run(
    entry: impl Fn(&[u8]) -> Option<bool>,
    allowed: fn(usize) -> usize,
    input: &[u8],
    origin: &str,
) -> bool {
    let before = LIVE.get();
    PEAK.set(before);
    let accepted = entry(input);
    let peak = PEAK.get() - before;
    assert!(peak <= allowed(input.len()), "{peak} bytes for an input of {}: {origin}", input.len());
    accepted.unwrap_or_else(|| panic!("broken: {origin}"))
}

/// The corpus of a target in the checkout at `repository`, which must be accepted, and mutations of it: no panic, no more memory than
/// is allowed, and nothing broken.
pub fn run_all(
    repository: &Path,
    name: &str,
    allowed: fn(usize) -> usize,
    entry: impl Fn(&[u8]) -> Option<bool>,
) {
    let seeds = corpus(repository, name);
    for (number, seed) in seeds.iter().enumerate() {
        let origin = format!("{name}, corpus file {number}");
        assert!(run(&entry, allowed, seed, &origin), "refused: {origin}");
    }
    let accepted = (0..MUTATIONS)
        .filter(|number| {
            let mutant = mutate(&seeds, &mut Numbers(*number as u64));
            run(&entry, allowed, &mutant, &format!("{name}, mutation {number}"))
        })
        .count();
    // Were all refused, the mutations would have tested the checksums and nothing behind them.
    assert!(accepted > MUTATIONS / 1000, "{name}: {accepted} accepted");
}
