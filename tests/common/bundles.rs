//! Spoiling bundles: by accident, bit by bit, and on purpose, with every checksum right.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use snapshot_format::index::{Builder, Granule};
use snapshot_format::manifest::{Manifest, names};
use snapshot_format::sections::{MachineState, PortState, SerialState, VcpuState, VmState};
use snapshot_format::state::{FormatVersion, Reader, Writer};

/// A copy of a bundle, holes and all.
pub fn copy(from: &Path, to: &Path) -> PathBuf {
    fs::create_dir(to).unwrap();
    for name in super::names(from) {
        let (source, target) = (from.join(&name), File::create(to.join(&name)).unwrap());
        let bytes = fs::read(&source).unwrap();
        target.set_len(bytes.len() as u64).unwrap();
        for (page, offset) in bytes.chunks(4096).zip((0u64..).step_by(4096)) {
            if page.iter().any(|byte| *byte != 0) {
                target.write_all_at(page, offset).unwrap();
            }
        }
    }
    to.to_owned()
}

/// Flips one bit of a file; again, and it is as before.
pub fn flip(path: &Path, bit: usize) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let (mut byte, at) = ([0], (bit / 8) as u64);
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, at).unwrap();
}

/// Bits of a file.
pub fn bits(path: &Path) -> usize {
    usize::try_from(fs::metadata(path).unwrap().len()).unwrap() * 8
}

/// The state of a small guest's machine, in pieces.
#[derive(Debug)]
pub struct State {
    pub machine: MachineState,
    pub vm: VmState,
    pub vcpu: VcpuState,
    serial: SerialState,
    port: PortState,
}

impl State {
    fn read(bundle: &Path) -> Self {
        let mut reader = Reader::open(&fs::read(bundle.join(names::STATE)).unwrap()).unwrap();
        let state = State {
            machine: reader.take(0).unwrap(),
            vm: reader.take(0).unwrap(),
            vcpu: reader.take(0).unwrap(),
            serial: reader.take(0).unwrap(),
            port: reader.take(0).unwrap(),
        };
        reader.finish().unwrap();
        state
    }

    fn write(&self, version: FormatVersion) -> Vec<u8> {
        let mut writer = Writer::new(version);
        writer.put(0, &self.machine).unwrap();
        writer.put(0, &self.vm).unwrap();
        writer.put(0, &self.vcpu).unwrap();
        writer.put(0, &self.serial).unwrap();
        writer.put(0, &self.port).unwrap();
        writer.finish().unwrap()
    }
}

/// Where the guest's topmost page table lies: CR3 in `struct kvm_sregs`. The lowest bit there is "present".
pub fn page_table(bundle: &Path) -> usize {
    let cr3 = State::read(bundle).vcpu.sregs.0[240..248].try_into().unwrap();
    usize::try_from(u64::from_le_bytes(cr3) & !0xfff).unwrap()
}

pub fn manifest(bundle: &Path) -> Manifest {
    Manifest::from_json(&fs::read(bundle.join(names::MANIFEST)).unwrap()).unwrap()
}

/// Changes the saved machine; index, manifest and checksums follow.
pub fn change_state(bundle: &Path, change: impl FnOnce(&mut State)) {
    let mut state = State::read(bundle);
    change(&mut state);
    let mut manifest = manifest(bundle);
    manifest.cpu.tsc_khz = state.machine.tsc_khz;
    fs::write(bundle.join(names::STATE), state.write(manifest.version().unwrap())).unwrap();
    let mut index = Builder::new(&state.machine, Granule::MAX).unwrap();
    index.add(0, &fs::read(bundle.join(names::MEMORY)).unwrap()).unwrap();
    fs::write(bundle.join(names::INDEX), index.finish().unwrap()).unwrap();
    seal(bundle, manifest);
}

/// Writes the manifest with the lengths and digests that the files have.
pub fn seal(bundle: &Path, mut manifest: Manifest) {
    for (name, entry) in &mut manifest.files {
        let bytes = fs::read(bundle.join(name)).unwrap();
        entry.len = bytes.len() as u64;
        if entry.sha256.is_some() {
            entry.sha256 = Some(Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect());
        }
    }
    fs::write(bundle.join(names::MANIFEST), manifest.to_json().unwrap()).unwrap();
}

/// Changes the text of the manifest and gives it its checksum: for what no manifest of this release can say.
pub fn change_manifest_text(bundle: &Path, from: &str, to: &str) {
    let path = bundle.join(names::MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    let changed = text.replacen(from, to, 1);
    // Everything up to the checksum's digits is covered; they are the last thing before `"\n}\n`.
    let (covered, rest) = changed.split_at(changed.rfind("\": \"").unwrap() + 4);
    let tail = &rest[16..];
    let digits = format!("{:016x}", snapshot_format::crc::crc64(covered.as_bytes()));
    fs::write(path, format!("{covered}{digits}{tail}")).unwrap();
}

#[path = "../../snapshot-format/tests/support/golden.rs"]
mod golden;

/// Every golden bundle, unpacked into `place`, with the format it was baked in.
pub fn goldens(place: &super::Place) -> Vec<(String, PathBuf)> {
    let folder = std::env::var_os("EMBER_GOLDENS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshot-format/tests/goldens"),
        PathBuf::from,
    );
    let mut unpacked = Vec::new();
    for path in golden::all(&folder).unwrap() {
        // Some are a `state` file alone.
        let Ok(text) = fs::read(path.join(names::MANIFEST)) else { continue };
        let memory = Manifest::from_json(&text).unwrap().machine.memory_bytes;
        let format = path.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let bundle = place.join(&format!("golden-{}", unpacked.len()));
        golden::unpack(&path, &bundle, memory).unwrap();
        unpacked.push((format, bundle));
    }
    unpacked
}
