//! Bundles written, read back, damaged and replaced.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use snapshot_format::index::mark;
use snapshot_format::manifest::{
    CpuRequirements, Drive, FunctionContract, Interface, LambdaContract, MachineShape, Manifest,
    ManifestError, Parent,
};
use snapshot_format::sections::{Blob, MachineState, VcpuState, VmState};
use snapshot_format::state::{FormatVersion, Writer};
use snapshot_format::working_set::{PageRange, WorkingSet};

use super::inspect::client_hooks;
use super::*;
use crate::memory::{self, Bytes, GuestAddress};

#[path = "../../snapshot-format/tests/support/golden.rs"]
mod golden;

const MEMORY: u64 = 2 << 20;
const TSC_KHZ: u32 = 2_450_000;
/// Where the sample's memory has content.
const CONTENT: [u64; 3] = [0, 0x2_3456, MEMORY - 8];

fn manifest() -> Manifest {
    Manifest {
        format: FormatVersion::CURRENT.to_string(),
        creator: "ember test".into(),
        created_unix_ms: 1_764_000_000_000,
        machine: MachineShape {
            memory_bytes: MEMORY,
            vcpus: 1,
            kernel_cmdline: "quiet".into(),
            stale_rng: false,
            advance_clock: false,
        },
        function: FunctionContract {
            interface: Interface::Exec,
            command: vec!["/bin/cat".into()],
            env: [].into(),
            workdir: "/".into(),
            user: None,
            resident: false,
            http: None,
            lambda: None,
            ready_timeout_ms: 1000,
            event_timeout_ms: 1000,
        },
        agent_protocol: 0,
        cpu: CpuRequirements { arch: "x86_64".into(), vendor: "AuthenticAMD".into(), tsc_khz: TSC_KHZ },
        drives: vec![Drive { id: "root".into(), file: names::ROOT.into(), read_only: true }],
        parent: None,
        files: [].into(),
    }
}

fn state(version: FormatVersion) -> Vec<u8> {
    let mut writer = Writer::new(version);
    writer.put(0, &machine_state(MEMORY, 1, TSC_KHZ)).unwrap();
    writer.put(0, &VmState { clock: Blob(vec![5; 48]), ..VmState::default() }).unwrap();
    writer.put(0, &VcpuState { regs: Blob(vec![6; 144]), ..VcpuState::default() }).unwrap();
    writer.finish().unwrap()
}

/// Everything but the manifest.
fn fill(draft: &mut Draft) {
    draft.add_bytes(names::STATE, &state(FormatVersion::CURRENT)).unwrap();
    let memory = memory::anonymous(MEMORY).unwrap();
    CONTENT.iter().for_each(|at| memory.write_obj(!*at, GuestAddress(*at)).unwrap());
    draft.write_memory(&memory, &[], MEMORY, TSC_KHZ).unwrap();
    draft.add_bytes(names::KERNEL, b"a kernel").unwrap();
    let root = draft.new_file(names::ROOT).unwrap();
    root.set_len(64 << 10).unwrap();
    root.write_all_at(b"a file system", 4096).unwrap();
    let page = |first| PageRange { first, count: 1 };
    let (read, write) = (vec![page(0)], vec![page(35)]);
    let index = std::fs::read(draft.directory().join(names::INDEX)).unwrap();
    let index_mark = mark(index.first_chunk().unwrap());
    let working_set = WorkingSet { memory_len: MEMORY, index_mark, read, write, ..WorkingSet::default() };
    draft.add_bytes(names::WORKING_SET, &working_set.encode().unwrap()).unwrap();
}

fn bake(target: &Path, force: bool) -> Result<Finished, DraftError> {
    let mut draft = Draft::create(target, force)?;
    fill(&mut draft);
    draft.finish(manifest())
}

fn sample() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle");
    bake(&path, false).unwrap();
    (directory, path)
}

fn verify(path: &Path) -> Result<VerifyReport, VerifyError> {
    Bundle::open(path)?.verify(&mut |_, _| {})
}

/// What a restore uses of a bundle.
fn use_it(path: &Path) -> Result<(), OpenError> {
    let bundle = Bundle::open(path)?;
    bundle.state()?;
    bundle.memory()?;
    bundle.drive("root").map(drop)
}

fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn flip(path: &Path, bit: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], bit / 8).unwrap();
}

#[test]
fn what_was_baked_is_read_back() {
    let (_directory, path) = sample();
    let bundle = Bundle::open(&path).unwrap();
    assert_eq!(bundle.manifest().function, manifest().function);
    assert_eq!(bundle.state().unwrap().take::<MachineState>(0).unwrap(), machine_state(MEMORY, 1, TSC_KHZ));
    let memory = memory::copy_on_write(bundle.memory().unwrap(), MEMORY, &[]).unwrap();
    for at in CONTENT {
        assert_eq!(memory.read_obj::<u64>(GuestAddress(at)).unwrap(), !at);
    }
    assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1000)).unwrap(), 0);
    assert_eq!(bundle.kernel().unwrap(), b"a kernel");
    assert!(matches!(bundle.initramfs(), Err(OpenError::NoFile { .. })));
    assert!(matches!(bundle.drive("data"), Err(OpenError::NoDrive { .. })));
}

#[test]
fn verify_looks_at_every_byte() {
    let (_directory, path) = sample();
    let mut seen = Vec::new();
    let report = Bundle::open(&path).unwrap().verify(&mut |done, total| seen.push((done, total))).unwrap();
    assert_eq!((report.files, report.content_chunks, report.zero_chunks), (7, 3, 509));
    assert!(seen.is_sorted());
    assert_eq!(seen.last(), Some(&(report.bytes, report.bytes)));
}

#[test]
fn files_are_their_owners_alone_and_zero_pages_are_holes() {
    let (_directory, path) = sample();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o700);
    for name in entries(&path) {
        assert_eq!(mode(&path.join(&name)), 0o600, "{name}");
    }
    let memory = fs::metadata(path.join(names::MEMORY)).unwrap();
    assert_eq!((memory.len(), memory.blocks() * 512), (MEMORY, CONTENT.len() as u64 * 4096));
}

#[test]
fn inspect_tells_whether_a_client_has_hooks_in_its_clones() {
    let mut manifest = manifest();
    assert_eq!(client_hooks(&manifest), None);
    let lambda = |snap_start| LambdaContract {
        handler: "app.handler".into(),
        function_name: "app".into(),
        snap_start,
    };
    manifest.function.lambda = Some(lambda(true));
    assert_eq!(client_hooks(&manifest), Some(true));
    manifest.parent = Some(Parent { manifest_sha256: "0".repeat(64) });
    assert_eq!(client_hooks(&manifest), Some(false), "it was baked again");
    (manifest.parent, manifest.function.lambda) = (None, Some(lambda(false)));
    assert_eq!(client_hooks(&manifest), Some(false), "it was not told of any");
}

#[test]
fn inspect_tells_what_is_in_a_bundle_from_its_headers() {
    let (_directory, path) = sample();
    let bundle = Bundle::open(&path).unwrap();
    let inspection = bundle.inspect().unwrap();
    let sections: Vec<_> = inspection.state.sections.iter().map(|section| section.name.as_str()).collect();
    assert_eq!(sections, ["machine", "vm", "vcpu"]);
    assert_eq!((inspection.memory.content_chunks, inspection.memory.zero_chunks), (3, 509));
    assert_eq!(
        inspection.working_set,
        Some(WorkingSetSummary {
            ranges: 2,
            bytes: 8192,
            read_only_regions: 0,
            mixed_regions: 1,
            read_pages: 1,
            written_pages: 1,
            late_pages: 0,
        })
    );
    assert_eq!(inspection.files[names::MEMORY].len, MEMORY);
}

#[test]
fn verify_finds_a_flipped_bit_in_every_byte_of_every_file() {
    let (_directory, path) = sample();
    for name in entries(&path) {
        let file = path.join(&name);
        let len = fs::metadata(&file).unwrap().len();
        // Every byte of what is small, and what lies around content and in holes of what is not.
        let step = if len > 8192 { 1009 } else { 1 };
        for byte in (0..len).step_by(step).chain([len - 1]) {
            let bit = byte * 8 + byte % 8;
            flip(&file, bit);
            assert!(verify(&path).is_err_and(|error| error.is_bad_bundle()), "{name}, bit {bit}");
            flip(&file, bit);
        }
    }
    verify(&path).unwrap();
}

#[test]
fn a_restore_refuses_every_flipped_bit_in_manifest_state_and_index() {
    let (_directory, path) = sample();
    for name in [names::MANIFEST, names::STATE, names::INDEX] {
        let file = path.join(name);
        for bit in 0..fs::metadata(&file).unwrap().len() * 8 {
            flip(&file, bit);
            assert!(use_it(&path).is_err_and(|error| error.is_bad_bundle()), "{name}, bit {bit}");
            flip(&file, bit);
        }
    }
    use_it(&path).unwrap();
}

#[test]
fn every_wrong_length_is_refused_before_anything_is_used() {
    let (_directory, path) = sample();
    for name in entries(&path) {
        let file = File::options().write(true).open(path.join(&name)).unwrap();
        let good = fs::read(path.join(&name)).unwrap();
        for len in [0, good.len() - 1, good.len() + 1] {
            file.set_len(len as u64).unwrap();
            assert!(Bundle::open(&path).is_err_and(|error| error.is_bad_bundle()), "{name}: {len} bytes");
        }
        fs::write(path.join(&name), good).unwrap();
    }
    verify(&path).unwrap();
}

#[test]
fn files_that_are_missing_or_links_are_refused() {
    let (_directory, path) = sample();
    for name in entries(&path) {
        let (file, away) = (path.join(&name), path.with_extension("away"));
        fs::rename(&file, &away).unwrap();
        let missing = Bundle::open(&path).unwrap_err();
        assert!(matches!(missing, OpenError::Missing { .. } | OpenError::NotABundle { .. }), "{name}");
        symlink(&away, &file).unwrap();
        assert!(matches!(Bundle::open(&path), Err(OpenError::NotPlain { .. })), "{name}");
        fs::remove_file(&file).unwrap();
        fs::rename(&away, &file).unwrap();
    }
    verify(&path).unwrap();
}

#[test]
fn a_file_that_the_manifest_does_not_name_is_found() {
    let (_directory, path) = sample();
    fs::write(path.join("extra"), "").unwrap();
    assert!(matches!(verify(&path), Err(VerifyError::Unlisted { name }) if name == "extra"));
}

#[test]
fn a_bundle_may_be_reached_through_a_link() {
    let (directory, path) = sample();
    let link = directory.path().join("latest");
    symlink(&path, &link).unwrap();
    verify(&link).unwrap();
}

#[test]
fn what_is_no_bundle_is_told_from_what_cannot_be_opened() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(Bundle::open(directory.path()), Err(OpenError::NotABundle { .. })));
    let nowhere = Bundle::open(&directory.path().join("nowhere")).unwrap_err();
    assert!(matches!(nowhere, OpenError::Directory { .. }) && nowhere.is_bad_bundle());
    let denied = OpenError::Read { name: "state".into(), source: io::ErrorKind::PermissionDenied.into() };
    assert!(!denied.is_bad_bundle());
}

/// Replaces a file of a bundle and records the new one in its manifest.
fn replace(path: &Path, name: &str, bytes: &[u8]) {
    fs::write(path.join(name), bytes).unwrap();
    let mut manifest = Bundle::open(path)
        .map(|bundle| bundle.manifest().clone())
        .unwrap_or_else(|_| Manifest::from_json(&fs::read(path.join(names::MANIFEST)).unwrap()).unwrap());
    let entry = manifest.files.get_mut(name).unwrap();
    entry.len = bytes.len() as u64;
    entry.sha256 = Some(hex(Sha256::new_with_prefix(bytes)));
    fs::write(path.join(names::MANIFEST), manifest.to_json().unwrap()).unwrap();
}

#[test]
fn files_of_different_bundles_do_not_go_together() {
    let (_directory, path) = sample();
    replace(&path, names::STATE, &state(FormatVersion::V1_0));
    assert!(matches!(use_it(&path), Err(OpenError::Formats { .. })));

    let (_directory, path) = sample();
    let other = machine_state(MEMORY, 1, TSC_KHZ + 1);
    let index = snapshot_format::index::Builder::new(&other, snapshot_format::index::Granule::MAX).unwrap();
    replace(&path, names::INDEX, &index.finish().unwrap());
    assert!(matches!(use_it(&path), Err(OpenError::Index(_))));

    let (_directory, path) = sample();
    let mut writer = Writer::new(FormatVersion::CURRENT);
    writer.put(0, &machine_state(MEMORY, 2, TSC_KHZ)).unwrap();
    replace(&path, names::STATE, &writer.finish().unwrap());
    assert!(matches!(verify(&path), Err(VerifyError::Machine)));
}

#[test]
fn memory_in_a_parent_bundle_is_refused_and_not_taken_for_zeros() {
    use snapshot_format::index::{Chunk, Encoder, Granule, Place};
    let (_directory, path) = sample();
    let mut encoder = Encoder::new(&machine_state(MEMORY, 1, TSC_KHZ), Granule::MAX).unwrap();
    for number in 0..32 {
        let place = if number == 7 { Place::Parent { generation: 1, offset: 0 } } else { Place::Zero };
        encoder.push(Chunk { place, crc: 1 }).unwrap();
    }
    replace(&path, names::INDEX, &encoder.finish().unwrap());
    assert!(matches!(use_it(&path), Err(OpenError::Parent { chunks: 1 })));
    assert!(verify(&path).is_err());
}

#[test]
fn an_unfinished_draft_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut draft = Draft::create(&directory.path().join("bundle"), false).unwrap();
    fill(&mut draft);
    assert_eq!(entries(directory.path()).len(), 1);
    drop(draft);
    assert!(entries(directory.path()).is_empty());
}

#[test]
fn a_draft_that_cannot_be_finished_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut draft = Draft::create(&directory.path().join("bundle"), false).unwrap();
    draft.add_bytes(names::STATE, &state(FormatVersion::CURRENT)).unwrap();
    let error = draft.finish(manifest()).unwrap_err();
    assert!(matches!(error, DraftError::Manifest(ManifestError::Value { field: "files", .. })));
    assert!(entries(directory.path()).is_empty());
}

#[test]
fn a_draft_that_run_would_refuse_is_not_published() {
    let directory = tempfile::tempdir().unwrap();
    let mut draft = Draft::create(&directory.path().join("bundle"), false).unwrap();
    fill(&mut draft);
    let other = Manifest { format: FormatVersion::V1_0.to_string(), ..manifest() };
    assert!(matches!(draft.finish(other), Err(DraftError::Unusable(OpenError::Formats { .. }))));
    assert!(entries(directory.path()).is_empty());
}

#[test]
fn leftovers_of_dead_writers_are_removed_and_those_of_living_ones_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("bundle");
    let living = Draft::create(&target, false).unwrap();
    let dead = directory.path().join(".bundle.tmp-1-0");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join(names::STATE), "half").unwrap();
    fs::create_dir(directory.path().join(".other.tmp-1-0")).unwrap();
    drop(Draft::create(&target, false).unwrap());
    assert_eq!(entries(directory.path()).len(), 2, "the living writer's and the other bundle's");
    assert!(!dead.exists());
    drop(living);
    assert_eq!(entries(directory.path()), [".other.tmp-1-0"]);
}

#[test]
fn an_existing_bundle_is_kept_unless_its_replacement_is_asked_for() {
    let (directory, path) = sample();
    let inode = || fs::metadata(&path).unwrap().ino();
    let first = inode();
    assert!(matches!(Draft::create(&path, false), Err(DraftError::Exists { .. })));
    // A bundle that came while another was written.
    let other = directory.path().join("other");
    let mut draft = Draft::create(&other, false).unwrap();
    fill(&mut draft);
    fs::rename(&path, &other).unwrap();
    assert!(matches!(draft.finish(manifest()), Err(DraftError::Exists { .. })));
    fs::rename(&other, &path).unwrap();
    assert_eq!(inode(), first);
    assert_eq!(bake(&path, true).unwrap().leftover, None);
    assert_ne!(inode(), first);
    assert_eq!(entries(directory.path()), ["bundle"]);
    verify(&path).unwrap();
}

#[test]
fn only_bundles_are_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("letter"), "dear").unwrap();
    assert!(matches!(Draft::create(&home, true), Err(DraftError::Foreign { .. })));
    assert!(matches!(Draft::create(&home.join("letter"), true), Err(DraftError::Foreign { .. })));
    assert_eq!(entries(&home), ["letter"]);
    assert!(matches!(Draft::create(Path::new("/"), true), Err(DraftError::Target { .. })));
    let nowhere = directory.path().join("no/where");
    assert!(matches!(Draft::create(&nowhere, false), Err(DraftError::Directory { .. })));
}

#[test]
fn a_file_of_another_bundle_is_shared_and_any_other_is_copied() {
    let (directory, path) = sample();
    let mut draft = Draft::create(&directory.path().join("second"), false).unwrap();
    let shared = path.join(names::ROOT);
    draft.add_file(names::ROOT, &shared, Sharing::HardLink).unwrap();
    let open_to_all = directory.path().join("image");
    fs::write(&open_to_all, [vec![0; 8192], vec![1; 10]].concat()).unwrap();
    fs::set_permissions(&open_to_all, Permissions::from_mode(0o644)).unwrap();
    draft.add_file("drive-data.img", &open_to_all, Sharing::HardLink).unwrap();
    draft.add_bytes(names::STATE, &state(FormatVersion::CURRENT)).unwrap();
    draft.memory(MEMORY, TSC_KHZ).unwrap().finish().unwrap();
    let second = draft.finish(manifest()).unwrap().path;
    verify(&second).unwrap();
    assert_eq!(fs::metadata(second.join(names::ROOT)).unwrap().ino(), fs::metadata(&shared).unwrap().ino());
    let copy = fs::metadata(second.join("drive-data.img")).unwrap();
    assert_eq!((copy.nlink(), copy.len(), copy.blocks() * 512), (1, 8202, 4096));
    assert_eq!(fs::metadata(&open_to_all).unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn names_are_plain_and_used_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut draft = Draft::create(&directory.path().join("bundle"), false).unwrap();
    draft.add_bytes(names::STATE, b"x").unwrap();
    for name in [names::STATE, "../x", ".x", ""] {
        assert!(matches!(draft.add_bytes(name, b"x"), Err(DraftError::Name { .. })), "{name:?}");
        assert!(matches!(draft.new_file(name), Err(DraftError::Name { .. })), "{name:?}");
    }
}

#[test]
fn memory_that_comes_out_of_order_or_is_too_long_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut draft = Draft::create(&directory.path().join("bundle"), false).unwrap();
    let mut writer = draft.memory(MEMORY, TSC_KHZ).unwrap();
    writer.write(8192, &[1; 4096]).unwrap();
    assert!(matches!(writer.write(4096, &[1; 4096]), Err(DraftError::Index(_))));
    assert!(matches!(writer.write(MEMORY, &[1; 4096]), Err(DraftError::Index(_))));
    assert!(matches!(draft.memory(0, 0), Err(DraftError::Index(_))));
}

#[test]
fn a_full_disk_is_told_from_other_failures() {
    let error = |kind: io::ErrorKind| DraftError::write("memory", kind.into());
    assert!(matches!(error(io::ErrorKind::StorageFull), DraftError::Full { .. }));
    assert!(matches!(error(io::ErrorKind::QuotaExceeded), DraftError::Full { .. }));
    assert!(matches!(error(io::ErrorKind::PermissionDenied), DraftError::Write { .. }));
}

#[test]
fn every_golden_bundle_verifies() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshot-format/tests/goldens");
    for golden in golden::all(&goldens).unwrap() {
        // Some are a state file alone.
        let Ok(text) = fs::read(golden.join(names::MANIFEST)) else { continue };
        let directory = tempfile::tempdir().unwrap();
        let memory_bytes = Manifest::from_json(&text).unwrap().machine.memory_bytes;
        golden::unpack(&golden, directory.path(), memory_bytes).unwrap();
        verify(directory.path()).unwrap_or_else(|e| panic!("{}: {e}", golden.display()));
    }
}

#[test]
fn a_bundle_survives_being_made_a_golden() {
    let (directory, path) = sample();
    let [golden, again] = ["golden", "again"].map(|name| directory.path().join(name));
    golden::pack(&path, &golden).unwrap();
    golden::unpack(&golden, &again, MEMORY).unwrap();
    verify(&again).unwrap();
}
