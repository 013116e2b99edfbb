//! Sizes and durations as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

/// A text that is no size or no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: write it as {example}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

/// A number of bytes: `268435456`, `256MiB`, `2GiB` (binary units only).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const UNITS: [(&str, u64); 6] = [
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("K", 1 << 10),
            ("M", 1 << 20),
            ("G", 1 << 30),
        ];
        let unit = UNITS.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)));
        let (digits, factor) = unit.unwrap_or((text, 1));
        number(digits)
            .and_then(|count| count.checked_mul(factor))
            .map(Size)
            .ok_or_else(|| error(text, "size", "256MiB or 2GiB"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match UNITS.iter().find(|(_, factor)| self.0 >= *factor) {
            Some((unit, factor)) if self.0.is_multiple_of(*factor) => write!(f, "{} {unit}", self.0 / factor),
            Some((unit, factor)) => {
                write!(f, "{}.{} {unit}", self.0 / factor, self.0 % factor * 10 / factor)
            }
            None => write!(f, "{} bytes", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Bytes a second, and how many may come at once after a rest: `20MiB`, `20MiB/s:64MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes a second, at least 1.
    pub bytes_per_second: u64,
    /// Bytes at once; what comes in a second when nothing else was said.
    pub burst: u64,
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let parse = || {
            let (rate, burst) =
                text.split_once(':').map_or((text, None), |(rate, burst)| (rate, Some(burst)));
            let rate = rate.strip_suffix("/s").unwrap_or(rate).parse::<Size>().ok()?.0;
            let burst = burst.map_or(Some(rate), |burst| Some(burst.parse::<Size>().ok()?.0))?;
            (rate > 0 && burst > 0).then_some(Rate { bytes_per_second: rate, burst })
        };
        parse().ok_or_else(|| error(text, "rate", "20MiB/s or 20MiB/s:64MiB"))
    }
}

/// A length of time: `500ms`, `30s`, `2m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const UNITS: [(&str, u64); 3] = [("ms", 1), ("s", 1000), ("m", 60_000)];
        UNITS
            .iter()
            .find_map(|(suffix, factor)| number(text.strip_suffix(suffix)?)?.checked_mul(*factor))
            .filter(|milliseconds| *milliseconds > 0)
            .map(|milliseconds| Span(Duration::from_millis(milliseconds)))
            .ok_or_else(|| error(text, "length of time", "500ms, 30s or 2m"))
    }
}

impl Span {
    /// Whole milliseconds.
    pub fn milliseconds(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Digits only: no sign, no blanks.
fn number(digits: &str) -> Option<u64> {
    let digits = digits.trim_end();
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

fn error(text: &str, what: &'static str, example: &'static str) -> UnitError {
    UnitError { text: text.chars().take(32).collect(), what, example }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_units() {
        assert_eq!("256MiB".parse(), Ok(Size(256 << 20)));
        assert_eq!("2 GiB".parse(), Ok(Size(2 << 30)));
        assert_eq!("4096".parse(), Ok(Size(4096)));
        for text in ["", "MiB", "-1", "+1", "1.5GiB", "1TB", "99999999999999GiB", "256 mib"] {
            assert!(text.parse::<Size>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn sizes_are_printed_as_they_are_read() {
        assert_eq!(Size(256 << 20).to_string(), "256 MiB");
        assert_eq!(Size(1536 << 20).to_string(), "1.5 GiB");
        assert_eq!(Size(100).to_string(), "100 bytes");
    }

    #[test]
    fn rates_have_a_burst_of_their_own_or_of_a_second() {
        let rate = |bytes_per_second, burst| Ok(Rate { bytes_per_second, burst });
        assert_eq!("20MiB/s".parse(), rate(20 << 20, 20 << 20));
        assert_eq!("4096".parse(), rate(4096, 4096));
        assert_eq!("1MiB/s:64MiB".parse(), rate(1 << 20, 64 << 20));
        for text in ["", "0", "1MiB:0", "1MiB:", ":1MiB", "1MiB/m", "-1", "1:2:3", "1MiB:1/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn spans_need_a_unit_and_are_not_zero() {
        assert_eq!("30s".parse(), Ok(Span(Duration::from_secs(30))));
        assert_eq!("500ms".parse::<Span>().map(Span::milliseconds), Ok(500));
        assert_eq!("2m".parse(), Ok(Span(Duration::from_secs(120))));
        for text in ["30", "0s", "s", "1h", "-1s", ""] {
            assert!(text.parse::<Span>().is_err(), "{text:?}");
        }
    }
}
