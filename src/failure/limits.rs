//! Limits of what a clone says: an answer that may not be longer, and a log or a console that is cut off.

use std::io;

use crate::config::Size;

/// An answer that is longer than it may be.
#[derive(Debug, thiserror::Error)]
pub enum TooLong {
    /// Whoever asked for it has set a limit.
    #[error("It is longer than the {max} that --answer-max allows")]
    Limit {
        /// The limit.
        max: Size,
    },
    /// It is collected to be printed as JSON.
    #[error("It is too long to be printed as JSON: leave out --json")]
    Json,
}

impl TooLong {
    /// Why an answer could not be passed on, if this is why.
    pub fn of(error: &io::Error) -> Option<&TooLong> {
        error.get_ref()?.downcast_ref()
    }
}

/// What is left of an answer.
#[derive(Debug)]
pub struct AnswerLimit {
    max: Option<Size>,
    left: u64,
}

impl AnswerLimit {
    /// All of `max`, or no limit.
    pub fn new(max: Option<Size>) -> Self {
        AnswerLimit { max, left: max.map_or(u64::MAX, |max| max.0) }
    }

    /// Takes `len` bytes of it.
    ///
    /// # Errors
    /// There are not so many; see [`TooLong`].
    pub fn take(&mut self, len: usize) -> io::Result<()> {
        let Some(max) = self.max else { return Ok(()) };
        let left = u64::try_from(len).ok().and_then(|len| self.left.checked_sub(len));
        self.left = left.ok_or_else(|| io::Error::other(TooLong::Limit { max }))?;
        Ok(())
    }
}

/// Cuts a stream off after so many bytes, with a sentence in place of the first that is left out.
#[derive(Debug, Clone)]
pub struct Cut {
    what: &'static str,
    flag: &'static str,
    left: Left,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// There is no limit.
    All,
    Bytes(u64),
    /// Something has been left out.
    Nothing,
}

/// What is to be passed on of a piece.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed<'a> {
    /// Its first bytes, or all.
    pub bytes: &'a [u8],
    /// A sentence behind them.
    pub note: Option<String>,
}

impl Cut {
    /// A stream of which `max` bytes are passed on; `what` it is and which `flag` says so.
    pub fn new(what: &'static str, flag: &'static str, max: Option<Size>) -> Self {
        Cut { what, flag, left: max.map_or(Left::All, |max| Left::Bytes(max.0)) }
    }

    /// Whether anything has been left out.
    pub fn has_cut(&self) -> bool {
        self.left == Left::Nothing
    }

    /// What is passed on in place of `bytes`.
    pub fn cut(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        let Passed { bytes: fitting, note } = self.pass(&bytes);
        let len = fitting.len();
        bytes.truncate(len);
        bytes.extend(note.into_iter().flat_map(String::into_bytes));
        bytes
    }

    /// What of `bytes` is passed on.
    pub fn pass<'a>(&mut self, bytes: &'a [u8]) -> Passed<'a> {
        let left = match self.left {
            Left::All => return Passed { bytes, note: None },
            Left::Nothing => return Passed { bytes: &[], note: None },
            Left::Bytes(left) => left,
        };
        let fit = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let fitting = bytes.get(..fit).unwrap_or_default();
        if fit == bytes.len() {
            self.left = Left::Bytes(left - u64::try_from(fit).unwrap_or(left));
            return Passed { bytes: fitting, note: None };
        }
        self.left = Left::Nothing;
        let note = format!("\n[the rest of {} is left out: {} was reached]\n", self.what, self.flag);
        Passed { bytes: fitting, note: Some(note) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_cut_once_with_a_sentence() {
        let mut cut = Cut::new("the log", "--log-max", Some(Size(5)));
        assert_eq!(cut.pass(b"abc"), Passed { bytes: b"abc", note: None });
        assert_eq!(cut.pass(b"de"), Passed { bytes: b"de", note: None });
        assert!(!cut.has_cut(), "nothing is missing yet");
        let note = "\n[the rest of the log is left out: --log-max was reached]\n".to_owned();
        assert_eq!(cut.pass(b"f"), Passed { bytes: b"", note: Some(note) });
        assert_eq!(cut.pass(b"g"), Passed { bytes: b"", note: None });
        assert!(cut.has_cut());
    }

    #[test]
    fn what_is_not_limited_is_passed_on() {
        let mut cut = Cut::new("the log", "--log-max", None);
        assert_eq!(cut.pass(b"abc"), Passed { bytes: b"abc", note: None });
        assert!(AnswerLimit::new(None).take(usize::MAX).is_ok());
    }

    #[test]
    fn an_answer_may_be_as_long_as_its_limit() {
        let mut limit = AnswerLimit::new(Some(Size(4)));
        assert!(limit.take(3).is_ok() && limit.take(1).is_ok() && limit.take(0).is_ok());
        assert!(matches!(TooLong::of(&limit.take(1).unwrap_err()), Some(TooLong::Limit { .. })));
    }
}
