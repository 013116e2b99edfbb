//! The manifest's text. It ends with its own checksum, so that one file needs no second one to be checked.

use serde::Deserialize;

use super::{Manifest, ManifestError};
use crate::crc::crc64;
use crate::state::FormatVersion;

/// Longest `manifest.json`, bytes.
pub const MANIFEST_MAX: usize = 1 << 20;
/// What stands before the checksum. The checksum covers every byte up to and with this.
const MEMBER: &[u8] = b",\n  \"crc64\": \"";
/// What stands behind the checksum, and ends the file.
const TAIL: &[u8] = b"\"\n}\n";
/// Hexadecimal digits of the checksum.
const DIGITS: usize = 16;

/// A manifest whose text is whole; what it says may still be nonsense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed(Manifest);

impl Parsed {
    /// Checks the text's checksum and reads it.
    ///
    /// # Errors
    /// Too long, damaged, not JSON, or with members that this release does not know.
    pub fn from_json(text: &[u8]) -> Result<Parsed, ManifestError> {
        if text.len() > MANIFEST_MAX {
            return Err(ManifestError::TooLong { len: text.len() });
        }
        let members = unseal(text)?;
        // The checksum is no member of the structure.
        let object = [members, b"}"].concat();
        match serde_json::from_slice(&object) {
            Ok(manifest) => Ok(Parsed(manifest)),
            Err(error) => Err(newer(&object).unwrap_or_else(|| ManifestError::json(&error))),
        }
    }

    /// The manifest, once everything it says has been found possible.
    ///
    /// # Errors
    /// See [`Manifest::check`].
    pub fn trust(self) -> Result<Manifest, ManifestError> {
        self.0.check()?;
        Ok(self.0)
    }
}

impl Manifest {
    /// Reads a whole `manifest.json` and checks everything it says.
    ///
    /// # Errors
    /// The text is damaged or too long, of a format that this release does not read, or says impossible things.
    pub fn from_json(text: &[u8]) -> Result<Manifest, ManifestError> {
        Parsed::from_json(text)?.trust()
    }

    /// The whole `manifest.json`.
    ///
    /// # Errors
    /// The manifest says impossible things, or is too long.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let text = serde_json::to_string_pretty(self).map_err(|error| ManifestError::json(&error))?;
        // Our own text: an object that is not empty ends so.
        let members = text.strip_suffix("\n}").unwrap_or(&text);
        let text = seal(members.as_bytes());
        if text.len() > MANIFEST_MAX {
            return Err(ManifestError::TooLong { len: text.len() });
        }
        Ok(text)
    }
}

/// `{ ... ` with the checksum as last member.
fn seal(members: &[u8]) -> Vec<u8> {
    let mut text = [members, MEMBER].concat();
    let digits = digits(&text);
    text.extend_from_slice(digits.as_bytes());
    text.extend_from_slice(TAIL);
    text
}

/// What `seal` was given.
fn unseal(text: &[u8]) -> Result<&[u8], ManifestError> {
    let sealed = text.strip_suffix(TAIL).ok_or(ManifestError::Unsealed)?;
    let (covered, found) = sealed.split_last_chunk::<DIGITS>().ok_or(ManifestError::Unsealed)?;
    let members = covered.strip_suffix(MEMBER).ok_or(ManifestError::Unsealed)?;
    if digits(covered).as_bytes() != found {
        return Err(ManifestError::Checksum);
    }
    Ok(members)
}

/// Lower case: the text is compared, so that no second spelling of the same number passes.
fn digits(covered: &[u8]) -> String {
    format!("{:016x}", crc64(covered))
}

/// The members that every format of every major has.
#[derive(Deserialize)]
struct Beginning {
    format: String,
    creator: String,
}

/// The better error for a manifest that cannot be read because a newer release wrote it.
fn newer(object: &[u8]) -> Option<ManifestError> {
    let Beginning { format, creator } = serde_json::from_slice(object).ok()?;
    let version: FormatVersion = format.parse().ok()?;
    (!FormatVersion::readable().contains(&version))
        .then(|| ManifestError::Version { version, creator: super::brief(&creator) })
}

/// Replaces the checksum of a spoilt text, or appends one, so that fuzzing reaches what it hides.
pub(crate) fn reseal(text: &mut Vec<u8>) {
    let end = text.windows(MEMBER.len()).rposition(|window| window == MEMBER).unwrap_or(text.len());
    *text = seal(&text[..end]);
}
