//! The end of a stream.

use super::error::LastOutput;

/// How much of a function's output is kept for messages, bytes.
const KEPT: usize = 4096;

/// Keeps the last [`KEPT`] bytes of what it is given.
#[derive(Debug, Default)]
pub(super) struct Tail(Vec<u8>);

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let new = bytes.get(bytes.len().saturating_sub(KEPT)..).unwrap_or_default();
        let surplus = (self.0.len() + new.len()).saturating_sub(KEPT);
        self.0.drain(..surplus);
        self.0.extend_from_slice(new);
    }

    /// What is kept, as text that a terminal may show.
    pub(super) fn text(&self) -> LastOutput {
        let text = String::from_utf8_lossy(&self.0);
        LastOutput(text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept_and_no_others() {
        let mut tail = Tail::default();
        tail.push(b"first");
        assert_eq!(tail.text().0, "first");
        tail.push(&[b'x'; KEPT - 2]);
        assert_eq!(tail.text().0, format!("st{}", "x".repeat(KEPT - 2)));
        tail.push(&[b'y'; 3 * KEPT]);
        assert_eq!(tail.text().0, "y".repeat(KEPT));
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let mut tail = Tail::default();
        tail.push(b"a\x1b[2Jb\r\n\xff");
        assert_eq!(tail.text().0, "a[2Jb\n\u{fffd}");
    }
}
