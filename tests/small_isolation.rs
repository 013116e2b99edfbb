//! Clones share their bundle and nothing else; the bundle is never written.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Child;

use common::{Place, ember, end_of, finish, run_command, start};
use rustix::fs::IFlags;

/// Pages that each event reads and writes.
const PAGES: u64 = 16;

/// A guest whose words are 1, 2, 3 ... times a constant from page to page.
fn filled(place: &Place) -> PathBuf {
    place.bake_in("4MiB", "toucher", &["--warm-up", "fill"])
}

/// What the first `PAGES` words of an untouched clone sum to.
fn original() -> u64 {
    (1..=PAGES).fold(0, |sum, page| sum.wrapping_add(page.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// A clone that adds 1 a turn to each of its words and tells what they were, over and over. Its answers fill a
/// pipe that nobody reads, so that it stays alive until somebody does.
fn writer(bundle: &Path, turns: u32) -> Child {
    let mut command = run_command(bundle, &format!("write 0 {PAGES} 1"));
    let child = start(command.args(["--repeat", &turns.to_string()]));
    let pipe = child.stdout.as_ref().unwrap().as_fd();
    rustix::pipe::fcntl_setpipe_size(pipe, 4096).unwrap();
    child
}

/// Waits until the pipe is full: the clone has written its memory many times and waits to go on.
fn wait_until_blocked(child: &mut Child) {
    let pipe = child.stdout.as_ref().unwrap().as_fd();
    common::wait_until("the clone fills the pipe", || rustix::io::ioctl_fionread(pipe).unwrap() > 4000);
    assert!(child.try_wait().unwrap().is_none(), "the clone ended too early");
}

fn rest_of(mut child: Child) -> Vec<u64> {
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(end_of(child).status.success());
    text.split("0x").skip(1).map(|word| u64::from_str_radix(word, 16).unwrap()).collect()
}

#[test]
fn clones_alive_at_once_write_the_same_memory_and_read_back_their_own() {
    let place = Place::new();
    let bundle = filled(&place);
    // 18 bytes an answer: more than a pipe of 4096 bytes holds.
    let turns = 400;
    let mut first = writer(&bundle, turns);
    wait_until_blocked(&mut first);
    let mut second = writer(&bundle, turns);
    wait_until_blocked(&mut second);
    assert!(first.try_wait().unwrap().is_none());

    let third = finish(&mut run_command(&bundle, &format!("read 0 {PAGES} 1")));
    third.answers(&format!("{:#x}", original()));

    let expected: Vec<u64> =
        (0..u64::from(turns)).map(|turn| original().wrapping_add(turn * PAGES)).collect();
    assert_eq!(rest_of(first), expected);
    assert_eq!(rest_of(second), expected);
}

/// Everything that a write to a file would change.
fn looks(bundle: &Path) -> Vec<(String, Vec<u8>, i64, i64)> {
    let look = |name: String| {
        let (bytes, metadata) =
            (fs::read(bundle.join(&name)).unwrap(), bundle.join(&name).metadata().unwrap());
        (name, bytes, metadata.mtime(), metadata.mtime_nsec())
    };
    common::names(bundle).into_iter().map(look).collect()
}

#[test]
fn the_files_of_a_bundle_are_never_written() {
    let place = Place::new();
    let bundle = filled(&place);
    let before = looks(&bundle);
    for event in ["write 0 900 1", "fill", "read 0 900 1"] {
        finish(&mut run_command(&bundle, event)).succeeds();
        finish(run_command(&bundle, event).arg("--cold")).succeeds();
    }
    assert!(looks(&bundle) == before, "a file has changed");
}

#[test]
fn a_bundle_that_nobody_may_write_runs() {
    let place = Place::new();
    let bundle = filled(&place);
    let files: Vec<_> = common::names(&bundle).into_iter().map(|name| bundle.join(name)).collect();
    for file in &files {
        fs::set_permissions(file, Permissions::from_mode(0o400)).unwrap();
    }
    fs::set_permissions(&bundle, Permissions::from_mode(0o500)).unwrap();
    // The superuser is not stopped by permissions, but by this, where the file system knows it.
    set_immutable(&files, true);
    let ended = finish(&mut run_command(&bundle, "write 0 900 1"));
    set_immutable(&files, false);
    ended.succeeds();
    finish(ember(["verify"]).arg(&bundle)).succeeds();
    fs::set_permissions(&bundle, Permissions::from_mode(0o700)).unwrap();
}

fn set_immutable(files: &[PathBuf], on: bool) {
    for file in files {
        let file = File::open(file).unwrap();
        if let Ok(flags) = rustix::fs::ioctl_getflags(&file) {
            let flags = if on { flags | IFlags::IMMUTABLE } else { flags - IFlags::IMMUTABLE };
            rustix::fs::ioctl_setflags(&file, flags).ok();
        }
    }
}

#[test]
fn files_are_for_their_owner_alone() {
    let place = Place::new();
    let bundle = place.bake("echo");
    for name in common::names(&bundle) {
        assert_eq!(bundle.join(&name).metadata().unwrap().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(bundle.metadata().unwrap().mode() & 0o777, 0o700);
}
