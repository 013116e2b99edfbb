//! Small samples of every file, the same bytes on every run.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

#[path = "../../../fuzz/mutate.rs"]
pub mod mutate;

use std::path::{Path, PathBuf};

use snapshot_format::index::{Builder, Chunk, Encoder, Granule, Place};
use snapshot_format::manifest::{
    CpuRequirements, Drive, FileEntry, FunctionContract, HttpContract, Interface, LambdaContract,
    MachineShape, Manifest, Parent, names,
};
use snapshot_format::sections::{
    Blob, BlockState, MachineState, PortState, QueueState, RegionState, RngState, SerialState, VcpuState,
    VirtioState, VmState, VsockConnectionState, VsockState,
};
use snapshot_format::state::{FormatVersion, Writer};
use snapshot_format::working_set::{PageRange, WorkingSet};

use mutate::Numbers;

/// The moment at which every sample was frozen.
pub const FROZEN_AT: u64 = 1_764_000_000_123_456_789;

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn blob(seed: u64, len: usize) -> Blob {
    Blob(Numbers(seed).bytes(len))
}

/// A machine of `memory_len` bytes below the hole.
pub fn machine(memory_len: u64) -> MachineState {
    let region = RegionState { start: 0, len: memory_len, file_offset: 0 };
    MachineState { vcpus: 1, regions: vec![region], tsc_khz: 2_450_000 }
}

pub fn vm() -> VmState {
    VmState {
        clock: blob(1, 48),
        pic_master: blob(2, 16),
        pic_slave: blob(3, 16),
        ioapic: blob(4, 64),
        frozen_at_unix_ns: FROZEN_AT,
    }
}

pub fn vcpu(index: u32) -> VcpuState {
    VcpuState {
        index,
        cpuid: blob(5, 80),
        mp_state: blob(6, 4),
        regs: blob(7, 144),
        sregs: blob(8, 96),
        xsave: blob(9, 128),
        xcrs: blob(10, 40),
        debugregs: blob(11, 64),
        lapic: blob(12, 128),
        msrs: blob(13, 64),
        events: blob(14, 64),
    }
}

fn transport(id: &str, device_type: u32) -> VirtioState {
    let queue = QueueState {
        max_size: 256,
        size: 128,
        ready: true,
        event_idx: true,
        next_avail: 7,
        next_used: 7,
        desc_table: 0x10_0000,
        avail_ring: 0x10_1000,
        used_ring: 0x10_2000,
    };
    VirtioState {
        id: id.to_owned(),
        device_type,
        status: 15,
        driver_features: 1 << 32,
        queues: vec![queue],
        ..VirtioState::default()
    }
}

fn vsock() -> VsockState {
    let control = VsockConnectionState {
        host_port: 1024,
        guest_port: 40_000,
        forwarded: 100,
        received: 120,
        sent: 300,
        peer_buffer: 262_144,
        peer_forwarded: 300,
    };
    let other = VsockConnectionState { host_port: 9, ..control.clone() };
    VsockState { transport: transport("vsock", 19), guest_cid: 3, control: vec![control], other: vec![other] }
}

/// A `state` file with every kind of section.
pub fn state(version: FormatVersion) -> Vec<u8> {
    let serial =
        SerialState { line_control: 3, line_status: 96, in_buffer: vec![13], ..SerialState::default() };
    let block = BlockState { transport: transport("root", 2), sectors: 4096, read_only: true };
    let port = PortState { sequence: 41, input: b"event".to_vec(), output: b"ans".to_vec() };
    let mut writer = Writer::new(version).with_creator("ember sample");
    writer.put(0, &machine(MEMORY_LEN)).unwrap();
    writer.put(0, &serial).unwrap();
    writer.put(0, &block).unwrap();
    writer.put(1, &vsock()).unwrap();
    writer.put(2, &RngState { transport: transport("rng", 4) }).unwrap();
    writer.put(0, &port).unwrap();
    writer.put(0, &vcpu(0)).unwrap();
    writer.put(0, &vm()).unwrap();
    writer.finish().unwrap()
}

/// Memory of the samples, bytes.
pub const MEMORY_LEN: u64 = 2 << 20;

/// An index with chunks of zeros and with content.
pub fn index(granule: Granule) -> Vec<u8> {
    let mut builder = Builder::new(&machine(MEMORY_LEN), granule).unwrap();
    builder.add(0x3000, b"kernel").unwrap();
    builder.add(0x4ff0, &[7; 0x9000]).unwrap();
    builder.add(0x1f_fff0, &[9; 16]).unwrap();
    builder.finish().unwrap()
}

/// An index with chunks in two ancestors.
pub fn layered_index() -> Vec<u8> {
    let granule = Granule::MAX;
    let mut encoder = Encoder::new(&machine(MEMORY_LEN), granule).unwrap();
    for number in 0..MEMORY_LEN / granule.bytes() {
        let offset = number * granule.bytes();
        let place = match number / 8 {
            0 => Place::Zero,
            1 => Place::Parent { generation: 1, offset },
            2 => Place::Parent { generation: 2, offset: offset + granule.bytes() },
            _ => Place::Here,
        };
        let crc = if place == Place::Zero { 0 } else { number * 31 };
        encoder.push(Chunk { place, crc }).unwrap();
    }
    encoder.finish().unwrap()
}

pub fn working_set() -> WorkingSet {
    let range = |first, count| PageRange { first, count };
    WorkingSet {
        memory_len: MEMORY_LEN,
        index_mark: 0x0123_4567_89ab_cdef,
        read: vec![range(0, 1), range(5, 20), range(511, 1)],
        write: vec![range(1, 2)],
        late_read: vec![range(30, 1)],
        late_write: vec![range(40, 2), range(50, 1)],
    }
}

fn file(len: u64) -> FileEntry {
    FileEntry { len, sha256: Some("0123456789abcdef".repeat(4)) }
}

/// A manifest that uses every member.
pub fn manifest(version: FormatVersion) -> Manifest {
    let mut files: Vec<_> =
        [names::STATE, names::INDEX, names::ROOT, names::KERNEL, names::INITRAMFS, "drive-data.img"]
            .map(|name| (name.to_owned(), file(4096)))
            .into();
    files.push((names::MEMORY.to_owned(), FileEntry { len: MEMORY_LEN, sha256: None }));
    let drive =
        |id: &str, file: &str, read_only| Drive { id: id.to_owned(), file: file.to_owned(), read_only };
    Manifest {
        format: version.to_string(),
        creator: "ember sample".to_owned(),
        created_unix_ms: FROZEN_AT / 1_000_000,
        machine: MachineShape {
            memory_bytes: MEMORY_LEN,
            vcpus: 1,
            kernel_cmdline: "console=ttyS0 quiet".to_owned(),
            stale_rng: false,
            advance_clock: false,
        },
        function: function(),
        agent_protocol: 1,
        cpu: CpuRequirements {
            arch: "x86_64".to_owned(),
            vendor: "AuthenticAMD".to_owned(),
            tsc_khz: 2_450_000,
        },
        drives: vec![drive("root", names::ROOT, true), drive("data", "drive-data.img", false)],
        parent: Some(Parent { manifest_sha256: "fedcba9876543210".repeat(4) }),
        files: files.into_iter().collect(),
    }
}

fn function() -> FunctionContract {
    FunctionContract {
        interface: Interface::Lambda,
        command: vec!["/usr/bin/python3".to_owned(), "-m".to_owned(), "awslambdaric".to_owned()],
        env: [("LANG".to_owned(), "C.UTF-8".to_owned())].into(),
        workdir: "/var/task".to_owned(),
        user: Some("1000:1000".to_owned()),
        resident: false,
        http: Some(HttpContract { port: 8080, ready_path: "/ready".to_owned() }),
        lambda: Some(LambdaContract {
            handler: "app.handler".to_owned(),
            function_name: "function".to_owned(),
            snap_start: true,
        }),
        ready_timeout_ms: 120_000,
        event_timeout_ms: 30_000,
    }
}
