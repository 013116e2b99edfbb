//! PAX extended headers (POSIX.1-2017, pax, "pax Extended Header").
//!
//! Parsed here because values are binary: a file capability may hold the newline that others split records at.

/// Splits a header into its records, `LENGTH KEY=VALUE\n` each; `None` when it is damaged.
pub fn records(mut bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
        let len: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let (record, rest) = bytes.split_at_checked(len)?;
        let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = body.iter().position(|byte| *byte == b'=')?;
        found.push((&body[..equals], &body[equals + 1..]));
        bytes = rest;
    }
    Some(found)
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record with its length in front, which counts itself.
    pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut len = body + 1;
        while len != body + len.to_string().len() {
            len = body + len.to_string().len();
        }
        [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn binary_values_are_kept_whole() {
        let bytes =
            [record("path", b"a"), record("SCHILY.xattr.security.capability", b"\x01\n=\0\n")].concat();
        let expected: Vec<(&[u8], &[u8])> =
            vec![(b"path", b"a"), (b"SCHILY.xattr.security.capability", b"\x01\n=\0\n")];
        assert_eq!(records(&bytes), Some(expected));
    }

    #[test]
    fn damaged_records_are_refused() {
        for bytes in ["5 a=b", "6 a=b", "x a=b\n", "3 a=b\n", "0 a=b\n", "99 a=b\n", "5 ab\n"] {
            assert_eq!(records(bytes.as_bytes()), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            records(&bytes);
        }

        #[test]
        fn records_read_back(key in "[a-z.]{1,120}", value in proptest::collection::vec(any::<u8>(), 0..120)) {
            let bytes = record(&key, &value);
            prop_assert_eq!(records(&bytes), Some(vec![(key.as_bytes(), value.as_slice())]));
        }
    }
}
