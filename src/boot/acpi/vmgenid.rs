//! The VM Generation ID and the device that tells the guest of a new one.
//!
//! A hardware-reduced machine has no general-purpose events; its interrupts that call AML come from a generic event device
//! (ACPI 6.5, 5.6.9). Its method does as little as can be: a restored guest runs it before anything else, and every page
//! of the interpreter that it touches is a page fault.

use acpi_tables::aml::{Device, Method, Name, Notify, Package, Path, ResourceTemplate};

use crate::memory::layout;

use super::{interrupt, low_half, serialised};

/// "The generation has changed" (Microsoft, "Virtual Machine Generation ID").
const CHANGED: u8 = 0x80;

/// Both devices, for the system bus.
pub(super) fn devices() -> Vec<u8> {
    [counter(), events()].concat()
}

fn counter() -> Vec<u8> {
    let (low, high) = (low_half(layout::VMGENID_ADDR), low_half(layout::VMGENID_ADDR >> 32));
    serialised(&Device::new(
        Path::new("VGEN"),
        vec![
            // Linux binds to either; before 6.10 it cut longer ids off.
            &Name::new(Path::new("_HID"), &"VMGENCTR"),
            &Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &Name::new(Path::new("ADDR"), &Package::new(vec![&low, &high])),
        ],
    ))
}

fn events() -> Vec<u8> {
    serialised(&Device::new(
        Path::new("GED0"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt(layout::VMGENID_GSI)])),
            // The argument is the interrupt's number; there is one.
            &Method::new(
                Path::new("_EVT"),
                1,
                false,
                vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &CHANGED)],
            ),
        ],
    ))
}
