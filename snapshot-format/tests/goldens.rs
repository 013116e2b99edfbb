//! Files of every released format are still read, and mean what they meant.
//!
//! `goldens/FORMAT/NAME/` is a golden (support/golden.rs) or a `state` file alone; `goldens/FORMAT/NAME.expected` is
//! what its headers say. A missing one is written by a run with EMBER_BLESS=1; one that exists is never changed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

#[path = "support/golden.rs"]
mod golden;
mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use snapshot_format::crc::crc64;
use snapshot_format::index::{MemoryIndex, Place};
use snapshot_format::manifest::{Manifest, names};
use snapshot_format::sections::{MachineState, VcpuState, VmState};
use snapshot_format::state::{FormatVersion, Reader, Table, decode_any};
use support::{MEMORY_LEN, machine, state, vcpu, vm};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn goldens() -> Vec<PathBuf> {
    golden::all(&folder()).unwrap()
}

/// The folder's name is the format.
fn format_of(golden: &Path) -> FormatVersion {
    golden.parent().unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// What headers and index say, without a section's bytes.
fn describe(golden: &Path) -> String {
    let file = fs::read(golden.join(names::STATE)).unwrap();
    let table = Table::check(&file[..file.len().min(Table::MAX_LEN)], file.len() as u64).unwrap();
    let (version, arch, creator) = (table.header.version, table.header.arch, table.header.creator);
    let mut text = format!("state: format {version}, {arch}, by {creator}\n");
    for entry in &table.entries {
        let required = if entry.required { "" } else { ", optional" };
        writeln!(
            text,
            "  {} {}: {} bytes, crc {:016x}{required}",
            entry.id, entry.instance, entry.len, entry.crc
        )
        .unwrap();
    }
    if let Some(manifest) = manifest(golden) {
        let index = MemoryIndex::decode(&fs::read(golden.join(names::INDEX)).unwrap()).unwrap();
        let (machine, function) = (&manifest.machine, &manifest.function);
        writeln!(text, "manifest: {} MiB, {} vCPUs", machine.memory_bytes >> 20, machine.vcpus).unwrap();
        writeln!(text, "  {:?} {:?}", function.interface, function.command).unwrap();
        let (granule, zero) =
            (index.map().granule().bytes(), index.map().count(|place| place == Place::Zero));
        writeln!(text, "index: {} chunks of {granule} bytes, {zero} zero", index.map().chunk_count())
            .unwrap();
    }
    text
}

fn manifest(golden: &Path) -> Option<Manifest> {
    let text = fs::read(golden.join(names::MANIFEST)).ok()?;
    Some(Manifest::from_json(&text).unwrap())
}

#[test]
fn every_readable_format_has_a_golden() {
    for version in FormatVersion::readable() {
        assert!(goldens().iter().any(|golden| format_of(golden) == *version), "{version}");
    }
}

#[test]
fn headers_say_what_they_said() {
    for golden in goldens() {
        let expected = golden.with_extension("expected");
        if std::env::var_os("EMBER_BLESS").is_some() && !expected.exists() {
            fs::write(&expected, describe(&golden)).unwrap();
        }
        let expected =
            fs::read_to_string(&expected).unwrap_or_else(|e| panic!("{}: {e}", expected.display()));
        assert_eq!(describe(&golden), expected, "{}", golden.display());
    }
}

#[test]
fn every_section_decodes() {
    for golden in goldens() {
        let mut reader = Reader::open(&fs::read(golden.join(names::STATE)).unwrap()).unwrap();
        assert_eq!(reader.header().version, format_of(&golden), "{}", golden.display());
        for section in reader.sections().to_vec() {
            decode_any(&mut reader, section.id, section.instance).unwrap();
        }
        reader.finish().unwrap();
    }
}

#[test]
fn sections_mean_what_they_meant() {
    for version in FormatVersion::readable() {
        let file = fs::read(folder().join(version.to_string()).join("state-only/state")).unwrap();
        let mut reader = Reader::open(&file).unwrap();
        let frozen_at_unix_ns = if *version == FormatVersion::V1_0 { 0 } else { support::FROZEN_AT };
        assert_eq!(reader.take::<VmState>(0), Ok(VmState { frozen_at_unix_ns, ..vm() }));
        assert_eq!(reader.take::<VcpuState>(0), Ok(vcpu(0)));
        assert_eq!(reader.take::<MachineState>(0), Ok(machine(MEMORY_LEN)));
    }
}

#[test]
fn the_same_machine_is_still_written_in_the_same_bytes() {
    for version in FormatVersion::readable() {
        let golden = fs::read(folder().join(version.to_string()).join("state-only/state")).unwrap();
        assert!(golden == state(*version), "{version} is written otherwise than it was released");
    }
}

#[test]
fn whole_bundles_unpack_to_what_manifest_and_index_say() {
    for golden in goldens() {
        let Some(manifest) = manifest(&golden) else { continue };
        let bundle = tempfile::tempdir().unwrap();
        golden::unpack(&golden, bundle.path(), manifest.machine.memory_bytes).unwrap();
        for (name, entry) in &manifest.files {
            assert_eq!(fs::metadata(bundle.path().join(name)).unwrap().len(), entry.len, "{name}");
        }
        let index = MemoryIndex::decode(&fs::read(bundle.path().join(names::INDEX)).unwrap()).unwrap();
        let memory = fs::read(bundle.path().join(names::MEMORY)).unwrap();
        for (number, chunk) in index.chunks() {
            let (start, len) = index.map().extent(number).unwrap();
            let content = &memory[usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap()];
            assert_eq!(crc64(content), chunk.crc, "chunk {number}");
        }
    }
}

#[test]
fn packing_and_unpacking_gives_the_same_bundle() {
    let directory = tempfile::tempdir().unwrap();
    let [bundle, golden, again] = ["bundle", "golden", "again"].map(|name| directory.path().join(name));
    fs::create_dir(&bundle).unwrap();
    let mut memory = vec![0; 64 << 10];
    memory[5 * 4096 + 7] = 1;
    memory[64 * 1024 - 1] = 2;
    fs::write(bundle.join(names::MEMORY), &memory).unwrap();
    fs::write(bundle.join(names::STATE), "state").unwrap();
    golden::pack(&bundle, &golden).unwrap();
    assert_eq!(fs::metadata(golden.join("memory.pages")).unwrap().len(), 2 * 4104);
    golden::unpack(&golden, &again, memory.len() as u64).unwrap();
    assert!(fs::read(again.join(names::MEMORY)).unwrap() == memory);
    assert_eq!(fs::read(again.join(names::STATE)).unwrap(), b"state");
}
