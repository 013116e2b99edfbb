//! A client of the daemon's socket.

use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use snapshot_format::manifest::Interface;

use crate::failure::{Failure, Kind};

use super::frame::{Frame, FrameError, MEDIA_TYPE};
use super::http::{Chunks, Head, RequestError};

/// Longest answer that is no stream of frames, bytes.
const WHOLE_MAX: u64 = 4 << 20;

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

/// An answer that comes in frames.
#[derive(Debug)]
pub struct Answer<'a> {
    interface: Interface,
    frames: Chunks<&'a mut BufReader<UnixStream>>,
}

impl Client {
    /// Connects to the daemon that listens at `socket`.
    ///
    /// # Errors
    /// None does, or this user may not.
    pub fn connect(socket: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket).map_err(|e| {
            let place = socket.display();
            Failure::text(Kind::HostCannot, format!("Cannot reach a daemon at {place} (`ember serve`): {e}"))
        })?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// The interface of a function.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn interface(&mut self, name: &str) -> Result<Interface, Failure> {
        let head = self.ask("GET", &format!("/functions/{name}"), &[], &[])?;
        let body = self.whole(&head)?;
        let found = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        if head.status != 200 {
            return Err(Failure::from_json(&found));
        }
        let interface = found.get("interface").cloned().unwrap_or_default();
        serde_json::from_value(interface).map_err(|e| Failure::new(Kind::Internal, &e))
    }

    /// Has a function serve an event.
    ///
    /// # Errors
    /// The daemon's failures.
    pub fn invoke(
        &mut self,
        name: &str,
        headers: &[(&str, String)],
        body: &[u8],
    ) -> Result<Answer<'_>, Failure> {
        let accept = [("Accept", MEDIA_TYPE.to_owned())];
        let head =
            self.ask("POST", &format!("/functions/{name}/invoke"), &[headers, &accept].concat(), body)?;
        if head.header("content-type") != Some(MEDIA_TYPE) {
            let told = serde_json::from_slice(&self.whole(&head)?).unwrap_or_default();
            return Err(Failure::from_json(&told));
        }
        let named = head.header("ember-interface").unwrap_or_default();
        let interface = serde_json::from_value(named.into()).map_err(|e| Failure::new(Kind::Internal, &e))?;
        Ok(Answer { interface, frames: Chunks::new(&mut self.stream) })
    }

    fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, String)],
        body: &[u8],
    ) -> Result<Head, Failure> {
        if path.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err(Failure::text(Kind::Usage, "A function's name has no spaces or control characters"));
        }
        let mut text =
            format!("{method} {path} HTTP/1.1\r\nHost: ember\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let bytes = [text.as_bytes(), body].concat();
        // A daemon that refuses early answers before it has read everything.
        let written = self.stream.get_mut().write_all(&bytes);
        match Head::response(&mut self.stream) {
            Ok(head) => Ok(head),
            Err(RequestError::Io(e)) => Err(broke_off(&written.err().unwrap_or(e))),
            Err(e) => Err(Failure::new(Kind::Internal, &e)),
        }
    }

    fn whole(&mut self, head: &Head) -> Result<Vec<u8>, Failure> {
        head.body(&mut self.stream, WHOLE_MAX).map_err(|e| Failure::new(Kind::Internal, &e))
    }
}

fn broke_off(error: &io::Error) -> Failure {
    Failure::text(Kind::Internal, format!("The daemon ended before its answer: {error}"))
}

impl Answer<'_> {
    /// How the function is asked and answers.
    pub fn interface(&self) -> Interface {
        self.interface
    }

    /// The next frame.
    ///
    /// # Errors
    /// The daemon is gone, or what it says is no frame.
    pub fn next(&mut self) -> Result<Frame, Failure> {
        match Frame::read(&mut self.frames) {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => Err(broke_off(&io::ErrorKind::UnexpectedEof.into())),
            Err(FrameError::Io(e)) => Err(broke_off(&e)),
            Err(e) => Err(Failure::new(Kind::Internal, &e)),
        }
    }
}
