//! `manifest.json`: damage, and things that cannot be.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod support;

use snapshot_format::manifest::{Interface, MANIFEST_MAX, Manifest, ManifestError, is_id, is_plain_name};
use snapshot_format::state::FormatVersion;
use support::manifest;

fn good() -> Manifest {
    manifest(FormatVersion::CURRENT)
}

/// The field that a change makes impossible.
fn refused(change: impl FnOnce(&mut Manifest)) -> &'static str {
    let mut manifest = good();
    change(&mut manifest);
    match manifest.check() {
        Err(ManifestError::Value { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

/// The text with something replaced and the checksum made right.
fn resealed(from: &str, to: &str) -> Result<Manifest, ManifestError> {
    let text = String::from_utf8(good().to_json().unwrap()).unwrap();
    assert!(text.contains(from), "{text}");
    let text = text.replace(from, to);
    let covered = &text[..text.len() - 20];
    let crc = snapshot_format::crc::crc64(covered.as_bytes());
    Manifest::from_json(format!("{covered}{crc:016x}\"\n}}\n").as_bytes())
}

#[test]
fn the_text_is_json_that_anything_reads() {
    let text = good().to_json().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(value["machine"]["vcpus"], 1);
    assert_eq!(value["crc64"].as_str().unwrap().len(), 16);
    assert_eq!(Manifest::from_json(&text), Ok(good()));
}

#[test]
fn every_flipped_bit_and_every_wrong_length_is_found() {
    let good = good().to_json().unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Manifest::from_json(&bad).is_err(), "bit {bit}");
    }
    (0..good.len()).for_each(|len| assert!(Manifest::from_json(&good[..len]).is_err(), "{len} bytes"));
    assert_eq!(Manifest::from_json(&[good.as_slice(), b"\n"].concat()), Err(ManifestError::Unsealed));
}

#[test]
fn an_edited_manifest_is_told_from_one_that_is_cut_off() {
    let text = String::from_utf8(good().to_json().unwrap()).unwrap();
    let edited = text.replace("\"vcpus\": 1", "\"vcpus\": 2");
    assert_eq!(Manifest::from_json(edited.as_bytes()), Err(ManifestError::Checksum));
    assert_eq!(Manifest::from_json(b"{}"), Err(ManifestError::Unsealed));
}

#[test]
fn a_newer_format_is_named_even_when_it_has_other_members() {
    let newer = resealed("\"format\": \"1.1\",", "\"format\": \"2.7\", \"new_member\": 1,");
    let Err(ManifestError::Version { version, creator }) = newer else { panic!("{newer:?}") };
    assert_eq!((version.to_string().as_str(), creator.as_str()), ("2.7", "ember sample"));
    assert!(matches!(
        resealed("\"format\": \"1.1\"", "\"format\": \"1.2\""),
        Err(ManifestError::Version { .. })
    ));
}

#[test]
fn unknown_members_and_other_texts_are_refused() {
    assert!(matches!(
        resealed("\"vcpus\": 1,", "\"vcpus\": 1, \"turbo\": 1,"),
        Err(ManifestError::Json { .. })
    ));
    assert!(matches!(resealed("\"vcpus\": 1,", "\"vcpus\": -1,"), Err(ManifestError::Json { .. })));
    let long = vec![b' '; MANIFEST_MAX + 1];
    assert_eq!(Manifest::from_json(&long), Err(ManifestError::TooLong { len: MANIFEST_MAX + 1 }));
}

#[test]
fn impossible_machines_are_refused() {
    for bytes in [0, 1 << 20, (2 << 20) + 1, (8 << 30) + 4096, u64::MAX] {
        assert_eq!(refused(|m| m.machine.memory_bytes = bytes), "machine.memory_bytes", "{bytes}");
    }
    for vcpus in [0, 9, u32::MAX] {
        assert_eq!(refused(|m| m.machine.vcpus = vcpus), "machine.vcpus", "{vcpus}");
    }
    assert_eq!(refused(|m| m.machine.kernel_cmdline = "x".repeat(2048)), "machine.kernel_cmdline");
    assert_eq!(refused(|m| m.machine.kernel_cmdline = "quiet\n".into()), "machine.kernel_cmdline");
    assert_eq!(refused(|m| m.cpu.arch = "aarch64".into()), "cpu.arch");
    assert_eq!(refused(|m| m.format = "one".into()), "format");
    assert_eq!(refused(|m| m.creator = "a\u{1b}[31m".into()), "creator");
}

#[test]
fn impossible_files_are_refused() {
    let mut names =
        vec![String::new(), "..".into(), ".".into(), ".hidden".into(), "a/b".into(), "a\0b".into()];
    names.extend(["manifest.json".into(), "ä".into(), "x".repeat(65)]);
    for name in names {
        let change = |m: &mut Manifest| {
            let entry = m.files["state"].clone();
            m.files.insert(name.clone(), entry);
        };
        assert_eq!(refused(change), "files", "{name:?}");
    }
    let without = |name: &'static str| refused(move |m| drop(m.files.remove(name)));
    assert_eq!(["state", "memory", "memory.index"].map(without), ["files"; 3]);
    let digest = |sha256: Option<&str>| {
        let sha256 = sha256.map(str::to_owned);
        refused(move |m| m.files.get_mut("state").unwrap().sha256 = sha256)
    };
    assert_eq!([None, Some("12"), Some(&*"A".repeat(64))].map(digest), ["files"; 3]);
    let long = |name: &'static str| refused(move |m| m.files.get_mut(name).unwrap().len = u64::MAX);
    assert_eq!(["state", "memory", "memory.index"].map(long), ["files"; 3]);
}

#[test]
fn impossible_drives_are_refused() {
    for id in ["", "Root", "a_b", "../x", "aaaaaaaaaaaaaaaaa"] {
        assert_eq!(refused(|m| m.drives[0].id = id.into()), "drives", "{id:?}");
    }
    for file in ["nowhere.img", "memory", "state", "/etc/passwd"] {
        assert_eq!(refused(|m| m.drives[0].file = file.into()), "drives", "{file:?}");
    }
    assert_eq!(refused(|m| m.drives[1].id = "root".into()), "drives");
    assert_eq!(refused(|m| m.drives[1].file = "root.img".into()), "drives");
    assert_eq!(refused(|m| m.parent.as_mut().unwrap().manifest_sha256.clear()), "parent.manifest_sha256");
}

#[test]
fn impossible_functions_are_refused() {
    assert_eq!(refused(|m| m.function.command.clear()), "function.command");
    assert_eq!(refused(|m| m.function.command.push("a\0b".into())), "function");
    assert_eq!(refused(|m| m.function.event_timeout_ms = u64::MAX), "function");
    assert_eq!(refused(|m| m.function.ready_timeout_ms = 0), "function");
    assert_eq!(refused(|m| drop(m.function.env.insert("A=B".into(), String::new()))), "function.env");
    assert_eq!(refused(|m| m.function.lambda = None), "function.lambda");
    let http = |m: &mut Manifest| {
        m.function.interface = Interface::Http;
        m.function.http.as_mut().unwrap().port = 0;
    };
    assert_eq!(refused(http), "function.http");
}

#[test]
fn a_small_guest_needs_no_command() {
    let mut manifest = good();
    manifest.function.interface = Interface::Port;
    manifest.function.command.clear();
    assert_eq!(manifest.check(), Ok(()));
}

#[test]
fn names_and_ids_are_plain() {
    assert!(is_plain_name("drive-data.img") && is_plain_name("memory.index"));
    assert!(is_id("root") && is_id("data-2") && !is_id("a.b"));
}
