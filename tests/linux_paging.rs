//! Paging on a host of our own: Linux guests whatever serves their pages, hardly a fault where they were recorded, a limit of memory,
//! a disk that fails.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Ended, GUEST_FAILED, HOST_CANNOT, Place, ember, finish, program, run_command};
use linux::shell;

/// Touches a page of everything that a shell has.
const EVENT: &str = "cat /proc/version; echo $((6 * 7)); ls /";

fn run(bundle: &Path, event: &str, more: &[&str]) -> Ended {
    finish(run_command(bundle, event).args(more))
}

#[test]
fn a_linux_guest_answers_the_same_whatever_serves_its_pages() {
    let bundle = shell();
    let plain = run(&bundle, EVENT, &["--prefetch", "none"]);
    let choices: [&[&str]; 5] = [
        &[],
        &["--prefetch", "read"],
        &["--paging", "uffd"],
        &["--verify", "touched"],
        &["--paging", "mmap", "--verify", "touched"],
    ];
    for flags in choices {
        run(&bundle, EVENT, flags).answers(plain.succeeds().text());
    }
}

/// Page faults before the answer.
fn faults(bundle: &Path, more: &[&str]) -> u64 {
    let told = run(bundle, "echo", &[more, &["--json", "--timing"]].concat()).succeeds().json();
    let faults = told["paging"]["kvm_faults_before_answer"].as_array().unwrap();
    faults.iter().map(|count| count.as_u64().unwrap()).sum()
}

#[test]
fn a_clone_whose_answer_was_recorded_hardly_faults() {
    let bundle = shell();
    // One that was baked before this host booted lies on its disk alone: nothing is mapped ahead then, because nobody waits for a disk.
    fs::read(bundle.join("memory")).unwrap();
    let (with, without) = (faults(&bundle, &[]), faults(&bundle, &["--prefetch", "none"]));
    assert!(without > 200 && with * 5 < without, "{with} with prefetching, {without} without");
}

#[test]
fn a_verified_clone_whose_answer_was_recorded_brings_that_in_and_hardly_faults_either() {
    let bundle = shell();
    fs::read(bundle.join("memory")).unwrap();
    let checked = ["--verify", "touched"];
    let (with, without) =
        (faults(&bundle, &checked), faults(&bundle, &[&checked[..], &["--prefetch", "none"]].concat()));
    assert!(without > 200 && with * 5 < without, "{with} with prefetching, {without} without");
    let set = finish(ember(["inspect", "--json"]).arg(&bundle)).succeeds().json();
    let told = run(&bundle, "echo", &[&checked[..], &["--json"]].concat()).succeeds().json();
    let ahead = told["paging"]["prefetched_bytes"].as_u64().unwrap();
    assert!(ahead > 0 && ahead <= set["working_set"]["bytes"].as_u64().unwrap(), "{told} {set}");
}

/// A control group with a limit of memory, to be removed.
struct Group(PathBuf);

impl Group {
    fn new(name: &str, bytes: u64) -> Self {
        Group::within(Path::new("/sys/fs/cgroup"), name, bytes)
    }

    fn within(above: &Path, name: &str, bytes: u64) -> Self {
        fs::write(above.join("cgroup.subtree_control"), "+memory").unwrap();
        let group = above.join(name);
        fs::create_dir(&group).unwrap();
        fs::write(group.join("memory.max"), bytes.to_string()).unwrap();
        Group(group)
    }

    /// `ember` with these arguments, in the group from its first instruction on.
    fn ember(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new("sh");
        let enter = format!("echo $$ >{}/cgroup.procs && exec \"$@\"", self.0.display());
        finish(command.args(["-c", &enter, "sh"]).arg(program()).args(arguments))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel may still be ending the machine's process, which nobody waits for.
        common::wait_until("the control group is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

/// A bundle with 23 MiB that an answer writes, more than half of what a limit of 20 MiB leaves.
fn with_much_to_copy(place: &Place) -> PathBuf {
    let bundle = place.bake_in("64MiB", "toucher", &["--warm-up", "fill", "--no-record"]);
    finish(ember(["record", "--event-text", "write 4096 6000 1"]).arg(&bundle)).succeeds();
    bundle
}

/// Half of what a limit of 20 MiB leaves was copied ahead.
#[track_caller]
fn is_cut_short(told: &serde_json::Value) {
    assert_eq!(told["paging"]["prefetch_cut_short"], true, "{told}");
    let copied = told["paging"]["prefetched_bytes"].as_u64().unwrap();
    assert!((4 << 20..12 << 20).contains(&copied), "{told}");
}

#[test]
fn a_limit_of_memory_stops_the_prefetch_and_not_the_clone() {
    let place = Place::new();
    let bundle = with_much_to_copy(&place);
    let right = run(&bundle, "read 100 10 1", &[]).succeeds().text().to_owned();
    let path = bundle.to_str().unwrap();
    let group = Group::new("ember-test-limit", 20 << 20);
    for paging in ["mmap", "uffd"] {
        let run = ["run", path, "--event-text", "read 100 10 1", "--paging", paging];
        group.ember(&run).answers(&right);
        is_cut_short(&group.ember(&[&run[..], &["--json"]].concat()).succeeds().json());
    }
}

#[test]
fn a_limit_of_a_group_above_stops_the_prefetch_too() {
    let place = Place::new();
    let bundle = with_much_to_copy(&place);
    let above = Group::new("ember-test-above", 20 << 20);
    let below = Group::within(&above.0, "wide", 1 << 30);
    let told = below.ember(&["run", bundle.to_str().unwrap(), "--event-text", "read 100 10 1", "--json"]);
    is_cut_short(&told.succeeds().json());
    drop(below);
}

/// A file system in a file, behind a loop device.
struct Disk {
    file: PathBuf,
    folder: PathBuf,
}

impl Disk {
    fn new(place: &Place) -> Self {
        let (file, folder) = (place.join("disk"), place.join("mounted"));
        shell_command(
            "modprobe loop 2>/dev/null; truncate -s 64M \"$1\" && mke2fs -q -t ext4 -F \"$1\" && mkdir \"$2\" && \
             mount -o loop,noatime \"$1\" \"$2\"",
            &[&file, &folder],
        );
        Disk { file, folder }
    }

    /// A small guest all of whose pages are content, on the disk.
    fn bake(&self) -> PathBuf {
        let bundle = self.folder.join("toucher.ember");
        let mut bake = common::bake_in_command("16MiB", "toucher", &bundle);
        finish(bake.args(["--warm-up", "fill", "--no-record"])).succeeds();
        bundle
    }

    /// Sectors of 512 bytes that were read from it.
    fn sectors_read(&self) -> u64 {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let folder = self.folder.to_str().unwrap();
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(folder)).unwrap();
        let device = line.split(' ').next().unwrap().trim_start_matches("/dev/");
        let counts = fs::read_to_string(format!("/sys/block/{device}/stat")).unwrap();
        counts.split_whitespace().nth(2).unwrap().parse().unwrap()
    }

    /// From now on nothing of `file` can be read, while what is read of its neighbours is in memory.
    fn breaks_under(&self, file: &Path) {
        let bundle = file.parent().unwrap();
        shell_command(
            "sync; echo 3 >/proc/sys/vm/drop_caches
             for other in \"$1\"/*; do [ \"$other\" = \"$2\" ] || cat \"$other\" >/dev/null; done
             stat \"$2\" >/dev/null; truncate -s 0 \"$3\"",
            &[bundle, file, &self.file],
        );
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        finish(Command::new("umount").arg("-l").arg(&self.folder));
    }
}

fn shell_command(script: &str, arguments: &[&Path]) {
    finish(Command::new("sh").args(["-c", script, "sh"]).args(arguments)).succeeds();
}

#[test]
fn what_lies_on_a_tmpfs_is_asked_of_no_disk() {
    let place = Place::new();
    let bundle = place.bake_in("64MiB", "toucher", &["--warm-up", "fill", "--no-record"]);
    finish(ember(["record", "--event-text", "write 1 300 1"]).arg(&bundle)).succeeds();
    let told = run(&bundle, "write 1 300 1", &["--json"]).succeeds().json();
    assert_eq!(told["paging"]["read_ahead_bytes"], 0, "{told}");
    assert!(told["paging"]["prefetched_bytes"].as_u64().unwrap() >= 300 * 4096, "{told}");
}

#[test]
fn a_long_range_of_the_working_set_is_read_from_a_cold_disk_as_a_whole() {
    let place = Place::new();
    let disk = Disk::new(&place);
    let bundle = disk.bake();
    finish(ember(["record", "--event-text", "read 1 3000 1"]).arg(&bundle)).succeeds();
    let right = run(&bundle, "read 100 10 1", &[]).succeeds().text().to_owned();
    shell_command("sync; echo 3 >/proc/sys/vm/drop_caches", &[]);
    let before = disk.sectors_read();
    let ended = run(&bundle, "read 100 10 1", &["--prefetch", "read", "--json"]);
    let told = ended.succeeds().json();
    assert_eq!(told["answer"]["output"], right, "{told}");
    assert!(told["paging"]["read_ahead_bytes"].as_u64().unwrap() >= 3000 * 4096, "{told}");
    // What was asked for comes without anybody's waiting for it.
    common::wait_until("the disk was read", || disk.sectors_read() - before >= 3000 * 4096 / 512);
}

/// A bundle that lies elsewhere, with the memory of one on a disk: a new one can be written beside it.
struct Apart(PathBuf);

impl Apart {
    fn new(place: &Place, bundle: &Path) -> Self {
        let apart = place.join("apart.ember");
        shell_command(
            "cp -r \"$1\" \"$2\" && : >\"$2/memory\" && mount --bind \"$1/memory\" \"$2/memory\"",
            &[bundle, &apart],
        );
        Apart(apart)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        finish(Command::new("umount").arg("-l").arg(self.0.join("memory")));
    }
}

#[test]
fn a_recording_whose_pages_cannot_be_read_ends_at_once_and_says_why() {
    let place = Place::new();
    let disk = Disk::new(&place);
    let bundle = disk.bake();
    let apart = Apart::new(&place, &bundle);
    disk.breaks_under(&bundle.join("memory"));
    let ended = finish(ember(["record", "--event-text", "read 1 4000 1", "--timeout", "60m"]).arg(&apart.0));
    ended.fails(HOST_CANNOT, "Cannot bring in the page at 0x");
    assert!(!place.names().iter().any(|name| name.contains("apart") && name != "apart.ember"), "{ended:?}");
}

#[test]
fn a_disk_that_fails_ends_the_clone_with_a_sentence() {
    let place = Place::new();
    let disk = Disk::new(&place);
    let bundle = disk.bake();
    disk.breaks_under(&bundle.join("memory"));
    let ended = run(&bundle, "read 1 4000 1", &["--paging", "uffd"]);
    assert_eq!(ended.code(), HOST_CANNOT, "{ended:?}");
    assert!(ended.errors.contains("Cannot read the memory at offset 0x"), "{ended:?}");
    run(&bundle, "read 1 4000 1", &["--paging", "mmap"])
        .fails(GUEST_FAILED, "a page of its memory cannot be brought in");
}
