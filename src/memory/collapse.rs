//! Bringing a file's pages together in huge pages of the page cache, where every clone shares them.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::place::HUGE;

/// Has the kernel hold in huge pages those regions of 2 MiB of a file that `ranges` touch, and tells how many it does. Most disks' file
/// systems cannot, a tmpfs can; they stay until the file is evicted or removed, with zeros where it has holes.
pub fn make_huge(file: &File, len: u64, ranges: impl IntoIterator<Item = Range<u64>>) -> usize {
    let huge = HUGE as u64;
    let mut regions: Vec<u64> =
        ranges.into_iter().flat_map(|range| range.start / huge..range.end.div_ceil(huge)).collect();
    regions.sort_unstable();
    regions.dedup();
    // A file's last region, if it is shorter, has no huge page.
    regions
        .into_iter()
        .filter(|region| (region + 1) * huge <= len)
        .filter(|region| collapse(file, *region))
        .count()
}

/// Whether this kernel can hold a file of a tmpfs in huge pages. Which are used unasked does not matter: [`make_huge`] asks.
pub fn tmpfs_has_huge_pages() -> bool {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    setting.is_ok_and(|text| allows(&text))
}

/// The chosen word of a setting is the one in brackets.
fn allows(setting: &str) -> bool {
    setting.contains('[') && !setting.contains("[deny]")
}

/// Collapses one region in a mapping that is there for this alone.
fn collapse(file: &File, region: u64) -> bool {
    let Ok(offset) = libc::off_t::try_from(region * HUGE as u64) else { return false };
    let Some(view) = View::new(file, offset) else { return false };
    // SAFETY: the range is the view's own; collapsing changes no content.
    unsafe { libc::madvise(view.start(), HUGE, libc::MADV_COLLAPSE) == 0 }
}

/// A shared mapping of one region, at an address that is a multiple of its length.
struct View {
    reserved: *mut libc::c_void,
}

impl View {
    fn new(file: &File, offset: libc::off_t) -> Option<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the kernel chooses the place, so that nothing that is mapped is touched.
        let reserved = unsafe { libc::mmap(std::ptr::null_mut(), 2 * HUGE, libc::PROT_NONE, flags, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return None;
        }
        let view = View { reserved };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the range lies within what was reserved above; nobody reads it.
        let mapped =
            unsafe { libc::mmap(view.start(), HUGE, libc::PROT_READ, flags, file.as_raw_fd(), offset) };
        (mapped != libc::MAP_FAILED).then_some(view)
    }

    fn start(&self) -> *mut libc::c_void {
        let address = self.reserved as usize;
        self.reserved.wrapping_byte_add(address.next_multiple_of(HUGE) - address)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the whole range was mapped by `new` and is the view's alone.
        unsafe { libc::munmap(self.reserved, 2 * HUGE) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn only_a_denial_denies() {
        assert!(allows("always within_size advise [never] deny force"));
        assert!(!allows("always within_size advise never [deny] force"));
        assert!(!allows(""));
    }

    #[test]
    fn content_stays_as_it_is_and_nothing_is_done_behind_the_end() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5 << 20).unwrap();
        file.write_all_at(&[7; 4096], 3 << 20).unwrap();
        // Whether a huge page comes of it depends on the file system.
        assert!(make_huge(&file, 5 << 20, [0..4096, 3 << 20..5 << 20]) <= 2);
        let mut bytes = [0; 8192];
        file.read_exact_at(&mut bytes, (3 << 20) - 4096).unwrap();
        assert!(bytes[..4096].iter().all(|byte| *byte == 0) && bytes[4096..].iter().all(|byte| *byte == 7));
        assert_eq!(file.metadata().unwrap().len(), 5 << 20);
    }
}
