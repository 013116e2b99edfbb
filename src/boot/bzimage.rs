//! The bzImage container: setup header and compressed payload (Documentation/arch/x86/boot.rst).

use std::ops::Range;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

/// Why a bzImage is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BzImageError {
    /// No setup header where there must be one.
    #[error("The file has no Linux setup header")]
    NotBzImage,
    /// Shorter than its own header says.
    #[error("The bzImage is cut off: its {what} lies outside the file")]
    Truncated {
        /// What is cut off.
        what: &'static str,
    },
    /// A kernel without a 64-bit entry.
    #[error(
        "The bzImage has no 64-bit entry point (boot protocol {version:#x}); an x86-64 kernel of version 3.8 or later is needed"
    )]
    No64BitEntry {
        /// Boot protocol, major << 8 | minor.
        version: u16,
    },
    /// A place in memory that cannot be.
    #[error(
        "The bzImage asks to be loaded at {address:#x} with {len:#x} bytes, which is not between 1 MiB and 3 GiB"
    )]
    Place {
        /// Preferred address.
        address: u64,
        /// Memory it needs there.
        len: u64,
    },
}

/// Where the setup header lies in the file and in the boot parameters.
const HEADER_OFFSET: usize = 0x1f1;
/// "HdrS", little-endian.
const HEADER_MAGIC: u32 = 0x5372_6448;
const SECTOR: usize = 512;
/// What 0 sectors of setup code mean.
const SETUP_SECTORS_DEFAULT: usize = 4;
/// Boot protocol 2.12 brought `xloadflags`.
const VERSION_XLOADFLAGS: u16 = 0x20c;
/// Bit of `xloadflags`: the 64-bit entry point lies 0x200 bytes behind the start of the protected-mode code.
const XLF_KERNEL_64: u16 = 1;
/// Where that entry is.
const ENTRY_64: u16 = 0x200;
/// `kernel_version` counts from here.
const VERSION_BASE: usize = 0x200;

/// A bzImage whose numbers have been checked against the file.
#[derive(Debug, Clone)]
pub struct BzImage {
    /// As in the file.
    pub header: setup_header,
    /// What is loaded, inside the file.
    pub code: Range<usize>,
    /// The compressed ELF file, inside the file.
    pub payload: Range<usize>,
    /// The kernel's name, inside the file: "6.12.1-amd64 (builder) ...".
    pub version: Option<Range<usize>>,
}

impl BzImage {
    /// True when `bytes` hold a setup header, intact or not.
    pub fn is_one(bytes: &[u8]) -> bool {
        let magic = HEADER_OFFSET + std::mem::offset_of!(setup_header, header);
        bytes.get(magic..magic + 4) == Some(&HEADER_MAGIC.to_le_bytes())
    }

    /// Reads the setup header and checks what it says.
    ///
    /// # Errors
    /// See [`BzImageError`].
    pub fn parse(bytes: &[u8]) -> Result<BzImage, BzImageError> {
        if !Self::is_one(bytes) {
            return Err(BzImageError::NotBzImage);
        }
        let header = header(bytes).ok_or(BzImageError::Truncated { what: "setup header" })?;
        let version = header.version;
        if version < VERSION_XLOADFLAGS || header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(BzImageError::No64BitEntry { version });
        }
        let code = code(bytes, &header).ok_or(BzImageError::Truncated { what: "code" })?;
        let payload = payload(&code, &header).ok_or(BzImageError::Truncated { what: "compressed kernel" })?;
        let image = BzImage { version: name(bytes, &header), header, code, payload };
        let (address, len) = (image.start(), image.memory_len());
        let above = address.checked_add(len).is_some_and(|end| end <= crate::memory::layout::MMIO_GAP_START);
        if address < super::low::KERNEL_MIN || !above {
            return Err(BzImageError::Place { address, len });
        }
        Ok(image)
    }

    /// Guest physical address where the kernel prefers to be.
    pub fn start(&self) -> u64 {
        self.header.pref_address
    }

    /// Bytes it needs from there: to unpack itself, and for what it sets up before it knows the memory map.
    pub fn memory_len(&self) -> u64 {
        u64::from(self.header.init_size).max(self.code.len() as u64)
    }

    /// Guest physical address of the 64-bit entry.
    pub fn entry(&self) -> u64 {
        self.start() + u64::from(ENTRY_64)
    }
}

fn header(bytes: &[u8]) -> Option<setup_header> {
    let mut header = setup_header::default();
    let from = bytes.get(HEADER_OFFSET..HEADER_OFFSET + size_of::<setup_header>())?;
    header.as_mut_slice().copy_from_slice(from);
    Some(header)
}

fn code(bytes: &[u8], header: &setup_header) -> Option<Range<usize>> {
    let sectors = match usize::from(header.setup_sects) {
        0 => SETUP_SECTORS_DEFAULT,
        sectors => sectors,
    };
    let start = (sectors + 1) * SECTOR;
    // The entry must be part of it.
    (bytes.len() > start + usize::from(ENTRY_64)).then_some(start..bytes.len())
}

/// `payload_offset` counts from the start of the protected-mode code.
fn payload(code: &Range<usize>, header: &setup_header) -> Option<Range<usize>> {
    let start = code.start.checked_add(header.payload_offset as usize)?;
    let end = start.checked_add(header.payload_length as usize)?;
    (end <= code.end).then_some(start..end)
}

fn name(bytes: &[u8], header: &setup_header) -> Option<Range<usize>> {
    let start = VERSION_BASE + usize::from(header.kernel_version);
    let len = bytes.get(start..)?.iter().take(256).position(|byte| *byte == 0)?;
    (header.kernel_version != 0).then_some(start..start + len)
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A bzImage that holds `payload`, as Linux builds them.
    pub fn file(payload: &[u8]) -> Vec<u8> {
        let mut header = setup_header {
            setup_sects: 1,
            header: HEADER_MAGIC,
            version: 0x20f,
            kernel_version: 0x100,
            xloadflags: 0x7f,
            initrd_addr_max: 0x7fff_ffff,
            kernel_alignment: 0x20_0000,
            cmdline_size: 2047,
            payload_offset: 0x400,
            payload_length: u32::try_from(payload.len()).unwrap(),
            pref_address: 0x100_0000,
            init_size: 0x40_0000,
            ..Default::default()
        };
        let mut bytes = vec![0; 0x400];
        bytes[HEADER_OFFSET..HEADER_OFFSET + size_of::<setup_header>()]
            .copy_from_slice(header.as_mut_slice());
        bytes[0x300..0x312].copy_from_slice(b"6.12.1-test (x) y\0");
        bytes.resize(0x800, 0x90);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn code_payload_and_name_are_found() {
        let bytes = file(b"packed");
        let image = BzImage::parse(&bytes).unwrap();
        assert_eq!(&bytes[image.payload.clone()], b"packed");
        assert_eq!(image.code, 0x400..bytes.len());
        assert_eq!(&bytes[image.version.clone().unwrap()], b"6.12.1-test (x) y");
        assert_eq!((image.start(), image.entry(), image.memory_len()), (0x100_0000, 0x100_0200, 0x40_0000));
    }

    #[test]
    fn a_file_cut_off_anywhere_is_refused() {
        let whole = file(b"packed");
        for len in 0..whole.len() {
            assert!(BzImage::parse(&whole[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_kernel_without_a_64_bit_entry_is_refused() {
        let mut bytes = file(b"packed");
        bytes[0x236] = 0x7e;
        assert_eq!(BzImage::parse(&bytes).unwrap_err(), BzImageError::No64BitEntry { version: 0x20f });
    }

    #[test]
    fn a_kernel_may_not_ask_for_low_memory_or_the_hole() {
        for address in [0u64, 0xf_ffff, 0xbfff_0000, u64::MAX] {
            let mut bytes = file(b"packed");
            bytes[0x258..0x260].copy_from_slice(&address.to_le_bytes());
            assert_eq!(BzImage::parse(&bytes).unwrap_err(), BzImageError::Place { address, len: 0x40_0000 });
        }
    }

    proptest! {
        #[test]
        fn damaged_headers_never_panic(damage in proptest::collection::vec((0x1f1usize..0x26c, any::<u8>()), 1..8)) {
            let mut bytes = file(b"packed");
            for (at, value) in damage {
                bytes[at] = value;
            }
            if let Ok(image) = BzImage::parse(&bytes) {
                prop_assert!(image.code.end <= bytes.len() && image.payload.end <= bytes.len());
            }
        }
    }
}
