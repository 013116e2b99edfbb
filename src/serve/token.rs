//! The word that lets a request in that comes by TCP, where nothing else tells who asks.

use std::fmt;

/// Shortest and longest word, bytes.
const LENGTHS: std::ops::RangeInclusive<usize> = 16..=1024;

/// A secret word.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It stays out of every log.
        f.write_str("Token")
    }
}

impl Token {
    /// Of 16 to 1024 visible characters of ASCII.
    pub fn new(word: &str) -> Option<Self> {
        let is_word = LENGTHS.contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_graphic());
        is_word.then(|| Token(word.to_owned()))
    }

    /// Whether this is the value of an `Authorization` header (RFC 6750) with this word.
    pub fn is_in(&self, header: Option<&str>) -> bool {
        let Some((scheme, word)) = header.and_then(|value| value.split_once(' ')) else { return false };
        scheme.eq_ignore_ascii_case("bearer") && same(self.0.as_bytes(), word.trim().as_bytes())
    }
}

/// Takes as long whichever byte differs: the time of a refusal must not tell how much of a guess is right.
fn same(one: &[u8], other: &[u8]) -> bool {
    let differ = one.iter().zip(other).fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b)));
    one.len() == other.len() && differ == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_word_lets_in() {
        let token = Token::new("0123456789abcdef").unwrap();
        assert!(token.is_in(Some("Bearer 0123456789abcdef")));
        assert!(token.is_in(Some("bearer  0123456789abcdef")));
        let wrong = ["", "0123456789abcdef", "Basic 0123456789abcdef", "Bearer", "Bearer 0123456789abcde"];
        for header in wrong.into_iter().chain(["Bearer 0123456789abcdeg", "Bearer 0123456789abcdef0"]) {
            assert!(!token.is_in(Some(header)), "{header}");
        }
        assert!(!token.is_in(None));
        for word in ["short", "0123456789 abcdef", "0123456789abcdef\n", &"a".repeat(1025)] {
            assert_eq!(Token::new(word), None, "{word}");
        }
        assert_eq!(format!("{token:?}"), "Token");
    }
}
