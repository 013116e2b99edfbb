//! The daemon: its sockets, a thread for each connection, and its end.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::SendFlags;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::config::{Rate, Size};
use crate::failure::{Failure, Kind};
use crate::jail::Bounds;

use super::api;
use super::budget::Budget;
use super::pool::Pool;
use super::registry::{Function, Registry, Settings};
use super::token::Token;
use super::zygote::Zygote;

/// Most connections at once.
const CONNECTIONS_MAX: usize = 2048;
/// Descriptors of the daemon itself, with those of shells that are being handed over.
const OWN_DESCRIPTORS: u64 = 24;
/// Those that an event may need: its connection, its shell's two, a drive's private file.
const DESCRIPTORS_PER_EVENT: u64 = 4;
/// Those of a shell that waits, and of a clone that is kept: its connection and a handle of its process.
const DESCRIPTORS_PER_SHELL: u64 = 2;
/// Fewest connections that a daemon is of use with: one that waits for its answer, and one that asks how it is going.
const CONNECTIONS_MIN: u64 = 2;
/// Stack of a connection's thread, bytes.
const STACK: usize = 256 << 10;
/// Most connections that are accepted before anything else is looked at.
const ACCEPTED_MAX: usize = 64;
/// How often clones are looked for that have waited too long for their next event.
const TIDYING: Duration = Duration::from_secs(1);
/// How long nothing is accepted when there are as many connections as may be, or no descriptor is left.
const PAUSE: Duration = Duration::from_millis(2);
/// How often is looked whether one more may come by TCP, while none may: that a connection has ended wakes nobody.
const TCP_PAUSE: Duration = Duration::from_millis(10);

/// Of what is not read for an answer, so much is thrown away before its connection is closed, and waited for so long.
const UNREAD_MAX: u64 = 1 << 20;
const UNREAD_WAIT: Duration = Duration::from_secs(1);

/// What a daemon is asked to do.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Where to listen.
    pub socket: PathBuf,
    /// Permissions of the socket.
    pub mode: u32,
    /// Users who may speak with it, beside root and the daemon's own.
    pub uids: Vec<u32>,
    /// Where to listen on TCP too.
    pub tcp: Option<Tcp>,
    /// Shells that wait for each shape of machine.
    pub shells: usize,
    /// Whether a shell that lacks a wall of its jail is refused.
    pub whole: bool,
    /// What each shell and its clone may use.
    pub bounds: Bounds,
    /// What each drive of a clone may move.
    pub block_rate: Option<Rate>,
    /// Most bytes of events and whole answers that are held at once.
    pub held_max: Size,
    /// Longest wait for events to end when the daemon is told to.
    pub drain: Duration,
    /// How long a connection may be silent between and within requests, and how long a request's head may take.
    pub idle: Duration,
    /// Functions from the start.
    pub functions: Vec<(String, PathBuf)>,
    /// Events that each clone of them serves.
    pub reuse: u32,
}

/// Where to listen on TCP, and for whom.
#[derive(Debug, Clone)]
pub struct Tcp {
    /// The address.
    pub address: SocketAddr,
    /// What requests have to bring; without it whoever reaches the address may do everything.
    pub token: Option<Token>,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    /// Its functions.
    pub registry: Registry,
    /// Its shells.
    pub pool: Arc<Pool>,
    /// What events and answers may take of its memory.
    pub budget: Budget,
    shells: usize,
    uids: Vec<u32>,
    token: Option<Token>,
    idle: Duration,
    draining: AtomicBool,
    /// How many descriptors this process may have.
    descriptors: u64,
    /// Connections for which they suffice beside the functions that there are.
    connections_max: AtomicUsize,
    connections: AtomicUsize,
    /// Those of them that came by TCP, from whoever can reach it.
    by_tcp: AtomicUsize,
    answering: AtomicUsize,
    /// One registration at a time: the pool follows the registry.
    registering: Mutex<()>,
}

/// Serves until the process is told to end.
///
/// # Errors
/// It cannot begin, or the zygote has ended.
pub fn serve(asked: &Asked) -> Result<(), Failure> {
    remove_stale(&asked.socket)?;
    // Before the zygote, which holds a descriptor of every shell.
    let descriptors = raise_limit();
    // Of no function's shape yet, and before anything has begun.
    let connections = connections_max(descriptors, DESCRIPTORS_PER_SHELL * count(asked.shells))?;
    // While there is one thread and nothing that is worth copying.
    let zygote = Zygote::start(asked.whole, &asked.bounds)?;
    let listeners = Listeners::bind(asked)?;
    let daemon = Arc::new(Daemon {
        registry: Registry::default(),
        pool: Arc::new(Pool::new(zygote, asked.block_rate)),
        budget: Budget::new(asked.held_max),
        shells: asked.shells,
        uids: [vec![0, rustix::process::geteuid().as_raw()], asked.uids.clone()].concat(),
        token: asked.tcp.as_ref().and_then(|tcp| tcp.token.clone()),
        idle: asked.idle,
        draining: AtomicBool::new(false),
        descriptors,
        connections_max: AtomicUsize::new(connections),
        connections: AtomicUsize::new(0),
        by_tcp: AtomicUsize::new(0),
        answering: AtomicUsize::new(0),
        registering: Mutex::new(()),
    });
    let pool = Arc::clone(&daemon.pool);
    thread("pool", move || pool.tend())?;
    for (name, bundle) in &asked.functions {
        let text = serde_json::json!({ "bundle": bundle, "reuse": asked.reuse });
        let settings = serde_json::from_value(text).map_err(|e| Failure::new(Kind::Usage, &e))?;
        daemon.register(name, settings)?;
    }
    let outcome = listeners.accept(&daemon);
    daemon.draining.store(true, Ordering::SeqCst);
    drop(listeners);
    daemon.drain(asked.drain);
    daemon.pool.end();
    outcome
}

impl Daemon {
    /// Opens a bundle as function `name`; whether there was none of that name.
    ///
    /// # Errors
    /// See [`Function::open`]; or there are too few descriptors for it beside the others.
    pub fn register(&self, name: &str, settings: Settings) -> Result<bool, Failure> {
        let function = Function::open(name, settings)?;
        let guard = self.registering.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.registry.all();
        let others = others.iter().map(Arc::as_ref).filter(|other| other.name != name);
        let all: Vec<&Function> = others.chain([&function]).collect();
        // Before it is put: where it does not fit, everything stays as it was.
        let connections = connections_max(self.descriptors, reserved(&all, self.shells))?;
        let new = self.registry.put(function);
        self.follow(connections);
        drop(guard);
        Ok(new)
    }

    /// Takes a function out; whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        let _guard = self.registering.lock().unwrap_or_else(PoisonError::into_inner);
        let was_there = self.registry.remove(name);
        let left = self.registry.all();
        let left: Vec<&Function> = left.iter().map(Arc::as_ref).collect();
        // With one function less there are descriptors for no fewer.
        if let Ok(connections) = connections_max(self.descriptors, reserved(&left, self.shells)) {
            self.follow(connections);
        }
        was_there
    }

    /// Takes so many connections, and has as many shells wait as the functions want.
    fn follow(&self, connections: usize) {
        self.connections_max.store(connections, Ordering::SeqCst);
        self.pool.want(&self.registry.wanted(self.shells));
    }

    /// Whether whoever asks by `connection` may: on a unix socket that was settled when it was accepted.
    pub fn allows(&self, connection: &Connection, authorization: Option<&str>) -> bool {
        match (&connection.stream, &self.token) {
            (Stream::Tcp(_), Some(token)) => token.is_in(authorization),
            _ => true,
        }
    }

    /// Whether one more may come by TCP: half of all connections are kept for who may use the socket, whom nobody who is silent
    /// on the network can shut out.
    fn has_room_for_tcp(&self) -> bool {
        self.by_tcp.load(Ordering::SeqCst) < self.connections_max.load(Ordering::SeqCst) / 2
    }

    /// Whether it is about to end.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Counts a request as being answered until the guard is dropped.
    pub fn answering(&self) -> Answering<'_> {
        self.answering.fetch_add(1, Ordering::SeqCst);
        Answering(self)
    }

    /// Waits until every request has been answered, for so long. Connections that wait for a next one are not waited for.
    fn drain(&self, longest: Duration) {
        let end = Instant::now() + longest;
        while self.answering.load(Ordering::SeqCst) > 0 && Instant::now() < end {
            std::thread::sleep(PAUSE);
        }
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Answering<'a>(&'a Daemon);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Lets the daemon have every descriptor that it may: each event has several. How many those are.
fn raise_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // With fewer it works as well, for fewer at once.
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).ok();
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Connections for which there are descriptors when `reserved` are not theirs. Were more accepted, shells that wait could leave none
/// at all, and what nobody takes from them nobody gives back.
///
/// # Errors
/// There are too few.
fn connections_max(descriptors: u64, reserved: u64) -> Result<usize, Failure> {
    let few = descriptors.saturating_sub(OWN_DESCRIPTORS.saturating_add(reserved)) / DESCRIPTORS_PER_EVENT;
    if few < CONNECTIONS_MIN {
        let text = format!(
            "Waiting shells, kept clones and bundles would take {reserved} of the {descriptors} descriptors that the daemon may have, \
             which leaves too few for events: raise the limit of open files (`ulimit -n`), or let fewer shells wait (--shells)"
        );
        return Err(Failure::text(Kind::HostCannot, text));
    }
    Ok(usize::try_from(few).unwrap_or(usize::MAX).min(CONNECTIONS_MAX))
}

/// Descriptors that functions hold whether there are events or not, with `shells` that wait for each shape where they do not say how
/// many: open bundles, waiting shells, and clones that are kept for further events.
fn reserved(functions: &[&Function], shells: usize) -> u64 {
    let mut waiting = BTreeMap::new();
    let mut reserved = 0;
    for function in functions {
        let most = waiting.entry(function.shape).or_insert(0);
        *most = function.settings.shells.unwrap_or(shells).max(*most);
        // Each was served in an event of its own: never more are kept than may be served at once.
        let kept = if function.settings.reuse > 1 { function.settings.concurrency } else { 0 };
        let kept = count(kept.min(CONNECTIONS_MAX)) * DESCRIPTORS_PER_SHELL;
        reserved += count(function.bundle.manifest().files.len()) + kept;
    }
    reserved + count(waiting.values().sum()) * DESCRIPTORS_PER_SHELL
}

fn count(of: usize) -> u64 {
    u64::try_from(of).unwrap_or(u64::MAX)
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(run);
    thread.map(drop).map_err(|e| Failure::new(Kind::HostCannot, &e))
}

/// Where the daemon listens. The socket's file goes with it.
struct Listeners {
    path: PathBuf,
    /// What the file there was once it was ours.
    file: Option<(u64, u64)>,
    unix: UnixListener,
    tcp: Option<TcpListener>,
    /// Readable once the process is told to end.
    signals: UnixStream,
}

impl Drop for Listeners {
    fn drop(&mut self) {
        // Whoever removed it has done our work, and may have started another daemon, whose file is there now. The number is not
        // given again while ours is open.
        if self.file.is_some() && identity(&self.path) == self.file {
            fs::remove_file(&self.path).ok();
        }
    }
}

/// Which file is at `path`: its device and number.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Listeners {
    fn bind(asked: &Asked) -> Result<Self, Failure> {
        let path = asked.socket.clone();
        let failed = |e: &io::Error| {
            Failure::text(Kind::HostCannot, format!("Cannot listen at {}: {e}", path.display()))
        };
        // First: whoever finds the socket's file finds everything ready.
        let tcp = asked.tcp.as_ref().map(|tcp| {
            let listener = TcpListener::bind(tcp.address)?;
            listener.set_nonblocking(true).map(|()| listener)
        });
        let tcp = tcp
            .transpose()
            .map_err(|e| Failure::text(Kind::HostCannot, format!("Cannot listen at the TCP address: {e}")))?;
        // Nobody may connect before the file has its mode.
        let before = rustix::process::umask(Mode::from_raw_mode(!asked.mode & 0o777));
        let bound = UnixListener::bind(&path);
        rustix::process::umask(before);
        let unix = bound.map_err(|e| failed(&e))?;
        let file = identity(&path);
        unix.set_nonblocking(true).map_err(|e| failed(&e))?;
        let (signals, tell) = UnixStream::pair().map_err(|e| failed(&e))?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            let tell = tell.try_clone().map_err(|e| failed(&e))?;
            signal_hook::low_level::pipe::register(signal, tell).map_err(|e| failed(&e))?;
        }
        Ok(Listeners { path, file, unix, tcp, signals })
    }

    /// Accepts connections until the process is told to end.
    fn accept(&self, daemon: &Arc<Daemon>) -> Result<(), Failure> {
        let mut tidied = Instant::now();
        loop {
            let mut polled =
                vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.unix, PollFlags::IN)];
            let has_room = daemon.has_room_for_tcp();
            let tcp = self.tcp.iter().filter(|_| has_room);
            polled.extend(tcp.map(|tcp| PollFd::new(tcp, PollFlags::IN)));
            let is_full = self.tcp.is_some() && !has_room;
            let longest = super::pool::timespec(if is_full { TCP_PAUSE } else { TIDYING });
            retry_on_intr(|| poll(&mut polled, Some(&longest)))
                .map_err(|e| Failure::new(Kind::HostCannot, &io::Error::from(e)))?;
            let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
            drop(polled);
            if ready.first() == Some(&true) {
                return Ok(());
            }
            if !daemon.pool.is_alive() {
                return Err(Failure::text(Kind::Internal, "The zygote has ended; nothing can be served"));
            }
            if tidied.elapsed() >= TIDYING {
                daemon.registry.all().iter().for_each(|function| function.end_unused());
                tidied = Instant::now();
            }
            if ready.get(1) == Some(&true) {
                accept_some(daemon, || Ok(Stream::Unix(self.unix.accept()?.0)));
            }
            if let (Some(true), Some(tcp)) = (ready.get(2), &self.tcp) {
                let full = || io::Error::from(io::ErrorKind::WouldBlock);
                accept_some(daemon, || {
                    if daemon.has_room_for_tcp() { Ok(Stream::Tcp(tcp.accept()?.0)) } else { Err(full()) }
                });
            }
        }
    }
}

/// Accepts those that wait, not so many that nothing else would be heeded while somebody connects without end.
fn accept_some(daemon: &Arc<Daemon>, accept: impl Fn() -> io::Result<Stream>) {
    for _ in 0..ACCEPTED_MAX {
        // Those that are too many wait in the kernel's queue.
        if daemon.connections.load(Ordering::SeqCst) >= daemon.connections_max.load(Ordering::SeqCst) {
            return std::thread::sleep(PAUSE);
        }
        match accept() {
            Ok(stream) if is_allowed(&stream, &daemon.uids) => begin(daemon, stream),
            Ok(stream) => refuse(&stream),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            // Descriptors come back as events end.
            Err(_) => return std::thread::sleep(PAUSE),
        }
    }
}

fn is_allowed(stream: &Stream, uids: &[u32]) -> bool {
    match stream {
        Stream::Unix(stream) => {
            rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| uids.contains(&peer.uid.as_raw()))
        }
        Stream::Tcp(_) => true,
    }
}

/// Says no and hangs up. Nothing is read and nothing is waited for, lest whoever may not use the daemon keep something of it.
fn refuse(stream: &Stream) {
    if let Stream::Unix(stream) = stream {
        let mut to = stream;
        stream.set_nonblocking(true).and_then(|()| api::refuse(&mut to)).ok();
    }
}

fn begin(daemon: &Arc<Daemon>, stream: Stream) {
    let Ok(connection) = Connection::new(stream, daemon.idle) else { return };
    let counted = Counted::new(daemon, &connection);
    // Where there is no thread for it, it ends with the closure.
    thread("connection", move || api::serve(&counted.daemon, &connection)).ok();
}

/// Removes the socket of a daemon that is gone.
fn remove_stale(path: &Path) -> Result<(), Failure> {
    let told = |text: String| Err(Failure::text(Kind::Usage, text));
    match UnixStream::connect(path) {
        Ok(_) => told(format!("A daemon listens at {} already", path.display())),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            use std::os::unix::fs::FileTypeExt;
            if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
                return fs::remove_file(path).map_err(|e| Failure::new(Kind::HostCannot, &e));
            }
            told(format!("{} is there and is no socket", path.display()))
        }
        Err(_) => Ok(()),
    }
}

/// A connection that counts among the daemon's until this is dropped.
struct Counted {
    daemon: Arc<Daemon>,
    by_tcp: usize,
}

impl Counted {
    fn new(daemon: &Arc<Daemon>, connection: &Connection) -> Self {
        let by_tcp = usize::from(matches!(connection.stream, Stream::Tcp(_)));
        daemon.connections.fetch_add(1, Ordering::SeqCst);
        daemon.by_tcp.fetch_add(by_tcp, Ordering::SeqCst);
        Counted { daemon: Arc::clone(daemon), by_tcp }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.daemon.connections.fetch_sub(1, Ordering::SeqCst);
        self.daemon.by_tcp.fetch_sub(self.by_tcp, Ordering::SeqCst);
    }
}

/// A connection of either kind.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    /// How long it may be silent.
    idle: Duration,
    /// When what is read has to be whole.
    until: Cell<Option<Instant>>,
}

#[derive(Debug)]
enum Stream {
    /// On this host.
    Unix(UnixStream),
    /// From anywhere.
    Tcp(TcpStream),
}

impl Connection {
    fn new(stream: Stream, idle: Duration) -> io::Result<Self> {
        match &stream {
            Stream::Unix(stream) => stream.set_nonblocking(false)?,
            Stream::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
            }
        }
        let connection = Connection { stream, idle, until: Cell::new(None) };
        connection.wait_at_most(idle)?;
        Ok(connection)
    }

    /// Has everything that `read` reads come within the time that the connection may be silent.
    ///
    /// # Errors
    /// The connection failed.
    pub fn in_time<T>(&self, read: impl FnOnce() -> T) -> io::Result<T> {
        self.until.set(Some(Instant::now() + self.idle));
        let outcome = read();
        self.until.set(None);
        self.wait_at_most(self.idle)?;
        Ok(outcome)
    }

    /// Writes all of `bytes`. The other side may not read for as long as the connection may be silent, and until `deadline` at the
    /// longest.
    ///
    /// # Errors
    /// The connection failed, or is not read from.
    pub fn write_until(&self, mut bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write_some(bytes, deadline)?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Writes what there is room for, once there is. A timeout of the socket's own would begin anew with each buffer of the kernel
    /// that a slow reader makes room for.
    fn write_some(&self, bytes: &[u8], deadline: Option<Instant>) -> io::Result<usize> {
        let silent_until = Instant::now() + self.idle;
        let until = deadline.map_or(silent_until, |deadline| deadline.min(silent_until));
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match rustix::net::send(self.fd(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(written) => return Ok(written),
                Err(Errno::AGAIN) => {
                    let mut polled = [PollFd::from_borrowed_fd(self.fd(), PollFlags::OUT)];
                    retry_on_intr(|| poll(&mut polled, Some(&super::pool::timespec(left))))?;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        }
    }

    fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        match &self.stream {
            Stream::Unix(stream) => stream.set_read_timeout(Some(time)),
            Stream::Tcp(stream) => stream.set_read_timeout(Some(time)),
        }
    }

    /// Ends it after an answer to what has not been read to its end. TCP takes an answer back from whoever has not read it when it
    /// is closed with something unread (RFC 9112, 9.6): so what still comes is thrown away, up to a bound.
    pub fn hang_up(&self) {
        let ended = match &self.stream {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
        };
        self.until.set(Some(Instant::now() + UNREAD_WAIT));
        // Who has gone, or does not end, needs nothing more.
        ended.and_then(|()| io::copy(&mut Read::take(self, UNREAD_MAX), &mut io::sink())).ok();
    }

    /// How it is noticed that the other side has gone. On TCP that cannot be told from one that only says no more.
    pub fn goes(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = match &self.stream {
            Stream::Unix(_) => PollFlags::HUP,
            Stream::Tcp(_) => PollFlags::RDHUP,
        };
        (self.fd(), flags)
    }
}

impl Read for &Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(until) = self.until.get() {
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
            self.wait_at_most(left.ok_or(io::ErrorKind::TimedOut)?)?;
        }
        match &self.stream {
            Stream::Unix(stream) => (&*stream).read(into),
            Stream::Tcp(stream) => (&*stream).read(into),
        }
    }
}

impl Write for &Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_some(bytes, None)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
