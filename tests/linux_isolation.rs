//! What one clone does no other sees, and the bundle stays as it was baked.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Place, USAGE, finish};
use linux::{
    ALIVE_SECONDS, bake, bundle, busybox_root, clones_do_not_see_each_other, example, kept, python,
    python_root, run, run_command, verified, with_root,
};

/// State in memory and in a file, from before the freeze.
const STATE: &str = "\
state['memory'] = bytearray(b'original')
with open('/var/tmp/file', 'w') as file:
    file.write('original')";

fn stateful() -> PathBuf {
    python("stateful", STATE, &[])
}

/// A program that writes `word` to both, or only reads, and says what it finds.
fn program(word: Option<&str>) -> String {
    let write = word.map_or(String::new(), |word| {
        format!(
            "import time\nstate['memory'][:] = b'{word}'\nopen('/var/tmp/file', 'w').write('{word}')\n\
             print('written', flush=True)\ntime.sleep({ALIVE_SECONDS})\n"
        )
    });
    format!("{write}print('memory', state['memory'].decode())\nprint('file', open('/var/tmp/file').read())\n")
}

#[test]
fn clones_alive_at_once_share_no_memory_and_no_file() {
    clones_do_not_see_each_other("original", |word| run_command(&stateful(), &program(word)));
}

#[test]
fn clones_do_not_change_the_bundle() {
    let bundle = stateful();
    let before = verified(&bundle);
    let scribble = "import os\nfor n in range(40):\n    state[n] = os.urandom(4096) * 256\n\
                    open('/var/tmp/big', 'wb').write(b''.join(state[n] for n in range(20)))\nos.sync()\nprint('done')";
    run(&bundle, scribble).answers("done\n");
    assert_eq!(verified(&bundle), before);
}

#[test]
fn what_a_clone_changes_in_the_root_is_gone_with_it() {
    let bundle = stateful();
    let change = "import os\nos.remove('/etc/hosts')\nopen('/etc/passwd', 'a').write('x')\nprint(os.path.exists('/etc/hosts'))";
    run(&bundle, change).answers("False\n");
    run(&bundle, "import os\nprint(os.path.exists('/etc/hosts'), 'x' in open('/etc/passwd').read()[-1:])")
        .answers("True False\n");
}

/// A shell with a drive that can be written to. The drive held `made`, and `baked` was written to it before the freeze.
fn with_drive() -> PathBuf {
    let warm_up = "echo frozen >/mnt/data/baked; sync";
    let content = ["--memory", "128MiB", "--warm-up", warm_up];
    bundle("drive", &content, |place| {
        let image = ext4(place);
        let drive = format!("data={}", image.display());
        with_root(
            &busybox_root(&place.join("root")),
            &[&content[..], &["--drive", &drive, "--", "/bin/sh"]].concat(),
        )
    })
}

/// An image of 16 MiB with the file `made`.
fn ext4(place: &Path) -> PathBuf {
    let (tree, image) = (place.join("tree"), place.join("data.ext4"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("made"), "made before\n").unwrap();
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&image).arg("16M");
    finish(&mut mke2fs).succeeds();
    image
}

#[test]
fn a_drive_holds_what_it_held_at_the_freeze() {
    run(&with_drive(), "cat /mnt/data/made /mnt/data/baked").answers("made before\nfrozen\n");
}

#[test]
fn each_clone_writes_to_its_own_copy_of_a_drive() {
    let bundle = with_drive();
    let before = verified(&bundle);
    let script = |word: Option<&str>| {
        let write = word.map_or(String::new(), |word| {
            format!("echo {word} >/mnt/data/baked; sync; echo written; sleep {ALIVE_SECONDS};")
        });
        // Dropped, so that it is read from the drive.
        format!(
            "{write} echo 3 >/proc/sys/vm/drop_caches; read word </mnt/data/baked; echo memory $word; echo file $word"
        )
    };
    clones_do_not_see_each_other("frozen", |word| run_command(&bundle, &script(word)));
    assert_eq!(verified(&bundle), before);
}

#[test]
fn the_file_system_on_a_drive_is_consistent_in_the_bundle() {
    let place = Place::new();
    let copy = place.join("drive");
    fs::copy(with_drive().join("drive-data.img"), &copy).unwrap();
    // It was frozen while mounted: its journal is replayed first, as after a power cut.
    let replayed = finish(Command::new("e2fsck").arg("-fp").arg(&copy));
    assert!(matches!(replayed.code(), 0 | 1), "{replayed:?}");
    finish(Command::new("e2fsck").arg("-fn").arg(&copy)).succeeds();
}

#[test]
fn a_drive_can_be_filled_and_then_says_so() {
    let script = "cat /dev/zero >/mnt/data/big 2>/dev/null; sync; echo full; cat /mnt/data/made";
    run(&with_drive(), script).answers("full\nmade before\n");
}

#[test]
fn a_drive_that_is_read_only_cannot_be_written() {
    // The example's function lies on one.
    let exec = bundle("exec-shell", &[], |_| {
        let config = example("exec");
        with_root(
            &python_root(),
            &["--config", config.to_str().unwrap(), "--warm-up", "echo", "--", "/bin/sh"],
        )
    });
    let ended = run(&exec, "ls /mnt/function; echo x 2>/dev/null >/mnt/function/words.py || echo refused");
    ended.answers("words.py\nrefused\n");
}

#[test]
fn a_directory_can_be_a_drive_only_when_read_only() {
    let place = Place::new();
    let folder = place.join("folder");
    fs::create_dir(&folder).unwrap();
    let root = busybox_root(&place.join("root"));
    let drive = format!("data={}", folder.display());
    let ended = bake(&place.join("b"), with_root(&root, &["--drive", &drive, "--", "/bin/sh"]));
    ended.fails(USAGE, "set read_only = true");
    assert_eq!(place.names(), ["folder", "root"]);
}

#[test]
fn nothing_is_left_in_the_folder_of_bundles() {
    run(&stateful(), "print(1)").answers("1\n");
    let strange: Vec<String> =
        common::names(&kept()).into_iter().filter(|name| name.contains(".tmp")).collect();
    assert!(strange.is_empty(), "{strange:?}");
}
