//! The two directions of the control stream, each with one buffer that is allocated once: between a restore and its answer no
//! page should be touched for the first time.

use std::io;
use std::os::fd::AsFd;

use guest_protocol::{
    Cause, EVENT_HEAD_LEN, EventHead, FRAME_MAX, HEADER_LEN, Sink, ToGuest, ToHost, header, split,
};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::stop::Stop;

/// Most that one read of the function's output takes, bytes: half of what a pipe holds, so that reader and writer take turns.
const READ_MAX: usize = 32 << 10;
/// Room for a frame wherever the one before it ended.
const ROOM: usize = 2 * FRAME_MAX;

/// What the host says.
#[derive(Debug)]
pub struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes at `start` that belong to the event.
    piece: usize,
    /// Bytes of the event that were not taken yet, `piece` included.
    left: u64,
}

impl Inbox {
    pub fn new() -> Self {
        Inbox { buffer: vec![0; ROOM].into_boxed_slice(), start: 0, end: 0, piece: 0, left: 0 }
    }

    /// Reads once; waits when nothing is there.
    ///
    /// # Errors
    /// The stream has ended or is broken.
    pub fn fill(&mut self, control: impl AsFd) -> Result<(), Stop> {
        self.fill_by(|room| rustix::io::read(&control, room))
    }

    /// Reads once if something is there; tells whether it was. Of what is no socket nothing is read.
    ///
    /// # Errors
    /// The stream has ended or is broken.
    pub fn fill_now(&mut self, control: impl AsFd) -> Result<bool, Stop> {
        let mut nothing = false;
        let read = |room: &mut [u8]| match recv(&control, room, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::NOTSOCK) => {
                nothing = true;
                Ok(0)
            }
            other => other.map(|(n, _)| n),
        };
        match self.fill_by(read) {
            Err(_) if nothing => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn fill_by(&mut self, mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<(), Stop> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.start < FRAME_MAX {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        match retry(|| read(&mut *room)) {
            Ok(0) => Err(Stop::Control(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => {
                self.end += n;
                Ok(())
            }
            Err(error) => Err(Stop::Control(error.into())),
        }
    }

    /// The next frame when it has arrived whole, and its length; what is left of an event is skipped.
    ///
    /// # Errors
    /// It is no frame.
    pub fn frame(&mut self) -> Result<Option<(ToGuest<'_>, usize)>, Stop> {
        while self.left > 0 {
            if !self.next_piece()? {
                return Ok(None);
            }
            self.take(self.piece);
        }
        match split(self.unread())? {
            None => Ok(None),
            Some((raw, len)) => Ok(Some((ToGuest::decode(raw)?, len))),
        }
    }

    /// Takes a frame of `len` bytes off.
    pub fn consume(&mut self, len: usize) {
        self.start = self.start.saturating_add(len).min(self.end);
    }

    /// Takes the head of an event frame of `len` bytes off; its first piece is [`piece`](Self::piece).
    pub fn begin_event(&mut self, head: &EventHead, len: usize) -> Result<(), Stop> {
        let before = HEADER_LEN + EVENT_HEAD_LEN;
        self.consume(before);
        self.left = head.total;
        self.set_piece(len.saturating_sub(before))
    }

    fn set_piece(&mut self, len: usize) -> Result<(), Stop> {
        if u64::try_from(len).is_ok_and(|len| len <= self.left) {
            self.piece = len;
            return Ok(());
        }
        Err(Stop::failed(Cause::Protocol, "An event is longer than its head says"))
    }

    /// Bytes of the event that were not taken yet.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next bytes of the event; none when they have not arrived or the event is over.
    pub fn piece(&self) -> &[u8] {
        self.unread().get(..self.piece).unwrap_or_default()
    }

    /// Takes `n` bytes of the piece.
    pub fn take(&mut self, n: usize) {
        let n = n.min(self.piece);
        self.piece -= n;
        self.left = self.left.saturating_sub(u64::try_from(n).unwrap_or(u64::MAX));
        self.consume(n);
    }

    /// Whether [`piece`](Self::piece) has bytes, perhaps of a frame that had already arrived.
    ///
    /// # Errors
    /// What arrived is not the event's next frame.
    pub fn next_piece(&mut self) -> Result<bool, Stop> {
        while self.piece == 0 && self.left > 0 {
            let Some((raw, _)) = split(self.unread())? else { return Ok(false) };
            let (frame, len) = (ToGuest::decode(raw)?, raw.payload.len());
            if !matches!(frame, ToGuest::Data { .. }) {
                return Err(unexpected(&frame));
            }
            self.consume(HEADER_LEN);
            self.set_piece(len)?;
        }
        Ok(self.piece > 0)
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }
}

/// A frame that has no place here.
pub fn unexpected(frame: &ToGuest<'_>) -> Stop {
    Stop::failed(Cause::Protocol, format_args!("A frame of kind {} has no place here", frame.name()))
}

/// What the agent says, until it is flushed.
#[derive(Debug)]
pub struct Outbox {
    buffer: Box<[u8]>,
    len: usize,
}

impl Sink for Outbox {
    fn put(&mut self, bytes: &[u8]) {
        if let Some(to) = self.buffer.get_mut(self.len..self.len + bytes.len()) {
            to.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }
}

impl Outbox {
    pub fn new() -> Self {
        Outbox { buffer: vec![0; ROOM].into_boxed_slice(), len: 0 }
    }

    /// Adds `frame`.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn say(&mut self, control: impl AsFd, frame: &ToHost<'_>) -> Result<(), Stop> {
        self.make_room(control)?;
        frame.append_to(self);
        Ok(())
    }

    /// Adds a frame of `kind` with what one read of `from` gives; tells how much that was, 0 at the end.
    ///
    /// # Errors
    /// The stream is broken; the inner result is that of the read.
    pub fn relay(
        &mut self,
        control: impl AsFd,
        kind: u8,
        from: impl AsFd,
    ) -> Result<Result<usize, Errno>, Stop> {
        self.make_room(control)?;
        let start = self.len + HEADER_LEN;
        let room = self.buffer.get_mut(start..start + READ_MAX).unwrap_or_default();
        let read = retry(|| rustix::io::read(&from, &mut *room));
        if let Ok(n @ 1..) = read {
            self.put(&header(kind, u32::try_from(n).unwrap_or(u32::MAX)));
            self.len += n;
        }
        Ok(read)
    }

    /// There is always room for one frame of any length.
    fn make_room(&mut self, control: impl AsFd) -> Result<(), Stop> {
        if self.len > ROOM - FRAME_MAX { self.flush(control) } else { Ok(()) }
    }

    /// Sends everything; waits while the host takes nothing.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn flush(&mut self, control: impl AsFd) -> Result<(), Stop> {
        let mut sent = 0;
        while let Some(rest) = self.buffer.get(sent..self.len).filter(|rest| !rest.is_empty()) {
            sent += retry(|| rustix::io::write(&control, rest)).map_err(|e| Stop::Control(e.into()))?;
        }
        self.len = 0;
        Ok(())
    }
}

/// Calls again while a signal interrupts.
pub fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn inbox(frames: &[ToGuest<'_>]) -> (Inbox, UnixStream) {
        let (mut host, agent) = UnixStream::pair().unwrap();
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.append_to(&mut bytes));
        host.write_all(&bytes).unwrap();
        let mut inbox = Inbox::new();
        inbox.fill(&agent).unwrap();
        (inbox, agent)
    }

    fn event(total: u64, first: &[u8]) -> ToGuest<'_> {
        ToGuest::Event { head: EventHead { total, ..EventHead::default() }, first }
    }

    fn begin(inbox: &mut Inbox) -> Result<(), Stop> {
        let Some((ToGuest::Event { head, .. }, len)) = inbox.frame().unwrap() else { panic!("no event") };
        inbox.begin_event(&head, len)
    }

    #[test]
    fn an_event_comes_in_pieces_and_what_is_left_of_it_is_skipped() {
        let frames = [
            event(7, b"ab"),
            ToGuest::Data { bytes: b"cde" },
            ToGuest::Data { bytes: b"fg" },
            ToGuest::Settle,
        ];
        let (mut inbox, _agent) = inbox(&frames);
        begin(&mut inbox).unwrap();
        assert!(inbox.next_piece().unwrap());
        assert_eq!(inbox.piece(), b"ab");
        inbox.take(2);
        assert!(inbox.next_piece().unwrap());
        assert_eq!((inbox.piece(), inbox.left()), (&b"cde"[..], 5));
        inbox.take(1);
        assert!(matches!(inbox.frame().unwrap(), Some((ToGuest::Settle, _))));
    }

    #[test]
    fn an_event_that_is_longer_than_its_head_says_is_refused() {
        let (mut inbox, _agent) = inbox(&[event(1, b"ab")]);
        assert!(begin(&mut inbox).is_err());
    }

    #[test]
    fn another_frame_within_an_event_is_refused() {
        let (mut inbox, _agent) = inbox(&[event(9, b"ab"), ToGuest::Freeze]);
        begin(&mut inbox).unwrap();
        inbox.take(2);
        assert!(inbox.next_piece().is_err());
    }

    #[test]
    fn the_host_hanging_up_is_the_end() {
        let (_, agent) = UnixStream::pair().unwrap();
        assert!(matches!(Inbox::new().fill(&agent), Err(Stop::Control(_))));
    }

    #[test]
    fn frames_are_gathered_until_the_flush() {
        let (host, agent) = UnixStream::pair().unwrap();
        let (mut from, to) = UnixStream::pair().unwrap();
        from.write_all(b"out").unwrap();
        let mut outbox = Outbox::new();
        assert_eq!(outbox.relay(&agent, 6, &to).unwrap(), Ok(3));
        outbox.say(&agent, &ToHost::Done { exit_code: 4 }).unwrap();
        outbox.flush(&agent).unwrap();
        let mut bytes = [0; 100];
        let n = rustix::io::read(&host, &mut bytes).unwrap();
        assert_eq!(bytes[..n], *b"\x06\0\0\0\x03\0\0\0out\x09\0\0\0\x04\0\0\0\x04\0\0\0");
    }
}
