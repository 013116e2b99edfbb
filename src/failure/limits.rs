//! Limits of what a clone says: an answer that may not be longer, and a log or a console that is cut off.

use std::io;

use crate::config::Size;
use crate::function::Notice;

/// An answer that is longer than it may be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLong {
    /// Whoever asked for it has set a limit.
    #[error("It is longer than the {max} that {name} allows")]
    Limit {
        /// The limit.
        max: Size,
        /// The flag or setting that says so.
        name: &'static str,
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

/// What of a function's words is passed on: its answer whole or not at all, of its log the beginning.
#[derive(Debug)]
pub struct Limits {
    answer: AnswerLimit,
    log: Cut,
}

impl Limits {
    /// How long each may be, and the flag or setting that says so.
    pub fn new(answer: (Option<Size>, &'static str), log: (Option<Size>, &'static str)) -> Self {
        Limits { answer: AnswerLimit::new(answer.0, answer.1), log: Cut::new("the log", log.1, log.0) }
    }

    /// What of a piece is passed on, which is one of the answer or not ([`Notice::is_answer`]).
    ///
    /// # Errors
    /// The answer is too long with it.
    pub fn pass(&mut self, piece: Notice, is_answer: bool) -> Result<Notice, TooLong> {
        match &piece {
            Notice::Output { bytes, .. } | Notice::Answer { bytes } if is_answer => {
                self.answer.take(bytes.len())?;
            }
            _ => {}
        }
        Ok(match piece {
            Notice::Output { stream, bytes } if !is_answer => {
                Notice::Output { stream, bytes: self.log.cut(bytes) }
            }
            Notice::Log { bytes } => Notice::Log { bytes: self.log.cut(bytes) },
            piece => piece,
        })
    }
}

/// What is left of an answer.
#[derive(Debug)]
struct AnswerLimit {
    max: Option<Size>,
    name: &'static str,
    left: u64,
}

impl AnswerLimit {
    fn new(max: Option<Size>, name: &'static str) -> Self {
        AnswerLimit { max, name, left: max.map_or(u64::MAX, |max| max.0) }
    }

    fn take(&mut self, len: usize) -> Result<(), TooLong> {
        let Some(max) = self.max else { return Ok(()) };
        let left = u64::try_from(len).ok().and_then(|len| self.left.checked_sub(len));
        self.left = left.ok_or(TooLong::Limit { max, name: self.name })?;
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
    use crate::function::Stream;

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
        assert!(AnswerLimit::new(None, "max").take(usize::MAX).is_ok());
    }

    #[test]
    fn an_answer_may_be_as_long_as_its_limit() {
        let mut limit = AnswerLimit::new(Some(Size(4)), "max");
        assert!(limit.take(3).is_ok() && limit.take(1).is_ok() && limit.take(0).is_ok());
        assert!(matches!(limit.take(1), Err(TooLong::Limit { max: Size(4), name: "max" })));
    }

    #[test]
    fn an_answer_that_is_too_long_is_none_and_a_log_that_is_too_long_is_cut() {
        let mut limits = Limits::new((Some(Size(2)), "answer"), (Some(Size(2)), "log"));
        let printed = |bytes: &[u8]| Notice::Output { stream: Stream::Stdout, bytes: bytes.to_vec() };
        assert_eq!(limits.pass(printed(b"ab"), false), Ok(printed(b"ab")));
        let cut = printed(b"\n[the rest of the log is left out: log was reached]\n");
        assert_eq!(limits.pass(printed(b"c"), false), Ok(cut));
        assert_eq!(limits.pass(printed(b"ab"), true), Ok(printed(b"ab")));
        let too_long = TooLong::Limit { max: Size(2), name: "answer" };
        assert_eq!(limits.pass(Notice::Answer { bytes: vec![0] }, true), Err(too_long));
    }
}
