//! What a clone is before it is given an event, and how it ends.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::processes::{alive_in_group, signal, wait_until_gone};
use common::{GUEST_FAILED, Place, ember, end_of, finish, program, start, wait_until};
use linux::{
    Alive, NOT_UNIQUE, agent, bake, bake_command, busybox_root, example_bundle, python, run, run_command,
    shell, with_root,
};
use rustix::process::Signal;

fn interpreter() -> PathBuf {
    python("interpreter", "import os, time, uuid, random", &["--warm-up", "print(1)"])
}

/// Nanoseconds since 1970.
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

#[test]
fn the_clock_is_right_in_every_clone() {
    let bundle = interpreter();
    // Long after the freeze, so that a clock which only went on would be wrong.
    let baked = fs::metadata(bundle.join("state")).unwrap().modified().unwrap();
    wait_until("the bundle is some seconds old", || {
        baked.elapsed().unwrap_or_default() > Duration::from_secs(5)
    });
    for _ in 0..2 {
        let before = now();
        let ended = run(&bundle, "import time; print(time.time_ns())");
        let (told, after) = (ended.succeeds().text().trim().parse::<u128>().unwrap(), now());
        let second = 1_000_000_000;
        assert!(before < told + second && told < after + second, "{before} {told} {after}");
    }
}

#[test]
fn no_two_clones_have_the_same_random_numbers() {
    // Through the system call, the device, and a library; and the kernel's own, which it gives each new process.
    let event = "import os, uuid\nprint(os.urandom(16).hex())\nprint(open('/dev/urandom', 'rb').read(16).hex())\n\
                 print(uuid.uuid4())\nprint(open('/proc/sys/kernel/random/uuid').read().strip())";
    let mut all: Vec<String> = Vec::new();
    for _ in 0..4 {
        all.extend(run(&interpreter(), event).succeeds().text().lines().map(str::to_owned));
    }
    assert_eq!(all.len(), 16);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 16, "a number came twice");
}

#[test]
fn an_event_like_the_warm_ups_reads_nothing_from_a_drive() {
    let cases = [
        (example_bundle("echo"), vec!["--event-text", "hello\n"]),
        (example_bundle("exec"), vec!["--event-text", "one two two"]),
        (example_bundle("http"), vec!["--path", "/index.html"]),
        (example_bundle("lambda"), vec!["--event-json", "{\"name\": \"nobody\"}"]),
    ];
    for (bundle, event) in cases {
        let ended = finish(ember(["run", "--timing", "--json"]).args(&event).arg(&bundle));
        assert_eq!(ended.succeeds().json()["timing"]["block_requests"], 0, "{event:?}: {ended:?}");
    }
    let cold = finish(run_command(&example_bundle("echo"), "x").args(["--cold", "--timing", "--json"]));
    assert!(cold.json()["timing"]["block_requests"].as_u64().unwrap() > 0, "a cold start reads its root");
}

/// An agent that cannot add entropy: the number of the request is spoiled in its code.
fn spoiled_agent(place: &Place) -> PathBuf {
    // RNDADDENTROPY of linux/random.h, in the order of bytes that code has.
    let (request, nonsense) = (0x4008_5203_u32.to_le_bytes(), 0x4008_52ff_u32.to_le_bytes());
    let mut code = fs::read(agent()).unwrap();
    let places: Vec<usize> =
        code.windows(4).enumerate().filter(|(_, w)| *w == request).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the agent's code has no RNDADDENTROPY");
    places.iter().for_each(|at| code[*at..at + 4].copy_from_slice(&nonsense));
    let path = place.join("agent");
    fs::write(&path, code).unwrap();
    path
}

#[test]
fn a_clone_that_does_not_become_unique_is_given_no_event() {
    let place = Place::new();
    let (agent, bundle) = (spoiled_agent(&place), place.join("b"));
    let more = ["--agent", agent.to_str().unwrap(), "--memory", "128MiB", "--", "/bin/sh"];
    bake(&bundle, with_root(&busybox_root(&place.join("root")), &more)).succeeds();
    let ended = run(&bundle, "echo answered");
    ended.fails(NOT_UNIQUE, "did not become unique and serves nothing");
    assert!(ended.errors.contains("Cannot add entropy"), "{ended:?}");
    let ended = finish(run_command(&bundle, "echo answered").arg("--json"));
    assert_eq!((ended.code(), &ended.json()["error"]["kind"]), (NOT_UNIQUE, &"not_unique".into()));
    // A machine that was booted has no twin.
    finish(run_command(&bundle, "echo answered").arg("--cold")).answers("answered\n");
}

#[test]
fn a_guest_that_powers_off_or_resets_is_told_apart() {
    for (script, words) in [
        ("echo before; poweroff -f; sleep 60", "The guest powered off while the answer was awaited"),
        ("echo before; reboot -f; sleep 60", "The guest reset while the answer was awaited"),
    ] {
        let ended = run(&shell(), script);
        assert_eq!((ended.code(), ended.text()), (GUEST_FAILED, "before\n"), "{ended:?}");
        assert!(ended.errors.contains(words), "{ended:?}");
    }
}

#[test]
fn a_guest_whose_kernel_panics_is_told_with_its_last_words() {
    let ended = run(&shell(), "echo 1 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger; sleep 60");
    assert_eq!(ended.code(), GUEST_FAILED, "{ended:?}");
    assert!(ended.errors.contains("Kernel panic"), "{ended:?}");
}

#[test]
fn signals_to_a_run_end_the_clone_and_leave_nothing() {
    for which in [Signal::INT, Signal::TERM] {
        let mut clone = Alive::start(&mut run_command(&shell(), "echo waits; sleep 100"));
        clone.await_line("waits");
        assert!(clone.is_alive());
        let group = clone.id();
        signal(i32::try_from(group).unwrap(), which);
        wait_until_gone(group);
        let (code, _) = clone.finish();
        assert_eq!(code, None, "it ends by the signal, as its caller expects");
    }
}

#[test]
fn a_run_whose_parent_is_killed_leaves_nothing() {
    let clone = Alive::start(&mut run_command(&shell(), "echo waits; sleep 100"));
    clone.await_line("waits");
    let group = clone.id();
    signal(i32::try_from(group).unwrap(), Signal::KILL);
    wait_until_gone(group);
    assert!(alive_in_group(group).is_empty());
}

#[test]
fn signals_to_a_bake_leave_nothing() {
    for which in [Signal::INT, Signal::TERM] {
        let place = Place::new();
        let root = busybox_root(&place.join("root"));
        let arguments = with_root(&root, &["--memory", "128MiB", "--console", "--", "/bin/sh"]);
        // Not through `timeout`, which has a process of its own.
        let mut command = Command::new(program());
        let bake = start(command.arg("bake").arg(place.join("b")).args(arguments).stdin(Stdio::null()));
        let group = bake.id();
        wait_until("the bake has begun to write", || {
            place.names().iter().any(|name| name.starts_with(".b.tmp-"))
        });
        std::thread::sleep(Duration::from_millis(500));
        signal(i32::try_from(group).unwrap(), which);
        let ended = end_of(bake);
        assert_eq!(ended.signal(), Some(which.as_raw()), "{ended:?}");
        wait_until_gone(group);
        assert_eq!(place.names(), ["root"]);
    }
}

#[test]
fn an_ordinary_user_who_may_open_kvm_bakes_and_runs() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    const USER: u32 = 1000;
    let place = Place::new();
    let root = busybox_root(&place.join("root"));
    let as_user = |command: &mut Command| {
        // Who is not root is an ordinary user already.
        if common::is_root() {
            command.uid(USER).gid(fs::metadata("/dev/kvm").unwrap().gid());
        }
    };
    if common::is_root() {
        chown(place.path(), Some(USER), None).unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let arguments = with_root(&root, &["--memory", "128MiB", "--", "/bin/sh"]);
    let mut command = bake_command(&place.join("b"), arguments);
    as_user(&mut command);
    let output = start(&mut command).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut command = run_command(&place.join("b"), "id -u");
    as_user(&mut command);
    finish(&mut command).answers("0\n");
}

#[test]
fn other_connections_to_the_host_are_refused() {
    let event = "import socket\nfor port in (1024, 1025, 80):\n    connection = socket.socket(socket.AF_VSOCK)\n    try:\n        \
                 connection.connect((2, port))\n        print('connected')\n    except OSError as error:\n        print(type(error).__name__)";
    let ended = run(&interpreter(), event);
    assert_eq!(ended.succeeds().text().lines().filter(|line| *line == "connected").count(), 0, "{ended:?}");
}

#[test]
fn a_warm_up_that_fails_ends_the_bake() {
    let place = Place::new();
    let more = ["--memory", "128MiB", "--warm-up", "echo last words; exit 5", "--", "/bin/sh"];
    let ended = bake(&place.join("b"), with_root(&busybox_root(&place.join("root")), &more));
    assert_eq!(ended.code(), GUEST_FAILED, "{ended:?}");
    assert!(ended.errors.contains("failed on warm-up event 1 with exit code 5"), "{ended:?}");
    assert!(ended.errors.contains("last words"), "{ended:?}");
    assert_eq!(place.names(), ["root"]);
}
