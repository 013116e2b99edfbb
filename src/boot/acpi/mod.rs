//! ACPI tables of a hardware-reduced machine: no SCI, no PM timer, no PIT, no 8259.
//!
//! Linux finds its vCPUs, the virtio-mmio devices, the serial port, its VM Generation ID and the way to power off here;
//! Debian's cloud kernel reads neither MP tables nor virtio devices from its command line.

mod vmgenid;

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use crate::memory::layout;

use super::linux::{BootMachine, VirtioDevice};

/// Why a machine cannot be described.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AcpiError {
    /// Local APIC ids are bytes, and nobody tested more.
    #[error("A machine has 1 to {VCPUS_MAX} vCPUs, not {count}")]
    Vcpus {
        /// What was asked for.
        count: u32,
    },
    /// More devices than interrupt lines.
    #[error("A machine has at most {} virtio devices, not {count}", layout::VIRTIO_DEVICES_MAX)]
    Devices {
        /// What was asked for.
        count: usize,
    },
    /// A window that a 32-bit descriptor cannot hold.
    #[error("The device window {base:#x}+{len:#x} does not lie below 4 GiB")]
    Window {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The tables outgrow their place.
    #[error("The ACPI tables take {len} bytes, which is more than their place holds")]
    TooLong {
        /// Their length.
        len: usize,
    },
}

const VCPUS_MAX: u32 = 8;
const OEM_ID: [u8; 6] = *b"EMBER ";
const OEM_TABLE_ID: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;
/// Tables begin at multiples of this; the RSDP must at 16.
const ALIGN: usize = 16;
/// Length of a table's header, and of the RSDP, bytes.
const SDT_HEADER_LEN: u32 = 36;

/// S5, soft off: the sleep type that \_S5 names and that the power device waits for.
const SLEEP_TYPE_OFF: u8 = 5;
/// The reset register lies behind the sleep control register; this value resets.
const RESET_PORT: u64 = layout::POWER_PORT + 1;
const RESET_VALUE: u8 = 6;

/// IA-PC boot architecture flags (ACPI 6.5, table 5.11): no VGA, no MSI, no PCIe ASPM, no CMOS clock. That the 8042 and
/// LEGACY_DEVICES bits are clear spares Linux the probes.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5;
/// KVM's.
const IOAPIC_ID: u8 = 0;

/// The bytes to write at [`layout::ACPI_START`]; the RSDP comes first.
///
/// # Errors
/// The machine has more vCPUs or devices than can be, or a device above 4 GiB.
pub fn tables(machine: &BootMachine) -> Result<Vec<u8>, AcpiError> {
    let mut image = Image { bytes: vec![0; Rsdp::len()] };
    let dsdt = image.add(dsdt(machine)?.as_slice());
    let fadt = image.add(&serialised(&fadt(dsdt)));
    let madt = image.add(&serialised(&madt(machine.vcpus)?));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = image.add(&serialised(&xsdt));
    let rsdp = serialised(&Rsdp::new(OEM_ID, xsdt));
    let Image { mut bytes } = image;
    bytes.splice(..rsdp.len(), rsdp);
    let room = layout::VMGENID_ADDR - layout::ACPI_START;
    if bytes.len() as u64 > room { Err(AcpiError::TooLong { len: bytes.len() }) } else { Ok(bytes) }
}

/// The tables as they will lie in guest memory.
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table and tells its guest physical address.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let address = layout::ACPI_START + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

fn serialised(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |address| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address);
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.sleep_control_reg = port(layout::POWER_PORT);
    // Linux clears the wake status (0x80) here before it sleeps: any value but RESET_VALUE means nothing to the device.
    fadt.sleep_status_reg = port(RESET_PORT);
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"EMBER\0\0\0").into();
    fadt.finalize()
}

fn madt(vcpus: u32) -> Result<MADT, AcpiError> {
    if !(1..=VCPUS_MAX).contains(&vcpus) {
        return Err(AcpiError::Vcpus { count: vcpus });
    }
    let address = LocalInterruptController::Address(low_half(layout::LAPIC_ADDR));
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, address);
    for id in (0u8..).take(vcpus as usize) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(IOAPIC_ID, low_half(layout::IOAPIC_ADDR), 0));
    Ok(madt)
}

/// Of an address that lies below 4 GiB.
fn low_half(address: u64) -> u32 {
    (address & 0xffff_ffff) as u32
}

fn dsdt(machine: &BootMachine) -> Result<Sdt, AcpiError> {
    let devices = machine.virtio.len();
    if devices as u64 > u64::from(layout::VIRTIO_DEVICES_MAX) {
        return Err(AcpiError::Devices { count: devices });
    }
    let mut body = serialised(&soft_off());
    let serial = machine.serial.then_some(Ok(Raw(serial())));
    let virtio = (0u8..).zip(&machine.virtio).map(|(index, device)| Ok(Raw(virtio(index, device)?)));
    let vmgenid = machine.vmgenid.then_some(Ok(Raw(vmgenid::devices())));
    let devices = virtio.chain(vmgenid).chain(serial).collect::<Result<Vec<Raw>, _>>()?;
    let children = devices.iter().map(|device| device as &dyn Aml).collect();
    Scope::new(Path::new("\\_SB_"), children).to_aml_bytes(&mut body);
    let mut table = Sdt::new(*b"DSDT", SDT_HEADER_LEN, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    Ok(table)
}

/// AML that is built already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn soft_off() -> Name {
    Name::new(Path::new("\\_S5_"), &Package::new(vec![&SLEEP_TYPE_OFF, &0u8, &0u8, &0u8]))
}

/// Edge-triggered, active high, not shared: how an irqfd drives it.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn virtio(index: u8, device: &VirtioDevice) -> Result<Vec<u8>, AcpiError> {
    let VirtioDevice { base, len, gsi } = *device;
    let (Some(base32), Some(len32), true) = (
        u32::try_from(base).ok(),
        u32::try_from(len).ok(),
        base.checked_add(len).is_some_and(|end| end <= 1 << 32),
    ) else {
        return Err(AcpiError::Window { base, len });
    };
    let name = format!("V{index:03}");
    let resources: [&dyn Aml; 2] = [&Memory32Fixed::new(true, base32, len32), &interrupt(gsi)];
    Ok(serialised(&Device::new(
        Path::new(&name),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &index),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources.to_vec())),
        ],
    )))
}

fn serial() -> Vec<u8> {
    let port = (layout::SERIAL_PORT & 0xffff) as u16;
    let resources: [&dyn Aml; 2] = [&IO::new(port, port, 0, 8), &interrupt(layout::SERIAL_GSI)];
    serialised(&Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources.to_vec())),
        ],
    ))
}

#[cfg(test)]
mod tests;
