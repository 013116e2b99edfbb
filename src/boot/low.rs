//! The first 64 KiB of guest memory: descriptor tables, page tables and the command line, the same places for every kind
//! of guest.

use crate::memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use super::entry::{Segment, Segments, TableRegister};

/// Global descriptor table.
const GDT: u64 = 0x1000;
/// Task state segment with its I/O permission bitmap.
const TSS: u64 = 0x2000;
/// Boot parameters of Linux (the zero page), 4 KiB.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Level-4 page table; the level-3 table and four level-2 tables follow, one page each.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line, NUL-terminated.
pub const COMMAND_LINE: u32 = 0xf000;
/// Longest command line, bytes without its NUL: what an x86 kernel takes (COMMAND_LINE_SIZE is 2048).
pub const COMMAND_LINE_MAX: usize = 2047;
/// Top of the 16 KiB stack a small guest starts with.
pub const STACK_TOP: u64 = 0x8_0000;
/// Kernels lie here or above; everything below belongs to this file, to the ACPI tables or to nobody.
pub const KERNEL_MIN: u64 = 0x10_0000;

const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 0x20_0000;
/// 2 MiB pages that map the first 4 GiB: all of the low RAM and every device window.
const LARGE_PAGES: u64 = (4 << 30) / LARGE_PAGE;
/// Entries of one page table.
const ENTRIES: u64 = 512;

/// Page table entry bits (Intel SDM volume 3A, 4.5.4).
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;

/// The 64-bit Linux boot protocol wants __BOOT_CS and __BOOT_DS at exactly these places (Documentation/arch/x86/boot.rst).
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
/// Data and code of privilege level 3, in the order SYSRET expects them.
const USER_DS: u16 = 0x28;
const USER_CS: u16 = 0x30;
const TASK: u16 = 0x40;

/// Entries of the GDT.
const DESCRIPTORS: u16 = 10;
/// Length of a 64-bit TSS without its bitmap (Intel SDM volume 3A, 8.7).
const TSS_FIXED: u16 = 104;
/// Where a TSS holds the stack of privilege level 0.
const TSS_STACK_0: u64 = 4;
/// Where a TSS holds the offset of its I/O permission bitmap.
const TSS_BITMAP_OFFSET: usize = 102;
/// The bitmap allows the ports below this; those above are forbidden.
const BITMAP_PORTS: u16 = 0x1000;
/// Length of the TSS with its bitmap and the byte that closes it.
const TSS_LEN: u16 = TSS_FIXED + BITMAP_PORTS / 8 + 1;

/// The segments of `level` (0 or 3) in the table that [`write_tables`] leaves in memory.
pub fn segments(level: u8) -> Segments {
    let (code, data) = if level == 0 { (BOOT_CS, BOOT_DS) } else { (USER_CS, USER_DS) };
    Segments {
        code: Segment::code64(code).at_level(level),
        data: Segment::data(data).at_level(level),
        task: task(),
        gdt: TableRegister { base: GDT, limit: DESCRIPTORS * 8 - 1 },
    }
}

/// Writes descriptor tables and identity page tables for the first 4 GiB. With `user`, code of privilege level 3 may use
/// every page.
///
/// # Errors
/// Guest memory ends before [`COMMAND_LINE`].
pub fn write_tables(memory: &GuestMemory, user: bool) -> Result<(), GuestMemoryError> {
    for (address, entry) in (GDT..).step_by(8).zip(descriptors()) {
        memory.write_obj(entry, GuestAddress(address))?;
    }
    memory.write_slice(&task_segment(), GuestAddress(TSS))?;
    for (address, entry) in page_table_entries(user) {
        memory.write_obj(entry, GuestAddress(address))?;
    }
    Ok(())
}

/// Sets the stack on which interrupts from privilege level 3 are handled, after [`write_tables`].
///
/// # Errors
/// Guest memory ends before it.
pub fn write_interrupt_stack(memory: &GuestMemory, top: u64) -> Result<(), GuestMemoryError> {
    memory.write_obj(top, GuestAddress(TSS + TSS_STACK_0))
}

/// Writes a command line that was checked to be at most [`COMMAND_LINE_MAX`] bytes.
///
/// # Errors
/// Guest memory ends before it.
pub fn write_command_line(memory: &GuestMemory, line: &str) -> Result<(), GuestMemoryError> {
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    memory.write_slice(&bytes, GuestAddress(u64::from(COMMAND_LINE)))
}

/// True when the kernel can be given `line`.
pub fn command_line_fits(line: &str) -> bool {
    line.len() <= COMMAND_LINE_MAX && !line.contains('\0')
}

fn task() -> Segment {
    Segment::tss(TASK, TSS, u32::from(TSS_LEN) - 1)
}

fn descriptors() -> [u64; DESCRIPTORS as usize] {
    let task = task();
    [
        0,
        0,
        Segment::code64(BOOT_CS).descriptor(),
        Segment::data(BOOT_DS).descriptor(),
        0,
        Segment::data(USER_DS).at_level(3).descriptor(),
        Segment::code64(USER_CS).at_level(3).descriptor(),
        0,
        task.descriptor(),
        task.high_descriptor(),
    ]
}

/// A task state segment without stacks.
fn task_segment() -> [u8; TSS_LEN as usize] {
    let mut tss = [0; TSS_LEN as usize];
    let bitmap = usize::from(TSS_FIXED);
    // A set bit forbids the port. The byte behind the bitmap must be all ones (Intel SDM volume 1, 19.5.2).
    tss[bitmap + usize::from(BITMAP_PORTS / 8)] = 0xff;
    tss[TSS_BITMAP_OFFSET..bitmap].copy_from_slice(&TSS_FIXED.to_le_bytes());
    tss
}

/// Every entry of the page tables, with its address.
fn page_table_entries(user: bool) -> impl Iterator<Item = (u64, u64)> {
    let bits = PRESENT | WRITABLE | if user { USER } else { 0 };
    let (level3, level2) = (PAGE_TABLES + PAGE, PAGE_TABLES + 2 * PAGE);
    let root = (PAGE_TABLES, level3 | bits);
    let directories = (0..LARGE_PAGES / ENTRIES).map(move |i| (level3 + i * 8, (level2 + i * PAGE) | bits));
    let pages = (0..LARGE_PAGES).map(move |i| (level2 + i * 8, (i * LARGE_PAGE) | bits | LARGE));
    std::iter::once(root).chain(directories).chain(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(memory: &GuestMemory, address: u64) -> Option<(u64, u64)> {
        let entry = |table: u64, index: u64| memory.read_obj::<u64>(GuestAddress(table + index * 8)).unwrap();
        let level4 = entry(PAGE_TABLES, address >> 39 & 511);
        let level3 = entry(level4 & !0xfff, address >> 30 & 511);
        (level3 & PRESENT != 0).then_some(())?;
        let level2 = entry(level3 & !0xfff, address >> 21 & 511);
        Some(((level2 & !0x1f_ffff) | address & 0x1f_ffff, level4 & level3 & level2))
    }

    #[test]
    fn the_first_4_gib_are_mapped_to_themselves() {
        let memory = crate::memory::anonymous(2 << 20).unwrap();
        write_tables(&memory, false).unwrap();
        for address in [0, 0x1234, 0x20_0000, 0x3fff_ffff, 0x4000_0000, 0xd000_0123, 0xffff_ffff] {
            let (to, bits) = walk(&memory, address).unwrap();
            assert_eq!(to, address);
            assert_eq!(bits & (PRESENT | WRITABLE | USER), PRESENT | WRITABLE);
        }
        assert_eq!(walk(&memory, 0x1_0000_0000), None);
    }

    #[test]
    fn small_guests_may_use_their_pages() {
        let memory = crate::memory::anonymous(2 << 20).unwrap();
        write_tables(&memory, true).unwrap();
        assert_eq!(walk(&memory, 0x10_0000).unwrap().1 & USER, USER);
    }

    #[test]
    fn nothing_in_low_memory_overlaps() {
        let mut ranges = [
            (GDT, size_of_val(&descriptors()) as u64),
            (TSS, task_segment().len() as u64),
            (BOOT_PARAMS, 4096),
            (PAGE_TABLES, 2 * PAGE + LARGE_PAGES * 8),
            (u64::from(COMMAND_LINE), COMMAND_LINE_MAX as u64 + 1),
            (STACK_TOP - 0x4000, 0x4000),
            (KERNEL_MIN, 1),
        ];
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{ranges:x?}");
    }

    #[test]
    fn selectors_point_at_their_descriptors() {
        let table = descriptors();
        for level in [0, 3] {
            let found = segments(level);
            for segment in [found.code, found.data, found.task] {
                assert_eq!(table[usize::from(segment.selector >> 3)], segment.descriptor());
            }
        }
        assert_eq!((segments(3).code.selector, segments(3).data.selector), (0x33, 0x2b));
        assert_eq!(segments(0).gdt.limit, 79);
    }

    #[test]
    fn every_port_of_the_machine_is_open_to_small_guests() {
        let tss = task_segment();
        assert!((0..usize::from(BITMAP_PORTS)).all(|port| tss[104 + port / 8] >> (port % 8) & 1 == 0));
        assert_eq!(tss.last(), Some(&0xff));
        assert_eq!(tss[TSS_BITMAP_OFFSET], 104);
    }

    #[test]
    fn a_command_line_may_fill_its_place_and_no_more() {
        assert!(command_line_fits(&"x".repeat(COMMAND_LINE_MAX)));
        assert!(!command_line_fits(&"x".repeat(COMMAND_LINE_MAX + 1)));
        assert!(!command_line_fits("a\0b"));
    }
}
