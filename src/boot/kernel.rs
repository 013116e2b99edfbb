//! A Linux kernel file: bzImage or ELF.

use crate::memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, layout};

use super::bzimage::{BzImage, BzImageError};
use super::elf::{Elf, ElfError};
use super::low;
use super::unpack::{UnpackError, unpack};

/// Why a kernel is refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Neither format.
    #[error("The file is no kernel for x86-64: it is neither a bzImage nor an ELF file")]
    Format,
    /// A damaged or unsuitable bzImage.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
    /// A damaged or unsuitable ELF file.
    #[error("The kernel is no usable ELF file")]
    Elf(#[from] ElfError),
    /// Longer than any kernel.
    #[error("The kernel is {len} bytes long; at most {KERNEL_MAX} are accepted")]
    TooLarge {
        /// Length of the file.
        len: usize,
    },
    /// A kernel that would overwrite boot's own tables, or lies where there is no memory.
    #[error("The kernel occupies {start:#x} to {end:#x}; it must lie between 1 MiB and 3 GiB")]
    Place {
        /// Lowest physical address.
        start: u64,
        /// First address behind it.
        end: u64,
    },
    /// The payload of a bzImage.
    #[error("Cannot unpack the kernel inside the bzImage")]
    Unpack(#[from] UnpackError),
}

/// Longest kernel, packed or unpacked, bytes. A Debian kernel unpacks to 58 MB.
const KERNEL_MAX: usize = 256 << 20;
/// Linux distributions' kernels do not boot with less: page structures, per-CPU areas and decompression take their part.
const MEMORY_FLOOR: u64 = 128 << 20;
/// What a kernel needs besides its image and the initramfs before user space runs.
const MEMORY_WORKING: u64 = 32 << 20;
/// A minimum is told to be given: memory comes in steps of so many bytes.
const MEMORY_STEP: u64 = 2 << 20;
/// How every Linux kernel introduces itself.
const BANNER: &[u8] = b"Linux version ";
/// Longest release name that Linux can have (`struct utsname`).
const RELEASE_MAX: usize = 64;

/// A kernel that was parsed and checked; its numbers can be relied on.
#[derive(Debug, Clone)]
pub struct Kernel {
    bytes: Vec<u8>,
    image: Image,
}

#[derive(Debug, Clone)]
enum Image {
    BzImage(Box<BzImage>),
    Elf(Elf),
}

impl Kernel {
    /// Parses a kernel file.
    ///
    /// # Errors
    /// It is damaged or no x86-64 kernel.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Kernel, KernelError> {
        if bytes.len() > KERNEL_MAX {
            return Err(KernelError::TooLarge { len: bytes.len() });
        }
        let image = if BzImage::is_one(&bytes) {
            Image::BzImage(Box::new(BzImage::parse(&bytes)?))
        } else {
            match Elf::parse(&bytes) {
                Err(ElfError::NotElf) => return Err(KernelError::Format),
                elf => Image::Elf(elf?),
            }
        };
        let kernel = Kernel { bytes, image };
        let (start, end) = (kernel.start(), kernel.end());
        if start < low::KERNEL_MIN || end > layout::MMIO_GAP_START {
            return Err(KernelError::Place { start, end });
        }
        Ok(kernel)
    }

    /// The ELF kernel inside a bzImage; an ELF kernel as it is. A guest that unpacks its own kernel needs a second for it.
    ///
    /// # Errors
    /// The payload is damaged, in an unknown compression, or no kernel.
    pub fn unpack(self) -> Result<Kernel, KernelError> {
        match &self.image {
            Image::Elf(_) => Ok(self),
            Image::BzImage(image) => {
                let packed = self.bytes.get(image.payload.clone()).unwrap_or_default();
                Kernel::from_bytes(unpack(packed, KERNEL_MAX as u64)?)
            }
        }
    }

    /// The file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The kernel's release, "6.12.1-cloud-amd64", which names its modules; searches an ELF file from its start.
    pub fn release(&self) -> Option<&str> {
        let name = match &self.image {
            Image::BzImage(image) => self.bytes.get(image.version.clone()?)?,
            Image::Elf(_) => banner(&self.bytes)?,
        };
        let name = name.split(|byte| *byte == b' ').next()?;
        let printable = |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic());
        std::str::from_utf8(name).ok().filter(printable).filter(|name| name.len() <= RELEASE_MAX)
    }

    /// Guest memory without which the kernel cannot reach user space, bytes, given the length of its initramfs: the
    /// image where it lies, the initramfs packed and unpacked, and room to work; not less than 128 MiB.
    pub fn minimum_memory(&self, initramfs_len: u64) -> u64 {
        let need = self.end().saturating_add(initramfs_len.saturating_mul(2)).saturating_add(MEMORY_WORKING);
        need.checked_next_multiple_of(MEMORY_STEP).unwrap_or(u64::MAX).max(MEMORY_FLOOR)
    }

    /// Lowest guest physical address it occupies.
    pub(super) fn start(&self) -> u64 {
        match &self.image {
            Image::BzImage(image) => image.start(),
            Image::Elf(elf) => elf.start(),
        }
    }

    /// First guest physical address that is free behind it.
    pub(super) fn end(&self) -> u64 {
        match &self.image {
            Image::BzImage(image) => image.start() + image.memory_len(),
            Image::Elf(elf) => elf.end(),
        }
    }

    /// Guest physical address of its 64-bit entry.
    pub(super) fn entry(&self) -> u64 {
        match &self.image {
            Image::BzImage(image) => image.entry(),
            Image::Elf(elf) => elf.entry,
        }
    }

    /// A bzImage's own setup header.
    pub(super) fn bzimage(&self) -> Option<&BzImage> {
        match &self.image {
            Image::BzImage(image) => Some(image),
            Image::Elf(_) => None,
        }
    }

    /// Writes the kernel to where it belongs in fresh, zeroed memory.
    ///
    /// # Errors
    /// Guest memory ends before the kernel does.
    pub(super) fn place(&self, memory: &GuestMemory) -> Result<(), GuestMemoryError> {
        match &self.image {
            Image::BzImage(image) => place(memory, image.start(), self.bytes.get(image.code.clone())),
            Image::Elf(elf) => place_segments(memory, elf, &self.bytes),
        }
    }
}

/// Writes the segments of `elf`, parsed from `bytes`, into fresh, zeroed memory.
///
/// # Errors
/// Guest memory ends before a segment does.
pub(super) fn place_segments(memory: &GuestMemory, elf: &Elf, bytes: &[u8]) -> Result<(), GuestMemoryError> {
    elf.segments.iter().try_for_each(|s| place(memory, s.address, bytes.get(s.file.clone())))
}

/// Leaves pages alone that are zero already: a kernel file holds megabytes of empty .bss and padding, and every page
/// that is touched costs a fault and a place in the snapshot.
fn place(memory: &GuestMemory, address: u64, content: Option<&[u8]>) -> Result<(), GuestMemoryError> {
    const PAGE: usize = 4096;
    for (at, page) in (address..).step_by(PAGE).zip(content.unwrap_or_default().chunks(PAGE)) {
        if page.iter().any(|byte| *byte != 0) {
            memory.write_slice(page, GuestAddress(at))?;
        }
    }
    Ok(())
}

/// What follows the first "Linux version " that a digit follows.
fn banner(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes;
    loop {
        let at = rest.iter().position(|byte| *byte == b'L')?;
        rest = &rest[at..];
        match rest.strip_prefix(BANNER) {
            Some(name @ [b'0'..=b'9', ..]) => return Some(&name[..name.len().min(RELEASE_MAX + 1)]),
            _ => rest = &rest[1..],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{bzimage, elf};
    use super::*;

    fn vmlinux() -> Vec<u8> {
        elf::tests::file(0x100_0000, b"Linux version %s Linux version 6.12.1-test (x)", 0x1000)
    }

    #[test]
    fn a_bzimage_is_unpacked_to_its_elf_kernel() {
        let packed = zstd::encode_all(vmlinux().as_slice(), 1).unwrap();
        let kernel = Kernel::from_bytes(bzimage::tests::file(&packed)).unwrap();
        assert_eq!(kernel.release(), Some("6.12.1-test"));
        assert_eq!((kernel.entry(), kernel.end()), (0x100_0200, 0x140_0000));
        let kernel = kernel.unpack().unwrap();
        assert_eq!(kernel.bytes(), vmlinux());
        assert_eq!(kernel.release(), Some("6.12.1-test"));
        assert_eq!((kernel.entry(), kernel.end()), (0x100_0000, 0x100_1000));
    }

    #[test]
    fn a_payload_that_is_no_kernel_is_refused() {
        let kernel = |payload: &[u8]| Kernel::from_bytes(bzimage::tests::file(payload)).unwrap().unpack();
        assert!(matches!(kernel(b"garbage"), Err(KernelError::Unpack(UnpackError::Unknown))));
        let packed = zstd::encode_all(b"text".as_slice(), 1).unwrap();
        assert!(matches!(kernel(&packed), Err(KernelError::Format)));
    }

    #[test]
    fn other_files_and_wrong_addresses_are_refused() {
        assert!(matches!(Kernel::from_bytes(b"#!/bin/sh".to_vec()), Err(KernelError::Format)));
        assert!(matches!(Kernel::from_bytes(Vec::new()), Err(KernelError::Format)));
        for (address, len) in [(0x9000, 4), (0xbfff_f000, 0x1001), (1 << 40, 4)] {
            let kernel = Kernel::from_bytes(elf::tests::file(address, b"code", len));
            assert!(matches!(kernel, Err(KernelError::Place { start, .. }) if start == address));
        }
    }

    #[test]
    fn the_minimum_grows_with_kernel_and_initramfs() {
        let kernel = Kernel::from_bytes(vmlinux()).unwrap();
        assert_eq!(kernel.minimum_memory(0), 128 << 20);
        assert_eq!(kernel.minimum_memory(100 << 20), (18 + 200 + 32) << 20);
        assert_eq!(kernel.minimum_memory(u64::MAX), u64::MAX);
    }

    #[test]
    fn empty_pages_are_not_touched() {
        let mut content = vec![0u8; 3 * 4096];
        content[2 * 4096] = 7;
        let kernel = Kernel::from_bytes(elf::tests::file(0x10_0000, &content, 0x4000)).unwrap();
        let memory = crate::memory::anonymous(2 << 20).unwrap();
        memory.write_obj(9u8, GuestAddress(0x10_0000)).unwrap();
        kernel.place(&memory).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x10_0000)).unwrap(), 9);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x10_2000)).unwrap(), 7);
    }
}
