//! A damaged bundle is told from a good one: `verify` finds any flipped bit; `run` refuses every flip and length that it
//! would rely on; damage it does not look for may spoil the guest and never Ember.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs::{self, File};
use std::path::Path;

use common::bundles::{bits, change_manifest_text, copy, flip};
use common::{BAD_BUNDLE, Ended, Place, Seeded, ember, finish, in_rig, names, rounds, run_command};

/// Length of the state's header and one entry of its table, bytes (docs/snapshot-format.md).
const STATE_HEADER: usize = 80;

fn verify(bundle: &Path) -> Ended {
    finish(ember(["verify"]).arg(bundle))
}

fn run(bundle: &Path) -> Ended {
    finish(run_command(bundle, "x").args(["--timeout", "2s"]))
}

/// Flips bits one at a time, and puts each back.
fn each_flip(file: &Path, bits: impl IntoIterator<Item = usize>, mut check: impl FnMut(&str)) {
    for bit in bits {
        flip(file, bit);
        check(&format!("bit {bit} of {}", file.display()));
        flip(file, bit);
    }
}

/// All bits where there are at most `most`, else so many of them.
fn some_bits(file: &Path, most: usize, seed: u64) -> Vec<usize> {
    let (bits, most) = (bits(file), rounds(most));
    let mut random = Seeded(seed);
    if bits <= most { (0..bits).collect() } else { (0..most).map(|_| random.below(bits)).collect() }
}

#[test]
fn verify_finds_a_flipped_bit_in_any_file() {
    let place = Place::new();
    let bundle = place.bake("echo");
    let (mut found, mut seed) = (0, 1);
    for name in names(&bundle) {
        seed += 1;
        each_flip(&bundle.join(&name), some_bits(&bundle.join(&name), 600, seed), |bit| {
            let ended = verify(&bundle);
            assert_eq!(ended.status.code(), Some(BAD_BUNDLE), "{bit}: {ended:?}");
            ended.fails(BAD_BUNDLE, "");
            found += 1;
        });
    }
    assert!(found >= rounds(3000), "{found}");
    verify(&bundle).succeeds();
}

#[test]
fn verify_finds_a_flipped_bit_in_a_page_of_memory_that_was_zero() {
    let place = Place::new();
    let bundle = place.bake("echo");
    let memory = bundle.join("memory");
    // No small guest's image, stack or tables are there.
    each_flip(&memory, [(1 << 20) - 1, 8 * 0x9_0000, 8 * 0x1f_ffff + 7], |bit| {
        let ended = verify(&bundle);
        assert_eq!(ended.status.code(), Some(BAD_BUNDLE), "{bit}: {ended:?}");
        assert!(ended.errors.contains("The memory does not match its index at offset"), "{ended:?}");
    });
}

#[test]
fn run_refuses_every_flipped_bit_of_the_memory_index() {
    run_refuses_flips("memory.index", 1 << 11);
}

#[test]
fn run_refuses_a_flipped_bit_of_the_manifest() {
    run_refuses_flips("manifest.json", 2000);
}

#[test]
fn run_refuses_a_flipped_bit_of_the_state() {
    run_refuses_flips("state", 2000);
}

#[test]
fn run_refuses_every_flipped_bit_of_the_states_header() {
    let place = Place::new();
    let bundle = place.bake("echo");
    let step = if in_rig() { 17 } else { 1 };
    each_flip(&bundle.join("state"), (0..STATE_HEADER * 8).step_by(step), |bit| refuses(&bundle, bit));
}

fn run_refuses_flips(name: &str, most: usize) {
    let place = Place::new();
    let bundle = place.bake("echo");
    let file = bundle.join(name);
    each_flip(&file, some_bits(&file, most, 7), |bit| refuses(&bundle, bit));
    run(&bundle).answers("x");
}

fn refuses(bundle: &Path, bit: &str) {
    let ended = run(bundle);
    assert_eq!(ended.status.code(), Some(BAD_BUNDLE), "{bit}: {ended:?}");
    ended.fails(BAD_BUNDLE, "");
}

#[test]
fn a_flipped_bit_of_memory_may_spoil_the_guest_and_never_ember() {
    let place = Place::new();
    let bundle = place.bake("echo");
    let memory = bundle.join("memory");
    let content = fs::read(&memory).unwrap();
    let touched: Vec<usize> = (0..content.len()).filter(|at| content[*at] != 0).collect();
    let mut random = Seeded(11);
    let mut spoilt = 0;
    // What the guest has: code, data, stack, page and descriptor tables; its first page table's first entry for certain.
    let chosen = (0..rounds(250)).map(|_| touched[random.below(touched.len())] * 8 + random.below(8));
    let chosen: Vec<usize> = [0x3000 * 8].into_iter().chain(chosen).collect();
    each_flip(&memory, chosen, |bit| {
        let ended = finish(run_command(&bundle, "x").args(["--timeout", "100ms"]));
        ended.is_sane();
        let code = ended.code();
        assert!(code < 120 || [122, 123, 124].contains(&code), "{bit}: {ended:?}");
        spoilt += usize::from(code != 0 || ended.output != b"x");
    });
    assert!(spoilt > 0, "no flip has ever hit anything");
}

#[test]
fn any_wrong_length_of_any_file_is_refused() {
    let place = Place::new();
    let bundle = place.bake("echo");
    for name in names(&bundle) {
        let path = bundle.join(&name);
        let bytes = fs::read(&path).unwrap();
        for len in [0, 1, bytes.len() / 2, bytes.len() - 1, bytes.len() + 1, bytes.len() + 4096] {
            File::options().write(true).open(&path).unwrap().set_len(len as u64).unwrap();
            run(&bundle).fails(BAD_BUNDLE, "");
            verify(&bundle).fails(BAD_BUNDLE, "");
            fs::write(&path, &bytes).unwrap();
        }
    }
    run(&bundle).answers("x");
}

#[test]
fn a_manifest_longer_than_any_is_not_read() {
    let place = Place::new();
    let bundle = place.bake("echo");
    File::options().write(true).open(bundle.join("manifest.json")).unwrap().set_len(1 << 40).unwrap();
    run(&bundle).fails(BAD_BUNDLE, "bytes long");
}

#[test]
fn missing_files_links_pipes_and_folders_are_refused() {
    let place = Place::new();
    let bundle = place.bake("echo");
    for name in names(&bundle) {
        let (path, away) = (bundle.join(&name), place.join("away"));
        fs::rename(&path, &away).unwrap();
        let refused = || {
            for ended in [run(&bundle), verify(&bundle), finish(ember(["inspect"]).arg(&bundle))] {
                ended.fails(BAD_BUNDLE, &name);
            }
        };
        refused();
        std::os::unix::fs::symlink(&away, &path).unwrap();
        refused();
        fs::remove_file(&path).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        refused();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused();
        fs::remove_dir(&path).unwrap();
        fs::rename(&away, &path).unwrap();
    }
    run(&bundle).answers("x");
}

#[test]
fn a_file_that_is_not_the_bundles_is_found() {
    let place = Place::new();
    let bundle = place.bake("echo");
    fs::write(bundle.join("notes.txt"), "").unwrap();
    verify(&bundle).fails(BAD_BUNDLE, "notes.txt");
}

#[test]
fn what_is_no_bundle_is_told_so() {
    let place = Place::new();
    run(&place.join("nowhere")).fails(BAD_BUNDLE, "Cannot open the bundle");
    fs::create_dir(place.join("empty")).unwrap();
    run(&place.join("empty")).fails(BAD_BUNDLE, "it has no manifest.json");
    fs::write(place.join("file"), "").unwrap();
    run(&place.join("file")).fails(BAD_BUNDLE, "Cannot open the bundle");
}

/// Changes bytes of the state's header and gives it its checksum.
fn change_header(bundle: &Path, at: usize, bytes: &[u8]) {
    let path = bundle.join("state");
    let mut state = fs::read(&path).unwrap();
    state[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = snapshot_format::crc::crc64(&state[..STATE_HEADER - 8]);
    state[STATE_HEADER - 8..STATE_HEADER].copy_from_slice(&crc.to_le_bytes());
    fs::write(path, state).unwrap();
}

#[test]
fn newer_formats_are_named_with_the_program_that_wrote_them() {
    let place = Place::new();
    let good = place.bake("echo");
    for (number, version) in ["1.2", "2.0", "65535.65535"].iter().enumerate() {
        let bundle = copy(&good, &place.join(&format!("manifest-{number}")));
        change_manifest_text(&bundle, "\"format\": \"1.1\"", &format!("\"format\": \"{version}\""));
        for ended in [run(&bundle), verify(&bundle)] {
            ended.fails(BAD_BUNDLE, version);
            assert!(ended.errors.contains("ember "), "who wrote it: {ended:?}");
        }
    }
    for (number, (major, minor)) in [(1u16, 2u16), (2, 0)].into_iter().enumerate() {
        let bundle = copy(&good, &place.join(&format!("state-{number}")));
        change_header(&bundle, 12, &[major.to_le_bytes(), minor.to_le_bytes()].concat());
        run(&bundle).fails(BAD_BUNDLE, &format!("{major}.{minor}"));
    }
}

#[test]
fn another_architecture_is_refused() {
    let place = Place::new();
    let good = place.bake("echo");
    let bundle = copy(&good, &place.join("state"));
    change_header(&bundle, 16, &2u16.to_le_bytes());
    run(&bundle).fails(BAD_BUNDLE, "architecture");
    let bundle = copy(&good, &place.join("manifest"));
    change_manifest_text(&bundle, "x86_64", "riscv9");
    run(&bundle).fails(BAD_BUNDLE, "riscv9");
}

#[test]
fn a_required_section_that_nobody_knows_is_refused_and_an_optional_one_is_not() {
    let place = Place::new();
    let good = place.bake("echo");
    for (flags, required) in [(1u16, true), (0, false)] {
        let bundle = copy(&good, &place.join(if required { "required" } else { "optional" }));
        add_section(&bundle, flags);
        match required {
            true => run(&bundle).fails(BAD_BUNDLE, "number 4000"),
            false => run(&bundle).answers("x"),
        }
    }
}

/// Adds an empty section of an unknown kind at the end of the table.
fn add_section(bundle: &Path, flags: u16) {
    const ENTRY: usize = 40;
    let state = fs::read(bundle.join("state")).unwrap();
    let number = |at: usize, len: usize| {
        state[at..at + len].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let count = usize::try_from(number(20, 4)).unwrap();
    let table_end = STATE_HEADER + count * ENTRY;
    let mut table = state[STATE_HEADER..table_end].to_vec();
    for entry in table.chunks_mut(ENTRY) {
        let offset = u64::from_le_bytes(entry[16..24].try_into().unwrap()) + ENTRY as u64;
        entry[16..24].copy_from_slice(&offset.to_le_bytes());
    }
    let version = number(STATE_HEADER + 10, 2);
    let total = number(24, 8) + ENTRY as u64;
    let mut entry = [4000u32.to_le_bytes(), 0u32.to_le_bytes()].concat();
    entry.extend_from_slice(&flags.to_le_bytes());
    entry.extend_from_slice(&u16::try_from(version).unwrap().to_le_bytes());
    entry.extend_from_slice(&0u32.to_le_bytes());
    entry.extend([total, 0, snapshot_format::crc::crc64(b"")].iter().flat_map(|number| number.to_le_bytes()));
    table.extend_from_slice(&entry);
    let changed = [&state[..STATE_HEADER], &table, &state[table_end..]].concat();
    fs::write(bundle.join("state"), changed).unwrap();
    let table_crc = snapshot_format::crc::crc64(&table).to_le_bytes();
    change_header(bundle, STATE_HEADER - 16, &table_crc);
    change_header(bundle, 20, &u32::try_from(count + 1).unwrap().to_le_bytes());
    change_header(bundle, 24, &total.to_le_bytes());
    let manifest = common::bundles::manifest(bundle);
    common::bundles::seal(bundle, manifest);
}

#[test]
fn files_of_two_bundles_do_not_go_together() {
    let place = Place::new();
    let echo = place.bake("echo");
    let large = place.bake_in("4MiB", "memory", &[]);
    for name in ["state", "memory", "memory.index"] {
        let bundle = copy(&echo, &place.join("mixed"));
        fs::copy(large.join(name), bundle.join(name)).unwrap();
        let manifest = common::bundles::manifest(&bundle);
        if name == "memory" {
            verify(&bundle).fails(BAD_BUNDLE, "");
        } else {
            common::bundles::seal(&bundle, manifest);
            verify(&bundle).fails(BAD_BUNDLE, "");
        }
        run(&bundle).fails(BAD_BUNDLE, "");
        fs::remove_dir_all(&bundle).unwrap();
    }
}

#[test]
fn inspect_and_verify_tell_programs_too() {
    let place = Place::new();
    let bundle = place.bake("echo");
    let told = finish(ember(["inspect", "--json"]).arg(&bundle)).succeeds().json();
    assert_eq!((&told["state"]["format"], &told["memory"]["bytes"]), (&"1.1".into(), &(2 << 20).into()));
    let told = finish(ember(["verify", "--json"]).arg(&bundle)).succeeds().json();
    assert_eq!((&told["files"], &told["content_chunks"]), (&5.into(), &told["content_chunks"]));
    flip(&bundle.join("kernel"), 77);
    let ended = finish(ember(["verify", "--json"]).arg(&bundle));
    assert_eq!((ended.code(), &ended.json()["error"]["kind"]), (BAD_BUNDLE, &"bad_bundle".into()));
}
