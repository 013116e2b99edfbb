//! A function that has taken over its Linux guest, as root and with the guest agent's own control stream in its hands, ends its own
//! machine and nothing else.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::path::PathBuf;

use common::attacker::Watched;
use common::{Ended, GUEST_FAILED, TIMEOUT, finish};
use linux::{NOT_UNIQUE, python, run_command};

/// The guest's RAM, and what Ember may need besides.
const MEMORY_MAX: u64 = (256 << 20) + (48 << 20);

/// Takes the descriptor of the control stream out of the agent (pidfd_open(2), pidfd_getfd(2)).
const TAKEOVER: &str = "\
import ctypes, os, socket, struct
def control():
    libc = ctypes.CDLL(None, use_errno=True)
    agent = libc.syscall(434, 1, 0)
    for number in os.listdir('/proc/1/fd'):
        taken = libc.syscall(438, agent, int(number), 0)
        try:
            stream = socket.socket(fileno=taken)
        except OSError:
            continue
        if stream.family == socket.AF_VSOCK:
            stream.setblocking(True)
            return stream
    raise SystemExit('the agent has no control stream')
state['control'] = control
";

fn bundle() -> PathBuf {
    python("hostile", TAKEOVER, &[])
}

/// What becomes of a clone that runs `attack`, while another answers.
#[track_caller]
fn attacked(attack: &str, timeout: &str) -> Ended {
    let bundle = bundle();
    let attack = Watched::start(run_command(&bundle, attack).args(["--timeout", timeout]));
    finish(&mut run_command(&bundle, "print('fine')")).answers("fine\n");
    attack.end_within(MEMORY_MAX)
}

#[track_caller]
fn ends_with(attack: &str, code: i32, words: &str) {
    let ended = attacked(attack, "30s");
    assert_eq!(ended.status.code(), Some(code), "{attack}: {ended:?}");
    assert!(ended.errors.contains(words), "{attack}: {ended:?}");
}

#[test]
fn what_is_no_frame_on_the_agents_own_stream_ends_the_machine() {
    let said = |bytes: &str| format!("import os, time\nstate['control']().sendall({bytes})\ntime.sleep(60)");
    let misspoke = "does not keep to the guest protocol";
    ends_with(&said("b'\\x06\\x01' + os.urandom(4094)"), GUEST_FAILED, misspoke);
    ends_with(&said("b'\\x06\\0\\0\\0\\xff\\xff\\xff\\xff'"), GUEST_FAILED, misspoke);
    ends_with(
        &said("b'\\x05\\0\\0\\0\\x10\\0\\0\\0' + bytes(16)"),
        NOT_UNIQUE,
        "acknowledged when nobody had asked it to",
    );
}

#[test]
fn a_control_stream_that_is_closed_behind_the_agents_back_ends_the_machine() {
    let attack = "import socket, time\nstate['control']().shutdown(socket.SHUT_RDWR)\ntime.sleep(60)";
    let ended = attacked(attack, "30s");
    // The agent sees it too, and powers the guest off.
    assert_eq!(ended.status.code(), Some(GUEST_FAILED), "{ended:?}");
}

#[test]
fn an_answer_without_an_end_meets_the_time_limit() {
    let ended = attacked("import os\nwhile True:\n    os.write(1, b'x' * 65536)", "3s");
    assert_eq!(ended.status.code(), Some(TIMEOUT), "{ended:?}");
}

#[test]
fn a_flood_of_connections_meets_the_time_limit() {
    let attack = "\
import socket
kept, port = [], 0
while True:
    one = socket.socket(socket.AF_VSOCK)
    one.setblocking(False)
    port = port % 4000 + 1
    try:
        one.connect((2, port))
    except OSError:
        pass
    kept = kept[-500:] + [one]
";
    let ended = attacked(attack, "3s");
    assert_eq!(ended.status.code(), Some(TIMEOUT), "{ended:?}");
}

#[test]
fn memory_that_is_filled_is_the_guests_own() {
    // The guest's kernel ends the function, or with it goes what the agent needs.
    let ended = attacked("import os\nall = []\nwhile True:\n    all.append(os.urandom(1 << 20))", "60s");
    assert!([137, GUEST_FAILED, TIMEOUT].contains(&ended.code()), "{ended:?}");
}

#[test]
fn a_kernel_that_is_made_to_panic_ends_the_machine() {
    ends_with("open('/proc/sysrq-trigger', 'w').write('c')", GUEST_FAILED, "awaited");
}
