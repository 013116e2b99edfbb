//! QEMU as the emulated host: its command line, and watching it until it is off.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process;
use crate::setup::Emulator;

/// The processor with the most of what the emulation can do. It must have SVM and nested paging.
///
/// CMPXCHG16B is hidden: in QEMU 7.2 it leaves all flags but ZF undefined, trap and alignment check among them; where an exit comes
/// behind it, they become the RFLAGS of whoever ran it, host or guest. Linux uses the instruction, where it is there, for every
/// allocation.
pub const DEFAULT_CPU: &str = "EPYC,+svm,+npt,-cx16";

/// Where the job's output comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Its standard output.
    Output,
    /// Its standard error.
    Errors,
}

/// A raw disk; the name is its serial number in the emulated host.
#[derive(Debug)]
pub struct Disk {
    pub name: &'static str,
    pub path: PathBuf,
    pub writable: bool,
}

/// An emulated host that is not switched on yet.
#[derive(Debug)]
pub struct Machine {
    pub emulator: Emulator,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub disks: Vec<Disk>,
    pub memory_mib: u32,
    /// Its processor, as QEMU names it.
    pub cpu: String,
    pub icount: bool,
    /// It is killed when it is not off by then.
    pub limit: Duration,
    /// It is killed when neither its job nor its scripts print anything for so long.
    pub silence: Option<Duration>,
    /// Console, output and status are kept here.
    pub dir: PathBuf,
}

/// What is left of an emulated host.
#[derive(Debug)]
pub struct Remains {
    pub status: ExitStatus,
    /// Whether it was killed because nothing was printed.
    pub silent: bool,
    /// Its serial console.
    pub console: String,
    /// What its scripts reported.
    pub report: String,
    /// What QEMU itself had to say.
    pub messages: String,
}

/// Virtual serial ports: fast, 8 bits clean, and no terminal in between.
const PORTS: [&str; 3] = ["output", "errors", "status"];

/// A port the other way, of a host whose clock is this machine's.
const KNOCKS: &str = "knocks";

/// Interrupts it now and then.
///
/// QEMU 7.2, and 10.0 still, keeps what its emulated processor is interrupted by in one word, which the thread of that processor changes
/// without a lock where it emulates SVM (`helper_vmrun`, `do_vmexit`; later ones do it in one step, `cpu_set_interrupt`), while its other
/// thread sets a bit for a timer that has expired. Now and then that bit is lost: the timer's interrupt then pends for ever, and the
/// emulated host, which sets its next timer in the handler of the last, stands still. Any other interrupt has all that pend looked at
/// again.
struct Knocks {
    pipe: File,
    last: Instant,
}

impl Knocks {
    fn open(path: &Path) -> Result<Self> {
        const O_NONBLOCK: i32 = 0o4000;
        std::fs::remove_file(path).ok();
        process::run(process::command("mkfifo").arg(path))?;
        // For both ways, so that nobody has to read yet. What nobody reads is dropped once the pipe is full.
        let pipe = File::options().read(true).write(true).custom_flags(O_NONBLOCK).open(path);
        let pipe = pipe.with_context(|| format!("Cannot open {}", path.display()))?;
        Ok(Knocks { pipe, last: Instant::now() })
    }

    fn knock(&mut self) {
        const EVERY: Duration = Duration::from_secs(2);
        if self.last.elapsed() >= EVERY {
            self.last = Instant::now();
            self.pipe.write_all(b".").ok();
        }
    }
}

impl Machine {
    /// Runs it until it is off, passing on what the job prints while it prints it.
    pub fn run(&self, sink: &mut dyn FnMut(Stream, &[u8]) -> Result<()>) -> Result<Remains> {
        for port in PORTS {
            File::create(self.port(port))
                .with_context(|| format!("Cannot write in {}", self.dir.display()))?;
        }
        let mut tails = [
            (Stream::Output, Tail::open(&self.port("output"))?),
            (Stream::Errors, Tail::open(&self.port("errors"))?),
        ];
        let mut beats = Tail::open(&self.port("status"))?;
        let mut knocks = if self.icount { None } else { Some(Knocks::open(&self.port(KNOCKS))?) };
        let mut child = Running(self.start()?);
        let (mut heard, mut silent) = (Instant::now(), false);
        let status = loop {
            let ended = child.0.try_wait().context("Cannot wait for QEMU")?;
            // Read after looking: what was printed before the end is there by now.
            for (stream, tail) in &mut tails {
                tail.pass_on(|bytes| {
                    heard = Instant::now();
                    sink(*stream, bytes)
                })?;
            }
            beats.pass_on(|_| {
                heard = Instant::now();
                Ok(())
            })?;
            if ended.is_none() && self.silence.is_some_and(|most| heard.elapsed() >= most) {
                silent = true;
                child.0.kill().context("Cannot end QEMU")?;
            }
            match ended {
                Some(status) => break status,
                None => {
                    sleep(Duration::from_millis(50));
                    knocks.iter_mut().for_each(Knocks::knock);
                }
            }
        };
        let text = |name: &str| read_lossy(&self.dir.join(name));
        Ok(Remains {
            status,
            silent,
            console: text("console"),
            report: text("status"),
            messages: text("messages"),
        })
    }

    fn start(&self) -> Result<Child> {
        let messages = self.dir.join("messages");
        let file =
            File::create(&messages).with_context(|| format!("Cannot create {}", messages.display()))?;
        process::guarded(&self.emulator.program.to_string_lossy(), self.limit)
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(file))
            .spawn()
            .context("Cannot start QEMU")
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut words = Words::default();
        words
            // One processor in one thread: with more, emulated code patching between processors kills kernels.
            .text("-machine q35 -accel tcg,thread=single,tb-size=1024 -smp 1")
            .pair("-cpu", &self.cpu)
            .text("-nodefaults -display none -no-reboot -net none")
            .pair("-m", format!("{}M", self.memory_mib))
            .pair("-kernel", &self.kernel)
            .pair("-initrd", &self.initramfs)
            .pair("-append", self.kernel_words())
            .pairs("-L", &self.emulator.firmware)
            .pair("-serial", with_path("file:", &self.dir.join("console")))
            .pair("-device", "virtio-serial-pci");
        if self.icount {
            words.text("-icount shift=0,sleep=off");
        }
        for port in PORTS {
            words
                .pair("-chardev", with_path(&format!("file,id={port},path="), &self.port(port)))
                .pair("-device", format!("virtserialport,chardev={port},name=ember.{port}"));
        }
        if !self.icount {
            words
                .pair("-chardev", with_path("pipe,id=knocks,path=", &self.port(KNOCKS)))
                .pair("-device", "virtserialport,chardev=knocks,name=ember.knocks");
        }
        for disk in &self.disks {
            let access = if disk.writable { "cache=unsafe,discard=unmap" } else { "readonly=on" };
            let drive = format!("if=none,id={},format=raw,{access},file=", disk.name);
            words
                .pair("-drive", with_path(&drive, &disk.path))
                .pair("-device", format!("virtio-blk-pci,drive={0},serial={0}", disk.name));
        }
        words.0
    }

    fn kernel_words(&self) -> String {
        // An oops or a lockup ends the run at once instead of letting it limp into its time limit.
        // On a busy machine ten ticks do not come in time, and the kernel takes its timer for broken.
        let words =
            "console=ttyS0 quiet panic=-1 no_timer_check oops=panic softlockup_panic=1 watchdog_thresh=30";
        // Idle time passes at once by the exact clock: waiting for a slow disk of the real host can be minutes.
        let patient = if self.icount { " sysctl.kernel.hung_task_timeout_secs=0" } else { "" };
        format!("{words}{patient}")
    }

    fn port(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// A path inside one of QEMU's option lists, where a comma is written twice.
fn with_path(option: &str, path: &Path) -> OsString {
    let mut text = OsString::from(option);
    text.push(path.to_string_lossy().replace(',', ",,"));
    text
}

#[derive(Default)]
struct Words(Vec<OsString>);

impl Words {
    fn text(&mut self, words: &str) -> &mut Self {
        self.0.extend(words.split_whitespace().map(OsString::from));
        self
    }

    fn pairs(&mut self, option: &str, values: &[PathBuf]) -> &mut Self {
        values.iter().fold(self, |words, value| words.pair(option, value))
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(option.into());
        self.0.push(value.into());
        self
    }
}

/// QEMU while it runs; an error on the way must not leave it behind.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // An error here means that it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The end of a file that another process is writing.
struct Tail {
    file: File,
    buffer: Vec<u8>,
}

impl Tail {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("Cannot open {}", path.display()))?;
        Ok(Self { file, buffer: Vec::new() })
    }

    fn pass_on(&mut self, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.buffer.clear();
        self.file.read_to_end(&mut self.buffer).context("Cannot read the output of the emulated host")?;
        if self.buffer.is_empty() { Ok(()) } else { sink(&self.buffer) }
    }
}

fn read_lossy(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_is_not_an_option() {
        assert_eq!(with_path("file=", Path::new("/a,b")), OsString::from("file=/a,,b"));
    }

    #[test]
    fn the_exact_clock_is_only_there_when_asked_for() {
        let mut machine = Machine {
            emulator: Emulator { program: "q".into(), firmware: Vec::new(), version: String::new() },
            kernel: "k".into(),
            initramfs: "i".into(),
            disks: Vec::new(),
            memory_mib: 1,
            cpu: "c".into(),
            icount: false,
            limit: Duration::from_secs(1),
            silence: None,
            dir: "d".into(),
        };
        let has = |machine: &Machine| machine.arguments().contains(&OsString::from("-icount"));
        assert!(!has(&machine));
        machine.icount = true;
        assert!(has(&machine));
    }
}
