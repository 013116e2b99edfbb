//! The registers a cold-booted guest starts with.

use kvm_bindings::{kvm_dtable, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};

use crate::boot::{EntryPoint, Segment, TableRegister};
use crate::kvm::{KvmVcpu, VmError};

/// Offset of the LVT entry for LINT0 in the APIC's page, and of LINT1 (Intel SDM volume 3A, table 12-1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
/// Delivery modes of an LVT entry.
const MODE_EXTINT: u32 = 0b111 << 8;
const MODE_NMI: u32 = 0b100 << 8;

/// XCR0 of a processor after reset: x87 alone.
const XCR0_RESET: u64 = 1;

/// IA32_MISC_ENABLE, fast-strings bit, which Linux expects of firmware.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// IA32_MTRR_DEF_TYPE: MTRRs on, default type write-back, as firmware leaves it; without it Linux turns PAT off.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// The MSRs that firmware would have set, on every vCPU.
///
/// # Errors
/// KVM refused one.
pub fn reset_msrs(vcpu: &KvmVcpu) -> Result<(), VmError> {
    let entries =
        [MISC_ENABLE, MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    vcpu.set_msrs(&entries)
}

/// Puts the first vCPU at the kernel's entry. The others wait for INIT and SIPI, as KVM creates them.
///
/// # Errors
/// KVM refused the registers.
pub fn enter(vcpu: &KvmVcpu, entry: &EntryPoint) -> Result<(), VmError> {
    let mut sregs = vcpu.sregs()?;
    apply(&mut sregs, entry);
    vcpu.set_sregs(&sregs)?;
    set_xcr0(vcpu, entry.xcr0)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.rip,
        rsp: entry.rsp,
        rsi: entry.rsi,
        rdi: entry.rdi,
        rflags: entry.rflags,
        ..Default::default()
    })?;
    let mut lapic = vcpu.lapic()?;
    set_lvt(&mut lapic, LVT_LINT0, MODE_EXTINT);
    set_lvt(&mut lapic, LVT_LINT1, MODE_NMI);
    vcpu.set_lapic(&lapic)
}

/// Sets XCR0 to what is wanted of what the CPU has (CPUID leaf 0xd, subleaf 0: Intel SDM volume 1, 13.2).
fn set_xcr0(vcpu: &KvmVcpu, wanted: u64) -> Result<(), VmError> {
    if wanted == XCR0_RESET {
        return Ok(());
    }
    let cpuid = vcpu.cpuid()?;
    let offered = cpuid.as_slice().iter().find(|leaf| leaf.function == 0xd && leaf.index == 0);
    let offered = offered.map_or(XCR0_RESET, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax));
    let mut xcrs = vcpu.xcrs()?;
    if let Some(first) = xcrs.xcrs.first_mut() {
        (first.xcr, first.value) = (0, wanted & offered | XCR0_RESET);
        xcrs.nr_xcrs = 1;
    }
    vcpu.set_xcrs(&xcrs)
}

fn apply(sregs: &mut kvm_sregs, entry: &EntryPoint) {
    let segments = &entry.segments;
    let data = segment(&segments.data);
    sregs.cs = segment(&segments.code);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(&segments.task);
    sregs.gdt = table(&segments.gdt);
    sregs.idt = table(&entry.idt);
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (entry.cr0, entry.cr3, entry.cr4, entry.efer);
}

fn segment(from: &Segment) -> kvm_segment {
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: from.kind,
        present: u8::from(from.present),
        dpl: from.dpl,
        db: u8::from(from.db),
        s: u8::from(from.code_or_data),
        l: u8::from(from.long),
        g: u8::from(from.granularity),
        avl: 0,
        unusable: u8::from(!from.present),
        padding: 0,
    }
}

fn table(from: &TableRegister) -> kvm_dtable {
    kvm_dtable { base: from.base, limit: from.limit, ..Default::default() }
}

fn set_lvt(lapic: &mut kvm_lapic_state, offset: usize, mode: u32) {
    let register = &mut lapic.regs[offset..offset + 4];
    for (byte, value) in register.iter_mut().zip(mode.to_le_bytes()) {
        *byte = value.cast_signed();
    }
}
