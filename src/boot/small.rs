//! A guest without Linux: an ELF file that starts in long mode at privilege level 3 (docs/port-interface.md).
//!
//! At that level it runs natively even where KVM has neither VMX nor SVM behind it and interprets level 0.

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{GuestMemory, GuestMemoryError, layout};

use super::elf::{self, Elf, ElfError};
use super::entry::{EntryPoint, RFLAGS_RESERVED_ONE, TableRegister};
use super::kernel::place_segments;
use super::low::{self, COMMAND_LINE, COMMAND_LINE_MAX, KERNEL_MIN, STACK_TOP};

/// Why a small guest is refused.
#[derive(Debug, thiserror::Error)]
pub enum SmallGuestError {
    /// The file.
    #[error("The small guest is no usable ELF file")]
    Elf(#[from] ElfError),
    /// A segment where boot's tables or nothing at all are.
    #[error(
        "The small guest occupies {start:#x} to {end:#x}; it must lie between 1 MiB and the end of memory at {limit:#x}"
    )]
    Place {
        /// Lowest physical address.
        start: u64,
        /// First address behind it.
        end: u64,
        /// Where memory (below the device windows) ends.
        limit: u64,
    },
    /// A note that asks for interrupts and says nonsense.
    #[error(
        "The small guest's note on interrupts is not 24 bytes long, or its table is longer than a table can be"
    )]
    Interrupts,
    /// The command line is too long, or has a NUL in it.
    #[error("The command line of {len} bytes is longer than {COMMAND_LINE_MAX} bytes or has a NUL in it")]
    CommandLine {
        /// Its length.
        len: usize,
    },
    /// Guest memory is too small.
    #[error("Cannot write to guest memory")]
    Write(#[from] GuestMemoryError),
}

/// CR0: protection, monitor coprocessor, extension type, numeric errors, write protection, alignment mask, paging.
const CR0: u64 = 0x8005_0033;
/// CR4: PAE, OSFXSR, OSXMMEXCPT (SSE), FSGSBASE, OSXSAVE.
const CR4: u64 = 0x5_0620;
/// EFER: system calls, long mode enabled and active, no-execute.
const EFER: u64 = 0xd01;

/// RFLAGS: privilege level 3 may use every port. Where the level is ignored, the bitmap in the TSS says the same.
const RFLAGS_IOPL_3: u64 = 3 << 12;
/// XCR0: x87, SSE, AVX and the three parts of AVX-512.
const XCR0: u64 = 0xe7;

/// RFLAGS: interrupts on.
const RFLAGS_IF: u64 = 1 << 9;

/// Owner and type of the note by which a guest asks for interrupts.
const NOTE_OWNER: &[u8] = b"Ember\0";
const NOTE_INTERRUPTS: u32 = 1;

/// A small guest that was parsed and checked.
#[derive(Debug, Clone)]
pub struct SmallGuest {
    bytes: Vec<u8>,
    elf: Elf,
    interrupts: Option<Interrupts>,
}

/// How a guest takes interrupts, from its note. It is the guest's own affair what it puts there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Interrupts {
    table: TableRegister,
    /// Top of the stack on which level 0 handles them.
    stack: u64,
}

impl Interrupts {
    /// Three little-endian 64-bit numbers: address of the IDT, its length in bytes, top of the stack.
    fn from_note(descriptor: &[u8]) -> Option<Self> {
        let ([base, len, stack], []) = descriptor.as_chunks::<8>() else { return None };
        let limit = u16::try_from(u64::from_le_bytes(*len).checked_sub(1)?).ok()?;
        let table = TableRegister { base: u64::from_le_bytes(*base), limit };
        Some(Interrupts { table, stack: u64::from_le_bytes(*stack) })
    }
}

impl SmallGuest {
    /// Parses an ELF file.
    ///
    /// # Errors
    /// It is damaged or not for x86-64.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<SmallGuest, SmallGuestError> {
        let elf = Elf::parse(&bytes)?;
        let note = elf::note(&bytes, NOTE_OWNER, NOTE_INTERRUPTS);
        let interrupts =
            note.map(|note| Interrupts::from_note(note).ok_or(SmallGuestError::Interrupts)).transpose()?;
        Ok(SmallGuest { bytes, elf, interrupts })
    }

    /// The file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Puts the guest into fresh, zeroed memory and tells how to enter it: RDI is the address of `command_line`
    /// (NUL-terminated), RSI the bytes of RAM, RSP the top of a 16 KiB stack. Interrupts are off and there is no IDT, unless
    /// the guest has a note that says where they go.
    ///
    /// # Errors
    /// It does not fit into the memory, or the command line is too long.
    pub fn load(&self, memory: &GuestMemory, command_line: &str) -> Result<EntryPoint, SmallGuestError> {
        if !low::command_line_fits(command_line) {
            return Err(SmallGuestError::CommandLine { len: command_line.len() });
        }
        let ram: u64 = memory.iter().map(|region| region.len()).sum();
        let (start, end, limit) = (self.elf.start(), self.elf.end(), ram.min(layout::MMIO_GAP_START));
        if start < KERNEL_MIN || end > limit {
            return Err(SmallGuestError::Place { start, end, limit });
        }
        place_segments(memory, &self.elf, &self.bytes)?;
        low::write_command_line(memory, command_line)?;
        low::write_tables(memory, true)?;
        let mut entry = entry(self.elf.entry, ram);
        if let Some(Interrupts { table, stack }) = self.interrupts {
            low::write_interrupt_stack(memory, stack)?;
            entry.idt = table;
            entry.rflags |= RFLAGS_IF;
        }
        Ok(entry)
    }
}

fn entry(rip: u64, ram: u64) -> EntryPoint {
    EntryPoint {
        rip,
        rsp: STACK_TOP,
        rsi: ram,
        rdi: u64::from(COMMAND_LINE),
        rflags: RFLAGS_RESERVED_ONE | RFLAGS_IOPL_3,
        segments: low::segments(3),
        idt: Default::default(),
        cr0: CR0,
        cr3: low::PAGE_TABLES,
        cr4: CR4,
        efer: EFER,
        xcr0: XCR0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::{file, file_with_notes, note_bytes};
    use super::*;
    use crate::memory::{Bytes, GuestAddress, anonymous};

    #[test]
    fn a_small_guest_is_entered_at_level_3_with_its_arguments() {
        let memory = anonymous(2 << 20).unwrap();
        let guest = SmallGuest::from_bytes(file(0x10_0000, b"code", 0x1000)).unwrap();
        let entry = guest.load(&memory, "mode=echo").unwrap();
        assert_eq!((entry.rip, entry.rsi, entry.rsp), (0x10_0000, 2 << 20, 0x8_0000));
        assert_eq!(
            (entry.segments.code.dpl, entry.segments.code.selector, entry.segments.data.selector),
            (3, 0x33, 0x2b)
        );
        assert_eq!(memory.read_obj::<[u8; 10]>(GuestAddress(entry.rdi)).unwrap(), *b"mode=echo\0");
        assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(entry.rip)).unwrap(), *b"code");
    }

    #[test]
    fn a_guest_with_a_note_takes_interrupts() {
        let memory = anonymous(2 << 20).unwrap();
        let descriptor = [0x10_1000u64, 0x500, 0x10_4000].map(u64::to_le_bytes).concat();
        let note = note_bytes(b"Ember\0", 1, &descriptor);
        let guest = SmallGuest::from_bytes(file_with_notes(0x10_0000, b"code", &note)).unwrap();
        let entry = guest.load(&memory, "").unwrap();
        assert_eq!(entry.idt, TableRegister { base: 0x10_1000, limit: 0x4ff });
        assert_eq!(entry.rflags, 0x3202);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(entry.segments.task.base + 4)).unwrap(), 0x10_4000);
    }

    #[test]
    fn a_note_on_interrupts_that_says_nonsense_is_refused() {
        let empty = [0x10_1000u64, 0, 0x10_4000].map(u64::to_le_bytes).concat();
        let long = [0x10_1000u64, 0x1_0001, 0x10_4000].map(u64::to_le_bytes).concat();
        for descriptor in [&empty[..], &long, &long[..23], &[0; 32]] {
            let note = note_bytes(b"Ember\0", 1, descriptor);
            let made = SmallGuest::from_bytes(file_with_notes(0x10_0000, b"code", &note));
            assert!(matches!(made, Err(SmallGuestError::Interrupts)), "{descriptor:?}");
        }
    }

    #[test]
    fn a_small_guest_must_lie_between_1_mib_and_the_end() {
        let memory = anonymous(2 << 20).unwrap();
        for (address, len) in
            [(0xf_f000, 0x1000), (0x1f_f000, 0x1001), (0x40_0000, 0x1000), (u64::MAX - 0x1000, 0x1000)]
        {
            let guest = SmallGuest::from_bytes(file(address, b"code", len)).unwrap();
            assert!(matches!(guest.load(&memory, ""), Err(SmallGuestError::Place { .. })), "{address:#x}");
        }
        let fits = SmallGuest::from_bytes(file(0x1f_f000, b"code", 0x1000)).unwrap();
        assert!(fits.load(&memory, "").is_ok());
        assert!(matches!(
            fits.load(&memory, &"x".repeat(3000)),
            Err(SmallGuestError::CommandLine { len: 3000 })
        ));
    }
}
