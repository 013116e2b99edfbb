//! Versions of the bundle's files.

use std::fmt;
use std::str::FromStr;

/// Version of the format, apart from the program's version: every release reads every minor of its own major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FormatVersion {
    pub major: u16,
    pub minor: u16,
}

/// The first format.
pub const V1_0: FormatVersion = FormatVersion { major: 1, minor: 0 };
/// Adds the wall clock at the freeze (`VmState::frozen_at_unix_ns`).
pub const V1_1: FormatVersion = FormatVersion { major: 1, minor: 1 };
/// What this release writes unless it is asked for an older one.
pub const CURRENT: FormatVersion = FormatVersion::V1_1;

/// Every version this release reads, oldest first. Position plus one is the version's root in versionize's map.
const READABLE: [FormatVersion; 2] = [V1_0, V1_1];

impl FormatVersion {
    pub const V1_0: FormatVersion = V1_0;
    pub const V1_1: FormatVersion = V1_1;
    pub const CURRENT: FormatVersion = V1_1;

    /// Every version this release reads and can write, oldest first.
    pub fn readable() -> &'static [FormatVersion] {
        &READABLE
    }

    /// The version's root in versionize's map, `None` for a version this release does not read.
    pub(crate) fn root(self) -> Option<u16> {
        let position = READABLE.iter().position(|known| *known == self)?;
        u16::try_from(position + 1).ok()
    }

    /// `1.0 to 1.1`, for messages.
    pub(crate) fn readable_range() -> String {
        format!("{} to {}", READABLE[0], READABLE[READABLE.len() - 1])
    }
}

impl fmt::Display for FormatVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A text that is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a format version: write it as major.minor, for example 1.1")]
pub struct ParseVersionError {
    pub text: String,
}

impl FromStr for FormatVersion {
    type Err = ParseVersionError;

    fn from_str(text: &str) -> Result<Self, ParseVersionError> {
        let error = || ParseVersionError { text: text.chars().take(32).collect() };
        let (major, minor) = text.split_once('.').ok_or_else(error)?;
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten().ok_or_else(error)
        };
        Ok(FormatVersion { major: number(major)?, minor: number(minor)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_reads_back_what_it_prints() {
        for version in FormatVersion::readable() {
            assert_eq!(version.to_string().parse(), Ok(*version));
        }
    }

    #[test]
    fn texts_that_are_no_version_are_refused() {
        for text in ["", "1", "1.", ".1", "1.1.1", "+1.0", "1.-1", "a.b", "65536.0", " 1.0"] {
            assert!(text.parse::<FormatVersion>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn readable_versions_ascend_and_end_with_the_current_one() {
        assert!(READABLE.is_sorted());
        assert_eq!(READABLE.last(), Some(&CURRENT));
    }

    #[test]
    fn roots_count_from_one_and_unknown_versions_have_none() {
        assert_eq!(V1_0.root(), Some(1));
        assert_eq!(V1_1.root(), Some(2));
        assert_eq!(FormatVersion { major: 1, minor: 2 }.root(), None);
    }
}
