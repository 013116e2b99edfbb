//! How fast a clone ends whose memory cannot be brought in. In the emulated host the clock counts instructions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::bundles::flip;
use common::{BAD_BUNDLE, Place, finish, in_rig, run_command};

/// The page that the small guest is told to read.
const PAGE: u64 = 2000;
/// From the touch of a bad chunk to the end of the clone.
const LONGEST: Duration = Duration::from_millis(100);

/// Which page of the memory file has the content that `fill` gives to a page.
fn place_of(page: u64, memory: &[u8]) -> usize {
    let word = (page + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    memory.chunks(4096).position(|content| content.starts_with(&word)).unwrap()
}

#[test]
fn a_clone_that_touches_a_bad_chunk_ends_within_a_tenth_of_a_second() {
    let place = Place::new();
    let bundle = place.bake_in("16MiB", "toucher", &["--warm-up", "fill", "--no-record"]);
    let memory = bundle.join("memory");
    let offset = 4096 * place_of(PAGE, &fs::read(&memory).unwrap());
    flip(&memory, 8 * (offset + 4000));
    let mut command = run_command(&bundle, &format!("read {PAGE} 1 1"));
    command.args(["--paging", "uffd", "--verify", "touched", "--timeout", "60m"]);
    let begin = Instant::now();
    let ended = finish(&mut command);
    let took = begin.elapsed();
    ended.fails(BAD_BUNDLE, &format!("does not match its index at offset {offset:#x}"));
    // The whole life of the clone is in it. On another machine it would be that machine's time.
    assert!(!in_rig() || took < LONGEST, "{took:?}");
}
