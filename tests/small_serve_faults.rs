//! Whatever goes wrong around `ember serve`, the caller is told, the others are served, and nothing is left behind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/inject.rs"]
mod inject;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::processes::{is_nameless, signal, vcpu_of, wait_until_gone};
use common::serve::{Daemon, as_user, kill, receive, serve_command, within};
use common::{HOST_CANNOT, Place, ember, finish, in_rig, rounds, wait_until};
use inject::{By, Call, Outcome, forbidden, inject};
use rustix::process::{Pid, Signal};
use serde_json::json;

const NOBODY: u32 = 65534;

/// A daemon with an echo, and a function that fails as its event says.
fn both(place: &Place) -> Daemon {
    let daemon = Daemon::start(place.path());
    daemon.register("echo", &place.bake("echo"));
    daemon.register_with("faulty", &place.bake("faulty"), json!({ "event_timeout_ms": 30_000 }));
    daemon
}

#[test]
fn a_waiting_shell_is_confined_and_holds_nothing_but_its_own() {
    let place = Place::new();
    let daemon = both(&place);
    daemon.await_shells(2);
    assert_eq!(daemon.get("/health").json()["jail"], if common::is_root() { "full" } else { "user" });
    for shell in daemon.shells() {
        is_confined(shell, |_| false);
    }
}

/// A line of `/proc/PROCESS/status`.
#[track_caller]
fn field(process: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} is not in {status}")).trim().to_owned()
}

/// A shell's process has no right, one mount, and nothing open but a shell's own and `more`.
#[track_caller]
fn is_confined(shell: i32, more: impl Fn(&str) -> bool) {
    assert_eq!((field(shell, "Seccomp"), field(shell, "NoNewPrivs")), ("2".to_owned(), "1".to_owned()));
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(shell, set), "0000000000000000");
    }
    if common::is_root() {
        assert_eq!(
            (field(shell, "CapBnd").as_str(), field(shell, "Groups").as_str()),
            ("0000000000000000", "")
        );
        let user: u32 = field(shell, "Uid").split_whitespace().next().unwrap().parse().unwrap();
        assert!(user >= 0x7e60_0000, "{user}");
        assert_eq!(field(shell, "Gid"), field(shell, "Uid"));
    }
    // What cannot be dumped belongs to root in /proc, whoever it runs as (proc(5)).
    assert_eq!(fs::metadata(format!("/proc/{shell}/mem")).unwrap().uid(), 0);
    for space in ["mnt", "net", "ipc", "uts", "pid"] {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{space}")).unwrap();
        assert_ne!(of(&shell.to_string()), of("self"), "{space}");
    }
    let mounts = fs::read_to_string(format!("/proc/{shell}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let open = descriptors(shell);
    let is_known = |target: &String| {
        target == "/dev/null"
            || ["kvm", "anon_inode:[event", "socket:"].iter().any(|part| target.contains(part))
            || more(target)
    };
    assert!(open.values().all(is_known), "{open:?}");
    assert_eq!(open.values().filter(|target| target.starts_with("socket:")).count(), 1, "{open:?}");
    for thread in fs::read_dir(format!("/proc/{shell}/task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(status.contains("\nSeccomp:\t2\n"), "{status}");
    }
}

/// Begins an event of `faulty`, whose bundle this is, that never ends; gives the process that serves it once that is confined to what
/// a running machine may do.
#[track_caller]
fn begin_to_serve(daemon: &Daemon, bundle: &Path) -> (UnixStream, i32) {
    let event = daemon.begin("faulty", "spin");
    let mut clone = None;
    wait_until("a clone serves it", || {
        let is_in_bundle = |target: &String| Path::new(target).parent() == Some(bundle);
        let is_clone = |shell: &i32| descriptors(*shell).values().any(is_in_bundle);
        // A second list, on top of a shell's.
        clone = daemon
            .shells()
            .into_iter()
            .find(|shell| is_clone(shell) && field(*shell, "Seccomp_filters") == "2");
        clone.is_some()
    });
    (event, clone.unwrap())
}

#[test]
fn a_clone_that_serves_an_event_is_confined_and_holds_its_bundle_beside() {
    if !common::is_root() {
        return;
    }
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    let data = place.join("data");
    fs::write(&data, vec![7; 1 << 20]).unwrap();
    let drive = format!("data={}", data.display());
    let bundle = fs::canonicalize(place.bake_with("faulty", &["--drive", &drive])).unwrap();
    daemon.register_with("faulty", &bundle, json!({ "event_timeout_ms": 600_000 }));
    let (event, clone) = begin_to_serve(&daemon, &bundle);
    is_confined(clone, |target| Path::new(target).parent() == Some(&bundle) || is_nameless(target));
    assert_eq!(descriptors(clone).values().filter(|target| is_nameless(target)).count(), 1);
    let limits = fs::read_to_string(format!("/proc/{clone}/limits")).unwrap();
    let longest = limits.lines().find_map(|line| line.strip_prefix("Max file size")).unwrap();
    assert_eq!(longest.split_whitespace().next(), Some("1048576"), "{limits}");
    drop(event);
}

/// Of the calls that are forbidden those that are made here: fewer where a process costs more.
fn forbidden_here() -> impl Iterator<Item = Call> {
    forbidden().into_iter().step_by(if in_rig() { 4 } else { 1 })
}

/// The process died of the call, or the kernel knows no such calls.
#[track_caller]
fn kills(process: i32, call: &Call) -> bool {
    match inject(process, call) {
        Outcome::Unknown => false,
        outcome => {
            let killed = matches!(outcome, Outcome::Killed(nix::libc::SIGSYS | 0));
            assert!(killed, "{call:?}: {outcome:?}");
            true
        }
    }
}

/// Has a thread of one waiting shell after the other make each of `calls`.
fn waiting_shells_die_of(calls: impl Iterator<Item = Call>, thread: impl Fn(i32) -> i32) {
    if !common::is_root() {
        return;
    }
    let place = Place::new();
    let daemon = both(&place);
    let mut killed = 0;
    for call in calls {
        let mut waiting = None;
        wait_until("a shell waits", || {
            // One that is being made confines its main thread last.
            waiting = daemon.shells().into_iter().find(|shell| {
                let status = fs::read_to_string(format!("/proc/{shell}/status")).unwrap_or_default();
                status.contains("\nSeccomp:\t2\n")
            });
            waiting.is_some()
        });
        let waiting = waiting.unwrap();
        if kills(thread(waiting), &call) {
            killed += 1;
            wait_until("it is gone", || !daemon.children().contains(&waiting));
        }
    }
    wait_until("each is missed", || daemon.metric("ember_shells_lost_total") >= killed);
    wait_until("it serves again", || daemon.invoke("echo", "fine").status == 200);
}

/// Has a thread of one clone after the other make each forbidden call while it serves an event.
fn serving_clones_die_of_what_is_forbidden(thread: impl Fn(i32) -> i32) {
    if !common::is_root() {
        return;
    }
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    let bundle = fs::canonicalize(place.bake("faulty")).unwrap();
    daemon.register_with("faulty", &bundle, json!({ "event_timeout_ms": 600_000 }));
    for call in forbidden_here() {
        let (event, clone) = begin_to_serve(&daemon, &bundle);
        if kills(thread(clone), &call) {
            receive(event).fails(502, "platform", "it was killed by signal 31");
        } else {
            drop(event);
        }
        wait_until("it is gone", || !daemon.children().contains(&clone));
    }
    daemon.invoke("faulty", "exit 0").answers("exiting");
}

fn main_thread(process: i32) -> i32 {
    process
}

/// Once it is confined, which it sees to itself.
#[track_caller]
fn vcpu(process: i32) -> i32 {
    let mut vcpu = None;
    wait_until("the vCPU's thread is confined", || {
        vcpu = vcpu_of(process).filter(|vcpu| field(*vcpu, "Seccomp") == "2");
        vcpu.is_some()
    });
    vcpu.unwrap()
}

#[test]
fn a_waiting_shell_dies_of_what_is_not_on_its_list() {
    // What fills it comes as files to be mapped, and it confines itself further then.
    let of_shells = ["mapping of a file", "seccomp"];
    waiting_shells_die_of(forbidden_here().filter(|call| !of_shells.contains(&call.name)), main_thread);
}

#[test]
fn a_waiting_shell_dies_of_what_is_not_on_the_list_of_its_vcpu() {
    waiting_shells_die_of(forbidden_here(), vcpu);
}

#[test]
fn a_clone_that_serves_an_event_dies_of_what_is_not_on_its_list_and_its_caller_is_told() {
    serving_clones_die_of_what_is_forbidden(main_thread);
}

#[test]
fn a_clone_that_serves_an_event_dies_of_what_is_not_on_the_list_of_its_vcpu_and_its_caller_is_told() {
    serving_clones_die_of_what_is_forbidden(vcpu);
}

fn descriptors(process: i32) -> BTreeMap<String, String> {
    // Of one that ends meanwhile there are none.
    let entries = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let described = entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        Some((entry.file_name().into_string().unwrap(), target.to_str()?.to_owned()))
    });
    described.collect()
}

/// Kills shells, and waits until they are gone: one that is about to end could still be given an event.
#[track_caller]
fn end_all(daemon: &Daemon, shells: &[i32]) {
    shells.iter().for_each(|shell| kill(*shell));
    wait_until("they are gone", || daemon.children().iter().all(|child| !shells.contains(child)));
}

#[test]
fn shells_that_are_killed_while_they_wait_are_replaced() {
    let place = Place::new();
    let daemon = both(&place);
    for _ in 0..3 {
        daemon.await_shells(2);
        let before = daemon.shells();
        end_all(&daemon, &before);
        wait_until("others wait", || daemon.shells().len() >= 2);
        daemon.invoke("echo", "fine").answers("fine");
    }
    assert!(daemon.metric("ember_shells_lost_total") >= 6);
}

#[test]
fn a_shell_that_is_killed_while_it_becomes_a_clone_fails_its_event_alone() {
    let place = Place::new();
    let daemon = both(&place);
    daemon.await_shells(2);
    let shells = daemon.shells();
    // It has the job and can do nothing with it.
    shells.iter().for_each(|shell| signal(*shell, Signal::STOP));
    let event = daemon.begin("echo", "lost");
    wait_until("one is taken", || daemon.get("/health").json()["shells_ready"] == 1);
    end_all(&daemon, &shells);
    receive(event).fails(502, "platform", "was killed by signal 9");
    daemon.invoke("echo", "fine").answers("fine");
}

#[test]
fn a_signal_to_all_processes_of_a_daemon_ends_it_as_one_to_itself_does() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    daemon.register_with("faulty", &place.bake("faulty"), json!({ "event_timeout_ms": 2000 }));
    // As it comes from a terminal, or a service manager.
    let serving = daemon.begin("faulty", "spin");
    wait_until("it is served", || daemon.metric("ember_events{function=\"faulty\",state=\"running\"}") == 1);
    let group = Pid::from_raw(daemon.id().cast_signed()).unwrap();
    rustix::process::kill_process_group(group, Signal::TERM).unwrap();
    assert_eq!(receive(serving).status, 504);
    daemon.end().succeeds();
}

#[test]
fn a_clone_that_is_killed_while_it_serves_fails_alone() {
    let place = Place::new();
    let daemon = both(&place);
    daemon.await_shells(2);
    let waiting = daemon.shells();
    let serving = daemon.begin("faulty", "spin");
    wait_until("it is served", || daemon.metric("ember_events{function=\"faulty\",state=\"running\"}") == 1);
    let other = daemon.begin("faulty", "spin");
    wait_until("so is another", || daemon.metric("ember_events{function=\"faulty\",state=\"running\"}") == 2);
    // Of the shells that waited both serve now: which serves whom shows.
    std::thread::sleep(std::time::Duration::from_millis(100));
    waiting.iter().for_each(|shell| kill(*shell));
    for event in [serving, other] {
        receive(event).fails(502, "platform", "it was killed by signal 9");
    }
    daemon.invoke("echo", "fine").answers("fine");
}

#[test]
fn shells_that_are_killed_at_any_moment_fail_their_own_event_at_most() {
    let place = Place::new();
    let daemon = both(&place);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                daemon.shells().into_iter().take(1).for_each(kill);
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
        });
        for _ in 0..rounds(200) {
            let response = daemon.invoke("echo", "fine");
            match response.status {
                200 => response.answers("fine"),
                502 => response.fails(502, "platform", "ended without an answer"),
                _ => response.fails(503, "platform", ""),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        killer.join().unwrap();
    });
    wait_until("it serves again", || daemon.invoke("echo", "fine").status == 200);
}

#[test]
fn a_caller_who_goes_takes_the_clone_along() {
    let place = Place::new();
    let daemon = both(&place);
    let running = || daemon.metric("ember_events{function=\"faulty\",state=\"running\"}");
    for event in ["spin", "stall"] {
        let serving = daemon.begin("faulty", event);
        wait_until("it is served", || running() == 1);
        drop(serving);
        wait_until("it is not served any more", || running() == 0);
    }
    // It goes while the answer is on its way.
    let path = "/functions/faulty/invoke";
    let flooded = daemon.send("POST", path, &["Accept: application/vnd.ember.frames"], b"flood");
    wait_until("it is served", || running() == 1);
    drop(flooded);
    wait_until("it is not served any more", || running() == 0);
    assert_eq!(daemon.metric("ember_events_total{function=\"faulty\",outcome=\"abandoned\"}"), 3);
    daemon.invoke("echo", "fine").answers("fine");
}

#[test]
fn an_event_whose_caller_goes_while_it_waits_is_not_served() {
    let place = Place::new();
    let daemon = Daemon::start(place.path());
    let settings = json!({ "concurrency": 1, "queue_timeout_ms": 600_000, "event_timeout_ms": 600_000 });
    daemon.register_with("faulty", &place.bake("faulty"), settings);
    let metric = |name: &str| daemon.metric(&format!("ember_events{name}"));
    let state = |state: &str| metric(&format!("{{function=\"faulty\",state=\"{state}\"}}"));
    let ended = |outcome: &str| metric(&format!("_total{{function=\"faulty\",outcome=\"{outcome}\"}}"));
    let serving = daemon.begin("faulty", "spin");
    wait_until("it is served", || state("running") == 1);
    let waiting: Vec<_> = (0..3).map(|_| daemon.begin("faulty", "exit 0")).collect();
    wait_until("the next ones wait", || state("waiting") == 3);
    drop(waiting);
    wait_until("they have ended", || ended("abandoned") == 3);
    assert_eq!((state("waiting"), state("running")), (0, 1));
    drop(serving);
    wait_until("so has the first", || ended("abandoned") == 4);
    daemon.invoke("faulty", "exit 0").answers("exiting");
    assert_eq!(ended("abandoned"), 4);
}

#[test]
fn a_bundle_that_is_deleted_or_replaced_serves_on_as_it_was() {
    let place = Place::new();
    let (echo, toucher) = (place.bake("echo"), place.bake("toucher"));
    let daemon = Daemon::start(place.path());
    daemon.register("function", &echo);
    fs::remove_dir_all(&echo).unwrap();
    daemon.invoke("function", "first").answers("first");
    fs::rename(&toucher, &echo).unwrap();
    daemon.invoke("function", "pages").answers("pages");
    daemon.register("function", &echo);
    assert!(daemon.invoke("function", "pages").text().parse::<u32>().unwrap() > 100);
}

#[test]
fn a_damaged_bundle_fails_in_its_shell_and_harms_nobody_else() {
    let place = Place::new();
    let daemon = both(&place);
    for (file, offset) in [("state", 100), ("memory.index", 40)] {
        let bundle = place.bake_with("echo", &["--force"]);
        let mut bytes = fs::read(bundle.join(file)).unwrap();
        bytes[offset] ^= 1;
        fs::write(bundle.join(file), bytes).unwrap();
        daemon.register("damaged", &bundle);
        for _ in 0..3 {
            let failed = daemon.invoke("damaged", "x");
            failed.fails(502, "platform", "");
            assert_eq!(failed.json()["error"]["kind"], "bad_bundle", "{failed:?}");
        }
        daemon.invoke("faulty", "exit 0").answers("exiting");
    }
}

#[test]
fn a_memory_file_that_is_cut_short_is_told_and_harms_nobody_else() {
    let place = Place::new();
    let daemon = both(&place);
    let bundle = place.bake("toucher");
    daemon.register("short", &bundle);
    fs::File::options().write(true).open(bundle.join("memory")).unwrap().set_len(4096).unwrap();
    let failed = daemon.invoke("short", "read 0 512 1");
    assert_eq!(failed.json()["error"]["kind"], "bad_bundle", "{failed:?}");
    daemon.invoke("echo", "fine").answers("fine");
}

#[test]
fn a_daemon_that_runs_out_of_descriptors_refuses_and_recovers() {
    let place = Place::new();
    let (bundle, socket) = (place.bake("echo"), place.join("socket"));
    let daemon = Daemon::run_with_descriptors(&serve_command(&socket), 48, socket);
    daemon.register("echo", &bundle);
    for _ in 0..3 {
        let events: Vec<_> = (0..60).map(|_| daemon.begin("echo", "x")).collect();
        let statuses: Vec<u16> = events.into_iter().map(|event| receive(event).status).collect();
        assert!(statuses.contains(&200), "{statuses:?}");
        assert!(statuses.iter().all(|status| [200, 502, 503].contains(status)), "{statuses:?}");
    }
    wait_until("it has recovered", || daemon.invoke("echo", "fine").status == 200);
}

#[test]
fn shells_that_would_take_every_descriptor_are_refused_and_those_that_wait_leave_some() {
    let place = Place::new();
    let (bundle, socket) = (place.bake("echo"), place.join("socket"));
    let mut many = ember(["serve", "--shells", "30", "--socket"]);
    finish(&mut within(many.arg(&socket), "-n 72")).fails(HOST_CANNOT, "let fewer shells wait");
    assert!(!socket.exists());

    let daemon = Daemon::run_with_descriptors(&serve_command(&socket), 72, socket);
    daemon.register("echo", &bundle);
    let greedy = json!({ "bundle": bundle, "shells": 30 }).to_string();
    let refused = daemon.request("PUT", "/functions/greedy", &[], greedy.as_bytes());
    refused.fails(503, "platform", "ulimit -n");
    daemon.get("/functions/greedy").fails(404, "request", "");
    daemon.register_with("several", &bundle, json!({ "shells": 10 }));
    daemon.await_shells(10);
    for _ in 0..20 {
        daemon.invoke("echo", "fine").answers("fine");
    }
}

#[test]
fn a_shape_that_cannot_be_made_holds_up_no_other() {
    let place = Place::new();
    let (echo, large, socket) =
        (place.bake("echo"), place.bake_in("3GiB", "toucher", &[]), place.join("socket"));
    // KiB of address space that any of its processes may have.
    let daemon = Daemon::run_within(&serve_command(&socket), &format!("-v {}", 5 << 19), socket);
    // Each event waits for a shell of its own.
    daemon.register_with("echo", &echo, json!({ "shells": 0 }));
    daemon.register_with("large", &large, json!({ "shells": 100 }));
    for _ in 0..rounds(100) {
        daemon.invoke("large", "pages").fails(503, "platform", "memory");
        daemon.invoke("echo", "fine").answers("fine");
    }
    let shells =
        |memory: u64| format!("ember_shells{{memory_bytes=\"{memory}\",vcpus=\"1\",state=\"ready\"}}");
    assert_eq!(daemon.metric(&shells(3 << 30)), 0);
    let health = daemon.get("/health");
    assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("unable")), "{health:?}");
    assert!(health.json()["why"].as_str().unwrap().contains("memory"), "{health:?}");
    daemon.request("DELETE", "/functions/large", &[], &[]);
    wait_until("nothing is left of it", || !daemon.get("/metrics").text().contains(&shells(3 << 30)));
    let health = daemon.get("/health");
    assert_eq!((health.status, &health.json()["why"]), (200, &json!(null)), "{health:?}");
    daemon.invoke("echo", "fine").answers("fine");
}

#[test]
fn users_who_are_refused_hold_nothing_of_the_daemon() {
    if !common::is_root() {
        return;
    }
    let place = Place::new();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (bundle, socket) = (place.bake("echo"), place.join("socket"));
    let mut serve = serve_command(&socket);
    serve.args(["--mode", "666"]);
    // Descriptors for four connections.
    let daemon = Daemon::run_with_descriptors(&serve, 48, socket);
    daemon.register("echo", &bundle);
    let mut held: Vec<UnixStream> =
        as_user(NOBODY, || (0..40).map(|_| UnixStream::connect(&daemon.socket).unwrap()).collect());
    for _ in 0..10 {
        daemon.invoke("echo", "fine").answers("fine");
    }
    for stream in &mut held {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 403"), "{answer:?}");
    }
}

#[test]
fn who_says_nothing_or_too_little_is_hung_up_on_and_who_waits_for_an_answer_is_not() {
    let place = Place::new();
    let daemon = Daemon::start_with(place.path(), &["--idle", "300ms"]);
    daemon.register_with("faulty", &place.bake("faulty"), json!({ "event_timeout_ms": 1500 }));
    let begun = ["", "GET /health HTTP/1.1\r\nA: b", "POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"];
    for text in begun {
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        assert!(answer.is_empty(), "{answer:?}");
    }
    // A head that comes a byte at a time is never silent.
    let mut stream = UnixStream::connect(&daemon.socket).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nA: ").unwrap();
    wait_until("it is hung up on", || stream.write_all(b"a").is_err());
    assert_eq!(daemon.invoke("faulty", "spin").status, 504);
}

#[test]
fn a_clone_that_speaks_no_frames_is_what_failed() {
    let place = Place::new();
    let daemon = both(&place);
    daemon.await_shells(2);
    for shell in daemon.shells() {
        let open = descriptors(shell);
        let (socket, _) = open.iter().find(|(_, target)| target.starts_with("socket:")).unwrap();
        // Neither zeros nor the beginning of a program are frames.
        let maps = fs::read_to_string(format!("/proc/{shell}/maps")).unwrap();
        let first = u64::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap();
        let (name, number) = ("write", nix::libc::SYS_write);
        let arguments = vec![socket.parse().unwrap(), first, 64];
        let call = Call { name, number, arguments, by: By::Syscall };
        assert_eq!(inject(shell, &call), Outcome::Returned(64));
    }
    // Shells that are made meanwhile may come before them.
    let mut spoilt = 0;
    wait_until("both have failed", || {
        let ended = daemon.invoke("echo", "x");
        if ended.status == 200 {
            ended.answers("x");
        } else {
            ended.fails(502, "platform", "frame");
            spoilt += 1;
        }
        spoilt == 2
    });
    daemon.invoke("echo", "fine").answers("fine");
}

#[test]
fn kill_9_of_the_daemon_ends_everything_it_began() {
    let place = Place::new();
    // A start removes the control groups that earlier tests have left.
    drop(Daemon::start(place.path()));
    let before = Host::now();
    for _ in 0..3 {
        let daemon = both(&place);
        let serving = daemon.begin("faulty", "spin");
        wait_until("it is served", || {
            daemon.metric("ember_events{function=\"faulty\",state=\"running\"}") == 1
        });
        let group = daemon.id();
        daemon.signal(Signal::KILL);
        daemon.end();
        drop(serving);
        wait_until_gone(group);
        fs::remove_dir_all(place.join("echo.ember")).unwrap();
        fs::remove_dir_all(place.join("faulty.ember")).unwrap();
    }
    let daemon = both(&place);
    daemon.invoke("echo", "fine").answers("fine");
    let group = daemon.id();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().code(), 0);
    wait_until_gone(group);
    let after = Host::now();
    // What had only just ended then is gone now.
    assert!(after.mounts == before.mounts && after.groups <= before.groups, "{after:?} {before:?}");
    assert_eq!(place.names(), ["echo.ember", "faulty.ember"], "no socket and no file is left");
}

#[test]
fn a_zygote_that_is_killed_ends_the_daemon_with_a_word() {
    let place = Place::new();
    let daemon = both(&place);
    daemon.await_shells(2);
    let shells = daemon.shells();
    let zygote = daemon.children().into_iter().find(|pid| !shells.contains(pid)).unwrap();
    signal(zygote, Signal::KILL);
    let group = daemon.id();
    daemon.end().fails(126, "The zygote has ended");
    wait_until_gone(group);
}

/// What a machine could leave behind on its host.
#[derive(Debug, PartialEq, Eq)]
struct Host {
    mounts: usize,
    groups: usize,
}

impl Host {
    fn now() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
        Host { mounts, groups: folders(Path::new("/sys/fs/cgroup")) }
    }
}

fn folders(of: &Path) -> usize {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    let inside = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    inside.map(|entry| 1 + folders(&entry.path())).sum()
}

#[test]
fn cycles_leave_no_descriptor_process_mount_group_socket_or_memory() {
    let place = Place::new();
    // Only root may bound shells; without bounds there are no groups to be left.
    let bounds: &[&str] = if common::is_root() { &["--memory-max", "64MiB"] } else { &[] };
    let daemon = Daemon::start_with(place.path(), bounds);
    daemon.register("echo", &place.bake("echo"));
    let cycles = match (std::env::var_os("EMBER_FULL").is_some(), in_rig()) {
        (true, false) => 10_000,
        _ => rounds(500),
    };
    // What is made once is made by then.
    for _ in 0..10 {
        daemon.invoke("echo", "warm").answers("warm");
    }
    let own = i32::try_from(daemon.id()).unwrap();
    let zygote = || {
        let shells = daemon.shells();
        daemon.children().into_iter().find(|pid| !shells.contains(pid)).unwrap()
    };
    let counted = || {
        daemon.await_shells(2);
        let zygote = zygote();
        (
            descriptors(own).len(),
            descriptors(zygote).len(),
            daemon.children().len(),
            Host::now(),
            place.names(),
        )
    };
    let mut before = None;
    wait_until("everything is at rest", || {
        let now = Some(counted());
        std::mem::replace(&mut before, counted().into()) == now
    });
    let before = before.unwrap();
    let held = || private_memory(own) + private_memory(zygote());
    let held_before = held();
    for _ in 0..cycles {
        daemon.invoke("echo", "x").answers("x");
    }
    wait_until("there is no more than before", || counted() == before);
    let held = held();
    assert!(held < held_before + LEAK_MAX, "{held_before} bytes have become {held}");
}

/// Bytes that a daemon and its zygote may have more after some hundred events: pools of the C library that no thread had used before.
const LEAK_MAX: u64 = 8 << 20;

/// Memory that a process shares with nobody, bytes.
#[track_caller]
fn private_memory(process: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    let kib = private.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap());
    kib.sum::<u64>() << 10
}
