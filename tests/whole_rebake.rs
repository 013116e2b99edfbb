//! A clone that has answered becomes a bundle of its own, with everything that it has.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::bundles::manifest;
use common::{BAD_BUNDLE, Ended, Place, USAGE, ember, finish, run_command, set_immutable};
use sha2::{Digest, Sha256};
use snapshot_format::manifest::names;

/// Pages that are touched.
const PAGES: u64 = 16;
/// By what the words of a filled guest differ from page to page.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// `ember run` of a bundle, whose clone is baked again.
fn rebake(bundle: &Path, event: &str, to: &Path, more: &[&str]) -> Ended {
    finish(run_command(bundle, event).arg("--bake-to").arg(to).args(more))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn verify(bundle: &Path) {
    finish(ember(["verify"]).arg(bundle)).succeeds();
}

fn files(bundle: &Path) -> Vec<PathBuf> {
    common::names(bundle).into_iter().map(|name| bundle.join(name)).collect()
}

fn number(answer: &str) -> u64 {
    u64::from_str_radix(answer.trim_start_matches("0x"), 16).unwrap()
}

#[test]
fn a_clone_of_a_clone_of_a_clone_goes_on_where_the_last_one_was() {
    let place = Place::new();
    let mut bundle = place.bake("counter");
    let mut reads = 0;
    for generation in 1..=4 {
        let next = place.join(&format!("generation-{generation}"));
        let ended = rebake(&bundle, "x", &next, &[]);
        let answer = ended.succeeds().text();
        let now: u64 = answer.strip_prefix("ok ").unwrap_or_else(|| panic!("{ended:?}")).parse().unwrap();
        assert!(now > reads, "{answer} after {reads}");
        reads = now;
        assert!(ended.errors.contains(&format!("ember: baked {}", next.display())), "{ended:?}");
        let parent = manifest(&next).parent.unwrap().manifest_sha256;
        assert_eq!(parent, hex(&fs::read(bundle.join(names::MANIFEST)).unwrap()), "another parent");
        verify(&next);
        bundle = next;
    }
}

#[test]
fn memory_that_no_clone_has_touched_is_in_the_bundle_of_its_clone() {
    let place = Place::new();
    let filled = place.bake_in("4MiB", "toucher", &["--warm-up", "fill"]);
    let (first, second) = (place.join("first"), place.join("second"));
    rebake(&filled, &format!("write 0 {PAGES} 1"), &first, &[]).succeeds();
    rebake(&first, &format!("write {PAGES} {PAGES} 1"), &second, &[]).succeeds();
    // Of every page, its own word, and 1 more for those that were written.
    let pages: u64 = finish(&mut run_command(&second, "pages")).succeeds().text().parse().unwrap();
    let all = finish(&mut run_command(&second, &format!("read 0 {pages} 1")));
    let original = (1..=pages).fold(0u64, |sum, page| sum.wrapping_add(page.wrapping_mul(STEP)));
    assert_eq!(number(all.succeeds().text()), original.wrapping_add(2 * PAGES));
    // What is shared with the clone's memory is no more than it was.
    let on_disk = |bundle: &Path| bundle.join(names::MEMORY).metadata().unwrap().blocks();
    assert!(on_disk(&second) <= on_disk(&filled) + 128, "{} after {}", on_disk(&second), on_disk(&filled));
}

#[test]
fn zero_memory_stays_a_hole() {
    let place = Place::new();
    let bundle = place.bake_in("64MiB", "echo", &[]);
    let clone = place.join("clone");
    rebake(&bundle, "x", &clone, &[]).answers("x");
    let stored = clone.join(names::MEMORY).metadata().unwrap().blocks() * 512;
    assert!(stored < 1 << 20, "{stored} bytes of 64 MiB are stored");
}

#[test]
fn the_parent_is_never_written_and_shares_what_cannot_change() {
    let place = Place::new();
    let bundle = place.bake("memory");
    let digests =
        |bundle: &Path| files(bundle).iter().map(|file| hex(&fs::read(file).unwrap())).collect::<Vec<_>>();
    let before = digests(&bundle);
    let [first, second] = ["first", "second"].map(|name| place.join(name));
    rebake(&bundle, "write 8 7", &first, &[]).answers("ok");
    let inode = |bundle: &Path| bundle.join(names::KERNEL).metadata().unwrap().ino();
    assert_eq!(inode(&bundle), inode(&first), "the kernel was copied");
    // A file that cannot even have a second name is copied.
    set_immutable(&files(&bundle), true);
    let ended = rebake(&bundle, "write 8 9", &second, &[]);
    set_immutable(&files(&bundle), false);
    ended.answers("ok");
    assert!(digests(&bundle) == before, "a file of the parent has changed");
    for (clone, value) in [(&bundle, "0x0"), (&first, "0x7"), (&second, "0x9")] {
        verify(clone);
        finish(&mut run_command(clone, "read 8")).answers(value);
    }
}

#[test]
fn a_bundle_outlives_its_parent() {
    let place = Place::new();
    let bundle = place.bake("memory");
    let clone = place.join("clone");
    rebake(&bundle, "write 0 5", &clone, &[]).answers("ok");
    fs::remove_dir_all(bundle).unwrap();
    verify(&clone);
    finish(&mut run_command(&clone, "read 0")).answers("0x5");
}

#[test]
fn a_target_that_exists_is_replaced_only_when_asked() {
    let place = Place::new();
    let bundle = place.bake("memory");
    let clone = place.join("clone");
    rebake(&bundle, "write 0 1", &clone, &[]).answers("ok");
    rebake(&bundle, "write 0 2", &clone, &[]).fails(USAGE, "exists already");
    finish(&mut run_command(&clone, "read 0")).answers("0x1");
    rebake(&bundle, "write 0 2", &clone, &["--force"]).answers("ok");
    finish(&mut run_command(&clone, "read 0")).answers("0x2");
    // Also the very bundle that runs: it was mapped before.
    rebake(&clone, "write 0 3", &clone, &["--force"]).answers("ok");
    finish(&mut run_command(&clone, "read 0")).answers("0x3");
    assert_eq!(place.names(), ["clone", "memory.ember"]);
}

#[test]
fn several_events_come_before_the_bake() {
    let place = Place::new();
    let bundle = place.bake_in("4MiB", "toucher", &["--warm-up", "fill"]);
    let clone = place.join("clone");
    rebake(&bundle, "write 0 1 1", &clone, &["--repeat", "5"]).succeeds();
    let ended = finish(&mut run_command(&clone, "read 0 1 1"));
    assert_eq!(number(ended.succeeds().text()), STEP.wrapping_add(5));
}

#[test]
fn a_function_that_fails_is_not_baked() {
    let place = Place::new();
    let bundle = place.bake("faulty");
    let ended = rebake(&bundle, "exit 3", &place.join("clone"), &[]);
    assert_eq!(ended.code(), 3, "{ended:?}");
    assert!(ended.errors.contains("ember: nothing was baked"), "{ended:?}");
    let ended = rebake(&bundle, "halt", &place.join("clone"), &[]);
    assert!(ended.code() > 120, "{ended:?}");
    assert_eq!(place.names(), ["faulty.ember"], "something was left");
}

#[test]
fn it_cannot_be_asked_of_many_clones_or_a_cold_one() {
    let place = Place::new();
    let bundle = place.bake("echo");
    for flag in [&["--count", "2"][..], &["--cold"]] {
        rebake(&bundle, "x", &place.join("clone"), flag).is_sane();
        assert_eq!(rebake(&bundle, "x", &place.join("clone"), flag).code(), USAGE);
    }
    assert_eq!(finish(run_command(&bundle, "x").arg("--force")).code(), USAGE);
    assert_eq!(place.names(), ["echo.ember"]);
}

#[test]
fn an_older_format_can_be_written() {
    let place = Place::new();
    let bundle = place.bake("echo");
    let clone = place.join("clone");
    rebake(&bundle, "x", &clone, &["--format", "1.0"]).answers("x");
    assert_eq!(manifest(&clone).format, "1.0");
    finish(&mut run_command(&clone, "y")).answers("y");
}

#[test]
fn a_parent_whose_kernel_is_damaged_is_found_out() {
    let place = Place::new();
    let bundle = place.bake("echo");
    common::bundles::flip(&bundle.join(names::KERNEL), 12_345);
    let clone = place.join("clone");
    // Shared, it is as damaged as it was, and says so; copied, it is refused.
    rebake(&bundle, "x", &clone, &[]).answers("x");
    finish(ember(["verify"]).arg(&clone)).fails(BAD_BUNDLE, "kernel does not match");
    fs::set_permissions(bundle.join(names::KERNEL), std::os::unix::fs::PermissionsExt::from_mode(0o640))
        .unwrap();
    let refused = rebake(&bundle, "x", &place.join("copy"), &[]);
    assert!(refused.errors.contains("kernel of the bundle that was run does not match"), "{refused:?}");
    assert!(!place.join("copy").exists());
}

#[test]
fn what_was_baked_is_told_as_json() {
    let place = Place::new();
    let bundle = place.bake("echo");
    let clone = place.join("clone");
    let json = rebake(&bundle, "x", &clone, &["--json"]).succeeds().json();
    assert_eq!(json["baked"]["bundle"], clone.to_str().unwrap());
    assert!(json["baked"]["content_bytes"].as_u64().unwrap() > 0);
    let told = finish(ember(["inspect", "--json"]).arg(&clone)).succeeds().json();
    assert_eq!(
        told["manifest"]["parent"]["manifest_sha256"],
        hex(&fs::read(bundle.join(names::MANIFEST)).unwrap())
    );
}
