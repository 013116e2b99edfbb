//! Every clone is jailed: it holds what belongs to it and nothing else, and each of its threads dies of a system call that is not on
//! its list.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/inject.rs"]
mod inject;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use common::bundles::{manifest, seal};
use common::processes::{is_nameless, machine_of, wait_until_gone};
use common::{Ended, Place, end_of, finish, is_root, program, run_command, start};
use inject::{By, Call, Outcome, forbidden, inject};
use nix::libc;
use snapshot_format::manifest::names;
use snapshot_format::working_set::WorkingSet;

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

/// Has the thread of this name make every forbidden call, each in a clone of its own.
fn dies_of_each(thread: &str, more: &[&str]) {
    dies_of_each_in(thread, &|place| place.bake("faulty"), more);
}

/// The same in clones of this bundle.
fn dies_of_each_in(thread: &str, bake: &dyn Fn(&Place) -> PathBuf, more: &[&str]) {
    if !is_root() {
        // Nobody else may do that to a jailed process. In the emulated host, where this runs as well, the tests are root.
        return;
    }
    let place = Place::new();
    let faulty = bake(&place);
    for call in forbidden() {
        let alive = Alive::of(&faulty, more);
        let outcome = inject(alive.threads()[thread], &call);
        if outcome == Outcome::Unknown {
            continue;
        }
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
fn the_console_s_thread_dies_of_what_is_not_on_its_list() {
    dies_of_each("console", &["--console"]);
}

/// A bundle of a guest that is known to write what it has touched only once its answer has begun: the thread that copies that waits
/// until then, and this guest does not answer.
fn with_late_pages(place: &Place) -> PathBuf {
    let bundle = place.bake_with("faulty", &["--warm-up", "exit 0"]);
    let file = bundle.join(names::WORKING_SET);
    let set = WorkingSet::decode(&fs::read(&file).unwrap()).unwrap();
    let WorkingSet { memory_len, index_mark, write: late_write, .. } = set;
    let late = WorkingSet { memory_len, index_mark, late_write, ..WorkingSet::default() };
    fs::write(file, late.encode().unwrap()).unwrap();
    seal(&bundle, manifest(&bundle));
    bundle
}

#[test]
fn the_thread_that_copies_late_dies_of_what_is_not_on_its_list() {
    dies_of_each_in("prefetch", &with_late_pages, &[]);
}

#[test]
fn a_call_that_is_on_the_list_does_no_harm_and_without_a_jail_none_does() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let faulty = place.bake("faulty");
    let alive = Alive::of(&faulty, &["--paging", "uffd"]);
    let own = Call { name: "getpid", number: libc::SYS_getpid, arguments: Vec::new(), by: By::Syscall };
    for (name, thread) in alive.threads() {
        // It is the first process of its namespace.
        assert_eq!(inject(thread, &own), Outcome::Returned(1), "{name}");
    }
    let open = Alive::of(&faulty, &["--no-jail"]);
    let socket = Call { name: "socket", number: libc::SYS_socket, arguments: vec![2, 1], by: By::Syscall };
    for (name, thread) in open.threads() {
        assert!(matches!(inject(thread, &socket), Outcome::Returned(3..)), "{name}");
    }
    let of_32_bits = Call { name: "getpid", number: 20, arguments: Vec::new(), by: By::Interrupt };
    let outcome = inject(open.machine, &of_32_bits);
    assert!(outcome == Outcome::Returned(open.machine.into()) || outcome == Outcome::Unknown, "{outcome:?}");
}

#[test]
fn there_are_no_threads_but_those_that_are_named() {
    let place = Place::new();
    let alive = Alive::of(&place.bake("faulty"), &["--paging", "uffd", "--console"]);
    let names: Vec<String> = alive.threads().into_keys().collect();
    assert_eq!(names, ["console", "ember", "pager", "vcpu0"]);
    let late = Alive::of(&with_late_pages(&Place::new()), &[]);
    assert_eq!(late.threads().into_keys().collect::<Vec<_>>(), ["ember", "prefetch", "vcpu0"]);
}

/// What a jailed process may hold, by how its link in /proc begins.
fn is_its_own(descriptor: &str, bundle: &Path) -> bool {
    const OWN: [&str; 8] = [
        "/dev/null",
        "/dev/kvm",
        "pipe:[",
        "anon_inode:kvm-vm",
        "anon_inode:kvm-vcpu:",
        "anon_inode:[eventfd]",
        "anon_inode:[eventpoll]",
        "anon_inode:[userfaultfd]",
    ];
    let in_bundle = Path::new(descriptor).parent() == Some(bundle);
    in_bundle || is_nameless(descriptor) || OWN.iter().any(|own| descriptor.starts_with(own))
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
fn a_clone_with_a_drive_that_it_may_write_to_has_one_file_more_and_no_right_more() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let data = place.join("data");
    fs::write(&data, vec![7; 1 << 20]).unwrap();
    let drive = format!("data={}", data.display());
    let bundle = fs::canonicalize(place.bake_with("faulty", &["--drive", &drive])).unwrap();
    let alive = Alive::of(&bundle, &[]);
    let all = alive.descriptors();
    let foreign: Vec<&String> = all.iter().filter(|one| !is_its_own(one, &bundle)).collect();
    assert_eq!(foreign, [""; 0], "among {all:?}");
    assert_eq!(all.iter().filter(|one| is_nameless(one)).count(), 1, "{all:?}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(alive.field(set), "0000000000000000", "{set}");
    }
    for (name, thread) in alive.threads() {
        assert_eq!(field(thread, "Seccomp"), "2", "{name}");
    }
    assert_eq!(alive.read("mountinfo").lines().count(), 1);
    let limits = alive.read("limits");
    let longest = limits.lines().find_map(|line| line.strip_prefix("Max file size")).unwrap();
    assert_eq!(longest.split_whitespace().next(), Some("1048576"), "{limits}");
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
        // It cannot be dumped: in /proc it belongs to root, not to whom it runs as (proc(5)), and nobody else reads its memory.
        assert_eq!(fs::metadata(format!("/proc/{}/mem", alive.machine)).unwrap().uid(), 0);
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
