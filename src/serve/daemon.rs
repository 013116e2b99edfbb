//! The daemon: its sockets, a thread for each connection, and its end.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::failure::{Failure, Kind};
use crate::jail::Bounds;

use super::api;
use super::pool::Pool;
use super::registry::{Function, Registry, Settings};
use super::zygote::Zygote;

/// Most connections at once.
const CONNECTIONS_MAX: usize = 2048;
/// Descriptors of the daemon itself, and those that each event may need.
const OWN_DESCRIPTORS: u64 = 32;
const DESCRIPTORS_PER_EVENT: u64 = 4;
/// Stack of a connection's thread, bytes.
const STACK: usize = 256 << 10;
/// How long a connection may be silent between and within requests.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long nothing is accepted when there are as many connections as may be, or no descriptor is left.
const PAUSE: Duration = Duration::from_millis(2);

/// What a daemon is asked to do.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Where to listen.
    pub socket: PathBuf,
    /// Permissions of the socket.
    pub mode: u32,
    /// Users who may speak with it, beside root and the daemon's own.
    pub uids: Vec<u32>,
    /// A TCP address to listen at too. Whoever reaches it may do everything.
    pub tcp: Option<SocketAddr>,
    /// Shells that wait for each shape of machine.
    pub shells: usize,
    /// Whether a shell that lacks a wall of its jail is refused.
    pub whole: bool,
    /// What each shell and its clone may use.
    pub bounds: Bounds,
    /// Longest wait for events to end when the daemon is told to.
    pub drain: Duration,
    /// Functions from the start.
    pub functions: Vec<(String, PathBuf)>,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    /// Its functions.
    pub registry: Registry,
    /// Its shells.
    pub pool: Arc<Pool>,
    shells: usize,
    uids: Vec<u32>,
    draining: AtomicBool,
    connections_max: usize,
    connections: AtomicUsize,
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
    // While there is one thread and nothing that is worth copying.
    let zygote = Zygote::start(asked.whole, &asked.bounds)?;
    let listeners = Listeners::bind(asked)?;
    let daemon = Arc::new(Daemon {
        registry: Registry::default(),
        pool: Arc::new(Pool::new(zygote)),
        shells: asked.shells,
        uids: [vec![0, rustix::process::geteuid().as_raw()], asked.uids.clone()].concat(),
        draining: AtomicBool::new(false),
        connections_max: connections_max(descriptors),
        connections: AtomicUsize::new(0),
        answering: AtomicUsize::new(0),
        registering: Mutex::new(()),
    });
    let pool = Arc::clone(&daemon.pool);
    thread("pool", move || pool.tend())?;
    for (name, bundle) in &asked.functions {
        let text = serde_json::json!({ "bundle": bundle });
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
    /// See [`Function::open`].
    pub fn register(&self, name: &str, settings: Settings) -> Result<bool, Failure> {
        let new = self.registry.put(Function::open(name, settings)?);
        self.want_shells();
        Ok(new)
    }

    /// Has as many shells wait as the functions want.
    pub fn want_shells(&self) {
        let _guard = self.registering.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = self.registry.wanted(self.shells);
        for count in self.pool.figures().shells {
            if !wanted.contains_key(&count.shape) {
                self.pool.want(count.shape, 0);
            }
        }
        for (shape, shells) in wanted {
            self.pool.want(shape, shells);
        }
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

/// Connections for which there are descriptors: beside its own an event has its shell's two, and drives' private files.
fn connections_max(descriptors: u64) -> usize {
    let few = descriptors.saturating_sub(OWN_DESCRIPTORS) / DESCRIPTORS_PER_EVENT;
    usize::try_from(few).unwrap_or(usize::MAX).clamp(2, CONNECTIONS_MAX)
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(run);
    thread.map(drop).map_err(|e| Failure::new(Kind::HostCannot, &e))
}

/// Where the daemon listens. The socket's file goes with it.
struct Listeners {
    path: PathBuf,
    unix: UnixListener,
    tcp: Option<TcpListener>,
    /// Readable once the process is told to end.
    signals: UnixStream,
}

impl Drop for Listeners {
    fn drop(&mut self) {
        // Whoever removed it has done our work.
        fs::remove_file(&self.path).ok();
    }
}

impl Listeners {
    fn bind(asked: &Asked) -> Result<Self, Failure> {
        let path = asked.socket.clone();
        let failed = |e: &io::Error| {
            Failure::text(Kind::HostCannot, format!("Cannot listen at {}: {e}", path.display()))
        };
        // Nobody may connect before the file has its mode.
        let before = rustix::process::umask(Mode::from_raw_mode(!asked.mode & 0o777));
        let bound = UnixListener::bind(&path);
        rustix::process::umask(before);
        let unix = bound.map_err(|e| failed(&e))?;
        unix.set_nonblocking(true).map_err(|e| failed(&e))?;
        let (signals, tell) = UnixStream::pair().map_err(|e| failed(&e))?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            let tell = tell.try_clone().map_err(|e| failed(&e))?;
            signal_hook::low_level::pipe::register(signal, tell).map_err(|e| failed(&e))?;
        }
        let tcp = asked.tcp.map(|address| {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true).map(|()| listener)
        });
        let tcp = tcp
            .transpose()
            .map_err(|e| Failure::text(Kind::HostCannot, format!("Cannot listen at the TCP address: {e}")))?;
        Ok(Listeners { path, unix, tcp, signals })
    }

    /// Accepts connections until the process is told to end.
    fn accept(&self, daemon: &Arc<Daemon>) -> Result<(), Failure> {
        loop {
            let mut polled =
                vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.unix, PollFlags::IN)];
            polled.extend(self.tcp.iter().map(|tcp| PollFd::new(tcp, PollFlags::IN)));
            let second = super::pool::timespec(Duration::from_secs(1));
            rustix::io::retry_on_intr(|| poll(&mut polled, Some(&second)))
                .map_err(|e| Failure::new(Kind::HostCannot, &io::Error::from(e)))?;
            let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
            drop(polled);
            if ready.first() == Some(&true) {
                return Ok(());
            }
            if !daemon.pool.is_alive() {
                return Err(Failure::text(Kind::Internal, "The zygote has ended; nothing can be served"));
            }
            if ready.get(1) == Some(&true) {
                self.accept_all(daemon, || Ok(Connection::Unix(self.unix.accept()?.0)));
            }
            if let (Some(true), Some(tcp)) = (ready.get(2), &self.tcp) {
                self.accept_all(daemon, || Ok(Connection::Tcp(tcp.accept()?.0)));
            }
        }
    }

    fn accept_all(&self, daemon: &Arc<Daemon>, accept: impl Fn() -> io::Result<Connection>) {
        loop {
            // Those that are too many wait in the kernel's queue.
            if daemon.connections.load(Ordering::SeqCst) >= daemon.connections_max {
                return std::thread::sleep(PAUSE);
            }
            match accept() {
                Ok(connection) => begin(daemon, connection),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // Descriptors come back as events end.
                Err(_) => return std::thread::sleep(PAUSE),
            }
        }
    }
}

fn begin(daemon: &Arc<Daemon>, connection: Connection) {
    if connection.prepare().is_err() {
        return;
    }
    daemon.connections.fetch_add(1, Ordering::SeqCst);
    let own = Arc::clone(daemon);
    let served = thread("connection", move || {
        api::serve(&own, &connection, connection.is_allowed(&own.uids));
        own.connections.fetch_sub(1, Ordering::SeqCst);
    });
    if served.is_err() {
        daemon.connections.fetch_sub(1, Ordering::SeqCst);
    }
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

/// A connection of either kind.
#[derive(Debug)]
pub enum Connection {
    /// On this host.
    Unix(UnixStream),
    /// From anywhere.
    Tcp(TcpStream),
}

impl Connection {
    fn is_allowed(&self, uids: &[u32]) -> bool {
        match self {
            Connection::Unix(stream) => rustix::net::sockopt::socket_peercred(stream)
                .is_ok_and(|peer| uids.contains(&peer.uid.as_raw())),
            Connection::Tcp(_) => true,
        }
    }

    fn prepare(&self) -> io::Result<()> {
        match self {
            Connection::Unix(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(SILENCE_MAX))?;
                stream.set_write_timeout(Some(SILENCE_MAX))
            }
            Connection::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(SILENCE_MAX))?;
                stream.set_write_timeout(Some(SILENCE_MAX))
            }
        }
    }

    /// How it is noticed that the other side has gone. On TCP that cannot be told from one that only says no more.
    pub fn goes(&self) -> (BorrowedFd<'_>, PollFlags) {
        match self {
            Connection::Unix(stream) => (stream.as_fd(), PollFlags::HUP),
            Connection::Tcp(stream) => (stream.as_fd(), PollFlags::RDHUP),
        }
    }
}

impl Read for &Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match *self {
            Connection::Unix(stream) => (&*stream).read(into),
            Connection::Tcp(stream) => (&*stream).read(into),
        }
    }
}

impl Write for &Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match *self {
            Connection::Unix(stream) => (&*stream).write(bytes),
            Connection::Tcp(stream) => (&*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
