//! Where things lie in the guest's physical address space. Fixed, so that a restored machine can never disagree
//! with the one that was baked.

/// First address of the hole below 4 GiB that holds device windows and interrupt controllers.
pub const MMIO_GAP_START: u64 = 0xc000_0000;
/// First address behind the hole.
pub const MMIO_GAP_END: u64 = 0x1_0000_0000;

/// Window of the first virtio-mmio device; device `n` lies at `VIRTIO_MMIO_START + n * VIRTIO_MMIO_LEN`.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;
/// Length of one virtio-mmio window, bytes.
pub const VIRTIO_MMIO_LEN: u64 = 0x1000;
/// GSI of the first virtio-mmio device; device `n` uses `VIRTIO_GSI_START + n`.
pub const VIRTIO_GSI_START: u32 = 5;
/// GSIs 5 to 23 are the IOAPIC pins left to virtio devices.
pub const VIRTIO_DEVICES_MAX: u32 = 19;

/// GSI of the VM Generation ID's notification: the second serial port's, which the machine does not have.
pub const VMGENID_GSI: u32 = 3;
/// Where the VM Generation ID lies, 16 bytes in a page of their own among the ACPI tables.
pub const VMGENID_ADDR: u64 = 0x000f_f000;

/// ISA GSI of the first serial port.
pub const SERIAL_GSI: u32 = 4;
/// I/O port of the first serial port (8 ports long).
pub const SERIAL_PORT: u64 = 0x3f8;
/// I/O port of the power device: the ACPI sleep-control and reset registers (2 ports long).
pub const POWER_PORT: u64 = 0x604;
/// First I/O port of the small guests' port device (12 ports long; docs/port-interface.md).
pub const GUEST_PORT: u64 = 0xe0;

/// KVM's default addresses of the interrupt controllers.
pub const IOAPIC_ADDR: u64 = 0xfec0_0000;
pub const LAPIC_ADDR: u64 = 0xfee0_0000;
/// Three pages that VMX needs in real mode, out of the way of everything else.
pub const KVM_TSS_ADDR: u64 = 0xfffb_d000;

/// The EBDA/BIOS area: the ACPI tables lie here, marked reserved in the memory map.
pub const ACPI_START: u64 = 0x000e_0000;
/// First address behind the ACPI tables and the VM Generation ID.
pub const ACPI_END: u64 = 0x0010_0000;

/// One run of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest physical address of its first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where it begins in the bundle's `memory` file; regions are packed there.
    pub file_offset: u64,
}

/// The RAM regions of a guest of `bytes` bytes: one below the hole, and the rest from 4 GiB up.
pub fn regions(bytes: u64) -> Vec<Region> {
    let low = bytes.min(MMIO_GAP_START);
    let mut regions = vec![Region { start: 0, len: low, file_offset: 0 }];
    if bytes > low {
        regions.push(Region { start: MMIO_GAP_END, len: bytes - low, file_offset: low });
    }
    regions
}

/// Guest physical address of what lies at `offset` of the `memory` file.
pub fn guest_address(offset: u64) -> u64 {
    offset.checked_sub(MMIO_GAP_START).map_or(offset, |behind| MMIO_GAP_END.saturating_add(behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_below_the_hole_is_one_region() {
        assert_eq!(regions(256 << 20), [Region { start: 0, len: 256 << 20, file_offset: 0 }]);
        assert_eq!(regions(MMIO_GAP_START).len(), 1);
    }

    #[test]
    fn memory_across_the_hole_is_split_and_packed_in_the_file() {
        let bytes = 8 << 30;
        let all = regions(bytes);
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].start, MMIO_GAP_END);
        assert_eq!(all[1].file_offset, all[0].len);
        for region in &all {
            assert_eq!(guest_address(region.file_offset), region.start);
            assert_eq!(guest_address(region.file_offset + region.len - 1), region.start + region.len - 1);
        }
        assert_eq!(all.iter().map(|r| r.len).sum::<u64>(), bytes);
    }
}
