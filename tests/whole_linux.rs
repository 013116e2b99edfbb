//! Clones of Linux guests that are baked again: nothing of them is lost, and nothing of what they come from is written.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy takes helpers of tests for the product"
)]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Ended, Place, ember, finish, set_immutable};
use linux::{bundle, digests, example_bundle, python, python_root, run, run_command, with_root};

const GENERATIONS: usize = 3;

/// `ember run` of a bundle, whose clone is baked again.
fn rebake(bundle: &Path, event: &str, to: &Path) -> Ended {
    finish(run_command(bundle, event).arg("--bake-to").arg(to))
}

fn shell(name: &str, more: &[&str]) -> PathBuf {
    let arguments = [more, &["--warm-up", "echo", "--", "/bin/sh"]].concat();
    bundle(name, &arguments, |_| with_root(&python_root(), &arguments))
}

#[test]
fn a_lambda_function_goes_on_counting_in_a_clone_of_a_clone_of_a_clone() {
    let place = Place::new();
    let mut bundle = example_bundle("lambda");
    let told = |ended: &Ended, what: &str| ended.succeeds().json()[what].as_u64().unwrap();
    let answered = |ended: &Ended| told(ended, "answered");
    assert!(inspect(&bundle).contains("then the client's own after-restore hooks"));
    let first = answered(&run(&bundle, r#"{"name": "Ada"}"#));
    for generation in 0..GENERATIONS {
        let next = place.join(&format!("generation-{generation}"));
        let ended = rebake(&bundle, r#"{"name": "Ada"}"#, &next);
        assert_eq!(answered(&ended), first + generation as u64, "{ended:?}");
        assert!(ended.errors.contains("hooks do not run in clones of this bundle"), "{ended:?}");
        bundle = next;
    }
    finish(ember(["verify"]).arg(&bundle)).succeeds();
    let (one, two) = (run(&bundle, "{}"), run(&bundle, "{}"));
    assert_eq!(answered(&one), first + GENERATIONS as u64);
    // Its client's hook has run once and for all, which the user is told: its lots are not as unique as the original's.
    assert_eq!(told(&one, "lot"), told(&two, "lot"));
    assert!(inspect(&bundle).contains("no hook of the client's own runs in a clone"));
    let json = finish(ember(["inspect", "--json"]).arg(&bundle)).succeeds().json();
    assert_eq!(json["client_hooks"], false);
}

fn inspect(bundle: &Path) -> String {
    finish(ember(["inspect"]).arg(bundle)).succeeds().text().to_owned()
}

#[test]
fn an_http_server_answers_in_a_clone_of_a_clone() {
    let place = Place::new();
    let (bundle, clone) = (example_bundle("http"), place.join("clone"));
    let get = |bundle: &Path| {
        let mut command = ember(["run", "--path", "/files/hello.txt"]);
        command.arg(bundle);
        command
    };
    let first = finish(get(&bundle).arg("--bake-to").arg(&clone));
    let second = finish(&mut get(&clone));
    assert_eq!(first.succeeds().output, second.succeeds().output);
}

#[test]
fn files_of_a_clone_and_its_environment_are_in_its_bundle() {
    let place = Place::new();
    let mut bundle = shell("rebaked-shell", &[]);
    for generation in 0..GENERATIONS {
        let next = place.join(&format!("generation-{generation}"));
        let mut command =
            run_command(&bundle, "echo $WORD >>/var/tmp/words; cat /var/tmp/words | tr '\\n' ' '");
        if generation == 0 {
            command.args(["--env", "WORD=told"]);
        }
        let ended = finish(command.arg("--bake-to").arg(&next));
        ended.answers(&"told ".repeat(generation + 1));
        bundle = next;
    }
    // A clone of such a clone has random numbers of its own, as any other has.
    let draw = "/usr/bin/python3 -c 'import os, uuid; print(os.getrandom(32).hex(), uuid.uuid4())'";
    let drawn = [run(&bundle, draw), run(&bundle, draw)];
    let [one, two] =
        drawn.each_ref().map(|ended| ended.succeeds().text().split_whitespace().collect::<Vec<_>>());
    assert_eq!((one.len(), two.len()), (2, 2), "{drawn:?}");
    assert!(one[0] != two[0] && one[1] != two[1], "{drawn:?}");
}

#[test]
fn a_process_that_works_in_the_background_is_not_disturbed() {
    let place = Place::new();
    let mut bundle = shell("rebaked-shell", &[]);
    let start = "(n=0; while :; do n=$((n+1)); echo $n >/var/tmp/n.new; mv /var/tmp/n.new /var/tmp/n; done) </dev/null >/dev/null 2>&1 & sleep 1; cat /var/tmp/n";
    let mut last = 0;
    for generation in 0..GENERATIONS {
        let next = place.join(&format!("generation-{generation}"));
        let script = if generation == 0 { start } else { "sleep 1; cat /var/tmp/n" };
        let ended = rebake(&bundle, script, &next);
        let now: u64 = ended.succeeds().text().trim().parse().unwrap();
        assert!(now > last, "{now} after {last}");
        (last, bundle) = (now, next);
    }
}

#[test]
fn a_resident_process_waits_in_a_clone_of_a_clone() {
    let place = Place::new();
    let mut bundle = python("rebaked-resident", "import os\nstate['pid'] = os.getpid()", &[]);
    let mut seen = Vec::new();
    for generation in 0..GENERATIONS {
        let next = place.join(&format!("generation-{generation}"));
        let ended = rebake(&bundle, "print(state['pid'], open('/proc/self/stat').read().split()[21])", &next);
        // Each event has its own process, which was there before the clone: the same in every clone of one bundle.
        assert_eq!(
            run(&bundle, "print(state['pid'], open('/proc/self/stat').read().split()[21])").text(),
            ended.text()
        );
        assert!(!seen.contains(&ended.output), "{ended:?}");
        seen.push(ended.succeeds().output.clone());
        bundle = next;
    }
}

/// Connections of a guest to the host, and a listener from before the freeze.
const VSOCK: &str = "\
import socket
state['listener'] = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
state['listener'].bind((socket.VMADDR_CID_ANY, 7777))
state['listener'].listen()";

const LOOK_AT_VSOCK: &str = "\
import socket, time
for port in (9999, 1024, 1024, 1):
    begin = time.monotonic()
    try:
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        s.settimeout(5)
        s.connect((2, port))
        print('connected')
    except ConnectionResetError:
        print('reset', 'at once' if time.monotonic() - begin < 1 else 'late')
l = state['listener']
l.settimeout(0.2)
try:
    l.accept()
except TimeoutError:
    print('listening', l.getsockname()[1])";

#[test]
fn sockets_of_a_clone_are_answered_at_once_and_a_listener_listens() {
    let place = Place::new();
    let bundle = python("rebaked-vsock", VSOCK, &[]);
    let clone = place.join("clone");
    // Nobody but the agent is connected to: the host has one port, for one connection.
    let expected = "reset at once\n".repeat(4) + "listening 7777\n";
    rebake(&bundle, LOOK_AT_VSOCK, &clone).answers(&expected);
    run(&clone, LOOK_AT_VSOCK).answers(&expected);
}

/// Writes files, syncs and removes them for ever, and counts.
const WRITE: &str = "(n=0; while :; do n=$((n+1)); echo $n >/var/tmp/count; \
    dd if=/dev/urandom of=/mnt/data/f$((n%7)) bs=16k count=$((n%9+1)); \
    [ $((n%5)) != 0 ] || sync; rm -f /mnt/data/f$(((n+3)%7)); done) </dev/null >/dev/null 2>&1 &\n\
    echo $! >/var/tmp/writer; sleep 1; kill -0 $!";
/// Waits until the writer has gone on. The count is empty while it is written.
const LOOK_AT_WRITER: &str = "was=$(cat /var/tmp/count); [ -n \"$was\" ] || was=0
    until [ \"$(cat /var/tmp/count)\" -gt \"$was\" ] 2>/dev/null; do sleep 0.1; done; echo writes";

/// With a writable drive.
fn with_drive() -> PathBuf {
    let arguments = ["--warm-up", "echo", "--", "/bin/sh"];
    bundle("written-drive", &arguments, |place| {
        let image = place.join("data.ext4");
        finish(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&image).arg("24M")).succeeds();
        let drive = format!("data={}", image.display());
        with_root(&python_root(), &[&["--drive", &drive][..], &arguments].concat())
    })
}

fn is_clean(image: &Path) {
    finish(Command::new("e2fsck").arg("-fn").arg(image)).succeeds();
}

#[test]
fn a_drive_that_is_written_all_the_time_stays_whole() {
    let place = Place::new();
    let original = with_drive();
    let before = digests(&original);
    let files: Vec<PathBuf> = common::names(&original).iter().map(|name| original.join(name)).collect();
    set_immutable(&files, true);
    let mut bundle = original.clone();
    for generation in 0..GENERATIONS {
        let next = place.join(&format!("generation-{generation}"));
        let script = if generation == 0 { WRITE } else { LOOK_AT_WRITER };
        rebake(&bundle, script, &next).answers(if generation == 0 { "" } else { "writes\n" });
        // Frozen while mounted: its journal is replayed first, as after a power cut. Nothing else is mended.
        let copy = place.join("copy");
        fs::copy(next.join("drive-data.img"), &copy).unwrap();
        let replayed = finish(Command::new("e2fsck").args(["-p", "-E", "journal_only"]).arg(&copy));
        assert!(matches!(replayed.code(), 0 | 1), "{replayed:?}");
        assert!(replayed.text().contains("recovering journal"), "it was not being written: {replayed:?}");
        is_clean(&copy);
        bundle = next;
    }
    set_immutable(&files, false);
    assert!(digests(&original) == before, "a file of the bundle has changed");
    // Without its writer it is clean as it is.
    let last = place.join("last");
    let stop = "kill $(cat /var/tmp/writer); sleep 1; echo last >/mnt/data/last; umount /mnt/data && echo unmounted; dmesg | grep -i ext4-fs.error || true";
    rebake(&bundle, stop, &last).answers("unmounted\n");
    is_clean(&last.join("drive-data.img"));
    run(&last, "mount /dev/vdb /mnt/data && cat /mnt/data/last").answers("last\n");
    // A clone's writes are its own.
    run(&last, "mount /dev/vdb /mnt/data && echo other >/mnt/data/last; sync; cat /mnt/data/last")
        .answers("other\n");
    run(&last, "mount /dev/vdb /mnt/data && cat /mnt/data/last").answers("last\n");
}
