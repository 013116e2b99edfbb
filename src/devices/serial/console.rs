//! Where the serial port's output goes: into memory, or through a bounded buffer that a thread empties into the user's sink.
//!
//! The sink may be a pipe that nobody reads. A vCPU must not wait for it, so it only fills the buffer; what does not
//! fit is counted and lost. The thread is there from the start: a jailed machine starts none later.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::bus::lock;
use crate::memory::OnStart;

/// Most bytes that wait for the sink.
const BUFFER_MAX: usize = 64 << 10;
/// A part of a line wakes the thread when it is this long.
const WAKE_AT: usize = 512;
/// How long the end of the machine waits for the sink to take the last words.
const LAST_WORDS: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Bytes that did not fit since the thread last looked.
    lost: usize,
    /// The port is gone: the thread ends once the buffer is empty.
    closed: bool,
    /// The thread is writing, or cannot any more.
    busy: bool,
    dead: bool,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    buffer: Mutex<Buffer>,
    changed: Condvar,
}

/// Where a machine's console goes.
pub enum ConsoleSink {
    /// What takes everything at once, as memory does: a vCPU writes to it itself.
    Memory(Box<dyn Write + Send>),
    /// What may block: a thread of its own writes to it.
    Stream(Box<dyn Write + Send>),
}

impl fmt::Debug for ConsoleSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConsoleSink::Memory(_) => "Memory",
            ConsoleSink::Stream(_) => "Stream",
        })
    }
}

impl From<Box<dyn Write + Send>> for ConsoleSink {
    fn from(memory: Box<dyn Write + Send>) -> Self {
        ConsoleSink::Memory(memory)
    }
}

/// The vCPU's side. Never blocks for longer than it takes to copy a byte.
pub(super) enum Console {
    Memory(Box<dyn Write + Send>),
    Stream(Arc<Shared>),
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Console::Memory(_) => f.write_str("Memory"),
            Console::Stream(shared) => f.debug_tuple("Stream").field(shared).finish(),
        }
    }
}

impl Console {
    /// A console that goes to `sink`; a thread does `first` before it writes there.
    ///
    /// # Errors
    /// The host has no room for a thread.
    pub(super) fn new(sink: ConsoleSink, first: OnStart) -> io::Result<Self> {
        match sink {
            ConsoleSink::Memory(memory) => Ok(Console::Memory(memory)),
            ConsoleSink::Stream(sink) => {
                let shared: Arc<Shared> = Arc::default();
                let of_thread = shared.clone();
                let serve = move || match first() {
                    Ok(()) => empty(&of_thread, sink),
                    // The other threads cannot be confined either, and they tell.
                    Err(_) => lock(&of_thread.buffer).dead = true,
                };
                std::thread::Builder::new().name("console".to_owned()).spawn(serve)?;
                Ok(Console::Stream(shared))
            }
        }
    }

    /// What [`LastWords::wait`] needs of it, for somebody who must not wait for the port: a vCPU may use that.
    pub(super) fn last_words(&self) -> LastWords {
        LastWords(match self {
            Console::Memory(_) => None,
            Console::Stream(shared) => Some(shared.clone()),
        })
    }
}

impl Shared {
    fn take(&self, bytes: &[u8]) {
        let mut buffer = lock(&self.buffer);
        if !buffer.dead && !buffer.closed {
            let room = BUFFER_MAX - buffer.bytes.len().min(BUFFER_MAX);
            let fit = bytes.get(..room).unwrap_or(bytes);
            buffer.bytes.extend_from_slice(fit);
            buffer.lost = buffer.lost.saturating_add(bytes.len() - fit.len());
            if bytes.contains(&b'\n') || buffer.bytes.len() >= WAKE_AT {
                self.changed.notify_all();
            }
        }
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Console::Memory(memory) => memory.write_all(bytes)?,
            Console::Stream(shared) => shared.take(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.last_words().wait();
    }
}

/// The end of a console.
#[derive(Debug)]
pub(in crate::devices) struct LastWords(Option<Arc<Shared>>);

impl LastWords {
    /// Ends the console, and waits a moment until the sink has taken what was printed.
    pub(in crate::devices) fn wait(&self) {
        let LastWords(Some(shared)) = self else { return };
        let mut buffer = lock(&shared.buffer);
        buffer.closed = true;
        shared.changed.notify_all();
        let unwritten = |b: &mut Buffer| !b.dead && (b.busy || !b.bytes.is_empty());
        // A sink that takes no more is left behind, with the thread that waits for it.
        drop(shared.changed.wait_timeout_while(buffer, LAST_WORDS, unwritten));
    }
}

/// The thread.
fn empty(shared: &Shared, mut sink: Box<dyn Write + Send>) {
    let mut buffer = lock(&shared.buffer);
    loop {
        buffer = wait(shared, buffer);
        let (bytes, lost) = (std::mem::take(&mut buffer.bytes), std::mem::take(&mut buffer.lost));
        if bytes.is_empty() {
            return;
        }
        buffer.busy = true;
        drop(buffer);
        let written = write(&mut sink, &bytes, lost);
        buffer = lock(&shared.buffer);
        buffer.busy = false;
        buffer.dead = written.is_err();
        shared.changed.notify_all();
        if buffer.dead {
            buffer.bytes = Vec::new();
            return;
        }
    }
}

/// Waits for a line, for half a page, or for the end.
fn wait<'a>(shared: &Shared, buffer: MutexGuard<'a, Buffer>) -> MutexGuard<'a, Buffer> {
    let idle = |b: &mut Buffer| !b.closed && b.bytes.len() < WAKE_AT && !b.bytes.contains(&b'\n');
    shared.changed.wait_while(buffer, idle).unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write(sink: &mut dyn Write, bytes: &[u8], lost: usize) -> io::Result<()> {
    sink.write_all(bytes)?;
    if lost > 0 {
        write!(
            sink,
            "\n[{lost} bytes of the guest's console were lost: they came faster than they were read]\n"
        )?;
    }
    sink.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

    use super::*;

    struct Sink(Sender<Vec<u8>>);
    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn stream(sink: impl Write + Send + 'static) -> Console {
        Console::new(ConsoleSink::Stream(Box::new(sink)), Box::new(|| Ok(()))).unwrap()
    }

    fn shared(console: &Console) -> Arc<Shared> {
        console.last_words().0.unwrap()
    }

    fn console() -> (Console, Receiver<Vec<u8>>) {
        let (sender, receiver) = channel();
        (stream(Sink(sender)), receiver)
    }

    #[test]
    fn lines_arrive_while_the_guest_runs_and_the_rest_at_its_end() {
        let (mut console, sink) = console();
        for byte in b"hello\nla" {
            console.write_all(&[*byte]).unwrap();
        }
        let mut seen = sink.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(console);
        while let Ok(more) = sink.recv_timeout(Duration::from_secs(10)) {
            seen.extend(more);
        }
        assert_eq!(seen, b"hello\nla");
    }

    #[test]
    fn the_rest_can_be_awaited_while_somebody_still_has_the_port() {
        let (mut console, sink) = console();
        console.write_all(b"no line end").unwrap();
        console.last_words().wait();
        assert_eq!(sink.try_recv().unwrap(), b"no line end");
        console.write_all(b"too late\n").unwrap();
        assert!(lock(&shared(&console).buffer).bytes.is_empty());
    }

    #[test]
    fn memory_has_every_byte_at_once() {
        let (sender, receiver) = channel();
        let never = || Err(io::Error::other("there is no thread"));
        let mut console = Console::new(ConsoleSink::Memory(Box::new(Sink(sender))), Box::new(never)).unwrap();
        console.write_all(b"x").unwrap();
        assert_eq!(receiver.try_recv().unwrap(), b"x");
        console.last_words().wait();
    }

    #[test]
    fn a_thread_that_cannot_be_confined_writes_nothing() {
        let (sender, receiver) = channel();
        let refused = Box::new(|| Err(io::Error::other("no seccomp")));
        let mut console = Console::new(ConsoleSink::Stream(Box::new(Sink(sender))), refused).unwrap();
        console.write_all(b"line\n").unwrap();
        assert!(receiver.recv().is_err());
    }

    struct Stuck;
    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            std::thread::sleep(Duration::from_secs(3600));
            Ok(0)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_sink_that_takes_nothing_stops_nobody_and_fills_no_memory() {
        let mut console = stream(Stuck);
        let start = Instant::now();
        for _ in 0..1000 {
            console.write_all(&[b'x'; 1000]).unwrap();
        }
        let shared = shared(&console);
        let buffer = lock(&shared.buffer);
        assert!(buffer.bytes.len() <= BUFFER_MAX);
        assert!(buffer.lost > 0);
        drop(buffer);
        drop(console);
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_sink_that_fails_is_given_up() {
        let (mut console, sink) = console();
        drop(sink);
        console.write_all(b"one\n").unwrap();
        let shared = shared(&console);
        let buffer = lock(&shared.buffer);
        let (buffer, _) =
            shared.changed.wait_timeout_while(buffer, Duration::from_secs(10), |b| !b.dead).unwrap();
        assert!(buffer.dead);
        drop(buffer);
        console.write_all(b"two\n").unwrap();
        assert!(lock(&shared.buffer).bytes.is_empty());
    }
}
