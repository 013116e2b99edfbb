//! Ember needs no rights but to open /dev/kvm, and says so where that is refused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{
    Ended, HOST_CANNOT, Place, ember, finish, guest, in_namespace, is_root, program, run_command, setpriv,
};

const NOBODY: u32 = 65534;
const BAKE: [&str; 8] = ["bake", "out", "--interface", "port", "--memory", "2MiB", "--kernel", "echo.elf"];

/// A folder where anybody may write, with a program and a guest that anybody may read.
fn public() -> Place {
    let place = Place::new();
    for (from, name, mode) in [(program(), "ember", 0o755), (guest("echo"), "echo.elf", 0o644)] {
        fs::copy(from, place.join(name)).unwrap();
        fs::set_permissions(place.join(name), Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(place.path(), Permissions::from_mode(0o777)).unwrap();
    place
}

/// Permission bits and group of /dev/kvm.
fn kvm() -> (u32, u32) {
    let metadata = fs::metadata("/dev/kvm").unwrap();
    (metadata.mode() & 0o777, metadata.gid())
}

/// `ember` as nobody, who is in one group.
fn as_nobody(place: &Place, group: u32, words: &[&str]) -> Ended {
    let mut command = Command::new(place.join("ember"));
    command.args(words).uid(NOBODY).gid(group).stdin(Stdio::null());
    finish(command.current_dir(place.path()))
}

/// `ember` behind a script that sees `place` as its folder and the words as its arguments.
fn behind(place: &Place, script: &str, words: &[&str]) -> Ended {
    finish(in_namespace(script, words).current_dir(place.path()))
}

/// As an ordinary user who may open /dev/kvm. Ordinary users who run the tests are one.
fn permitted(place: &Place, words: &[&str]) -> Ended {
    // A node of one's own where only root may open the real one.
    const OWN_NODE: &str = "{ test -e kvm || mknod -m 666 kvm c 10 232; } && mount --bind kvm /dev/kvm &&
        exec $SETPRIV --reuid=65534 --regid=65534 --clear-groups ./ember \"$@\"";
    match kvm() {
        _ if !is_root() => finish(ember(words).current_dir(place.path())),
        (mode, _) if mode & 0o006 == 0o006 => as_nobody(place, NOBODY, words),
        (mode, group) if mode & 0o060 == 0o060 => as_nobody(place, group, words),
        _ => behind(place, OWN_NODE, words),
    }
}

/// As an ordinary user who may open /dev/kvm, on a host that gives nobody a user namespace.
fn without_namespaces(place: &Place, words: &[&str]) -> Ended {
    const AS_NOBODY: &str = "{ test -e kvm || mknod -m 666 kvm c 10 232; } && mount --bind kvm /dev/kvm &&
        exec $SETPRIV --reuid=65534 --regid=65534 --clear-groups sh -c \"$0\" sh \"$@\"";
    // The limit holds in a namespace of one's own and is nobody else's. Who gives no namespaces has none to set it in.
    const NONE: &str = "unshare -r true || exec ./ember \"$@\"
        exec unshare -r sh -c 'echo 0 >/proc/sys/user/max_user_namespaces &&
            exec $SETPRIV --inh-caps=-all --bounding-set=-all ./ember \"$@\"' sh \"$@\"";
    if is_root() {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", AS_NOBODY, NONE]).args(words).stdin(Stdio::null());
        return finish(command.env("SETPRIV", setpriv()).current_dir(place.path()));
    }
    let mut command = Command::new("sh");
    command.args(["-c", NONE, "sh"]).args(words).env("SETPRIV", setpriv()).stdin(Stdio::null());
    finish(command.current_dir(place.path()))
}

/// As a user who may not open /dev/kvm.
fn forbidden(place: &Place, words: &[&str]) -> Ended {
    // Who is root in a namespace of one's own still may; without capabilities even a file of one's own stays shut.
    const CLOSED_FILE: &str = "touch kvm && chmod 0 kvm && mount --bind kvm /dev/kvm &&
        exec $SETPRIV --inh-caps=-all --bounding-set=-all ./ember \"$@\"";
    match kvm() {
        (mode, _) if is_root() && mode & 0o006 == 0 => as_nobody(place, NOBODY, words),
        _ => behind(place, CLOSED_FILE, words),
    }
}

/// Where there is no device.
fn absent(place: &Place, words: &[&str]) -> Ended {
    behind(place, "mount -t tmpfs none /dev && exec ./ember \"$@\"", words)
}

#[test]
fn an_ordinary_user_who_may_open_dev_kvm_bakes_and_runs() {
    let place = public();
    permitted(&place, &BAKE).succeeds();
    permitted(&place, &["run", "out", "--event-text", "hello"]).answers("hello");
    permitted(&place, &["run", "out", "--event-text", "hello", "--cold"]).answers("hello");
    permitted(&place, &["run", "out", "--event-text", "hello", "--count", "3"]).answers("hellohellohello");
    permitted(&place, &["verify", "out"]).succeeds();
    permitted(&place, &["doctor"]).succeeds();
    assert_eq!(fs::metadata(place.join("out/memory")).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn an_ordinary_user_s_clones_are_jailed_as_far_as_the_host_allows_and_the_level_is_named() {
    let place = public();
    permitted(&place, &BAKE).succeeds();
    let ended = permitted(&place, &["run", "out", "--event-text", "hello", "--json"]);
    let jail = ended.succeeds().json()["jail"].clone();
    let names = |of: &str| {
        let all = jail[of].as_array().unwrap().iter();
        all.map(|wall| wall.as_str().unwrap().split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // These nobody can be denied.
    for wall in ["own-descriptors", "resource-limits", "no-capabilities", "no-new-privileges", "seccomp"] {
        assert!(names("standing").iter().any(|name| name == wall), "{wall}: {jail}");
    }
    assert!(names("lacking").iter().any(|name| name == "own-user"), "{jail}");
    match jail["level"].as_str() {
        Some("user") => {
            assert_eq!(names("lacking").iter().filter(|name| *name != "landlock").count(), 1, "{jail}");
            assert_eq!(ended.errors, "");
        }
        Some("partial") => assert!(ended.errors.contains("ember: jail: partial; lacking: "), "{ended:?}"),
        _ => panic!("{jail}"),
    }
    let refused = permitted(&place, &["run", "out", "--event-text", "hello", "--require-jail"]);
    refused.fails(HOST_CANNOT, "The jail lacks own-user");
}

#[test]
fn where_nobody_gets_a_namespace_clones_are_jailed_in_part_and_the_user_is_told() {
    let place = public();
    without_namespaces(&place, &BAKE).succeeds();
    let ended = without_namespaces(&place, &["run", "out", "--event-text", "hello", "--json"]);
    let told = ended.succeeds().json();
    assert_eq!(
        (&told["jail"]["level"], &told["answer"]["output"]),
        (&"partial".into(), &"hello".into()),
        "{told}"
    );
    let standing = told["jail"]["standing"].to_string();
    for wall in ["own-descriptors", "resource-limits", "no-capabilities", "no-new-privileges", "seccomp"] {
        assert!(standing.contains(wall), "{wall}: {told}");
    }
    assert!(ended.errors.contains("ember: jail: partial; lacking: "), "{ended:?}");
    assert!(ended.errors.contains("user-namespace"), "{ended:?}");
    let refused = without_namespaces(&place, &["run", "out", "--event-text", "hello", "--require-jail"]);
    refused.fails(
        HOST_CANNOT,
        "The jail lacks user-namespace (user.max_user_namespaces of this host allows no more)",
    );
}

#[test]
fn an_ordinary_user_who_may_not_bound_a_clone_is_told() {
    let place = public();
    permitted(&place, &BAKE).succeeds();
    let ended = permitted(&place, &["run", "out", "--event-text", "hello", "--memory-max", "64MiB"]);
    // One who runs the tests may have been given a control group.
    if is_root() || ended.code() != 0 {
        ended.fails(HOST_CANNOT, "Cannot bound the machine by");
    }
}

#[test]
fn no_permission_on_dev_kvm_is_told_with_what_to_do() {
    let place = public();
    let words = "No permission to open /dev/kvm; add the user to its group (`usermod -aG kvm USER`)";
    forbidden(&place, &BAKE).fails(HOST_CANNOT, words);
    let bundle = place.bake("echo");
    give_to_all(&bundle);
    forbidden(&place, &["run", "echo.ember", "--event-text", "x"]).fails(HOST_CANNOT, words);
    let left: Vec<String> = place.names().into_iter().filter(|name| name != "kvm").collect();
    assert_eq!(left, ["echo.elf", "echo.ember", "ember"]);
}

fn give_to_all(bundle: &Path) {
    fs::set_permissions(bundle, Permissions::from_mode(0o755)).unwrap();
    for name in common::names(bundle) {
        fs::set_permissions(bundle.join(name), Permissions::from_mode(0o644)).unwrap();
    }
}

#[test]
fn a_host_without_kvm_is_told_with_what_to_do() {
    let place = public();
    absent(&place, &BAKE)
        .fails(HOST_CANNOT, "There is no /dev/kvm on this host; load the kvm_intel or kvm_amd");
    assert!(!place.join("out").exists());
}

#[test]
fn another_device_in_the_place_of_dev_kvm_is_told_with_what_to_do() {
    let place = public();
    let other = "mount --bind /dev/null /dev/kvm && exec ./ember \"$@\"";
    for words in [&BAKE[..], &["doctor"]] {
        let ended = behind(&place, other, words);
        assert_eq!(ended.code(), HOST_CANNOT, "{ended:?}");
        let told = format!("{}{}", ended.text(), ended.errors);
        assert!(told.contains("/dev/kvm is not the device of KVM; give this machine"), "{told}");
    }
    assert!(!place.join("out").exists());
}

#[test]
fn the_bundle_of_somebody_else_cannot_be_read() {
    if !is_root() {
        // Nobody here could make one. In the emulated host, where this runs as well, the tests are root.
        return;
    }
    let place = public();
    let bundle = place.bake("echo");
    fs::set_permissions(&bundle, Permissions::from_mode(0o755)).unwrap();
    as_nobody(&place, NOBODY, &["run", "echo.ember"]).fails(HOST_CANNOT, "Permission denied");
}

#[test]
fn doctor_names_what_is_wrong_with_dev_kvm_and_the_mend() {
    let place = public();
    type Run = fn(&Place, &[&str]) -> Ended;
    let cases: [(Run, &str, &str); 2] = [
        (forbidden, "No permission to open /dev/kvm", "usermod -aG kvm USER"),
        (absent, "There is no /dev/kvm", "modprobe kvm_intel"),
    ];
    for (run, found, mend) in cases {
        let ended = run(&place, &["doctor"]);
        assert_eq!(ended.code(), HOST_CANNOT, "{ended:?}");
        assert!(ended.text().contains(found) && ended.text().contains(mend), "{ended:?}");
        let told = run(&place, &["doctor", "--json"]).json();
        assert_eq!(told["can_run"], false);
    }
}

#[test]
fn doctor_knows_whether_vmx_or_svm_is_behind_dev_kvm() {
    let told = finish(&mut ember(["doctor", "--json"])).succeeds().json();
    assert_eq!(told["can_run"], true);
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap();
    let hardware = cpu.split_whitespace().any(|word| word == "vmx" || word == "svm");
    let finding = |what: &str| {
        let findings = told["findings"].as_array().unwrap();
        findings.iter().find(|finding| finding["what"] == what).cloned().unwrap_or_else(|| panic!("{told}"))
    };
    assert_eq!(finding("/dev/kvm")["verdict"], "good");
    let virtualisation = finding("hardware virtualisation");
    assert_eq!(virtualisation["verdict"], if hardware { "good" } else { "limited" });
    assert_eq!(virtualisation["mend"].is_null(), hardware);
    finding("userfaultfd");
    finding("guest agent");
    // What can be run is run.
    let place = Place::new();
    finish(&mut run_command(&place.bake("echo"), "x")).answers("x");
}
