//! Machines whose guest is an attacker (tools/small-guests/guests/attacker.c): it is loaded like Linux, and so has every device, and
//! takes the place of the guest agent.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::processes::alive_in_group;
use super::{Ended, Place, ember, end_of, finish, guest, start};

/// Most memory that the process of any machine here may ever have used, bytes. What their guests touch is a tenth of it.
pub const PEAK_MAX: u64 = 40 << 20;

/// What a guest kernel that needs no modules is baked with.
pub struct Lair {
    place: Place,
}

impl Lair {
    pub fn new() -> Self {
        let place = Place::new();
        fs::create_dir_all(place.join("modules/kernel")).unwrap();
        let builtin =
            ["virtio_mmio", "virtio_blk", "vmw_vsock_virtio_transport", "virtio_rng", "overlay", "ext4"];
        let builtin: String = builtin.iter().map(|name| format!("kernel/{name}.ko\n")).collect();
        fs::write(place.join("modules/modules.builtin"), builtin).unwrap();
        fs::create_dir(place.join("root")).unwrap();
        fs::write(place.join("root/file"), "root").unwrap();
        Lair { place }
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// What is there besides what a bake needs.
    pub fn bundles(&self) -> Vec<String> {
        self.place.names().into_iter().filter(|name| name != "modules" && name != "root").collect()
    }

    /// `ember bake` of an attacker that does what `words` say, with `more` arguments.
    pub fn bake_command(&self, bundle: &str, words: &str, more: &[&str]) -> Command {
        let mut command = ember(["bake", "--memory", "128MiB", "--kernel-args", words]);
        for (flag, path) in [("--modules", "modules"), ("--root", "root")] {
            command.arg(flag).arg(self.join(path));
        }
        for flag in ["--kernel", "--agent"] {
            command.arg(flag).arg(guest("attacker"));
        }
        command.args(more).arg(self.join(bundle)).args(["--", "attack"]);
        command
    }

    /// A bundle of an attacker that lets itself be baked.
    #[track_caller]
    pub fn bake(&self, words: &str, more: &[&str]) -> PathBuf {
        let name = format!("{}.ember", words.replace([' ', '='], "-"));
        finish(&mut self.bake_command(&name, words, more)).succeeds();
        self.join(&name)
    }
}

/// `ember run` of a bundle with an event, within `limit`.
pub fn run_command(bundle: &Path, event: &str, limit: &str) -> Command {
    let mut command = ember(["run", "--event-text", event, "--timeout", limit]);
    command.arg(bundle);
    command
}

/// A command whose memory is watched.
pub struct Watched {
    child: Child,
    ended: Arc<AtomicBool>,
    watcher: std::thread::JoinHandle<u64>,
}

impl Watched {
    /// Starts it. What it answers is nobody's: it may be without end.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let mut child = start(command);
        // Read and thrown away, as fast as it comes.
        let mut output = child.stdout.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()).ok());
        let (group, ended) = (child.id(), Arc::new(AtomicBool::new(false)));
        let watcher = std::thread::spawn({
            let ended = ended.clone();
            move || {
                let mut peak = 0;
                while !ended.load(Ordering::Acquire) {
                    peak = alive_in_group(group).into_iter().filter_map(peak_of).fold(peak, u64::max);
                    std::thread::sleep(Duration::from_millis(5));
                }
                peak
            }
        });
        Watched { child, ended, watcher }
    }

    /// Waits for its end, which must be a program's, with as little memory as an honest small guest needs.
    #[track_caller]
    pub fn end(self) -> Ended {
        self.end_within(PEAK_MAX)
    }

    /// The same with less than `max` bytes of memory.
    #[track_caller]
    pub fn end_within(self, max: u64) -> Ended {
        let ended = end_of(self.child);
        self.ended.store(true, Ordering::Release);
        let peak = self.watcher.join().unwrap();
        ended.is_sane();
        assert!(peak < max, "{peak} bytes of memory: {ended:?}");
        ended
    }
}

/// The most memory that a process has had so far, bytes (proc_pid_status(5), VmHWM).
fn peak_of(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Runs an attack while an honest clone of `neighbour` answers beside it.
#[track_caller]
pub fn beside_a_neighbour(attack: &mut Command, neighbour: &Path) -> Ended {
    let attack = Watched::start(attack);
    finish(run_command(neighbour, "honest", "30s").stdin(Stdio::null())).answers("fine");
    attack.end()
}
