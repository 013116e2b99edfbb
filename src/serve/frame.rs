//! What a shell says while it serves an event, piece by piece: to the daemon, and from there unchanged to a client that wants it so.
//!
//! A frame is its kind (one byte), the length of what follows (32 bits, little-endian), and that many bytes. Whoever reads frames
//! does not trust who wrote them.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::function::{Notice, Stream};

/// Longest content of a frame, bytes.
const CONTENT_MAX: usize = 1 << 20;
/// Longest piece of an answer in one frame, bytes.
const PIECE_MAX: usize = 64 << 10;
/// Length of kind and length.
const HEAD_LEN: usize = 5;

/// The media type of an answer in frames.
pub const MEDIA_TYPE: &str = "application/vnd.ember.frames";

/// A frame.
#[derive(Debug, Clone)]
pub enum Frame {
    /// The shell is confined and waits.
    Ready(Ready),
    /// A piece of the answer, or of a log beside it.
    Piece(Notice),
    /// The event is over.
    Done(Done),
    /// There is no answer, or no more of it.
    Failed(Failure),
}

/// What a shell tells when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// How much of a whole jail there is (`full`, `user`, `partial`, `none`).
    pub jail: String,
}

/// What a shell tells at the end of an event.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// The function's.
    pub exit_code: i32,
    /// Block requests until then.
    pub block_requests: u64,
    /// Phases and their microseconds, in order, from when the daemon sent the job.
    pub phases: Vec<(String, f64)>,
    /// CLOCK_MONOTONIC when it did, nanoseconds.
    pub start_ns: u64,
    /// Microseconds from then to when the guest could run, to the answer's first piece, and to its end.
    pub restore_us: Option<f64>,
    /// Microseconds to when a vCPU left the guest for the first time.
    pub first_exit_us: Option<f64>,
    /// See above.
    pub first_answer_us: Option<f64>,
    /// See above.
    pub answered_us: Option<f64>,
}

/// Head of an http answer.
#[derive(Serialize, Deserialize)]
struct Head {
    status: u16,
    headers: Vec<(String, String)>,
}

const READY: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const LOG: u8 = 3;
const HEAD: u8 = 4;
const ANSWER: u8 = 5;
const DONE: u8 = 6;
const FAILED: u8 = 7;

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed, or ended within a frame.
    #[error("The connection broke off")]
    Io(#[from] io::Error),
    /// No frame has this kind.
    #[error("There is no frame of kind {kind}")]
    Kind {
        /// The kind.
        kind: u8,
    },
    /// It is too long.
    #[error("A frame of {len} bytes is longer than {CONTENT_MAX}")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Its content is not of its kind.
    #[error("A frame's content is damaged")]
    Content(#[from] serde_json::Error),
}

impl Frame {
    /// Reads one; `None` at the end of the stream.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn read(from: &mut impl Read) -> Result<Option<Frame>, FrameError> {
        let mut kind = [0];
        loop {
            match from.read(&mut kind) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        let mut len = [0; 4];
        from.read_exact(&mut len)?;
        let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
        if len > CONTENT_MAX {
            return Err(FrameError::TooLong { len });
        }
        let [kind] = kind;
        Frame::decode(kind, read_announced(from, len)?).map(Some)
    }

    /// The first frame of `bytes` and its length; `None` while it has not come whole.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn parse(bytes: &[u8]) -> Result<Option<(Frame, usize)>, FrameError> {
        let Some(([kind, len @ ..], rest)) = bytes.split_first_chunk::<HEAD_LEN>() else { return Ok(None) };
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        if len > CONTENT_MAX {
            return Err(FrameError::TooLong { len });
        }
        let Some(content) = rest.get(..len) else { return Ok(None) };
        Ok(Some((Frame::decode(*kind, content.to_vec())?, HEAD_LEN + len)))
    }

    fn decode(kind: u8, bytes: Vec<u8>) -> Result<Frame, FrameError> {
        Ok(match kind {
            READY => Frame::Ready(serde_json::from_slice(&bytes)?),
            STDOUT => Frame::Piece(Notice::Output { stream: Stream::Stdout, bytes }),
            STDERR => Frame::Piece(Notice::Output { stream: Stream::Stderr, bytes }),
            LOG => Frame::Piece(Notice::Log { bytes }),
            HEAD => {
                let Head { status, headers } = serde_json::from_slice(&bytes)?;
                Frame::Piece(Notice::Head { status, headers })
            }
            ANSWER => Frame::Piece(Notice::Answer { bytes }),
            DONE => Frame::Done(serde_json::from_slice(&bytes)?),
            // Callers print it, and a guest that has broken into its clone's process chooses the words.
            FAILED => Frame::Failed(serde_json::from_slice::<Failure>(&bytes)?.printable()),
            kind => return Err(FrameError::Kind { kind }),
        })
    }

    /// The bytes of one or several frames; none for a piece that nobody is told.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Text and numbers always have a form in JSON.
        let json = |kind, bytes: serde_json::Result<Vec<u8>>| framed(kind, &bytes.unwrap_or_default());
        match self {
            Frame::Ready(ready) => json(READY, serde_json::to_vec(ready)),
            Frame::Piece(Notice::Output { stream: Stream::Stdout, bytes }) => pieces(STDOUT, bytes),
            Frame::Piece(Notice::Output { stream: Stream::Stderr, bytes }) => pieces(STDERR, bytes),
            Frame::Piece(Notice::Log { bytes }) => pieces(LOG, bytes),
            Frame::Piece(Notice::Answer { bytes }) => pieces(ANSWER, bytes),
            Frame::Piece(Notice::Head { status, headers }) => {
                json(HEAD, serde_json::to_vec(&Head { status: *status, headers: headers.clone() }))
            }
            Frame::Piece(_) => Vec::new(),
            Frame::Done(done) => json(DONE, serde_json::to_vec(done)),
            Frame::Failed(failure) => json(FAILED, serde_json::to_vec(failure)),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// Nobody reads it.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.to_bytes())
    }
}

/// Reads as many bytes as were announced. Memory is taken for what has come, and for as much again: an announcement costs nothing.
pub(super) fn read_announced(from: &mut impl Read, len: usize) -> io::Result<Vec<u8>> {
    const FIRST: usize = 64 << 10;
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let at = bytes.len();
        bytes.resize(len.min((at * 2).max(FIRST)), 0);
        from.read_exact(bytes.get_mut(at..).unwrap_or_default())?;
    }
    Ok(bytes)
}

fn pieces(kind: u8, bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(PIECE_MAX).flat_map(|piece| framed(kind, piece)).collect()
}

fn framed(kind: u8, content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
    [&[kind][..], &len.to_le_bytes(), content].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::failure::Kind;

    fn read(mut bytes: &[u8]) -> Vec<Frame> {
        std::iter::from_fn(|| Frame::read(&mut bytes).unwrap()).collect()
    }

    #[test]
    fn frames_come_back_as_they_went() {
        let done = Done { exit_code: 3, phases: vec![("x".to_owned(), 1.5)], ..Done::default() };
        let frames = [
            Frame::Ready(Ready { jail: "full".to_owned() }),
            Frame::Piece(Notice::Output { stream: Stream::Stderr, bytes: b"no".to_vec() }),
            Frame::Piece(Notice::Head { status: 404, headers: vec![("A".to_owned(), "b".to_owned())] }),
            Frame::Failed(Failure::text(Kind::BadBundle, "Lost")),
            Frame::Done(done),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        let back: Vec<u8> = read(&bytes).iter().flat_map(Frame::to_bytes).collect();
        assert_eq!(back, bytes);
    }

    #[test]
    fn nothing_that_a_terminal_would_obey_comes_out_of_a_failure() {
        let told = Failure::text(Kind::GuestFailed, "Lost\x1b[2J\nember: fine")
            .with_detail(Some("one\n\x1b]0;mine\x07two".to_owned()));
        let [Frame::Failed(read)] = &read(&Frame::Failed(told).to_bytes())[..] else { panic!("no failure") };
        assert_eq!(read.to_string(), "Lost[2Jember: fine\n--- last output of the guest ---\none\n]0;minetwo");
    }

    #[test]
    fn a_long_piece_is_several_frames_with_the_same_bytes() {
        let bytes = vec![7; 3 * PIECE_MAX + 1];
        let frames = read(&Frame::Piece(Notice::Answer { bytes: bytes.clone() }).to_bytes());
        assert_eq!(frames.len(), 4);
        let all = frames.into_iter().flat_map(|frame| match frame {
            Frame::Piece(Notice::Answer { bytes }) => bytes,
            other => panic!("{other:?}"),
        });
        assert!(all.eq(bytes));
    }

    #[test]
    fn what_is_too_long_of_no_kind_or_cut_off_is_refused() {
        assert!(matches!(Frame::read(&mut &[0, 255, 255, 255, 255][..]), Err(FrameError::TooLong { .. })));
        assert!(matches!(Frame::read(&mut &[9, 0, 0, 0, 0][..]), Err(FrameError::Kind { kind: 9 })));
        assert!(matches!(Frame::read(&mut &[5, 2, 0, 0, 0, 1][..]), Err(FrameError::Io(_))));
        assert!(Frame::read(&mut &[][..]).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = &bytes[..];
            while let Ok(Some((frame, len))) = Frame::parse(rest) {
                let again = Frame::read(&mut rest).unwrap().unwrap();
                prop_assert_eq!(format!("{frame:?}"), format!("{again:?}"));
                prop_assert!(len >= HEAD_LEN);
            }
        }
    }
}
