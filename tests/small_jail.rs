//! Every clone is jailed: it holds what belongs to it and nothing else, and each of its threads dies of a system call that is not on
//! its list.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/inject.rs"]
mod inject;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use common::processes::{machine_of, wait_until_gone};
use common::{Ended, Place, end_of, finish, is_root, program, run_command, start};
use inject::{Call, Outcome, inject};
use nix::libc;

/// A clone that never answers, until this is dropped.
struct Alive {
    run: Option<Child>,
    machine: i32,
}

impl Alive {
    fn start(command: &mut Command) -> Self {
        let run = start(command);
        let machine = machine_of(&run);
        let alive = Alive { run: Some(run), machine };
        // Its main thread confines itself last, just before the guest runs.
        common::wait_until("every thread is confined", || {
            !alive.is_jailed() || alive.threads().values().all(|thread| field(*thread, "Seccomp") == "2")
        });
        alive
    }

    fn of(bundle: &Path, more: &[&str]) -> Self {
        Self::start(run_command(bundle, "spin").args(["--timeout", "10m"]).args(more))
    }

    fn is_jailed(&self) -> bool {
        !fs::read(format!("/proc/{}/cmdline", self.machine)).unwrap().ends_with(b"--no-jail\0")
    }

    /// Its threads by name.
    fn threads(&self) -> BTreeMap<String, i32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.machine)).unwrap();
        let thread = |task: fs::DirEntry| {
            let name = fs::read_to_string(task.path().join("comm")).unwrap().trim().to_owned();
            (name, task.file_name().to_str().unwrap().parse().unwrap())
        };
        let mut threads: BTreeMap<_, _> = tasks.map(|task| thread(task.unwrap())).collect();
        // KVM's own, which never leaves the kernel.
        threads.remove("kvm-nx-lpage-re");
        threads
    }

    /// A file of the process's own folder in /proc.
    fn read(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.machine)).unwrap()
    }

    /// What a link there leads to.
    fn link(&self, name: &str) -> String {
        link(format!("/proc/{}/{name}", self.machine))
    }

    /// What its descriptors are.
    fn descriptors(&self) -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.machine)).unwrap();
        entries.map(|entry| link(entry.unwrap().path())).collect()
    }

    fn field(&self, name: &str) -> String {
        field(self.machine, name)
    }

    /// How the run ends after its machine has.
    fn end(mut self) -> Ended {
        end_of(self.run.take().unwrap())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if let Some(mut run) = self.run.take() {
            run.kill().unwrap();
            run.wait().unwrap();
            if !std::thread::panicking() {
                wait_until_gone(run.id());
            }
        }
    }
}

fn link(path: impl AsRef<Path>) -> String {
    fs::read_link(path).unwrap().to_str().unwrap().to_owned()
}

/// A line of `/proc/THREAD/status`.
fn field(thread: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// Calls that whoever has taken over a thread would try.
fn forbidden() -> Vec<Call> {
    let call = |name, number, arguments: &[u64]| Call { name, number, arguments: arguments.to_vec() };
    let here = u64::from(libc::AT_FDCWD.cast_unsigned());
    let bits = |bits: libc::c_int| u64::try_from(bits).unwrap();
    let [child, exec, private, anonymous] =
        [libc::SIGCHLD, libc::PROT_EXEC, libc::MAP_PRIVATE, libc::MAP_ANONYMOUS].map(bits);
    let [set_flags, set_owner] = [libc::F_SETFL, libc::F_SETOWN].map(bits);
    let inet = [u64::try_from(libc::AF_INET).unwrap(), u64::try_from(libc::SOCK_STREAM).unwrap()];
    vec![
        call("open", libc::SYS_open, &[]),
        call("openat", libc::SYS_openat, &[here]),
        call("openat2", libc::SYS_openat2, &[here]),
        call("open_by_handle_at", libc::SYS_open_by_handle_at, &[here]),
        call("creat", libc::SYS_creat, &[]),
        call("memfd_create", libc::SYS_memfd_create, &[]),
        call("execve", libc::SYS_execve, &[]),
        call("execveat", libc::SYS_execveat, &[here]),
        call("socket", libc::SYS_socket, &inet),
        call("socketpair", libc::SYS_socketpair, &inet),
        call("sendmsg", libc::SYS_sendmsg, &[]),
        call("ptrace", libc::SYS_ptrace, &[]),
        call("process_vm_readv", libc::SYS_process_vm_readv, &[1]),
        call("process_vm_writev", libc::SYS_process_vm_writev, &[1]),
        call("pidfd_open", libc::SYS_pidfd_open, &[1]),
        call("kill", libc::SYS_kill, &[1]),
        call("a signal to another process", libc::SYS_tgkill, &[4711, 4711]),
        call("mount", libc::SYS_mount, &[]),
        call("fsopen", libc::SYS_fsopen, &[]),
        call("chroot", libc::SYS_chroot, &[]),
        call("clone of a process", libc::SYS_clone, &[child]),
        call("clone3", libc::SYS_clone3, &[]),
        call("fork", libc::SYS_fork, &[]),
        call("vfork", libc::SYS_vfork, &[]),
        call("unshare", libc::SYS_unshare, &[u64::try_from(libc::CLONE_NEWUSER).unwrap()]),
        call("setns", libc::SYS_setns, &[]),
        call("setuid", libc::SYS_setuid, &[]),
        call("prctl", libc::SYS_prctl, &[]),
        call("seccomp", libc::SYS_seccomp, &[]),
        call("bpf", libc::SYS_bpf, &[]),
        call("perf_event_open", libc::SYS_perf_event_open, &[]),
        call("keyctl", libc::SYS_keyctl, &[]),
        call("userfaultfd", libc::SYS_userfaultfd, &[]),
        call("io_uring_setup", libc::SYS_io_uring_setup, &[1]),
        call("memory that is code", libc::SYS_mmap, &[0, 4096, exec, private | anonymous]),
        call("memory that becomes code", libc::SYS_mprotect, &[0, 4096, exec]),
        call("mapping of a file", libc::SYS_mmap, &[0, 4096, 1, private]),
        call("KVM_CREATE_VM", libc::SYS_ioctl, &[0, 0xae01]),
        call("KVM_SET_USER_MEMORY_REGION", libc::SYS_ioctl, &[0, 0x4020_ae46]),
        call("flags of what others have open too", libc::SYS_fcntl, &[0, set_flags, 0]),
        call("a signal when something is ready", libc::SYS_fcntl, &[0, set_owner, 4711]),
        call("TIOCSTI", libc::SYS_ioctl, &[0, 0x5412]),
        call("a call of a 32-bit program", libc::SYS_getpid | 0x4000_0000, &[]),
    ]
}

/// Has the thread of this name make every forbidden call, each in a clone of its own.
fn dies_of_each(thread: &str, more: &[&str]) {
    if !is_root() {
        // Nobody else may do that to a jailed process. In the emulated host, where this runs as well, the tests are root.
        return;
    }
    let place = Place::new();
    let faulty = place.bake("faulty");
    for call in forbidden() {
        let alive = Alive::of(&faulty, more);
        let outcome = inject(alive.threads()[thread], &call);
        // A thread that goes with another's process may tell no more than that.
        assert!(matches!(outcome, Outcome::Killed(libc::SIGSYS | 0)), "{thread}: {call:?}: {outcome:?}");
        alive.end().fails(126, "killed by signal 31");
    }
}

#[test]
fn the_main_thread_dies_of_what_is_not_on_its_list() {
    dies_of_each("ember", &[]);
}

#[test]
fn a_vcpu_s_thread_dies_of_what_is_not_on_its_list() {
    dies_of_each("vcpu0", &[]);
}

#[test]
fn the_pager_s_thread_dies_of_what_is_not_on_its_list() {
    dies_of_each("pager", &["--paging", "uffd"]);
}

#[test]
fn a_call_that_is_on_the_list_does_no_harm_and_without_a_jail_none_does() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let faulty = place.bake("faulty");
    let alive = Alive::of(&faulty, &["--paging", "uffd"]);
    let own = Call { name: "getpid", number: libc::SYS_getpid, arguments: Vec::new() };
    for (name, thread) in alive.threads() {
        // It is the first process of its namespace.
        assert_eq!(inject(thread, &own), Outcome::Returned(1), "{name}");
    }
    let open = Alive::of(&faulty, &["--no-jail"]);
    let socket = Call { name: "socket", number: libc::SYS_socket, arguments: vec![2, 1] };
    for (name, thread) in open.threads() {
        assert!(matches!(inject(thread, &socket), Outcome::Returned(3..)), "{name}");
    }
}

#[test]
fn there_are_no_threads_but_those_that_are_named() {
    let place = Place::new();
    let alive = Alive::of(&place.bake("faulty"), &["--paging", "uffd"]);
    let names: Vec<String> = alive.threads().into_keys().collect();
    assert_eq!(names, ["ember", "pager", "vcpu0"]);
}

/// What a jailed process may hold, by how its link in /proc begins.
fn is_its_own(descriptor: &str, bundle: &Path) -> bool {
    const OWN: [&str; 9] = [
        "/dev/null",
        "/dev/kvm",
        "pipe:[",
        "anon_inode:kvm-vm",
        "anon_inode:kvm-vcpu:",
        "anon_inode:[eventfd]",
        "anon_inode:[eventpoll]",
        "anon_inode:[userfaultfd]",
        "/tmp/#",
    ];
    let in_bundle = Path::new(descriptor).parent() == Some(bundle);
    in_bundle || OWN.iter().any(|own| descriptor.starts_with(own))
}

#[test]
fn a_clone_holds_its_own_bundle_kvm_and_its_streams_and_nothing_else() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let bundle = fs::canonicalize(place.bake("faulty")).unwrap();
    // As a careless caller leaves it: files of others, and a directory.
    const CARELESS: &str = r#"exec 7</proc/version 8</ 9>>"$1" && shift && exec "$@""#;
    let log = place.join("log");
    for more in [&[][..], &["--paging", "uffd"], &["--verify", "all"], &["--cold"]] {
        let mut command = Command::new("sh");
        command.args(["-c", CARELESS, "sh"]).arg(&log).arg(program()).arg("run").arg(&bundle);
        command.args(["--event-text", "spin", "--timeout", "10m"]).args(more);
        let alive = Alive::start(command.stdin(fs::File::open("/proc/version").unwrap()));
        let all = alive.descriptors();
        let foreign: Vec<&String> = all.iter().filter(|one| !is_its_own(one, &bundle)).collect();
        assert_eq!(foreign, [""; 0], "{more:?} among {all:?}");
        assert_eq!(alive.link("fd/0"), "/dev/null");
    }
}

#[test]
fn a_clone_has_a_user_of_its_own_and_no_right() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let faulty = place.bake("faulty");
    let (one, other) = (Alive::of(&faulty, &[]), Alive::of(&faulty, &[]));
    for alive in [&one, &other] {
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(alive.field(set), "0000000000000000", "{set}");
        }
        assert_eq!((alive.field("NoNewPrivs").as_str(), alive.field("Groups").as_str()), ("1", ""));
        for (name, thread) in alive.threads() {
            assert_eq!(field(thread, "Seccomp"), "2", "{name}");
        }
        let ids = alive.field("Uid");
        let ids: Vec<&str> = ids.split_whitespace().collect();
        assert!(
            ids.iter().all(|id| *id == ids[0]) && ids[0].parse::<u32>().unwrap() >= 0x7e60_0000,
            "{ids:?}"
        );
        assert_eq!(alive.field("Gid"), alive.field("Uid"));
        assert_eq!((alive.read("uid_map").as_str(), alive.read("gid_map").as_str()), ("", ""));
    }
    assert_ne!(one.field("Uid"), other.field("Uid"));
}

#[test]
fn a_clone_s_root_is_empty_and_cannot_be_written() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let alive = Alive::of(&place.bake("faulty"), &[]);
    let mounts = alive.read("mountinfo");
    let [only] = mounts.lines().collect::<Vec<_>>()[..] else { panic!("{mounts}") };
    assert!(only.contains(" / / ro,nosuid,nodev,noexec") && only.contains(" - tmpfs "), "{only}");
    assert_eq!(common::names(&PathBuf::from(format!("/proc/{}/root", alive.machine))), [""; 0]);
}

#[test]
fn a_clone_shares_no_namespace_with_its_caller_or_another() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let faulty = place.bake("faulty");
    let (one, other) = (Alive::of(&faulty, &[]), Alive::of(&faulty, &[]));
    for namespace in ["user", "mnt", "pid", "net", "ipc", "uts"] {
        let name = format!("ns/{namespace}");
        let own = link(format!("/proc/self/{name}"));
        assert!(one.link(&name) != own && other.link(&name) != own, "{namespace}");
        assert_ne!(one.link(&name), other.link(&name), "{namespace}");
    }
    // There is nothing but a loopback device that is down.
    let network: Vec<String> = one.read("net/dev").lines().skip(2).map(str::to_owned).collect();
    assert!(network.len() == 1 && network[0].trim().starts_with("lo:"), "{network:?}");
}

#[test]
fn a_clone_has_limits() {
    let place = Place::new();
    let alive = Alive::of(&place.bake("faulty"), &[]);
    let limits = alive.read("limits");
    let limit = |name: &str| {
        let line =
            limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{limits}"));
        line.split_whitespace().map(str::to_owned).take(2).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    assert_eq!(limit("Max open files"), ["256", "256"]);
    assert_eq!(limit("Max file size"), ["0", "0"]);
    if is_root() {
        assert_eq!(limit("Max processes"), ["64", "64"]);
    }
}

#[test]
fn a_run_tells_how_it_is_jailed() {
    let place = Place::new();
    let echo = place.bake("echo");
    let told = finish(run_command(&echo, "x").arg("--json")).succeeds().json();
    let level = told["jail"]["level"].as_str().unwrap();
    if is_root() {
        assert_eq!((level, &told["jail"]["lacking"]), ("full", &serde_json::json!([])), "{told}");
        finish(run_command(&echo, "x").arg("--require-jail")).answers("x");
    }
    let ended = finish(run_command(&echo, "x").arg("-v"));
    ended.answers("x");
    assert!(ended.errors.contains(&format!("ember: jail: {level}")), "{ended:?}");
    let doctor = finish(&mut common::ember(["doctor", "--json"])).succeeds().json();
    let findings = doctor["findings"].as_array().unwrap();
    let jail = findings.iter().find(|finding| finding["what"] == "jail").unwrap();
    assert_eq!(jail["verdict"], if level == "full" { "good" } else { "limited" }, "{doctor}");
    assert!(jail["found"].as_str().unwrap().starts_with(level), "{doctor}");
}

#[test]
fn without_a_jail_the_user_is_told_what_is_missing() {
    let place = Place::new();
    let echo = place.bake("echo");
    for more in [&[][..], &["--cold"], &["--paging", "uffd"]] {
        let ended = finish(run_command(&echo, "x").arg("--no-jail").args(more));
        ended.answers("x");
        assert_eq!(ended.errors.matches("ember: --no-jail: ").count(), 1, "{ended:?}");
    }
    let counted = finish(run_command(&echo, "x").args(["--no-jail", "--count", "3"]));
    counted.answers("xxx");
    assert_eq!(counted.errors.matches("ember: --no-jail: ").count(), 1, "{counted:?}");
    let told = finish(run_command(&echo, "x").args(["--no-jail", "--json"])).succeeds().json();
    assert_eq!(told["jail"]["level"], "none");
    let both = finish(run_command(&echo, "x").args(["--no-jail", "--require-jail"]));
    assert_eq!(both.code(), common::USAGE);
    assert!(both.errors.contains("cannot be used with"), "{both:?}");
}

#[test]
fn clones_of_a_count_are_jailed_each() {
    let place = Place::new();
    let faulty = place.bake("faulty");
    let run = start(run_command(&faulty, "spin").args(["--timeout", "10m", "--count", "2"]));
    let machine = machine_of(&run);
    let alive = Alive { run: Some(run), machine };
    common::wait_until("it is confined", || alive.field("Seccomp") == "2");
    assert_eq!(alive.field("NoNewPrivs"), "1");
}
