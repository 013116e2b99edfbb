//! Kernels, roots and functions that do not work: one sentence each, with the last that was heard, and nothing left behind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::fs::{self, File};
use std::path::Path;

use common::{BAD_BUNDLE, Ended, GUEST_FAILED, Place, TIMEOUT, USAGE, bundles, ember, finish};
use linux::{agent, bake, busybox_root, kernel, modules, python_root, run, shell, with_root};
use snapshot_format::manifest::names;
use snapshot_format::working_set::{PageRange, WorkingSet};

/// A bake of a shell with these arguments in front of its command; only the root and what `place` held are left.
#[track_caller]
fn fails_to_bake(place: &Place, arguments: &[&str], command: &[&str]) -> Ended {
    let others = || place.names().into_iter().filter(|name| name != "root").collect::<Vec<_>>();
    let before = others();
    let all = [&["--memory", "128MiB"], arguments, &["--"], command].concat();
    let root = place.join("root");
    if !root.exists() {
        busybox_root(&root);
    }
    let ended = bake(&place.join("b"), with_root(&root, &all));
    assert_eq!(others(), before, "{ended:?}");
    ended
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_folder_without_the_kernels_modules_is_refused() {
    let place = Place::new();
    fs::create_dir(place.join("modules")).unwrap();
    let ended = fails_to_bake(&place, &["--modules", text(&place.join("modules"))], &["/bin/sh"]);
    ended.fails(USAGE, "modules");
}

#[test]
fn a_module_that_is_missing_is_named() {
    let place = Place::new();
    let copy = place.join("modules");
    fs::create_dir(&copy).unwrap();
    // Names of all, and the files of none but one.
    for entry in fs::read_dir(modules()).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let drivers = "kernel/drivers/virtio";
    fs::create_dir_all(copy.join(drivers)).unwrap();
    let name = "virtio_mmio.ko.xz";
    fs::copy(modules().join(drivers).join(name), copy.join(drivers).join(name)).unwrap();
    fails_to_bake(&place, &["--modules", text(&copy)], &["/bin/sh"]).fails(USAGE, "virtio_blk");
}

#[test]
fn what_is_no_kernel_is_refused_at_once() {
    let place = Place::new();
    fs::write(place.join("text"), "no kernel").unwrap();
    fails_to_bake(&place, &["--kernel", text(&place.join("text"))], &["/bin/sh"]).fails(USAGE, "kernel");
    fails_to_bake(&place, &["--kernel", text(&place.join("nowhere"))], &["/bin/sh"]).fails(USAGE, "nowhere");
    fails_to_bake(&place, &["--kernel", text(&python_root())], &["/bin/sh"]).fails(USAGE, "kernel");
}

#[test]
fn a_kernel_that_is_cut_off_is_refused() {
    let place = Place::new();
    let cut = place.join("vmlinuz");
    fs::copy(kernel(), &cut).unwrap();
    let file = File::options().write(true).open(&cut).unwrap();
    for part in [2, 3, 50] {
        file.set_len(fs::metadata(&cut).unwrap().len() * (part - 1) / part).unwrap();
        fails_to_bake(&place, &["--kernel", text(&cut)], &["/bin/sh"]).fails(USAGE, "cut off");
    }
}

#[test]
fn less_memory_than_kernel_and_initramfs_take_is_refused_with_the_least_that_is_not() {
    let place = Place::new();
    // The initramfs holds the agent, and the guest holds both for a while. What is behind a program's end runs all the same.
    let large = place.join("agent");
    fs::copy(agent(), &large).unwrap();
    File::options().write(true).open(&large).unwrap().set_len(60 << 20).unwrap();
    let refused = fails_to_bake(&place, &["--agent", text(&large)], &["/bin/sh"]);
    refused.fails(USAGE, " MiB of memory, the machine has 128 MiB");
    let least = refused.errors.split("The kernel needs at least ").nth(1).unwrap();
    let least: u32 = least.split(' ').next().unwrap().parse().unwrap();
    assert!((160..400).contains(&least), "{refused:?}");
    let with = |mib: u32| {
        // How it goes on is another matter, so it need not go on for long.
        let memory = format!("{mib}MiB");
        let arguments = ["--agent", text(&large), "--memory", &memory, "--boot-timeout", "1s"];
        let all = [&arguments[..], &["--ready-timeout", "1s", "--", "/bin/sh"]].concat();
        bake(&place.join("b"), with_root(&place.join("root"), &all))
    };
    with(least - 2).fails(USAGE, &format!("The kernel needs at least {least} MiB of memory"));
    let enough = with(least);
    enough.is_sane();
    assert!(enough.code() != USAGE && !enough.errors.contains("The kernel needs"), "{enough:?}");
}

#[test]
fn a_kernel_that_never_boots_is_ended_and_its_console_shown() {
    let place = Place::new();
    // It never comes to its first process, and stands still there.
    let arguments = [
        "--kernel-args",
        "rdinit=/nowhere init=/nowhere panic=0",
        "--boot-timeout",
        "25s",
        "--ready-timeout",
        "1s",
    ];
    let ended = fails_to_bake(&place, &arguments, &["/bin/sh"]);
    ended.fails(TIMEOUT, "the guest agent's greeting was awaited");
    assert!(ended.errors.contains("Kernel panic"), "{ended:?}");
}

#[test]
fn a_kernel_that_panics_at_boot_is_told_with_its_last_words() {
    let place = Place::new();
    let ended =
        fails_to_bake(&place, &["--kernel-args", "rdinit=/nowhere init=/nowhere panic=-1"], &["/bin/sh"]);
    assert_eq!(ended.code(), GUEST_FAILED, "{ended:?}");
    assert!(ended.errors.contains("Kernel panic"), "{ended:?}");
}

#[test]
fn a_command_that_is_not_there_is_told_with_the_path() {
    let place = Place::new();
    let ended = fails_to_bake(&place, &[], &["not-there"]);
    ended.fails(GUEST_FAILED, "could not be started: not-there is not in the root");
    let ended = fails_to_bake(&place, &[], &["/etc/passwd"]);
    ended.fails(GUEST_FAILED, "/etc/passwd is not in the root, or may not be executed");
}

#[test]
fn a_folder_to_work_in_that_is_not_there_is_told() {
    let place = Place::new();
    fails_to_bake(&place, &["--workdir", "/nowhere"], &["/bin/sh"])
        .fails(GUEST_FAILED, "no directory /nowhere");
}

#[test]
fn a_server_that_never_listens_is_ended_with_its_last_output() {
    let place = Place::new();
    let arguments = ["--interface", "http", "--port", "80", "--ready-timeout", "3s"];
    let ended = fails_to_bake(&place, &arguments, &["/bin/sh", "-c", "echo last words; sleep 1000"]);
    ended.fails(GUEST_FAILED, "did not get ready");
    assert!(ended.errors.contains("last words"), "{ended:?}");
}

#[test]
fn a_resident_process_that_never_reads_is_ended() {
    let place = Place::new();
    let arguments = ["--resident", "--ready-timeout", "3s"];
    let ended = fails_to_bake(&place, &arguments, &["/bin/sh", "-c", "echo last words; sleep 1000"]);
    ended.fails(GUEST_FAILED, "did not read its standard input");
    assert!(ended.errors.contains("last words"), "{ended:?}");
}

#[test]
fn a_server_that_ends_is_told_with_its_exit_code_and_last_output() {
    let place = Place::new();
    for (script, words) in [("exit 4", "ended with exit code 4"), ("kill -ABRT $$", "was killed by signal 6")]
    {
        let script = format!("echo last words >&2; {script}");
        let arguments = ["--interface", "http", "--port", "80"];
        let ended = fails_to_bake(&place, &arguments, &["/bin/sh", "-c", &script]);
        ended.fails(GUEST_FAILED, words);
        assert!(ended.errors.contains("last words"), "{ended:?}");
    }
}

#[test]
fn a_runtime_client_that_never_asks_is_ended() {
    let place = Place::new();
    let arguments = ["--interface", "lambda", "--handler", "app.handler", "--ready-timeout", "10s"];
    let ended = fails_to_bake(&place, &arguments, &["/bin/sh", "-c", "echo last words; sleep 1000"]);
    ended.fails(GUEST_FAILED, "asked neither for restore/next nor for invocation/next");
    assert!(ended.errors.contains("last words"), "{ended:?}");
}

#[test]
fn a_root_that_is_none_is_refused() {
    let place = Place::new();
    fs::write(place.join("text"), "no root").unwrap();
    for (path, words) in [("text", "text"), ("nowhere", "nowhere")] {
        let ended = bake(&place.join("b"), with_root(&place.join(path), &["--", "/bin/sh"]));
        ended.fails(USAGE, words);
    }
    assert_eq!(place.names(), ["text"]);
}

#[test]
fn a_root_without_a_file_system_is_told_by_the_guest() {
    let place = Place::new();
    // The magic number of ext4 and nothing behind it.
    let mut image = vec![0; 1 << 20];
    image[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
    fs::write(place.join("image"), image).unwrap();
    let ended =
        bake(&place.join("b"), with_root(&place.join("image"), &["--memory", "128MiB", "--", "/bin/sh"]));
    assert!(matches!(ended.code(), USAGE | GUEST_FAILED), "{ended:?}");
    ended.is_sane();
    assert_eq!(place.names(), ["image"]);
}

#[test]
fn flags_that_do_not_fit_are_refused_before_anything_is_built() {
    let place = Place::new();
    for (arguments, words) in [
        (&["--vcpus", "9"][..], "1 to 8"),
        (&["--interface", "http"], "--port"),
        (&["--interface", "lambda"], "--handler"),
        (&["--port", "80"], "belongs to the http interface"),
        (&["--drive", "root=/dev/null"], "cannot be the id of a drive"),
        (&["--drive", "data=/nowhere"], "/nowhere"),
        (
            &["--warm-up", "x", "--interface", "lambda", "--resident"],
            "`resident` belongs to the exec interface",
        ),
    ] {
        fails_to_bake(&place, arguments, &["/bin/sh"]).fails(USAGE, words);
    }
}

#[test]
fn an_agent_that_is_none_is_told() {
    let place = Place::new();
    fs::write(place.join("agent"), "#!/bin/sh\n").unwrap();
    let ended = fails_to_bake(&place, &["--agent", text(&place.join("nowhere"))], &["/bin/sh"]);
    ended.fails(USAGE, "nowhere");
}

#[test]
fn an_event_for_another_interface_is_refused() {
    finish(ember(["run", "--path", "/"]).arg(shell())).fails(USAGE, "belong to the http interface");
}

/// Pages of a file that are not all zero: the rest is holes, and what flips there is read by nobody.
fn content(file: &Path) -> Vec<usize> {
    let bytes = fs::read(file).unwrap();
    let pages = bytes.chunks(4096).enumerate();
    pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0)).map(|(number, _)| number).collect()
}

/// Those among `pages` that the recorded answer has read or written, up to its first byte.
fn recorded(bundle: &Path, pages: &[usize]) -> Vec<usize> {
    let set = WorkingSet::decode(&fs::read(bundle.join(names::WORKING_SET)).unwrap()).unwrap();
    let ranges: Vec<_> = set.read.iter().chain(&set.write).map(PageRange::bytes).collect();
    let is_used = |page: &&usize| ranges.iter().any(|range| range.contains(&(**page as u64 * 4096)));
    pages.iter().filter(is_used).copied().collect()
}

/// Runs the function. However the guest is spoilt, it answers, fails, or comes to its limit of time; Ember does not fail itself.
#[track_caller]
fn is_harmless(bundle: &Path, what: &str) {
    let mut command = linux::run_command(bundle, "echo fine");
    let ended = finish(command.args(["--timeout", "10s", "--json"]));
    // A panic anywhere is a signal, or `internal`. The word itself may be the guest's last one.
    let (code, told) = (ended.code(), ended.json());
    match told["error"]["kind"].as_str() {
        None => assert_eq!(told["exit_code"].as_i64().unwrap() & 0xff, i64::from(code), "{what}: {ended:?}"),
        Some(kind) => {
            let of_the_guest = ["guest_failed", "timeout", "not_unique", "bad_bundle"];
            assert!(of_the_guest.contains(&kind), "{what}: {ended:?}");
        }
    }
}

/// Which flip an unchecked guest notices depends on what it happens to read, and on whether that changes anything: nothing is
/// asserted of that. Where bytes are checked, every flip must be found.
#[test]
fn a_flip_in_memory_or_root_never_harms_ember() {
    const NOT_MATCHING: &str = "The memory does not match its index at offset 0x";
    let place = Place::new();
    let bundle = bundles::copy(&shell(), &place.join("b"));
    let mut seeded = common::Seeded(2024);
    let mut flip = |file: &Path, pages: &[usize]| {
        let bit = pages[seeded.below(pages.len())] * 4096 * 8 + seeded.below(4096 * 8);
        bundles::flip(file, bit);
        bit
    };
    let memory = bundle.join(names::MEMORY);
    let content_of_memory = content(&memory);
    let used = recorded(&bundle, &content_of_memory);
    assert!(used.len() > 100, "{} pages were recorded", used.len());
    for round in 0..6 {
        let is_used = round % 3 != 0;
        let bit = flip(&memory, if is_used { &used } else { &content_of_memory });
        is_harmless(&bundle, &format!("bit {bit} of memory"));
        if is_used {
            // It is brought in, and checked on the way, before the guest runs.
            finish(linux::run_command(&bundle, "echo fine").args(["--verify", "touched"]))
                .fails(BAD_BUNDLE, NOT_MATCHING);
        }
        bundles::flip(&memory, bit);
    }
    let root = bundle.join(names::ROOT);
    let content_of_root = content(&root);
    for _ in 0..4 {
        let bit = flip(&root, &content_of_root);
        is_harmless(&bundle, &format!("bit {bit} of the root"));
        bundles::flip(&root, bit);
    }
    let bit = flip(&root, &content_of_root);
    finish(ember(["verify"]).arg(&bundle)).fails(BAD_BUNDLE, names::ROOT);
    bundles::flip(&root, bit);
    linux::verified(&bundle);
    run(&bundle, "echo fine").answers("fine\n");
}
