//! Where an answer goes: straight to standard output and error, or collected for `--json`.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use snapshot_format::manifest::Interface;

use crate::failure::limits::{Limits, TooLong};
use crate::function::Notice;
use crate::vm::AnswerSink;

use super::limits::LimitArgs;

/// Most bytes of an answer that `--json` collects.
const COLLECT_MAX: usize = 64 << 20;

/// An answer collected as a whole. What is no UTF-8 is told as bytes.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Collected {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    headers: Vec<(String, String)>,
    /// exec: standard output; else the answer.
    output: Text,
    /// exec: standard error; else the function's log.
    log: Text,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Utf8(String),
    Bytes(Vec<u8>),
}

impl Default for Text {
    fn default() -> Self {
        Text::Utf8(String::new())
    }
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(|e| Text::Bytes(e.into_bytes()), Text::Utf8)
    }
}

#[derive(Debug, Default)]
struct Buffers {
    status: Option<u16>,
    headers: Vec<(String, String)>,
    output: Vec<u8>,
    log: Vec<u8>,
}

/// The sink of `ember run`.
#[derive(Debug)]
pub struct Sink {
    buffers: Option<Buffers>,
    include: bool,
    interface: Interface,
    limits: Limits,
}

impl Sink {
    /// Collects if `json`, else writes; `include` writes the head of an http answer too.
    pub fn new(json: bool, include: bool, interface: Interface, limits: &LimitArgs) -> Self {
        Sink { buffers: json.then(Buffers::default), include, interface, limits: limits.words() }
    }

    /// What was collected.
    pub fn into_collected(self) -> Option<Collected> {
        self.buffers.map(|buffers| Collected {
            status: buffers.status,
            headers: buffers.headers,
            output: buffers.output.into(),
            log: buffers.log.into(),
        })
    }

    fn is_answer(&self, piece: &Notice) -> bool {
        match piece {
            Notice::Head { .. } => self.include,
            piece => piece.is_answer(self.interface),
        }
    }

    fn write(&self, piece: Notice, is_answer: bool) -> io::Result<()> {
        match piece {
            Notice::Log { bytes } => write_all(rustix::stdio::stderr(), &bytes),
            Notice::Output { bytes, .. } if !is_answer => write_all(rustix::stdio::stderr(), &bytes),
            Notice::Output { bytes, .. } | Notice::Answer { bytes } => {
                write_all(rustix::stdio::stdout(), &bytes)
            }
            Notice::Head { status, headers } if self.include => {
                write_all(rustix::stdio::stdout(), head(status, &headers).as_bytes())
            }
            _ => Ok(()),
        }
    }
}

fn head(status: u16, headers: &[(String, String)]) -> String {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    format!("HTTP/1.1 {status}\n{lines}\n")
}

impl AnswerSink for Sink {
    fn take(&mut self, piece: Notice) -> io::Result<bool> {
        let is_answer = self.is_answer(&piece);
        let piece = self.limits.pass(piece, is_answer).map_err(io::Error::other)?;
        match &mut self.buffers {
            Some(buffers) => buffers.take(piece, is_answer)?,
            None => self.write(piece, is_answer)?,
        }
        Ok(is_answer)
    }
}

impl Buffers {
    fn take(&mut self, piece: Notice, is_answer: bool) -> io::Result<()> {
        match piece {
            Notice::Log { bytes } => append(&mut self.log, &bytes)?,
            Notice::Output { bytes, .. } if !is_answer => append(&mut self.log, &bytes)?,
            Notice::Output { bytes, .. } | Notice::Answer { bytes } => append(&mut self.output, &bytes)?,
            Notice::Head { status, headers } => (self.status, self.headers) = (Some(status), headers),
            _ => {}
        }
        Ok(())
    }
}

/// Where a function's output goes while a bundle is baked: to standard error.
#[derive(Debug)]
pub struct LogSink;

impl AnswerSink for LogSink {
    fn take(&mut self, piece: Notice) -> io::Result<bool> {
        if let Notice::Output { bytes, .. } = piece {
            write_all(rustix::stdio::stderr(), &bytes)?;
        }
        Ok(false)
    }
}

fn append(to: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    if to.len() + bytes.len() > COLLECT_MAX {
        return Err(io::Error::other(TooLong::Json));
    }
    to.extend_from_slice(bytes);
    Ok(())
}

/// Unbuffered: the first byte of an answer must leave at once.
fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
