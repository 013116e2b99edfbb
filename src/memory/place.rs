//! Where guest memory lies in two other orders: the `memory` file's and this process's addresses.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{GuestMemory, addresses};

/// A huge page, bytes: what one entry of a page directory maps.
pub(super) const HUGE: usize = 2 << 20;

/// A region of guest memory: its addresses in this process, and where it begins in the `memory` file.
#[derive(Debug, Clone)]
pub(super) struct Mapped {
    pub addresses: Range<usize>,
    pub file_offset: u64,
}

/// Every region, in the file's order.
pub(super) fn mapped(memory: &GuestMemory) -> Vec<Mapped> {
    let mut file_offset = 0;
    let place = |addresses: Range<usize>| {
        let begin = file_offset;
        file_offset += addresses.len() as u64;
        Mapped { addresses, file_offset: begin }
    };
    addresses(memory).into_iter().map(place).collect()
}

/// Where what lies at `offset` of the file is mapped, and how many bytes from there on are of the same region.
pub(super) fn address_of(mapped: &[Mapped], offset: u64) -> Option<(usize, usize)> {
    mapped.iter().find_map(|region| {
        let inside = usize::try_from(offset.checked_sub(region.file_offset)?).ok()?;
        let left = region.addresses.len().checked_sub(inside).filter(|left| *left > 0)?;
        Some((region.addresses.start + inside, left))
    })
}

/// Where in the file lies what is mapped at an address of this process.
pub(super) fn offset_of(mapped: &[Mapped], address: usize) -> Option<u64> {
    let region = mapped.iter().find(|region| region.addresses.contains(&address))?;
    Some(region.file_offset + (address - region.addresses.start) as u64)
}

/// The kernel's entries for the pages of `len` bytes from `address` on (Documentation/admin-guide/mm/pagemap.rst).
pub(super) fn page_entries(pagemap: &File, address: usize, len: usize, page: usize) -> io::Result<Vec<u64>> {
    let mut entries = vec![0u8; len.div_ceil(page) * 8];
    pagemap.read_exact_at(&mut entries, (address / page) as u64 * 8)?;
    Ok(entries.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_offsets_lead_to_each_other_and_nowhere_else() {
        let regions = [
            Mapped { addresses: 0x1000..0x3000, file_offset: 0 },
            Mapped { addresses: 0x9000..0xa000, file_offset: 0x2000 },
        ];
        assert_eq!(address_of(&regions, 0x1800), Some((0x2800, 0x800)));
        assert_eq!(address_of(&regions, 0x2000), Some((0x9000, 0x1000)));
        assert_eq!(address_of(&regions, 0x3000), None);
        assert_eq!(offset_of(&regions, 0x9fff), Some(0x2fff));
        assert_eq!(offset_of(&regions, 0x3000), None);
    }
}
