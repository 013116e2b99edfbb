//! How a loaded kernel is entered: plain register values, so that whoever sets a vCPU only copies them.

/// Bit 1 of RFLAGS, which is always one (Intel SDM volume 1, 3.4.3).
pub const RFLAGS_RESERVED_ONE: u64 = 0x2;

/// A segment register with its hidden part, field for field as the processor holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Linear address of its first byte.
    pub base: u64,
    /// Last valid offset, in bytes (already scaled: `0xffff_ffff` for a flat segment).
    pub limit: u32,
    /// Offset of its descriptor in the GDT; bits 0 and 1 are the requested privilege level.
    pub selector: u16,
    /// Descriptor type, 0 to 15 (0xb: code, read, accessed; 0x3: data, write, accessed; 0xb as system type: busy TSS).
    pub kind: u8,
    /// True for code and data, false for a system segment such as a TSS.
    pub code_or_data: bool,
    /// Descriptor privilege level, 0 to 3.
    pub dpl: u8,
    /// Default operand size 32 bits.
    pub db: bool,
    /// 64-bit code.
    pub long: bool,
    /// The descriptor's limit counts 4 KiB pages.
    pub granularity: bool,
    /// The segment is there; false makes it unusable.
    pub present: bool,
}

impl Segment {
    /// A flat 4 GiB code or data segment of privilege level 0; `flags` from the GDT's point of view.
    const fn flat(selector: u16, kind: u8, db: bool, long: bool) -> Segment {
        Segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            kind,
            code_or_data: true,
            dpl: 0,
            db,
            long,
            granularity: true,
            present: true,
        }
    }

    /// Flat 64-bit code, privilege level 0.
    pub const fn code64(selector: u16) -> Segment {
        Segment::flat(selector, 0xb, false, true)
    }

    /// Flat writable data, privilege level 0.
    pub const fn data(selector: u16) -> Segment {
        Segment::flat(selector, 0x3, true, false)
    }

    /// A busy 32/64-bit task state segment (KVM refuses to run without one in protected mode).
    pub const fn tss(selector: u16, base: u64, limit: u32) -> Segment {
        Segment {
            base,
            limit,
            selector,
            kind: 0xb,
            code_or_data: false,
            dpl: 0,
            db: false,
            long: false,
            granularity: false,
            present: true,
        }
    }

    /// The same segment at privilege level `dpl` (also put into the selector).
    pub const fn at_level(mut self, dpl: u8) -> Segment {
        self.dpl = dpl & 3;
        self.selector = self.selector & !3 | (dpl & 3) as u16;
        self
    }

    /// The eight bytes of its GDT entry. A TSS in long mode is followed by a second entry, [`Segment::high_descriptor`].
    pub const fn descriptor(&self) -> u64 {
        let limit = if self.granularity { self.limit >> 12 } else { self.limit } as u64;
        let access = self.kind as u64
            | (self.code_or_data as u64) << 4
            | (self.dpl as u64) << 5
            | (self.present as u64) << 7;
        let flags = (self.long as u64) << 1 | (self.db as u64) << 2 | (self.granularity as u64) << 3;
        limit & 0xffff
            | (self.base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 0xf) << 48
            | flags << 52
            | (self.base >> 24 & 0xff) << 56
    }

    /// The upper eight bytes of a system descriptor in long mode: bits 32 to 63 of the base.
    pub const fn high_descriptor(&self) -> u64 {
        self.base >> 32
    }
}

/// A descriptor-table register (GDTR or IDTR).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Its last valid offset: length - 1.
    pub limit: u16,
}

/// The segments that a guest starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// CS.
    pub code: Segment,
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    /// Task register.
    pub task: Segment,
    /// Where the GDT lies; its content is in guest memory already.
    pub gdt: TableRegister,
}

/// Everything the first vCPU starts with, in long mode. Registers not named here are zero; the LDT is absent. The other
/// vCPUs wait for INIT and SIPI and need none of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryPoint {
    /// First instruction.
    pub rip: u64,
    /// Stack pointer; 0 when the guest sets its own.
    pub rsp: u64,
    /// Linux: address of the boot parameters (zero page).
    pub rsi: u64,
    /// First argument of a small guest.
    pub rdi: u64,
    /// Flags register; bit 1 set, interrupts off.
    pub rflags: u64,
    /// Segment registers and GDT.
    pub segments: Segments,
    /// Where the IDT lies; limit 0 when the guest loads its own before it takes an interrupt.
    pub idt: TableRegister,
    /// Control register 0.
    pub cr0: u64,
    /// Root of the page tables.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Extended control register 0: the XSAVE features to switch on, as far as the CPU has them. 1, its value at reset, for a kernel
    /// that sets its own; a guest at privilege level 3 cannot.
    pub xcr0: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_bytes_every_boot_manual_prints() {
        assert_eq!(Segment::code64(0x10).descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(Segment::data(0x18).descriptor(), 0x00cf_9300_0000_ffff);
        assert_eq!(Segment::tss(0x20, 0, 0x67).descriptor(), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn a_privilege_level_goes_into_descriptor_and_selector() {
        let user = Segment::code64(0x30).at_level(3);
        assert_eq!(user.selector, 0x33);
        assert_eq!(user.descriptor() >> 45 & 3, 3);
    }

    #[test]
    fn a_high_base_is_split_over_two_descriptors() {
        let tss = Segment::tss(0x20, 0x1_2345_6789, 0x67);
        assert_eq!(tss.descriptor() >> 16 & 0xff_ffff, 0x45_6789);
        assert_eq!(tss.descriptor() >> 56, 0x23);
        assert_eq!(tss.high_descriptor(), 1);
    }
}
