//! Loads Linux: kernel, initramfs, command line, boot parameters and ACPI tables, entered by the 64-bit boot protocol
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; zero-page.rst).
//!
//! The PVH entry of the same kernel would run 32-bit code first that builds what is built here, so it is never used.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};

use crate::memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, layout};

use super::acpi::{self, AcpiError};
use super::entry::{EntryPoint, RFLAGS_RESERVED_ONE};
use super::kernel::Kernel;
use super::low::{self, BOOT_PARAMS, COMMAND_LINE, COMMAND_LINE_MAX};

/// The machine that a kernel is told about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootMachine {
    /// vCPUs, 1 to 8.
    pub vcpus: u32,
    /// Guest RAM, bytes.
    pub memory_bytes: u64,
    /// virtio-mmio devices, at most [`layout::VIRTIO_DEVICES_MAX`].
    pub virtio: Vec<VirtioDevice>,
    /// Whether there is a serial port at [`layout::SERIAL_PORT`].
    pub serial: bool,
    /// Whether there is a VM Generation ID.
    pub vmgenid: bool,
}

/// A virtio-mmio device's register window and interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioDevice {
    /// Guest physical address of its first register; below 4 GiB.
    pub base: u64,
    /// Length of the window, bytes.
    pub len: u64,
    /// Global system interrupt, edge-triggered.
    pub gsi: u32,
}

/// Why Linux could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel cannot reach user space in so little memory.
    #[error("The kernel needs at least {} MiB of memory, the machine has {} MiB", need >> 20, have >> 20)]
    TooLittleMemory {
        /// Least that is enough, bytes.
        need: u64,
        /// What there is, bytes.
        have: u64,
    },
    /// The initramfs does not fit between the kernel and the highest address the kernel accepts.
    #[error("The initramfs of {len} bytes does not fit behind the kernel: give the guest more memory")]
    Initramfs {
        /// Its length.
        len: usize,
    },
    /// The command line is too long, or has a NUL in it.
    #[error(
        "The kernel command line of {len} bytes is longer than {COMMAND_LINE_MAX} bytes or has a NUL in it"
    )]
    CommandLine {
        /// Its length.
        len: usize,
    },
    /// The machine cannot be described by ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Guest memory is smaller than the machine says.
    #[error("Cannot write to guest memory")]
    Write(#[from] GuestMemoryError),
}

/// Conventional memory ends here: the last KiB below 640 KiB was the BIOS's own, and kernels keep off it.
const LOW_RAM_END: u64 = 0x9_fc00;
/// Types of memory map entries.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Where an initramfs must end for a kernel that does not say.
const INITRD_MAX: u64 = 0x8000_0000;
const PAGE: u64 = 4096;

/// "HdrS", the boot flag, and a loader without a number of its own.
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
const LOADER_OTHER: u8 = 0xff;
/// Boot protocol 2.15.
const PROTOCOL: u16 = 0x20f;
const LOADED_HIGH: u8 = 1;

/// CR0: protection, extension type, numeric errors, write protection, paging.
const CR0: u64 = 0x8001_0031;
/// CR4: physical address extension, which long mode needs.
const CR4: u64 = 0x20;
/// EFER: long mode enabled and active.
const EFER: u64 = 0x500;

/// Puts everything a kernel needs into fresh, zeroed guest memory and tells how to enter it.
///
/// # Errors
/// Too little memory (the minimum is in the error), or a machine that cannot be described; see [`BootError`].
pub fn load(
    memory: &GuestMemory,
    kernel: &Kernel,
    initramfs: Option<&[u8]>,
    command_line: &str,
    machine: &BootMachine,
) -> Result<EntryPoint, BootError> {
    let initramfs = initramfs.unwrap_or_default();
    check(kernel, initramfs, command_line, machine)?;
    let tables = acpi::tables(machine)?;
    let ramdisk = ramdisk_address(kernel, initramfs.len(), machine.memory_bytes)?;
    kernel.place(memory)?;
    memory.write_slice(initramfs, GuestAddress(ramdisk))?;
    memory.write_slice(&tables, GuestAddress(layout::ACPI_START))?;
    low::write_command_line(memory, command_line)?;
    let params = boot_parameters(kernel, ramdisk, initramfs.len(), command_line, machine.memory_bytes);
    memory.write_obj(params, GuestAddress(BOOT_PARAMS))?;
    low::write_tables(memory, false)?;
    Ok(entry(kernel.entry()))
}

fn check(kernel: &Kernel, initramfs: &[u8], line: &str, machine: &BootMachine) -> Result<(), BootError> {
    let need = kernel.minimum_memory(initramfs.len() as u64);
    if machine.memory_bytes < need {
        return Err(BootError::TooLittleMemory { need, have: machine.memory_bytes });
    }
    if !low::command_line_fits(line) {
        return Err(BootError::CommandLine { len: line.len() });
    }
    Ok(())
}

/// As high as the kernel accepts, so that it keeps clear of everything the kernel sets up at its own end.
fn ramdisk_address(kernel: &Kernel, len: usize, memory_bytes: u64) -> Result<u64, BootError> {
    let limit = kernel.bzimage().map_or(INITRD_MAX, |image| u64::from(image.header.initrd_addr_max) + 1);
    let end = memory_bytes.min(layout::MMIO_GAP_START).min(limit);
    let start = end.checked_sub(len as u64).map(|start| start & !(PAGE - 1));
    start.filter(|start| *start >= kernel.end()).ok_or(BootError::Initramfs { len })
}

/// The memory map: RAM on both sides of the BIOS area and of the hole below 4 GiB, and the ACPI tables.
fn memory_map(memory_bytes: u64) -> Vec<boot_e820_entry> {
    let entry = |start: u64, end: u64, r#type| boot_e820_entry { addr: start, size: end - start, r#type };
    let mut map =
        vec![entry(0, LOW_RAM_END, E820_RAM), entry(layout::ACPI_START, layout::ACPI_END, E820_RESERVED)];
    for region in layout::regions(memory_bytes) {
        let start = region.start.max(low::KERNEL_MIN);
        map.push(entry(start, (region.start + region.len).max(start), E820_RAM));
    }
    map
}

fn boot_parameters(kernel: &Kernel, ramdisk: u64, ramdisk_len: usize, line: &str, bytes: u64) -> boot_params {
    let mut params = boot_params { hdr: setup(kernel), ..Default::default() };
    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.loadflags |= LOADED_HIGH;
    params.hdr.cmd_line_ptr = COMMAND_LINE;
    // These fit: the line was checked, and the initramfs lies below 4 GiB.
    params.hdr.cmdline_size = u32::try_from(line.len()).unwrap_or_default();
    if ramdisk_len > 0 {
        params.hdr.ramdisk_image = u32::try_from(ramdisk).unwrap_or_default();
        params.hdr.ramdisk_size = u32::try_from(ramdisk_len).unwrap_or_default();
    }
    params.acpi_rsdp_addr = layout::ACPI_START;
    let mut map = params.e820_table;
    for (entry, from) in map.iter_mut().zip(memory_map(bytes)) {
        *entry = from;
        params.e820_entries += 1;
    }
    params.e820_table = map;
    params
}

/// A bzImage's own header, or what a kernel without one must be told.
fn setup(kernel: &Kernel) -> setup_header {
    let own =
        setup_header { boot_flag: BOOT_FLAG, header: HEADER_MAGIC, version: PROTOCOL, ..Default::default() };
    kernel.bzimage().map_or(own, |image| image.header)
}

fn entry(rip: u64) -> EntryPoint {
    EntryPoint {
        rip,
        // Linux sets its own stack.
        rsp: 0,
        rsi: BOOT_PARAMS,
        rdi: 0,
        rflags: RFLAGS_RESERVED_ONE,
        segments: low::segments(0),
        idt: Default::default(),
        cr0: CR0,
        cr3: low::PAGE_TABLES,
        cr4: CR4,
        efer: EFER,
        xcr0: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{bzimage, elf};
    use super::*;

    const MIB: u64 = 1 << 20;

    fn machine(memory_bytes: u64) -> BootMachine {
        BootMachine { vcpus: 1, memory_bytes, virtio: Vec::new(), serial: true, vmgenid: true }
    }

    fn kernel() -> Kernel {
        Kernel::from_bytes(elf::tests::file(0x100_0000, b"code", 0x1000)).unwrap()
    }

    fn map(bytes: u64) -> Vec<(u64, u64, u32)> {
        memory_map(bytes).into_iter().map(|e| (e.addr, e.addr + e.size, e.r#type)).collect()
    }

    #[test]
    fn the_memory_map_has_ram_on_both_sides_of_the_hole() {
        let low = [(0, 0x9_fc00, 1), (0xe_0000, 0x10_0000, 2)];
        assert_eq!(map(256 * MIB), [low.as_slice(), &[(MIB, 256 * MIB, 1)]].concat());
        assert_eq!(map(3 << 30), [low.as_slice(), &[(MIB, 3 << 30, 1)]].concat());
        let high = [(MIB, 3 << 30, 1), (4 << 30, 9 << 30, 1)];
        assert_eq!(map(8 << 30), [low.as_slice(), &high].concat());
    }

    #[test]
    fn a_kernel_finds_what_it_needs_in_memory() {
        let memory = crate::memory::anonymous(128 * MIB).unwrap();
        let entry = load(&memory, &kernel(), Some(&[7; 5000]), "quiet", &machine(128 * MIB)).unwrap();
        assert_eq!((entry.rip, entry.rsi, entry.segments.code.selector), (0x100_0000, BOOT_PARAMS, 0x10));
        let params: boot_params = memory.read_obj(GuestAddress(entry.rsi)).unwrap();
        let (ramdisk, len) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
        assert_eq!((u64::from(ramdisk), len), (128 * MIB - 8192, 5000));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(u64::from(ramdisk) + 4999)).unwrap(), 7);
        let line = GuestAddress(u64::from(params.hdr.cmd_line_ptr));
        assert_eq!(memory.read_obj::<[u8; 6]>(line).unwrap(), *b"quiet\0");
        let rsdp = GuestAddress(params.acpi_rsdp_addr);
        assert_eq!(memory.read_obj::<[u8; 8]>(rsdp).unwrap(), *b"RSD PTR ");
        assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(entry.rip)).unwrap(), *b"code");
        assert_eq!(params.e820_entries, 3);
    }

    #[test]
    fn a_bzimage_keeps_its_header_and_its_limit_for_the_initramfs() {
        let kernel = Kernel::from_bytes(bzimage::tests::file(b"packed")).unwrap();
        assert_eq!(ramdisk_address(&kernel, 100, 8 << 30).unwrap(), 0x7fff_f000);
        let header = setup(&kernel);
        assert_eq!(({ header.xloadflags }, { header.init_size }), (0x7f, 0x40_0000));
    }

    #[test]
    fn too_little_memory_is_refused_with_the_minimum() {
        let memory = crate::memory::anonymous(64 * MIB).unwrap();
        let error = load(&memory, &kernel(), None, "", &machine(64 * MIB)).unwrap_err();
        assert_eq!(error.to_string(), "The kernel needs at least 128 MiB of memory, the machine has 64 MiB");
    }

    #[test]
    fn an_initramfs_never_lies_over_the_kernel() {
        let kernel = Kernel::from_bytes(elf::tests::file(0x7fff_0000, b"code", 0x1000)).unwrap();
        assert!(matches!(
            ramdisk_address(&kernel, 0xf001, 4 << 30),
            Err(BootError::Initramfs { len: 0xf001 })
        ));
        assert_eq!(ramdisk_address(&kernel, 0xf000, 4 << 30).unwrap(), 0x7fff_1000);
    }

    #[test]
    fn a_command_line_too_long_is_refused() {
        let memory = crate::memory::anonymous(2 * MIB).unwrap();
        let line = "x".repeat(3000);
        let error = load(&memory, &kernel(), None, &line, &machine(256 * MIB)).unwrap_err();
        assert!(matches!(error, BootError::CommandLine { len: 3000 }));
    }
}
