//! Jobs on the emulated host: what goes in, what comes out, and what counts as a failure of the host itself.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::console;
use super::payload::{self, Contents};
use super::qemu::{DEFAULT_CPU, Disk, Machine, Remains, Stream};
use super::{DEFAULT_MEMORY_MIB, initramfs};
use crate::environment::{self, Environment};
use crate::image;
use crate::process::{self, command, quote};
use crate::progress::say;
use crate::setup::{self, Emulator};
use crate::workspace::{Workspace, make_dir, make_empty_dir, write};

/// How often a job is tried whose host stands still.
pub const TRIES: u32 = 4;
/// Longest time in which a job with the exact clock prints nothing, wall clock: a bake takes half a minute on a quiet machine.
const SILENCE: Duration = Duration::from_secs(240);
/// The same by the wall clock, where the host says every five seconds that it goes on.
const NO_BEAT: Duration = Duration::from_secs(180);
/// Wall-clock time for starting and stopping, on top of the job's own limit.
const START_AND_STOP: Duration = Duration::from_secs(90);

const GIB: u64 = 1 << 30;

/// Room for results; the disk is sparse.
const OUT_BYTES: u64 = 16 * GIB;

/// A writable file system that outlives the job, for bundles that later jobs use again.
#[derive(Debug, Clone)]
pub struct Cache {
    pub image: PathBuf,
}

impl Cache {
    const BYTES: u64 = 32 * GIB;

    fn prepare(&self) -> Result<()> {
        if self.image.exists() {
            return Ok(());
        }
        if let Some(dir) = self.image.parent() {
            make_dir(dir)?;
        }
        image::empty(&self.image, Self::BYTES)
    }

    /// Throws it away: after an unclean end nobody knows what is in it.
    fn discard(&self) -> Result<()> {
        std::fs::remove_file(&self.image).with_context(|| format!("Cannot remove {}", self.image.display()))
    }
}

/// Something to run on an emulated host of its own.
#[derive(Debug)]
pub struct Job {
    /// Names the directory of its console and output; unique among jobs that run at once.
    pub name: String,
    /// A shell script.
    pub script: String,
    /// More files that it finds under /job.
    pub files: Vec<(&'static str, String)>,
    /// Copied to /in.
    pub inputs: Vec<PathBuf>,
    /// Variables besides those that name the parts of the payload.
    pub environment: Environment,
    /// Gets what the job leaves in /out.
    pub out: Option<PathBuf>,
    pub icount: bool,
    pub memory_mib: u32,
    /// The emulated processor, see [`DEFAULT_CPU`].
    pub cpu: String,
    pub scratch_gib: Option<u64>,
    pub cache: Option<Cache>,
    pub limit: Duration,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            name: "job".to_owned(),
            script: String::new(),
            files: Vec::new(),
            inputs: Vec::new(),
            environment: Vec::new(),
            out: None,
            icount: false,
            memory_mib: DEFAULT_MEMORY_MIB,
            cpu: DEFAULT_CPU.to_owned(),
            scratch_gib: None,
            cache: None,
            limit: Duration::from_secs(600),
        }
    }
}

/// The parts that all jobs share.
#[derive(Debug)]
pub struct RigHost {
    runs: PathBuf,
    emulator: Emulator,
    kernel: PathBuf,
    initramfs: PathBuf,
    payload: PathBuf,
    environment: Environment,
    /// Until this is dropped no other command of this checkout runs jobs.
    _alone: File,
}

/// Keeps a second command in the same checkout waiting until this one is done: it would put another payload in the place of this one's.
fn alone(workspace: &Workspace) -> Result<File> {
    let path = workspace.target("rig/lock");
    let context = || format!("Cannot lock {}", path.display());
    let file = File::create(&path).with_context(context)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            say("Another command uses the emulated host of this checkout: this one waits for its end");
            file.lock().with_context(context)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(context),
    }
    Ok(file)
}

impl RigHost {
    /// Packs initramfs and payload.
    pub fn prepare(workspace: &Workspace, contents: &Contents) -> Result<Self> {
        make_dir(&workspace.target("rig/runs"))?;
        let alone = alone(workspace)?;
        let lock = setup::lock(workspace)?;
        let host = Self {
            _alone: alone,
            runs: workspace.target("rig/runs"),
            emulator: contents.guest.emulator.clone(),
            kernel: contents.guest.kernel.clone(),
            initramfs: initramfs::prepare(workspace, &contents.guest)?,
            payload: payload::prepare(workspace, contents)?,
            environment: environment::rig(contents),
        };
        drop(lock);
        Ok(host)
    }

    /// Runs a job, and returns its exit code.
    ///
    /// An error means that the host failed, not the job: an oops, a panic, a lockup, or no end within its time.
    pub fn run(&self, job: &Job, sink: &mut dyn FnMut(Stream, &[u8]) -> Result<()>) -> Result<i32> {
        self.run_once(job, sink)?.ok_or_else(|| anyhow!("The emulated host stood still"))
    }

    /// As [`run`](Self::run); `None` when the host stood still, which is said. With the exact clock that is not looked for.
    pub fn run_once(
        &self,
        job: &Job,
        sink: &mut dyn FnMut(Stream, &[u8]) -> Result<()>,
    ) -> Result<Option<i32>> {
        match self.run_within(job, (!job.icount).then_some(NO_BEAT), sink) {
            Err(Failed { error, stood_still: true }) => {
                say(&format!("{error:#}"));
                Ok(None)
            }
            ended => ended.map(Some).map_err(|failed| failed.error),
        }
    }

    fn run_within(
        &self,
        job: &Job,
        silence: Option<Duration>,
        sink: &mut dyn FnMut(Stream, &[u8]) -> Result<()>,
    ) -> Result<i32, Failed> {
        let dir = self.runs.join(&job.name);
        make_empty_dir(&dir)?;
        let machine = Machine { silence, ..self.machine(job, &dir)? };
        let start = Instant::now();
        let remains = machine.run(sink)?;
        let code = verdict(&remains, start.elapsed() >= machine.limit);
        if let (Err(_), Some(cache)) = (&code, &job.cache) {
            cache.discard()?;
        }
        let code = code.map_err(|trouble| Failed {
            error: report(&trouble.to_string(), &remains, &dir),
            stood_still: trouble == Trouble::StoodStill,
        })?;
        if let Some(out) = &job.out {
            unpack(&dir.join("out.tar"), out)?;
        }
        clear(&dir)?;
        Ok(code)
    }

    /// As [`run`](Self::run), for a job that may be begun anew. The emulated host stands still now and then (docs/rig.md): a fault of
    /// the emulator, which nothing that gets to its end can have met. Whatever else fails is told at once: tried again, a fault that
    /// comes now and then would be hidden.
    pub fn run_again(&self, job: &Job, sink: &mut dyn FnMut(Stream, &[u8]) -> Result<()>) -> Result<i32> {
        let silence = if job.icount { SILENCE } else { NO_BEAT };
        again(TRIES, &job.name, || self.run_within(job, Some(silence), sink))
    }

    /// Removes what a job has left, console and output included.
    pub fn forget(&self, job: &Job) -> Result<()> {
        let dir = self.runs.join(&job.name);
        std::fs::remove_dir_all(&dir).with_context(|| format!("Cannot remove {}", dir.display()))
    }

    fn machine(&self, job: &Job, dir: &Path) -> Result<Machine> {
        let mut disks = vec![Disk { name: "payload", path: self.payload.clone(), writable: false }];
        disks.push(Disk { name: "job", path: self.job_disk(job, dir)?, writable: false });
        if job.out.is_some() {
            let path = dir.join("out.tar");
            image::create_sparse(&path, OUT_BYTES)?;
            disks.push(Disk { name: "out", path, writable: true });
        }
        if let Some(gib) = job.scratch_gib {
            let path = dir.join("scratch.ext4");
            image::empty(&path, gib * GIB)?;
            disks.push(Disk { name: "scratch", path, writable: true });
        }
        if let Some(cache) = &job.cache {
            cache.prepare()?;
            disks.push(Disk { name: "cache", path: cache.image.clone(), writable: true });
        }
        Ok(Machine {
            emulator: self.emulator.clone(),
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            disks,
            memory_mib: job.memory_mib,
            cpu: job.cpu.clone(),
            icount: job.icount,
            limit: job.limit + START_AND_STOP,
            silence: None,
            dir: dir.to_owned(),
        })
    }

    /// The disk with the script, its variables and its inputs.
    fn job_disk(&self, job: &Job, dir: &Path) -> Result<PathBuf> {
        let tree = dir.join("job");
        make_dir(&tree.join("in"))?;
        write(&tree.join("run"), &job.script)?;
        write(&tree.join("environment"), self.variables(job))?;
        write(&tree.join("limit"), job.limit.as_secs().to_string())?;
        if !job.icount {
            write(&tree.join("beats"), "")?;
        }
        for (name, content) in &job.files {
            write(&tree.join(name), content)?;
        }
        for input in &job.inputs {
            copy_input(input, &tree.join("in"))?;
        }
        let image = dir.join("job.ext4");
        image::of_directory(&tree, &image)?;
        Ok(image)
    }

    fn variables(&self, job: &Job) -> String {
        let all = self.environment.iter().chain(&job.environment);
        all.map(|(name, value)| format!("export {name}={}\n", quote(value))).collect()
    }
}

fn copy_input(input: &Path, into: &Path) -> Result<()> {
    let input = input.canonicalize().with_context(|| format!("Cannot find {}", input.display()))?;
    let copy = |option: &str| process::quiet(command("cp").args(["-a", option, "--"]).arg(&input).arg(into));
    copy("--link").or_else(|_| copy("--sparse=always"))
}

/// A job that did not come to its end.
#[derive(Debug)]
struct Failed {
    error: anyhow::Error,
    /// Whether the host was silent for too long, and nothing else is wrong with it.
    stood_still: bool,
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self { error, stood_still: false }
    }
}

/// Tries until something else comes of it than a host that stands still.
fn again(tries: u32, name: &str, mut attempt: impl FnMut() -> Result<i32, Failed>) -> Result<i32> {
    let mut left = tries;
    loop {
        left -= 1;
        match attempt() {
            Err(Failed { error, stood_still: true }) if left > 0 => {
                say(&format!("{error:#}\n{name} once more"))
            }
            ended => return ended.map_err(|failed| failed.error),
        }
    }
}

/// Why the host cannot be believed.
#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    /// An oops, a panic, a lockup: the line that tells of it.
    Broken(String),
    /// The job was not done within its time.
    Late,
    /// Its job printed nothing for too long.
    StoodStill,
    /// It was not off within its time.
    OutOfTime,
    /// It went off, as this status says, before the job was done.
    NoResult(ExitStatus),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(line) => write!(f, "The emulated host is broken: {line}"),
            Self::Late => write!(f, "The command was not done within its time and was killed"),
            Self::StoodStill => write!(f, "The emulated host stood still and was killed"),
            Self::OutOfTime => write!(f, "The emulated host was not done within its time and was killed"),
            Self::NoResult(status) => write!(f, "The emulated host ended without a result ({status})"),
        }
    }
}

/// The job's exit code, or why the host cannot be believed.
fn verdict(remains: &Remains, out_of_time: bool) -> Result<i32, Trouble> {
    if let Some(line) = console::trouble(&remains.console) {
        return Err(Trouble::Broken(line.trim().to_owned()));
    }
    if remains.report.lines().any(|line| line == "late") {
        return Err(Trouble::Late);
    }
    if remains.silent {
        return Err(Trouble::StoodStill);
    }
    let code = remains.report.lines().find_map(|line| line.strip_prefix("exit ")?.trim().parse().ok());
    code.ok_or(if out_of_time { Trouble::OutOfTime } else { Trouble::NoResult(remains.status) })
}

fn report(reason: &str, remains: &Remains, dir: &Path) -> anyhow::Error {
    let messages = console::without_feature_warnings(&remains.messages);
    let console = console::excerpt(&remains.console, 60);
    anyhow!("{reason}\n{messages}{console}    (everything it said is in {})", dir.display())
}

/// Unpacks what was written to the disk of the results.
fn unpack(disk: &Path, into: &Path) -> Result<()> {
    make_dir(into)?;
    let mut file = File::open(disk).with_context(|| format!("Cannot open {}", disk.display()))?;
    let mut first = [0; 512];
    file.read_exact(&mut first)?;
    if first == [0; 512] {
        bail!("The emulated host wrote no results");
    }
    let mut archive = tar::Archive::new(File::open(disk)?);
    archive.set_preserve_mtime(false);
    archive.unpack(into).with_context(|| format!("Cannot unpack the results into {}", into.display()))
}

/// Removes the disks of a job that went well; its console and output stay.
fn clear(dir: &Path) -> Result<()> {
    for name in ["job.ext4", "out.tar", "scratch.ext4"] {
        let path = dir.join(name);
        if path.exists() {
            std::fs::remove_file(&path).with_context(|| format!("Cannot remove {}", path.display()))?;
        }
    }
    std::fs::remove_dir_all(dir.join("job"))
        .with_context(|| format!("Cannot remove {}", dir.join("job").display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn remains(console: &str, report: &str) -> Remains {
        Remains {
            status: ExitStatus::from_raw(0),
            silent: false,
            console: console.to_owned(),
            report: report.to_owned(),
            messages: String::new(),
        }
    }

    #[test]
    fn the_exit_code_is_what_the_host_reported() {
        assert_eq!(verdict(&remains("", "exit 7\n"), false), Ok(7));
    }

    #[test]
    fn an_oops_is_a_failure_even_when_the_job_reported_success() {
        let told = verdict(&remains("[ 9.0] Oops: int3: 0000\n", "exit 0\n"), false).unwrap_err();
        assert_eq!(told, Trouble::Broken("[ 9.0] Oops: int3: 0000".to_owned()));
    }

    #[test]
    fn a_command_out_of_time_is_a_failure() {
        assert_eq!(verdict(&remains("", "late\nexit 137\n"), false), Err(Trouble::Late));
    }

    #[test]
    fn a_host_that_says_nothing_never_passes() {
        assert_eq!(verdict(&remains("", ""), false), Err(Trouble::NoResult(remains("", "").status)));
        assert_eq!(verdict(&remains("", ""), true), Err(Trouble::OutOfTime));
    }

    #[test]
    fn only_a_host_that_is_silent_and_whole_stood_still() {
        let silent = |console, report| verdict(&Remains { silent: true, ..remains(console, report) }, false);
        assert_eq!(silent("", ""), Err(Trouble::StoodStill));
        assert!(matches!(silent("watchdog: BUG: soft lockup\n", ""), Err(Trouble::Broken(_))));
        assert_eq!(silent("", "late\n"), Err(Trouble::Late));
    }

    /// How often something that fails like this is tried, and what becomes of it.
    fn tried(stood_still: bool, then: Option<i32>) -> (u32, Option<i32>) {
        let mut times = 0;
        let ended = again(3, "job", || {
            times += 1;
            then.filter(|_| times > 1).ok_or_else(|| Failed { error: anyhow!("failed"), stood_still })
        });
        (times, ended.ok())
    }

    #[test]
    fn a_host_that_stood_still_is_begun_anew_and_no_other() {
        assert_eq!(tried(true, Some(7)), (2, Some(7)));
        assert_eq!(tried(true, None), (3, None));
        assert_eq!(tried(false, Some(7)), (1, None));
    }
}
