//! A private layer of changes over a file that is never written.
//!
//! The delta is a sparse file in which a granule lies at the same offset as in the base. A bitmap in memory tells which
//! granules are in it; the delta is gone with the process, so nobody ever needs the bitmap again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Bytes of a granule: the block size of the guest's file system.
const GRANULE: u64 = GRANULE_LEN as u64;
const GRANULE_LEN: usize = 4096;
/// Longest drive, bytes: its bitmap takes 32 MiB, of which only touched pages are real.
pub(super) const LEN_MAX: u64 = 1 << 40;
/// Bytes copied at a time when the whole content is written out.
const STEP: usize = 1 << 20;

/// Base, delta, and which granules are where.
#[derive(Debug)]
pub(super) struct Overlay {
    base: File,
    delta: File,
    len: u64,
    /// One bit a granule: set when it is in the delta.
    changed: Vec<u64>,
}

impl Overlay {
    /// A layer without changes over `base`, which is `len` bytes long; `None` when that is more than [`LEN_MAX`].
    pub(super) fn new(base: File, delta: File, len: u64) -> Option<Self> {
        let granules = len.div_ceil(GRANULE);
        let words = usize::try_from(granules.div_ceil(64)).ok().filter(|_| len <= LEN_MAX)?;
        Some(Overlay { base, delta, len, changed: vec![0; words] })
    }

    /// Fills `to` from `offset` on.
    ///
    /// # Errors
    /// A file failed, or the base has become shorter.
    pub(super) fn read_at(&self, mut to: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !to.is_empty() {
            let run = self.run(offset, offset.saturating_add(to.len() as u64));
            let (now, later) = to.split_at_mut(usize::try_from(run.len).unwrap_or(to.len()).min(to.len()));
            run.file.read_exact_at(now, offset)?;
            offset += now.len() as u64;
            to = later;
        }
        Ok(())
    }

    /// Writes `from` at `offset`. The caller has checked that it lies on the drive.
    ///
    /// # Errors
    /// A file failed, or the host's disk is full; the drive's content is then the old one or the new one, sector by
    /// sector, as on a disk.
    pub(super) fn write_at(&mut self, from: &[u8], offset: u64) -> io::Result<()> {
        let end = offset + from.len() as u64;
        self.bring_over(offset)?;
        self.bring_over(end)?;
        self.delta.write_all_at(from, offset)?;
        (offset / GRANULE..end.div_ceil(GRANULE)).for_each(|granule| self.mark(granule));
        Ok(())
    }

    /// Copies the granule that a write cuts at `offset` into the delta, unless it is there.
    fn bring_over(&mut self, offset: u64) -> io::Result<()> {
        let granule = offset / GRANULE;
        if offset.is_multiple_of(GRANULE) || offset >= self.len || self.is_changed(granule) {
            return Ok(());
        }
        let mut bytes = [0; GRANULE_LEN];
        let start = granule * GRANULE;
        let len = usize::try_from((self.len - start).min(GRANULE)).unwrap_or(bytes.len());
        let bytes = bytes.get_mut(..len).unwrap_or_default();
        self.base.read_exact_at(bytes, start)?;
        self.delta.write_all_at(bytes, start)?;
        self.mark(granule);
        Ok(())
    }

    fn is_changed(&self, granule: u64) -> bool {
        let word = usize::try_from(granule / 64).ok().and_then(|index| self.changed.get(index));
        word.is_some_and(|word| word & 1 << (granule % 64) != 0)
    }

    fn mark(&mut self, granule: u64) {
        let word = usize::try_from(granule / 64).ok().and_then(|index| self.changed.get_mut(index));
        if let Some(word) = word {
            *word |= 1 << (granule % 64);
        }
    }

    /// The longest stretch from `offset` on, at most to `end`, that lies in one file.
    fn run(&self, offset: u64, end: u64) -> Run<'_> {
        let first = offset / GRANULE;
        let changed = self.is_changed(first);
        let last = (first + 1..end.div_ceil(GRANULE)).find(|granule| self.is_changed(*granule) != changed);
        let until = last.map_or(end, |granule| granule * GRANULE);
        Run { file: if changed { &self.delta } else { &self.base }, len: until - offset }
    }

    /// Writes the merged content to `to`, an empty file. Zeros become holes.
    ///
    /// # Errors
    /// A file failed, or the host's disk is full.
    pub(super) fn write_to(&self, to: &File) -> io::Result<()> {
        to.set_len(self.len)?;
        let mut buffer = vec![0; STEP];
        let mut offset = 0;
        while offset < self.len {
            let run = self.run(offset, self.len);
            copy_data(run.file, to, offset, offset + run.len, &mut buffer)?;
            offset += run.len;
        }
        Ok(())
    }
}

struct Run<'a> {
    file: &'a File,
    len: u64,
}

/// Copies what is data between `start` and `end`.
fn copy_data(from: &File, to: &File, start: u64, end: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut at = start;
    while let Some((data, until)) = next_data(from, at, end)? {
        at = data;
        while at < until {
            let len = usize::try_from(until - at).unwrap_or(usize::MAX).min(buffer.len());
            let bytes = buffer.get_mut(..len).unwrap_or_default();
            from.read_exact_at(bytes, at)?;
            write_what_is_not_zero(to, bytes, at)?;
            at += len as u64;
        }
    }
    Ok(())
}

/// The next stretch of `file` between `at` and `end` that is no hole.
fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= end {
        return Ok(None);
    }
    let data = match seek(file, SeekFrom::Data(at)) {
        Ok(data) if data < end => data,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let hole = seek(file, SeekFrom::Hole(data))?;
    Ok(Some((data, hole.min(end))))
}

fn write_what_is_not_zero(to: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let blocks = || rest.chunks(GRANULE_LEN);
        let zero = blocks().next().is_some_and(is_zero);
        let len = blocks().take_while(|block| is_zero(block) == zero).map(<[u8]>::len).sum();
        if !zero {
            to.write_all_at(rest.get(..len).unwrap_or(rest), offset + at as u64)?;
        }
        at += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;

    fn overlay(content: &[u8]) -> Overlay {
        let mut base = tempfile::tempfile().unwrap();
        base.write_all(content).unwrap();
        Overlay::new(base, tempfile::tempfile().unwrap(), content.len() as u64).unwrap()
    }

    fn content(overlay: &Overlay) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(overlay.len).unwrap()];
        overlay.read_at(&mut all, 0).unwrap();
        all
    }

    #[test]
    fn a_write_is_read_back_and_the_base_stays_as_it_was() {
        let before: Vec<u8> = (0..20_000u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
        let mut overlay = overlay(&before);
        overlay.write_at(&[0xee; 512], 4096 + 512).unwrap();
        let mut expected = before.clone();
        expected[4608..5120].fill(0xee);
        assert_eq!(content(&overlay), expected);
        let mut base = vec![0; before.len()];
        overlay.base.read_exact_at(&mut base, 0).unwrap();
        assert_eq!(base, before);
    }

    #[test]
    fn the_merged_content_keeps_holes() {
        let base = tempfile::tempfile().unwrap();
        base.set_len(64 << 20).unwrap();
        base.write_all_at(b"base", 8 << 20).unwrap();
        let mut overlay = Overlay::new(base, tempfile::tempfile().unwrap(), 64 << 20).unwrap();
        overlay.write_at(&[7; 4096], 32 << 20).unwrap();
        overlay.write_at(&[0; 1 << 16], 40 << 20).unwrap();
        let merged = tempfile::tempfile().unwrap();
        overlay.write_to(&merged).unwrap();
        let metadata = merged.metadata().unwrap();
        assert_eq!(metadata.len(), 64 << 20);
        assert!(metadata.blocks() * 512 <= 64 << 10, "{} blocks", metadata.blocks());
        let mut bytes = vec![0; 64 << 20];
        merged.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == content(&overlay));
    }

    #[test]
    fn a_drive_too_long_for_its_bitmap_is_refused() {
        let files = || (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let ((a, b), (c, d)) = (files(), files());
        assert!(Overlay::new(a, b, LEN_MAX + 1).is_none());
        assert!(Overlay::new(c, d, u64::MAX).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn an_overlay_reads_like_a_file_that_was_written(
            sectors in 1u64..100,
            writes in proptest::collection::vec((0u64..100, 1u64..40, any::<u8>()), 0..20),
        ) {
            let len = usize::try_from(sectors * 512).unwrap();
            let mut expected: Vec<u8> = (0..len).map(|i| (i % 253).to_le_bytes()[0]).collect();
            let mut overlay = overlay(&expected);
            for (first, count, byte) in writes {
                let start = usize::try_from(first.min(sectors) * 512).unwrap();
                let end = usize::try_from((first + count).min(sectors) * 512).unwrap();
                if start < end {
                    expected[start..end].fill(byte);
                    overlay.write_at(&expected[start..end], start as u64).unwrap();
                }
            }
            prop_assert_eq!(content(&overlay), expected.clone());
            let merged = tempfile::tempfile().unwrap();
            overlay.write_to(&merged).unwrap();
            let mut bytes = vec![0; len];
            merged.read_exact_at(&mut bytes, 0).unwrap();
            prop_assert_eq!(bytes, expected);
        }
    }
}
