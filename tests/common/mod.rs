//! What the black-box tests share: where things are, running `ember` within a hard limit, and a folder of one's own.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy takes helpers of tests for the product"
)]

pub mod api;
pub mod attacker;
pub mod bundles;
pub mod groups;
pub mod processes;
pub mod serve;

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal};

/// Longest time of one `ember` that is not itself told a limit. Only what hangs comes near it, even where two emulated hosts share a
/// busy machine.
fn limit() -> Duration {
    Duration::from_secs(if in_rig() { 180 } else { 60 })
}

/// Ember's own exit codes (docs/exit-codes.md).
pub const USAGE: i32 = 120;
pub const BAD_BUNDLE: i32 = 121;
pub const HOST_CANNOT: i32 = 122;
pub const GUEST_FAILED: i32 = 123;
pub const TIMEOUT: i32 = 124;

/// The program under test.
pub fn program() -> PathBuf {
    std::env::var_os("EMBER_BIN").map_or_else(|| env!("CARGO_BIN_EXE_ember").into(), PathBuf::from)
}

/// Whether this is the emulated host, where a process costs some ten times what it costs elsewhere.
pub fn in_rig() -> bool {
    std::env::var_os("EMBER_WHERE").is_some_and(|place| place == "rig")
}

/// `many`, or a tenth of it where processes are that much slower.
pub fn rounds(many: usize) -> usize {
    if in_rig() { many.div_ceil(10) } else { many }
}

/// The ELF of a small guest.
pub fn guest(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        std::env::var_os("EMBER_SMALL_GUESTS").map_or_else(
            || {
                let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("small-guests");
                small_guests::build(&folder).unwrap();
                folder
            },
            PathBuf::from,
        )
    });
    small_guests::elf(folder, name)
}

/// `ember` with these arguments, and nothing else to say what to do.
pub fn ember<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null());
    for defaults in ["EMBER_KERNEL", "EMBER_MODULES", "EMBER_AGENT"] {
        command.env_remove(defaults);
    }
    command
}

/// `ember bake` of a small guest with the least memory.
pub fn bake_command(name: &str, bundle: &Path) -> Command {
    bake_in_command("2MiB", name, bundle)
}

/// `ember bake` of a small guest with so much memory.
pub fn bake_in_command(memory: &str, name: &str, bundle: &Path) -> Command {
    let mut command = ember(["bake", "--interface", "port", "--memory", memory, "--kernel"]);
    command.arg(guest(name)).arg(bundle);
    command
}

/// `ember run` of a bundle with an event.
pub fn run_command(bundle: &Path, event: &str) -> Command {
    let mut command = ember(["run", "--event-text", event]);
    command.arg(bundle);
    command
}

/// A folder that is gone with the test, and bundles in it.
#[derive(Debug)]
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A bundle of a small guest.
    pub fn bake(&self, name: &str) -> PathBuf {
        self.bake_with(name, &[])
    }

    /// The same with more flags.
    pub fn bake_with(&self, name: &str, more: &[&str]) -> PathBuf {
        self.bake_in("2MiB", name, more)
    }

    /// The same with so much memory.
    pub fn bake_in(&self, memory: &str, name: &str, more: &[&str]) -> PathBuf {
        let bundle = self.join(&format!("{name}.ember"));
        finish(bake_in_command(memory, name, &bundle).args(more)).succeeds();
        bundle
    }

    /// Names of everything in it, hidden or not.
    pub fn names(&self) -> Vec<String> {
        names(self.path())
    }
}

/// Names of everything in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// What became of a process.
pub struct Ended {
    pub status: ExitStatus,
    pub output: Vec<u8>,
    pub errors: String,
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = String::from_utf8_lossy(&self.output[..self.output.len().min(2000)]);
        // Of a flood the end, where the sentence is.
        let errors =
            &self.errors[self.errors.floor_char_boundary(self.errors.len().saturating_sub(20_000))..];
        write!(f, "{}\n--- output\n{output}\n--- errors\n{errors}", self.status)
    }
}

impl Ended {
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("no exit code: {self:?}"))
    }

    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.output).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.output).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// It went well.
    #[track_caller]
    pub fn succeeds(&self) -> &Self {
        assert!(self.status.success(), "{self:?}");
        self
    }

    /// It went well with this answer.
    #[track_caller]
    pub fn answers(&self, answer: &str) {
        self.succeeds();
        assert_eq!(self.text(), answer, "{self:?}");
    }

    /// It failed with this exit code, one sentence that holds `words`, no answer, and no panic.
    #[track_caller]
    pub fn fails(&self, code: i32, words: &str) {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        assert_eq!(self.output, b"", "{self:?}");
        let told: Vec<&str> = self.errors.lines().filter(|line| line.starts_with("ember: ")).collect();
        assert_eq!(told.len(), 1, "one line tells what went wrong: {self:?}");
        assert!(told[0].contains(words), "{words:?} is not said: {self:?}");
        assert!(!self.errors.contains("panicked"), "{self:?}");
    }

    /// It ended as a program should whatever it was given: not by a signal, not with a panic.
    #[track_caller]
    pub fn is_sane(&self) {
        assert!(self.status.code().is_some() && !self.errors.contains("panicked"), "{self:?}");
    }
}

/// Runs to the end, within the hard limit.
#[track_caller]
pub fn finish(command: &mut Command) -> Ended {
    end_of(start(command))
}

/// Starts in a process group of its own, with its output to be collected.
#[track_caller]
pub fn start(command: &mut Command) -> Child {
    use std::os::unix::process::CommandExt;
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Waits for the end of a child; one that hangs is killed, and the test fails.
#[track_caller]
pub fn end_of(child: Child) -> Ended {
    end_within(child, limit())
}

/// The same with a limit of its own, for what is known to take long.
#[track_caller]
pub fn end_within(child: Child, limit: Duration) -> Ended {
    let group = Pid::from_child(&child);
    let (done, expired) = channel::<()>();
    let guard = std::thread::spawn(move || {
        let hangs = expired.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        if hangs {
            rustix::process::kill_process_group(group, Signal::KILL).ok();
        }
        hangs
    });
    let output = child.wait_with_output().unwrap();
    done.send(()).ok();
    let ended = Ended {
        status: output.status,
        output: output.stdout,
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    assert!(!guard.join().unwrap(), "killed after {limit:?}: {ended:?}");
    ended
}

/// Waits until `is_so`, or fails.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + limit() / 2;
    while !is_so() {
        assert!(std::time::Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether this test may do what only the superuser may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A shell script in a mount namespace of its own, where it may mount what it likes. `$1` and so on are `arguments`, `$SETPRIV` is
/// setpriv(1).
pub fn in_namespace<S: AsRef<OsStr>>(script: &str, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new("unshare");
    command.arg(if is_root() { "-m" } else { "-Urm" }).args(["sh", "-c", script, "sh"]).args(arguments);
    command.env("SETPRIV", setpriv()).stdin(Stdio::null());
    command
}

/// The path of setpriv(1). By its name busybox's shell would run its own, which knows less.
pub fn setpriv() -> String {
    finish(Command::new("which").arg("setpriv")).succeeds().text().trim().to_owned()
}

/// Makes files unwritable even for the superuser. Outside the emulated host, where it always can be, this is left out if the file system
/// or this user cannot do it.
pub fn set_immutable(files: &[PathBuf], on: bool) {
    let set = |path: &Path| -> std::io::Result<()> {
        let file = std::fs::File::open(path)?;
        let mut flags = rustix::fs::ioctl_getflags(&file)?;
        flags.set(rustix::fs::IFlags::IMMUTABLE, on);
        Ok(rustix::fs::ioctl_setflags(&file, flags)?)
    };
    for path in files {
        let done = set(path);
        assert!(done.is_ok() || !in_rig(), "{}: {done:?}", path.display());
        if on && done.is_ok() {
            let opened = std::fs::File::options().write(true).open(path);
            assert!(opened.is_err(), "{} can be written", path.display());
        }
    }
}

/// Numbers that look random and are the same every time (SplitMix64).
#[derive(Debug)]
pub struct Seeded(pub u64);

impl Seeded {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ mixed >> 31) % bound as u64).unwrap()
    }
}
