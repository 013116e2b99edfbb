//! Clones are unlike each other before they are given an event, and one that is not is given none.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy takes helpers of tests for the product"
)]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::serve::Daemon;
use common::{Ended, Place, USAGE, ember, finish};
use linux::{
    NOT_UNIQUE, bake, bundle, busybox_root, example_bundle, lambda, run, run_command, shell, with_root,
};

/// The program in which faults can be injected.
fn faulty(fault: &str, command: &str) -> Command {
    let program = std::env::var_os("EMBER_FAULTY_BIN").expect("run this by `cargo xtask test`");
    let mut faulty = Command::new(program);
    faulty.env("EMBER_FAULT", fault).arg(command).stdin(Stdio::null());
    faulty
}

/// A run of the witness.
fn run_faulty(fault: &str) -> Ended {
    finish(faulty(fault, "run").args(["--console", "--event-text", "x"]).arg(witness()))
}

/// A command that says on the console that it was given an event, which nobody can take back.
const DELIVERED: &str = "delivered-to-the-function";

fn witness_arguments() -> [String; 6] {
    let script = format!("echo {DELIVERED} >/dev/console; cat");
    ["--memory", "128MiB", "--", "/bin/sh", "-c", &script].map(str::to_owned)
}

fn witness() -> PathBuf {
    let arguments = witness_arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    bundle("witness", &arguments, |place| with_root(&busybox_root(&place.join("root")), &arguments))
}

/// The same with a hook in its root.
fn witness_with_hook(script: &str) -> PathBuf {
    let arguments = witness_arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    bundle("hooked", &[script], |place| {
        let root = busybox_root(&place.join("root"));
        install_hook(&root, "10-hook", script);
        with_root(&root, &arguments)
    })
}

fn install_hook(root: &Path, name: &str, script: &str) {
    let folder = root.join("etc/ember/after-restore.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
}

#[track_caller]
fn is_given_nothing(ended: &Ended, words: &str) {
    assert_eq!(ended.status.code(), Some(NOT_UNIQUE), "{ended:?}");
    assert_eq!(ended.output, b"", "{ended:?}");
    assert!(ended.errors.contains(words), "{words:?} is not said: {ended:?}");
    assert!(!ended.errors.contains(DELIVERED), "the function was given its event: {ended:?}");
}

#[test]
fn a_clone_that_acknowledges_is_given_its_event() {
    let ended = finish(run_command(&witness(), "x").arg("--console"));
    assert_eq!(ended.succeeds().output, b"x");
    assert!(ended.errors.contains(DELIVERED), "the witness says nothing: {ended:?}");
    // The faulty program without a fault is like the other.
    assert_eq!(run_faulty("").succeeds().output, b"x");
}

#[test]
fn an_agent_that_does_not_acknowledge_as_it_must_is_given_no_event() {
    for (fault, words) in [
        ("acknowledge-never", "did not acknowledge its restore message in time"),
        ("acknowledge-late", "acknowledged its restore message too late"),
        ("acknowledge-old", "acknowledged another generation than its own"),
        ("acknowledge-twice", "acknowledged when nobody had asked it to"),
    ] {
        is_given_nothing(&run_faulty(fault), words);
    }
}

#[test]
fn an_agent_that_acknowledges_once_more_later_answers_nothing() {
    let ended = run_faulty("acknowledge-again");
    assert_eq!(ended.status.code(), Some(NOT_UNIQUE), "{ended:?}");
    assert_eq!(ended.output, b"", "{ended:?}");
    assert!(ended.errors.contains("acknowledged when nobody had asked it to"), "{ended:?}");
    // Only the event was there already.
    assert!(ended.errors.contains(DELIVERED), "{ended:?}");
}

#[test]
fn a_hook_that_fails_hangs_or_ends_the_guest_keeps_the_event_away() {
    for (script, words) in [
        ("echo reason; exit 3", "The hook 10-hook ended with exit code 3"),
        ("kill -9 $$", "The hook 10-hook was killed by signal 9"),
        ("sleep 100", "The hook 10-hook did not end in time"),
        ("poweroff -f; sleep 100", "did not become unique and serves nothing"),
    ] {
        let ended = finish(run_command(&witness_with_hook(script), "x").arg("--console"));
        is_given_nothing(&ended, words);
    }
    let ended = run(&witness_with_hook("echo reason; exit 3"), "x");
    assert!(ended.errors.contains("its last output:\nreason"), "{ended:?}");
}

#[test]
fn a_clone_of_a_pool_that_does_not_become_unique_is_given_no_event() {
    let place = Place::new();
    for (fault, bundle, words) in [
        ("", witness(), None),
        ("acknowledge-old", witness(), Some("acknowledged another generation than its own")),
        ("", witness_with_hook("echo reason; exit 3"), Some("The hook 10-hook ended with exit code 3")),
    ] {
        let socket = place.join("socket");
        let mut serve = faulty(fault, "serve");
        let daemon = Daemon::run(serve.args(["--shells", "1", "--socket"]).arg(&socket), socket);
        daemon.register("witness", &bundle);
        let answer = daemon.invoke("witness", "x");
        match words {
            None => answer.answers("x"),
            Some(words) => {
                answer.fails(502, "platform", words);
                assert!(!answer.text().contains(DELIVERED), "the function was given its event: {answer:?}");
            }
        }
    }
}

#[test]
fn hooks_run_in_every_clone_in_order_and_with_the_late_environment() {
    let arguments = ["--memory", "128MiB", "--", "/bin/sh"];
    let hooked = bundle("hooks", &arguments, |place| {
        let root = busybox_root(&place.join("root"));
        install_hook(&root, "20-second", "echo second $LATE; cat /etc/machine-id >/run/seen");
        install_hook(&root, "10-first", "echo first $EMBER_GENERATION");
        with_root(&root, &arguments)
    });
    let event = "cat /run/seen /etc/machine-id";
    let mut generations = BTreeSet::new();
    for _ in 0..2 {
        let ended = finish(run_command(&hooked, event).args(["--env", "LATE=value"]));
        let seen: Vec<&str> = ended.succeeds().text().lines().collect();
        assert_eq!((seen.len(), seen[0]), (2, seen[1]), "a hook sees its clone's names: {ended:?}");
        let (first, rest) = ended.errors.split_once('\n').unwrap();
        assert!(rest.starts_with("second value\n"), "{ended:?}");
        generations.insert(first.strip_prefix("first ").unwrap().to_owned());
    }
    assert_eq!(generations.len(), 2);
}

#[test]
fn the_kernel_notices_that_it_has_become_another() {
    let event = "ls /sys/bus/platform/drivers/vmgenid; busybox dmesg";
    let ended = run(&shell(), event);
    let told = ended.succeeds().text();
    assert!(told.contains("VMGENCTR:00"), "the driver is not bound: {told}");
    // Once for this clone: the bake had no change to tell of.
    assert_eq!(told.matches("crng reseeded due to virtual machine fork").count(), 1, "{told}");
    let cold = finish(run_command(&shell(), event).arg("--cold"));
    assert!(!cold.succeeds().text().contains("virtual machine fork"), "{cold:?}");
}

#[test]
fn a_clone_has_names_of_its_own_or_those_it_is_given() {
    let event = "busybox hostname; cat /etc/machine-id";
    let mut names = BTreeSet::new();
    for _ in 0..3 {
        let ended = run(&shell(), event);
        let lines: Vec<String> = ended.succeeds().text().lines().map(str::to_owned).collect();
        let [host, machine] = lines.as_slice() else { panic!("{ended:?}") };
        assert!(host.strip_prefix("clone-").is_some_and(|d| d.len() == 8 && is_hex(d)), "{host}");
        assert!(machine.len() == 32 && is_hex(machine), "{machine}");
        names.extend(lines);
    }
    assert_eq!(names.len(), 6);
    let id = "0123456789abcdef0123456789abcdef";
    let ended = finish(run_command(&shell(), event).args(["--hostname", "db-1", "--machine-id", id]));
    ended.answers(&format!("db-1\n{id}\n"));
    let ended = finish(run_command(&shell(), event).args(["--hostname", "not a name"]));
    ended.fails(USAGE, "is no host name");
    let ended = finish(run_command(&shell(), event).args(["--machine-id", "12"]));
    assert_eq!(ended.code(), USAGE, "{ended:?}");
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Takes the driver of the VM Generation ID away from Debian's kernel, where it is built in.
const NO_DRIVER: &str = "initcall_blacklist=vmgenid_plaform_driver_init";

#[test]
fn a_kernel_that_would_not_notice_is_refused_unless_that_is_allowed() {
    let place = Place::new();
    let root = busybox_root(&place.join("root"));
    let arguments = ["--memory", "128MiB", "--kernel-args", NO_DRIVER, "--", "/bin/sh"];
    let ended = bake(&place.join("refused"), with_root(&root, &arguments));
    ended.fails(USAGE, "no driver for the VM Generation ID");
    assert_eq!(place.names(), ["root"], "nothing is left of the bundle");
    let allowed = place.join("allowed");
    let arguments = [&["--allow-stale-rng"], &arguments[..]].concat();
    bake(&allowed, with_root(&root, &arguments)).succeeds();
    let told = finish(ember(["inspect"]).arg(&allowed));
    assert!(told.succeeds().text().contains("allow_stale_rng"), "{told:?}");
    let json = finish(ember(["inspect", "--json"]).arg(&allowed)).succeeds().json();
    assert_eq!(json["manifest"]["machine"]["stale_rng"], true);
    // The agent reseeds all the same.
    let event = "busybox od -An -N16 -tx1 /dev/urandom";
    assert_ne!(run(&allowed, event).succeeds().text(), run(&allowed, event).succeeds().text());
    let usual = finish(ember(["inspect"]).arg(shell()));
    assert!(usual.succeeds().text().contains("the kernel, when the VM Generation ID changes"), "{usual:?}");
}

#[test]
fn the_lambda_example_draws_another_lot_in_each_clone() {
    let greeter = example_bundle("lambda");
    let draw = || finish(ember(["run", "--event-json", "{}"]).arg(&greeter)).succeeds().json()["lot"].clone();
    let lots: BTreeSet<String> = (0..4).map(|_| draw().to_string()).collect();
    assert_eq!(lots.len(), 4, "{lots:?}");
}

/// What libraries and programs take for unique. Python's `random` is by the client's hook.
const NUMBERS: &str = "
import os, random, uuid
from snapshot_restore_py import register_after_restore

register_after_restore(random.seed)

def handler(event, context):
    return [os.getrandom(32).hex(), str(uuid.uuid4()), '%032x' % random.getrandbits(128)]
";

/// Numbers that came twice in so many clones.
#[track_caller]
fn duplicates_in(clones: usize) -> usize {
    let numbers = lambda("numbers", NUMBERS, "");
    let mut seen = BTreeSet::new();
    let mut all = 0;
    for _ in 0..clones {
        let ended = finish(ember(["run", "--event-json", "{}"]).arg(&numbers));
        let told: Vec<String> = serde_json::from_value(ended.succeeds().json()).unwrap();
        assert_eq!(told.len(), 3, "{ended:?}");
        all += told.len();
        println!("{}", told.join(" "));
        seen.extend(told);
    }
    all - seen.len()
}

#[test]
fn fifty_clones_have_no_number_in_common() {
    assert_eq!(duplicates_in(50), 0);
}

#[test]
fn clones_of_a_pool_have_no_number_in_common() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register("numbers", &lambda("numbers", NUMBERS, ""));
    let mut seen = BTreeSet::new();
    for clones in 1..=6 {
        let answer = daemon.invoke("numbers", "{}");
        assert_eq!(answer.status, 200, "{answer:?}");
        seen.extend(serde_json::from_value::<Vec<String>>(answer.json()).unwrap());
        assert_eq!(seen.len(), 3 * clones, "{answer:?}");
    }
}

/// The tests above can fail: without a hook Python's generator is the same in all clones.
#[test]
fn a_generator_without_a_hook_is_the_same_in_every_clone() {
    let source = NUMBERS.replace("register_after_restore(random.seed)", "");
    let numbers = lambda("numbers-without-hook", &source, "");
    let draw = || finish(ember(["run", "--event-json", "{}"]).arg(&numbers)).succeeds().json();
    let (one, two) = (draw(), draw());
    assert_eq!(one[2], two[2]);
    assert_ne!(one[0], two[0]);
    assert_ne!(one[1], two[1]);
}

mod full {
    use super::*;

    #[test]
    fn a_thousand_clones_have_no_number_in_common() {
        assert_eq!(duplicates_in(1000), 0);
    }
}
