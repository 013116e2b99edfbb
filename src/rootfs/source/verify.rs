//! Reads that are counted, bounded and hashed on the way.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::document::Digest;

/// Passes bytes on and remembers their number and digest.
pub struct Verifier<R> {
    from: R,
    hash: Sha256,
    count: u64,
    limit: u64,
}

/// What a stream turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Bytes.
    pub len: u64,
    /// sha256, lower-case hexadecimal.
    pub hex: String,
}

impl<R: Read> Verifier<R> {
    /// Fails once more than `limit` bytes were read.
    pub fn new(from: R, limit: u64) -> Self {
        Verifier { from, hash: Sha256::new(), count: 0, limit }
    }

    /// Reads to the end and tells what went through.
    ///
    /// # Errors
    /// Reading failed, or there is more than the limit.
    pub fn finish(mut self) -> io::Result<Summary> {
        io::copy(&mut self, &mut io::sink())?;
        let hex = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Summary { len: self.count, hex })
    }
}

impl<R: Read> Read for Verifier<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(to)?;
        self.count += count as u64;
        if self.count > self.limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "It is longer than it may be"));
        }
        self.hash.update(&to[..count]);
        Ok(count)
    }
}

impl Summary {
    /// What of it is not as expected.
    pub fn differs(&self, len: Option<u64>, digest: Option<&Digest>) -> Option<&'static str> {
        if len.is_some_and(|len| len != self.len) {
            return Some("length");
        }
        digest.filter(|digest| digest.hex() != self.hex).map(|_| "digest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_and_digest_are_compared() {
        let summary = Verifier::new(b"abc".as_slice(), 3).finish().unwrap();
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(summary, Summary { len: 3, hex: hex.into() });
        let digest = Digest::parse(&format!("sha256:{hex}")).unwrap();
        assert_eq!(summary.differs(Some(3), Some(&digest)), None);
        assert_eq!(summary.differs(Some(4), Some(&digest)), Some("length"));
        let other = Digest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap();
        assert_eq!(summary.differs(None, Some(&other)), Some("digest"));
    }

    #[test]
    fn too_much_is_an_error_not_a_loop() {
        assert!(Verifier::new(io::repeat(0), 1 << 20).finish().is_err());
    }
}
