//! Memory that comes in as it is touched: the same answers whatever serves it, no damaged byte where it is checked, and an end
//! with a sentence when it is lost.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::bundles::{bits, copy, flip};
use common::processes::{machine_of, signal, wait_until_gone};
use common::{
    BAD_BUNDLE, Ended, HOST_CANNOT, Place, Seeded, USAGE, ember, end_of, finish, in_namespace, in_rig,
    is_root, program, rounds, run_command, start,
};
use rustix::process::Signal;

const UFFD: [&str; 2] = ["--paging", "uffd"];
const CHECKED: [&str; 4] = ["--paging", "uffd", "--verify", "touched"];

/// A guest all of whose pages are content, and of which nothing is known to be needed.
fn full(place: &Place, memory: &str) -> PathBuf {
    place.bake_in(memory, "toucher", &["--warm-up", "fill", "--no-record"])
}

/// Touches every page of a guest of so many bytes.
fn all_of(bytes: u64) -> String {
    format!("read 0 {} 1", bytes / 4096)
}

fn run(bundle: &Path, event: &str, more: &[&str]) -> Ended {
    finish(run_command(bundle, event).args(more))
}

#[test]
fn every_way_of_paging_gives_the_same_answer_and_is_told() {
    let place = Place::new();
    let bundle = full(&place, "8MiB");
    let event = all_of(8 << 20);
    let plain = run(&bundle, &event, &[]);
    let choices: [(&[&str], &str, bool); 5] = [
        (&[], "mmap", true),
        (&["--verify", "touched"], "uffd", true),
        (&["--verify", "all"], "mmap", true),
        (&UFFD, "uffd", false),
        (&["--paging", "uffd", "--verify", "all"], "uffd", false),
    ];
    for (flags, backend, automatic) in choices {
        run(&bundle, &event, flags).answers(plain.succeeds().text());
        let told = run(&bundle, &event, &[flags, &["--json", "--timing"]].concat()).succeeds().json();
        let paging = &told["paging"];
        assert_eq!(
            (&paging["backend"], &paging["automatic"]),
            (&backend.into(), &automatic.into()),
            "{told}"
        );
        let copied = paging["copied_bytes"].as_u64().unwrap();
        assert_eq!(copied > 6 << 20, backend == "uffd", "{told}");
        let table = run(&bundle, &event, &[flags, &["--timing"]].concat());
        assert!(table.errors.contains(&format!("paging: {backend}")), "{table:?}");
    }
    let table = run(&bundle, &event, &["--paging", "mmap", "--verify", "touched", "--timing"]);
    assert!(table.errors.contains("not what the guest's own faults bring in"), "{table:?}");
}

#[test]
fn a_clone_brings_in_only_what_it_touches() {
    let place = Place::new();
    let bundle = full(&place, "32MiB");
    let told = run(&bundle, "read 1000 1 1", &[&UFFD[..], &["--json"]].concat()).succeeds().json();
    let copied = told["paging"]["copied_bytes"].as_u64().unwrap();
    assert!(copied < 4 << 20, "{told}");
}

#[test]
fn no_flipped_bit_of_memory_is_ever_seen() {
    let place = Place::new();
    // The second makes two of a long stretch of zeros: what flips in such a one is seen by no clone, checked or not.
    let warm_ups = ["--warm-up", "write 65536 77", "--warm-up", "write 1835008 77"];
    let bundle = place.bake_in("4MiB", "memory", &warm_ups);
    let right = run(&bundle, "sum", &[]).succeeds().text().to_owned();
    let (memory, mut random) = (bundle.join("memory"), Seeded(42));
    let (mut refused, mut seen_unchecked) = (0, 0);
    let bytes = fs::read(&memory).unwrap();
    let has_content = |nth: &usize| bytes[nth * 4096..].iter().take(4096).any(|byte| *byte != 0);
    let content: Vec<usize> = (0..bytes.len() / 4096).filter(has_content).collect();
    for round in 0..rounds(300) {
        // Most of the file is holes, which no pager reads: every other flip is in a page that has content.
        let bit = if round % 2 == 0 {
            random.below(bits(&memory))
        } else {
            let page = content[random.below(content.len())];
            page * 4096 * 8 + random.below(4096 * 8)
        };
        flip(&memory, bit);
        let ended = run(&bundle, "sum", &CHECKED);
        if ended.status.success() {
            ended.answers(&right);
        } else {
            ended.fails(BAD_BUNDLE, "The memory does not match its index at offset 0x");
            refused += 1;
        }
        let unchecked = run(&bundle, "sum", &["--paging", "mmap", "--timeout", "2s"]);
        seen_unchecked += usize::from(unchecked.output != right.as_bytes());
        flip(&memory, bit);
    }
    assert!(refused > 0 && seen_unchecked > refused, "{refused} refused, {seen_unchecked} seen");
    run(&bundle, "sum", &CHECKED).answers(&right);
}

#[test]
fn a_flipped_bit_in_a_long_stretch_of_zeros_is_seen_by_no_clone() {
    let place = Place::new();
    let bundle = place.bake_in("4MiB", "memory", &["--warm-up", "write 65536 77"]);
    let right = run(&bundle, "sum", &[]).succeeds().text().to_owned();
    let memory = bundle.join("memory");
    let bytes = fs::read(&memory).unwrap();
    assert!(bytes[2 << 20..].iter().all(|byte| *byte == 0), "the second half has content");
    let mut random = Seeded(7);
    for _ in 0..10 {
        let bit = (2 << 20) * 8 + random.below((2 << 20) * 8);
        flip(&memory, bit);
        run(&bundle, "sum", &["--paging", "mmap"]).answers(&right);
        flip(&memory, bit);
    }
}

#[test]
fn an_index_that_disagrees_with_the_file_is_found() {
    let place = Place::new();
    let bundle = full(&place, "4MiB");
    let other = place.bake_in("4MiB", "memory", &[]);
    let swapped = copy(&bundle, &place.join("swapped"));
    fs::copy(other.join("memory"), swapped.join("memory")).unwrap();
    let emptied = copy(&bundle, &place.join("emptied"));
    let file = File::create(emptied.join("memory")).unwrap();
    file.set_len(4 << 20).unwrap();
    for bundle in [&swapped, &emptied] {
        for flags in [&CHECKED[..], &["--paging", "uffd", "--verify", "all"], &["--verify", "all"]] {
            run(bundle, "pages", flags).fails(BAD_BUNDLE, "does not match its index at offset");
            let counted = run(bundle, "pages", &[flags, &["--count", "2"]].concat());
            counted.fails(BAD_BUNDLE, "does not match its index at offset");
        }
    }
    let json = run(&swapped, "pages", &[&CHECKED[..], &["--json"]].concat());
    assert_eq!((json.code(), &json.json()["error"]["kind"]), (BAD_BUNDLE, &"bad_bundle".into()));
}

/// As [`all_of`], after reading one page again and again for a while: who finds such a guest late still finds it with all to come.
fn all_of_in_a_while(bytes: u64) -> String {
    format!("read 0 20000000 0 {}", all_of(bytes))
}

/// A clone whose pages are cut off behind the first 64 KiB before it has come to them.
fn cut_short(place: &Place, more: &[&str]) -> Ended {
    let bundle = full(place, "64MiB");
    let run = start(run_command(&bundle, &all_of_in_a_while(64 << 20)).args(["--timeout", "10m"]).args(more));
    let (group, machine) = (run.id(), machine_of(&run));
    signal(machine, Signal::STOP);
    File::options().write(true).open(bundle.join("memory")).unwrap().set_len(64 << 10).unwrap();
    signal(machine, Signal::CONT);
    let ended = end_of(run);
    wait_until_gone(group);
    ended
}

#[test]
fn a_memory_file_that_is_cut_short_ends_a_clone_that_maps_it() {
    cut_short(&Place::new(), &["--paging", "mmap"]).fails(BAD_BUNDLE, "file memory");
}

#[test]
fn a_memory_file_that_is_cut_short_ends_a_clone_that_has_not_copied_it() {
    let ended = cut_short(&Place::new(), &["--paging", "uffd", "--verify", "touched"]);
    ended.fails(BAD_BUNDLE, "its file was cut short while the clone ran");
}

#[test]
fn a_bundle_that_is_removed_harms_no_clone() {
    let place = Place::new();
    let bundle = full(&place, "32MiB");
    let event = all_of_in_a_while(32 << 20);
    let right = run(&bundle, &event, &[]).succeeds().text().to_owned();
    const TIMES: usize = 3;
    let stopped = |flags: &&[&str]| {
        let clone = start(run_command(&bundle, &event).args(["--repeat", &TIMES.to_string()]).args(*flags));
        signal(machine_of(&clone), Signal::STOP);
        clone
    };
    let clones: Vec<_> = [&["--paging", "mmap"][..], &CHECKED].iter().map(stopped).collect();
    fs::remove_dir_all(&bundle).unwrap();
    for clone in &clones {
        signal(machine_of(clone), Signal::CONT);
    }
    for clone in clones {
        end_of(clone).answers(&right.repeat(TIMES));
    }
}

#[test]
fn sixty_four_clones_of_one_bundle_are_served_at_once() {
    let place = Place::new();
    let bundle = full(&place, "4MiB");
    let event = all_of(4 << 20);
    let right = run(&bundle, &event, &[]).succeeds().text().to_owned();
    // They share the processors of this machine, and so each takes as long as all.
    let patient = [&CHECKED[..], &["--timeout", "10m"]].concat();
    let clones: Vec<_> = (0..64).map(|_| start(run_command(&bundle, &event).args(&patient))).collect();
    for clone in clones {
        end_of(clone).answers(&right);
    }
}

#[test]
fn a_served_clone_that_is_killed_leaves_nothing() {
    let place = Place::new();
    let faulty = place.bake("faulty");
    let run = start(run_command(&faulty, "spin").args(["--timeout", "10m"]).args(UFFD));
    let group = run.id();
    signal(machine_of(&run), Signal::KILL);
    end_of(run).fails(126, "killed by signal 9");
    wait_until_gone(group);
    assert_eq!(place.names(), ["faulty.ember"]);
}

#[test]
fn a_served_clone_is_baked_whole() {
    let place = Place::new();
    let bundle = full(&place, "8MiB");
    let event = all_of(8 << 20);
    let right = run(&bundle, &event, &[]).succeeds().text().to_owned();
    let next = place.join("next");
    let baked = finish(run_command(&bundle, "read 7 3 1").args(CHECKED).arg("--bake-to").arg(&next));
    baked.succeeds();
    finish(ember(["verify"]).arg(&next)).succeeds();
    run(&next, &event, &[]).answers(&right);
    run(&next, &event, &CHECKED).answers(&right);
}

#[test]
fn a_bad_chunk_that_only_the_bake_meets_ends_it_and_leaves_nothing() {
    let place = Place::new();
    let bundle = full(&place, "8MiB");
    // The last page of memory is neither the guest's stack nor in the event.
    let file = File::options().write(true).open(bundle.join("memory")).unwrap();
    file.write_all_at(b"spoilt", (6 << 20) + 10).unwrap();
    let next = place.join("next");
    let mut command = run_command(&bundle, "pages");
    let ended = finish(command.args(CHECKED).arg("--bake-to").arg(&next));
    assert_eq!(ended.code(), BAD_BUNDLE, "{ended:?}");
    assert!(ended.errors.contains("does not match its index at offset 0x600000"), "{ended:?}");
    assert_eq!(place.names(), ["toucher.ember"]);
}

#[test]
fn a_cold_start_has_nothing_to_page() {
    let place = Place::new();
    let bundle = place.bake("echo");
    for flags in [&UFFD[..], &["--verify", "touched"]] {
        let ended = run(&bundle, "x", &[flags, &["--cold"]].concat());
        assert_eq!(ended.code(), USAGE, "{ended:?}");
    }
}

/// `/dev` without userfaultfd's device.
const NO_DEVICE: &str = "touch kvm && mount --bind /dev/kvm kvm && mount -t tmpfs none /dev &&
    mknod -m 666 /dev/null c 1 3 && touch /dev/kvm && mount --bind kvm /dev/kvm && exec \"$@\"";

/// What ends a script with a program that has no capabilities.
const WITHOUT_CAPABILITIES: &str = "exec $SETPRIV --inh-caps=-all --bounding-set=-all \"$@\"";

fn in_place(place: &Place, script: &str, bundle: &Path, more: &[&str]) -> Ended {
    let mut words = vec![program().display().to_string(), "run".to_owned(), bundle.display().to_string()];
    words.extend(["--event-text", "hello"].iter().chain(more).map(|word| (*word).to_owned()));
    finish(in_namespace(script, words).current_dir(place.path()))
}

#[test]
fn the_system_call_serves_where_there_is_no_device() {
    let place = Place::new();
    let bundle = place.bake("echo");
    if is_root() {
        in_place(&place, NO_DEVICE, &bundle, &CHECKED).answers("hello");
    }
}

#[test]
fn a_launcher_passes_the_device_and_nothing_else() {
    let place = Place::new();
    let bundle = place.bake("echo");
    let there_is_one = Path::new("/dev/userfaultfd").exists();
    assert!(there_is_one || !in_rig(), "the emulated host has Linux 6.12");
    if is_root() && there_is_one {
        // Without the capability neither door is open to it.
        let passed = format!("exec 9<>/dev/userfaultfd && {WITHOUT_CAPABILITIES}");
        in_place(&place, &passed, &bundle, &["--paging", "uffd", "--userfaultfd", "9"]).answers("hello");
    }
    let other = "exec 9</dev/null && exec \"$@\"";
    in_place(&place, other, &bundle, &["--paging", "uffd", "--userfaultfd", "9"])
        .fails(HOST_CANNOT, "Descriptor 9 is not /dev/userfaultfd");
}

#[test]
fn a_host_that_cannot_serve_faults_says_what_to_do_and_is_never_given_less() {
    let place = Place::new();
    let unknown = finish(Command::new(program()).args(["run", "x", "--paging", "other"]));
    assert_eq!(unknown.code(), USAGE, "{unknown:?}");
    let bundle = place.bake("echo");
    let closed = NO_DEVICE.trim_end_matches("exec \"$@\"").to_owned() + WITHOUT_CAPABILITIES;
    let for_all = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap().trim() != "0";
    assert!(!for_all || !in_rig(), "there nobody has changed what Linux begins with");
    if !for_all {
        for flags in [&UFFD[..], &["--verify", "touched"]] {
            in_place(&place, &closed, &bundle, flags)
                .fails(HOST_CANNOT, "allow it with `chmod 666 /dev/userfaultfd`");
        }
        let words = [program(), "doctor".into(), "--json".into()];
        let doctor = finish(in_namespace(&closed, words).current_dir(place.path()));
        let told = doctor.json();
        let findings = told["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["what"] == "userfaultfd").unwrap();
        assert_eq!(found["verdict"], "limited", "{told}");
        assert!(found["mend"].as_str().unwrap().contains("chmod 666 /dev/userfaultfd"), "{told}");
    }
    in_place(&place, &closed, &bundle, &[]).answers("hello");
}
