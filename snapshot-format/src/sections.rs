//! What each section of the `state` file holds. Saved types are never runtime types.
//!
//! KVM structures travel as raw ABI bytes in a [`Blob`], so that neither the codec nor this crate knows them.

use std::io::{Read, Write};

use versionize::{VersionMap, Versionize, VersionizeError, VersionizeResult};
use versionize_derive::Versionize;

/// Longest [`Blob`], bytes: the XSAVE area of today's widest CPU is 11 KiB, a full MSR list 100 KiB.
pub const BLOB_MAX: usize = 1 << 20;

/// Room made for a [`Blob`] before its bytes have arrived, bytes.
const BLOB_EXPECTED: usize = 16 << 10;

/// Length-prefixed raw bytes: the same encoding as a `Vec<u8>`, written and read in one step instead of byte by byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl Versionize for Blob {
    fn serialize<W: Write>(&self, writer: &mut W, map: &VersionMap, version: u16) -> VersionizeResult<()> {
        if self.0.len() > BLOB_MAX {
            return Err(VersionizeError::VecLength(self.0.len()));
        }
        (self.0.len() as u64).serialize(writer, map, version)?;
        writer.write_all(&self.0).map_err(|e| VersionizeError::Io(e.raw_os_error().unwrap_or(0)))
    }

    fn deserialize<R: Read>(reader: &mut R, map: &VersionMap, version: u16) -> VersionizeResult<Self> {
        let len = u64::deserialize(reader, map, version)?;
        let len = usize::try_from(len)
            .ok()
            .filter(|len| *len <= BLOB_MAX)
            .ok_or(VersionizeError::VecLength(BLOB_MAX + 1))?;
        // What all structures but the widest XSAVE area need. Beyond, it grows as bytes arrive: a hostile length costs no memory.
        let mut bytes = Vec::with_capacity(len.min(BLOB_EXPECTED));
        let got = reader
            .take(len as u64)
            .read_to_end(&mut bytes)
            .map_err(|e| VersionizeError::Io(e.raw_os_error().unwrap_or(0)))?;
        if got != len {
            return Err(VersionizeError::Deserialize(
                "the bytes end before the length they announce".to_owned(),
            ));
        }
        Ok(Blob(bytes))
    }

    fn version() -> u16 {
        1
    }
}

/// One run of guest RAM and its place in the `memory` file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Versionize)]
pub struct RegionState {
    pub start: u64,
    pub len: u64,
    pub file_offset: u64,
}

/// The machine's shape.
#[derive(Debug, Clone, Default, PartialEq, Eq, Versionize)]
pub struct MachineState {
    pub vcpus: u32,
    pub regions: Vec<RegionState>,
    /// Guest TSC frequency in kHz at the freeze.
    pub tsc_khz: u32,
}

/// Per-VM KVM state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Versionize)]
pub struct VmState {
    /// `struct kvm_clock_data`.
    pub clock: Blob,
    /// `struct kvm_irqchip`, chip 0.
    pub pic_master: Blob,
    /// `struct kvm_irqchip`, chip 1.
    pub pic_slave: Blob,
    /// `struct kvm_irqchip`, chip 2.
    pub ioapic: Blob,
    /// Host CLOCK_REALTIME at the freeze, nanoseconds since the epoch; 0 when not known. Since format 1.1.
    #[version(start = 2)]
    pub frozen_at_unix_ns: u64,
}

/// One vCPU's KVM state. Field order is not restore order: that is written in `src/vcpu`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Versionize)]
pub struct VcpuState {
    pub index: u32,
    /// Array of `struct kvm_cpuid_entry2`.
    pub cpuid: Blob,
    /// `struct kvm_mp_state`.
    pub mp_state: Blob,
    /// `struct kvm_regs`.
    pub regs: Blob,
    /// `struct kvm_sregs`.
    pub sregs: Blob,
    /// The XSAVE area, as long as the host's `KVM_CAP_XSAVE2` says.
    pub xsave: Blob,
    /// `struct kvm_xcrs`.
    pub xcrs: Blob,
    /// `struct kvm_debugregs`.
    pub debugregs: Blob,
    /// `struct kvm_lapic_state`.
    pub lapic: Blob,
    /// Array of `struct kvm_msr_entry`, in the order to set them.
    pub msrs: Blob,
    /// `struct kvm_vcpu_events`.
    pub events: Blob,
}

/// The serial port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Versionize)]
pub struct SerialState {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    pub in_buffer: Vec<u8>,
}

/// One virtqueue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Versionize)]
pub struct QueueState {
    pub max_size: u16,
    pub size: u16,
    pub ready: bool,
    pub event_idx: bool,
    pub next_avail: u16,
    pub next_used: u16,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
}

/// The virtio-mmio transport of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Versionize)]
pub struct VirtioState {
    /// The symbolic id (`root`, `vsock`, `rng`, ...) that binds it to its backing at restore.
    pub id: String,
    /// virtio device type.
    pub device_type: u32,
    pub status: u32,
    pub interrupt_status: u32,
    pub features_select: u32,
    pub driver_features_select: u32,
    pub driver_features: u64,
    pub queue_select: u32,
    pub config_generation: u32,
    pub queues: Vec<QueueState>,
}

/// A block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Versionize)]
pub struct BlockState {
    pub transport: VirtioState,
    /// Capacity in 512-byte sectors.
    pub sectors: u64,
    pub read_only: bool,
}

/// One vsock connection that stays open over the freeze: the agent's control stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Versionize)]
pub struct VsockConnectionState {
    pub host_port: u32,
    pub guest_port: u32,
    /// Bytes the host has received and given on (virtio 1.2, 5.10.6.3: `fwd_cnt`), modulo 2^32.
    pub forwarded: u32,
    /// Bytes the host has received, modulo 2^32.
    pub received: u32,
    /// Bytes the host has sent, modulo 2^32.
    pub sent: u32,
    /// The guest's receive buffer, bytes.
    pub peer_buffer: u32,
    /// Bytes the guest has consumed, modulo 2^32.
    pub peer_forwarded: u32,
}

/// The vsock device. Connections in `control` are taken up again; those in `other` are reset one by one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Versionize)]
pub struct VsockState {
    pub transport: VirtioState,
    pub guest_cid: u64,
    pub control: Vec<VsockConnectionState>,
    pub other: Vec<VsockConnectionState>,
}

/// The entropy device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Versionize)]
pub struct RngState {
    pub transport: VirtioState,
}

/// The small guests' port device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Versionize)]
pub struct PortState {
    /// The value that the next read of the sequence port returns.
    pub sequence: u32,
    /// Event bytes that the guest has not read yet.
    pub input: Vec<u8>,
    /// Answer bytes that the host has not taken yet.
    pub output: Vec<u8>,
}
