//! Guests with little and with much memory, and what of it a bundle holds.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::path::Path;

use common::{Place, USAGE};
use linux::{bake, baked, busybox_root, example_bundle, python, run, shell, with_root};

const MIB: u64 = 1 << 20;

/// Pages with their own number in them on both sides of the hole below 4 GiB. The kernel gives what lies above first, so most of that
/// is held until pages below are given, and let go before the freeze. `ABOVE` is its size in MiB.
const BOTH_SIDES: &str = r#"
import array, ctypes, mmap

PAGE = 4096
STEP = 512
MIB = 1 << 20
MADV_POPULATE_WRITE = 23
ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

pages = mmap.mmap(-1, 64 * MIB, ANONYMOUS)
pages.madvise(mmap.MADV_NOHUGEPAGE)
address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
first_words = memoryview(pages).cast("Q")[:: PAGE // 8]

held = []

def hold(mib, advice):
    area = mmap.mmap(-1, mib * MIB, ANONYMOUS)
    area.madvise(advice)
    area.madvise(MADV_POPULATE_WRITE)
    held.append(area)

def frames(first, last):
    found = array.array("Q")
    with open("/proc/self/pagemap", "rb") as file:
        file.seek((address // PAGE + first) * 8)
        found.frombytes(file.read((last - first) * 8))
    return [(entry & (1 << 55) - 1) * PAGE for entry in found]

def write(first, last):
    first_words[first:last] = memoryview(array.array("Q", range(first, last)))

if ABOVE > 256:
    hold(ABOVE - 256, mmap.MADV_HUGEPAGE)
taken = 0
below = above = False
while not (below and above):
    write(taken, taken + STEP)
    where = frames(taken, taken + STEP)
    below |= min(where) < 3 << 30
    above |= max(where) >= 4 << 30
    taken += STEP
    hold(32, mmap.MADV_NOHUGEPAGE)
held.clear()

def are_right():
    return first_words[:taken].tolist() == list(range(taken))

state.update(taken=taken, frames=frames, are_right=are_right, write=write)
"#;

/// Says whether all pages are right and on which sides they lie, then changes them all.
const LOOK: &str = r#"
frames = state["frames"](0, state["taken"])
print(state["are_right"](), min(frames) < 3 << 30, max(frames) >= 4 << 30)
print(int(open("/proc/meminfo").readline().split()[1]) >> 10)
state["write"](0, state["taken"])
print(state["are_right"]())
"#;

/// Bakes a guest of so much memory and looks at it in two clones.
#[track_caller]
fn has_memory_on_both_sides(name: &str, mib: u64) {
    let setup = format!("ABOVE = {}\n{BOTH_SIDES}", mib - 3072);
    let bundle = python(name, &setup, &["--memory", &format!("{mib}MiB")]);
    for _ in 0..2 {
        let ended = run(&bundle, LOOK);
        let lines: Vec<&str> = ended.succeeds().text().lines().collect();
        assert_eq!((lines[0], lines[2]), ("True True True", "True"), "{ended:?}");
        let seen: u64 = lines[1].parse().unwrap();
        assert!(seen <= mib && seen > mib - 96 - mib / 32, "the guest sees {seen} MiB of {mib}");
    }
    holds_little_more_than_was_in_use(&bundle);
}

/// The promise of docs/performance.md: allocated bytes of the memory file against what was in use just before the freeze.
#[track_caller]
fn holds_little_more_than_was_in_use(bundle: &Path) {
    let told = baked(bundle);
    let number = |pointer: &str| told.pointer(pointer).unwrap().as_u64().unwrap();
    let (all, free) = (number("/memory/bytes"), number("/memory/guest_free_bytes"));
    let allocated = number("/files/memory/allocated");
    let limit = (all - free) * 11 / 10 + 4 * MIB;
    assert!(allocated <= limit, "{allocated} bytes on disk, {} in use", all - free);
    assert_eq!(
        std::fs::metadata(bundle.join("memory")).unwrap().len(),
        all,
        "the file is as long as the memory"
    );
}

#[test]
fn a_guest_with_128_mib_boots_and_answers() {
    let ended = run(&shell(), "grep MemTotal /proc/meminfo");
    let seen: u64 = ended.succeeds().text().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((70 * 1024..128 * 1024).contains(&seen), "{ended:?}");
}

#[test]
fn memory_on_both_sides_of_the_hole_survives_a_restore() {
    has_memory_on_both_sides("hole", 3328);
}

#[test]
fn free_memory_takes_no_room_in_a_bundle() {
    for bundle in [shell(), example_bundle("echo"), example_bundle("lambda")] {
        holds_little_more_than_was_in_use(&bundle);
    }
}

#[test]
fn memory_that_was_used_and_freed_takes_no_room_either() {
    let used = "import os\nblock = bytearray(os.urandom(1 << 20)) * 120\ndel block\n\
                open('/tmp/file', 'wb').write(os.urandom(1 << 20) * 20)\nos.remove('/tmp/file')";
    holds_little_more_than_was_in_use(&python("used-and-freed", used, &[]));
}

#[test]
fn too_little_memory_is_refused_with_the_least_that_works() {
    let place = Place::new();
    let root = busybox_root(&place.join("root"));
    let bundle = place.join("b");
    let refused = |memory: &str| bake(&bundle, with_root(&root, &["--memory", memory, "--", "/bin/sh"]));
    refused("64MiB").fails(USAGE, "it must be 128 MiB to 8 GiB");
    refused("129MiB").fails(USAGE, "in steps of 2 MiB");
    refused("16GiB").fails(USAGE, "it must be 128 MiB to 8 GiB");
    assert_eq!(place.names(), ["root"]);
}

mod full {
    use super::*;

    #[test]
    fn eight_gib_are_seen_and_survive_a_restore() {
        has_memory_on_both_sides("eight-gib", 8192);
    }
}
