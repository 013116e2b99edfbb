//! Bounded decompression of kernels and modules.

use std::io::{self, Read};

use super::lz4;

/// Why something could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It begins like nothing we know.
    #[error("The compression is none of gzip, xz, zstd and lz4")]
    Unknown,
    /// It is damaged or cut off.
    #[error("The compressed data is damaged")]
    Damaged(#[source] io::Error),
    /// It is longer than anything sensible.
    #[error("The unpacked data is longer than {limit} bytes")]
    TooLarge {
        /// What is accepted.
        limit: u64,
    },
}

/// A compression, told by how the data begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    Xz,
    Zstd,
    Lz4,
}

/// zstd frames may ask for a window of up to 2 to the power of this; `zstd --ultra -22`, which packs kernels, uses 27.
const ZSTD_WINDOW_LOG: u32 = 27;

fn detect(packed: &[u8]) -> Option<Compression> {
    match packed {
        [0x1f, 0x8b, ..] => Some(Compression::Gzip),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compression::Xz),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
        _ if packed.starts_with(&lz4::MAGIC) => Some(Compression::Lz4),
        _ => None,
    }
}

/// Unpacks the one stream at the start of `packed`; bytes behind it are ignored.
///
/// # Errors
/// The compression is unknown, the data is damaged, or the result is longer than `limit` bytes.
pub fn unpack(packed: &[u8], limit: u64) -> Result<Vec<u8>, UnpackError> {
    match detect(packed).ok_or(UnpackError::Unknown)? {
        Compression::Gzip => read(flate2::bufread::GzDecoder::new(packed), limit),
        Compression::Xz => read(lzma_rust2::XzReader::new(packed, false), limit),
        Compression::Zstd => read(zstd_reader(packed).map_err(UnpackError::Damaged)?, limit),
        Compression::Lz4 => lz4::unpack(packed, limit),
    }
}

fn zstd_reader(packed: &[u8]) -> io::Result<impl Read + '_> {
    let mut decoder = zstd::Decoder::with_buffer(packed)?.single_frame();
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(decoder)
}

fn read(mut from: impl Read, limit: u64) -> Result<Vec<u8>, UnpackError> {
    let mut unpacked = Vec::new();
    from.by_ref().take(limit).read_to_end(&mut unpacked).map_err(UnpackError::Damaged)?;
    let more = from.read(&mut [0]).map_err(UnpackError::Damaged)?;
    if more != 0 { Err(UnpackError::TooLarge { limit }) } else { Ok(unpacked) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn bytes_behind_the_stream_are_ignored() {
        for packed in [gzip(b"kernel"), zstd::encode_all(b"kernel".as_slice(), 1).unwrap()] {
            let packed = [packed, b"\x06\0\0\0".to_vec()].concat();
            assert_eq!(unpack(&packed, 100).unwrap(), b"kernel");
        }
    }

    #[test]
    fn a_small_file_cannot_fill_the_memory() {
        let packed = gzip(&vec![0; 1 << 20]);
        assert!(matches!(unpack(&packed, 1 << 16), Err(UnpackError::TooLarge { .. })));
        assert_eq!(unpack(&packed, 1 << 20).unwrap().len(), 1 << 20);
    }

    #[test]
    fn damage_and_strangers_are_told_apart() {
        let packed = zstd::encode_all(b"kernel".as_slice(), 1).unwrap();
        assert!(matches!(unpack(&packed[..packed.len() - 2], 100), Err(UnpackError::Damaged(_))));
        assert!(matches!(unpack(b"BZh9", 100), Err(UnpackError::Unknown)));
        assert!(matches!(unpack(b"", 100), Err(UnpackError::Unknown)));
    }
}
