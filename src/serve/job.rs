//! What the daemon sends a shell: an event, and with the first the bundle as open files.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};

use super::frame::read_announced;
use crate::config::Rate;
use crate::function::MACHINE_ID_LEN;
use crate::vm::Request;

/// Most descriptors of a job: files of the bundle and private files of drives.
const FILES_MAX: usize = 64;
/// Longest part of a job, bytes: an event is at most 32 MiB.
const PART_MAX: u32 = 48 << 20;
/// Length of the lengths of the three parts.
const HEAD_LEN: usize = 12;

/// A job without its long parts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Names of the bundle's files, in the order of the descriptors; none for another event of the same clone.
    pub files: Vec<String>,
    /// Writable drives whose private files follow, in this order.
    pub deltas: Vec<String>,
    /// What each drive may move.
    pub block_rate: Option<Rate>,
    /// What is said about the event.
    pub request: Request,
    /// What is asked of the clone's identity.
    pub identity: Identity,
    /// Longest time until the answer is complete, milliseconds.
    pub limit_ms: u64,
    /// CLOCK_MONOTONIC when it was sent, nanoseconds.
    pub sent_ns: u64,
    /// Whether another event of the same function may follow.
    pub more: bool,
}

/// What is asked of a clone's identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Host name.
    pub host_name: Option<String>,
    /// Machine id.
    pub machine_id: Option<[u8; MACHINE_ID_LEN]>,
    /// Environment beside the bundle's.
    pub env: Vec<(String, String)>,
}

/// A job as it has come.
#[derive(Debug)]
pub struct Received {
    /// What is to be done.
    pub job: Job,
    /// The text of the bundle's manifest; empty for another event of the same clone.
    pub manifest: Vec<u8>,
    /// The event's content.
    pub body: Vec<u8>,
    /// The descriptors.
    pub files: Vec<File>,
}

/// Sends a job.
///
/// # Errors
/// The shell is gone, or it is too long.
pub fn send(
    to: &UnixStream,
    job: &Job,
    manifest: &[u8],
    body: &[u8],
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(job).map_err(io::Error::other)?;
    let mut head = Vec::with_capacity(HEAD_LEN);
    for part in [text.as_slice(), manifest, body] {
        let len = u32::try_from(part.len()).ok().filter(|len| *len <= PART_MAX);
        head.extend_from_slice(&len.ok_or(io::ErrorKind::FileTooLarge)?.to_le_bytes());
    }
    if files.len() > FILES_MAX {
        return Err(io::ErrorKind::ArgumentListTooLong.into());
    }
    let first = [head.as_slice(), &text, manifest].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::ArgumentListTooLong.into());
    }
    let parts = [IoSlice::new(&first), IoSlice::new(body)];
    let sent = rustix::net::sendmsg(to, &parts, &mut control, SendFlags::NOSIGNAL)?;
    let mut to = to;
    // The descriptors went with the first byte.
    to.write_all(first.get(sent..).unwrap_or_default())?;
    to.write_all(body.get(sent.saturating_sub(first.len())..).unwrap_or_default())
}

/// Waits for a job; `None` when the daemon wants nothing of this shell any more.
///
/// # Errors
/// The connection failed, or what came is no job.
pub fn receive(from: &File) -> io::Result<Option<Received>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut first = vec![0; 64 << 10];
    let got = loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(from, &mut [IoSliceMut::new(&mut first)], &mut control, flags) {
            Ok(got) => break got.bytes,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    };
    if got == 0 {
        return Ok(None);
    }
    let files = descriptors(&mut control).map(File::from).collect();
    parts(&mut first.get(..got).unwrap_or_default().chain(from), files).map(Some)
}

/// Waits for another job of the same clone, which brings no descriptors; `None` when there is none.
///
/// # Errors
/// As [`receive`].
pub fn receive_more(from: &File) -> io::Result<Option<Received>> {
    let mut first = [0];
    let got = rustix::io::retry_on_intr(|| rustix::io::read(from, &mut first))?;
    if got == 0 { Ok(None) } else { parts(&mut first.chain(from), Vec::new()).map(Some) }
}

pub(super) fn parts(bytes: &mut impl Read, files: Vec<File>) -> io::Result<Received> {
    let mut head = [0; HEAD_LEN];
    bytes.read_exact(&mut head)?;
    let [text, manifest, body] = lengths(&head).ok_or(io::ErrorKind::FileTooLarge)?;
    let mut part = |len| read_announced(bytes, len);
    let (text, manifest, body) = (part(text)?, part(manifest)?, part(body)?);
    let job = serde_json::from_slice(&text).map_err(io::Error::other)?;
    Ok(Received { job, manifest, body, files })
}

fn lengths(head: &[u8; HEAD_LEN]) -> Option<[usize; 3]> {
    let mut lengths = [0; 3];
    for (length, bytes) in lengths.iter_mut().zip(head.as_chunks::<4>().0) {
        let len = Some(u32::from_le_bytes(*bytes)).filter(|len| *len <= PART_MAX)?;
        *length = usize::try_from(len).ok()?;
    }
    Some(lengths)
}

/// Every descriptor that came.
pub(super) fn descriptors(control: &mut RecvAncillaryBuffer<'_>) -> impl Iterator<Item = OwnedFd> {
    control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
}

/// Handles to send.
pub fn borrowed<'a>(files: impl IntoIterator<Item = &'a File>) -> Vec<BorrowedFd<'a>> {
    files.into_iter().map(AsFd::as_fd).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    fn pair() -> (UnixStream, File) {
        let (one, two) = UnixStream::pair().unwrap();
        (one, File::from(OwnedFd::from(two)))
    }

    #[test]
    fn a_job_arrives_with_its_files_however_long_it_is() {
        let (one, two) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        let job = Job { files: vec!["state".to_owned()], limit_ms: 7, ..Job::default() };
        let body = vec![5; 3 << 20];
        std::thread::scope(|scope| {
            scope.spawn(|| send(&one, &job, b"manifest", &body, &borrowed([&file])).unwrap());
            let mut got = receive(&two).unwrap().unwrap();
            assert_eq!((&got.job, got.manifest.as_slice(), got.files.len()), (&job, &b"manifest"[..], 1));
            assert!(got.body == body);
            let mut text = String::new();
            got.files[0].rewind().unwrap();
            got.files[0].read_to_string(&mut text).unwrap();
            assert_eq!(text, "content");
        });
        send(&one, &job, &[], b"again", &[]).unwrap();
        assert_eq!(receive_more(&two).unwrap().unwrap().body, b"again");
        drop(one);
        assert!(receive_more(&two).unwrap().is_none());
        assert!(receive(&two).unwrap().is_none());
    }

    #[test]
    fn what_is_no_job_is_refused() {
        let (mut one, two) = pair();
        one.write_all(&[255; 64]).unwrap();
        assert!(receive(&two).is_err());
    }
}
