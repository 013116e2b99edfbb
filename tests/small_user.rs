//! Ember needs no rights but to open /dev/kvm, and says so where that is refused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use common::{Ended, HOST_CANNOT, Place, finish, guest, in_namespace, is_root, program, run_command};

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

/// Runs `ember` in `place` without any privilege, with a /dev/kvm that is made by `device`. The superuser becomes
/// nobody; an ordinary user loses what a namespace of one's own gives.
fn unprivileged(place: &Place, device: &str, words: &[&str]) -> Ended {
    let script = format!("cd \"$1\" && shift && {device} && exec ./drop \"$@\"");
    let drop = if is_root() {
        "exec setpriv --reuid=65534 --regid=65534 --clear-groups -- ./ember \"$@\""
    } else {
        "exec setpriv --inh-caps=-all --bounding-set=-all -- ./ember \"$@\""
    };
    fs::write(place.join("drop"), format!("#!/bin/sh\n{drop}\n")).unwrap();
    fs::set_permissions(place.join("drop"), Permissions::from_mode(0o755)).unwrap();
    let arguments = [place.path().into()].into_iter().chain(words.iter().map(OsString::from));
    finish(&mut in_namespace(&script, arguments))
}

/// A device that nobody may open.
const FORBIDDEN: &str = "touch kvm && chmod 0 kvm && mount --bind kvm /dev/kvm";
/// No device.
const ABSENT: &str = "mount -t tmpfs none /dev";
const BAKE: [&str; 7] = ["bake", "--interface", "port", "--memory", "2MiB", "--kernel", "echo.elf"];

#[test]
fn an_ordinary_user_who_may_open_dev_kvm_bakes_and_runs() {
    let place = public();
    // Where the user running the tests is an ordinary one it is this user; else a private node that anybody may open.
    let device =
        if is_root() { "mknod kvm c 10 232 && chmod 666 kvm && mount --bind kvm /dev/kvm" } else { "true" };
    unprivileged(&place, device, &[&BAKE[..], &["out"]].concat()).succeeds();
    let device = if is_root() { "mount --bind kvm /dev/kvm" } else { "true" };
    unprivileged(&place, device, &["run", "out", "--event-text", "hello"]).answers("hello");
    unprivileged(&place, device, &["run", "out", "--event-text", "hello", "--cold"]).answers("hello");
    unprivileged(&place, device, &["verify", "out"]).succeeds();
    unprivileged(&place, device, &["doctor"]).succeeds();
}

#[test]
fn no_permission_on_dev_kvm_is_told_with_what_to_do() {
    let place = public();
    let words = "No permission to open /dev/kvm; add the user to its group (`usermod -aG kvm USER`)";
    unprivileged(&place, FORBIDDEN, &[&BAKE[..], &["out"]].concat()).fails(HOST_CANNOT, words);
    assert!(!place.join("out").exists());
    let bundle = place.bake("echo");
    give_to_all(&bundle);
    unprivileged(&place, FORBIDDEN, &["run", "echo.ember", "--event-text", "x"]).fails(HOST_CANNOT, words);
    assert_eq!(place.names(), ["drop", "echo.elf", "echo.ember", "ember", "kvm"]);
}

fn give_to_all(bundle: &std::path::Path) {
    fs::set_permissions(bundle, Permissions::from_mode(0o755)).unwrap();
    for name in common::names(bundle) {
        fs::set_permissions(bundle.join(name), Permissions::from_mode(0o644)).unwrap();
    }
}

#[test]
fn a_host_without_kvm_is_told_with_what_to_do() {
    let place = public();
    let words = "There is no /dev/kvm on this host; load the kvm_intel or kvm_amd module";
    unprivileged(&place, ABSENT, &[&BAKE[..], &["out"]].concat()).fails(HOST_CANNOT, words);
    assert!(!place.join("out").exists());
}

#[test]
fn a_bundle_of_somebody_else_is_not_readable() {
    if !is_root() {
        return;
    }
    let place = public();
    place.bake("echo");
    fs::set_permissions(place.join("echo.ember"), Permissions::from_mode(0o755)).unwrap();
    let ended = unprivileged(&place, "true", &["run", "echo.ember", "--event-text", "x"]);
    ended.fails(HOST_CANNOT, "Permission denied");
}

#[test]
fn doctor_names_what_is_wrong_with_dev_kvm_and_the_mend() {
    let place = public();
    for (device, found, mend) in [
        (FORBIDDEN, "No permission to open /dev/kvm", "usermod -aG kvm USER"),
        (ABSENT, "There is no /dev/kvm", "modprobe kvm_intel"),
    ] {
        let ended = unprivileged(&place, device, &["doctor"]);
        assert_eq!(ended.code(), HOST_CANNOT, "{ended:?}");
        assert!(ended.text().contains(found) && ended.text().contains(mend), "{ended:?}");
        let told = unprivileged(&place, device, &["doctor", "--json"]).json();
        assert_eq!(told["can_run"], false);
    }
}

#[test]
fn doctor_knows_whether_vmx_or_svm_is_behind_dev_kvm() {
    let ended = finish(Command::new(program()).args(["doctor", "--json"]));
    let told = ended.succeeds().json();
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
