//! Freezing a guest while it works: what is half done in that moment is done exactly once.
//!
//! No command freezes a guest that runs, so this is a test beside the code. It needs a KVM that runs small guests, and
//! does nothing where there is none: the emulated host runs it as well.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use kvm_bindings::kvm_msr_entry;
use snapshot_format::sections::PortState;
use snapshot_format::state::{FormatVersion, Reader};

use crate::devices::{ConsoleSink, DeviceSetup};
use crate::function::Conversation;
use crate::kvm::{System, VmError};
use crate::memory;

use super::prefetch::Ahead;
use super::testing::{Answer, SHAPE, ask, contract, guest, restored, soon};
use super::*;

const FREEZES: u32 = 300;
/// Every so many freezes a clone is made of what was captured.
const CLONE_EVERY: u32 = 12;

/// A machine's state and memory at one freeze.
struct Snapshot {
    state: Vec<u8>,
    memory: File,
}

fn snapshot(frozen: &mut Frozen<'_>) -> Snapshot {
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(SHAPE.memory_bytes).unwrap();
    memory::visit_content(frozen.memory(), &[], |offset, bytes| memory.write_all_at(bytes, offset)).unwrap();
    Snapshot { state: frozen.capture(FormatVersion::CURRENT).unwrap(), memory }
}

/// Where the sequence stands in a captured state.
fn sequence(state: &[u8]) -> u32 {
    Reader::open(state).unwrap().take::<PortState>(0).unwrap().sequence
}

fn clone_of(snapshot: &Snapshot) -> Machine {
    let saved = SavedMachine::take(Reader::open(&snapshot.state).unwrap(), &SHAPE).unwrap();
    let devices = DeviceSetup {
        drives: Vec::new(),
        vsock_cid: None,
        rng: false,
        generation: None,
        port: true,
        console: ConsoleSink::Memory(Box::new(io::sink())),
        thread_start: Box::new(|| Ok(())),
    };
    Machine::build(Plan {
        host: Host::open(None).unwrap(),
        shape: SHAPE,
        memory: memory::copy_on_write(&snapshot.memory, SHAPE.memory_bytes, &[]).unwrap(),
        devices,
        origin: Origin::Saved(Box::new(saved)),
        ahead: Ahead::default(),
        count_faults: false,
        timeline: &mut Timeline::start(),
    })
    .unwrap()
}

/// Pauses of 0 to 1000 microseconds that fall anywhere in the guest's loop.
struct Pauses(u32);

impl Pauses {
    fn pause(&mut self) {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_micros(u64::from(self.0 >> 16) % 1000));
    }
}

/// Lets a clone count, freezes it now and then, and asks it.
fn check_clone(snapshot: &Snapshot, pauses: &mut Pauses) {
    let mut machine = clone_of(snapshot);
    let mut conversation = restored();
    let mut drive = Drive::new(&mut machine, &mut conversation);
    drive.run().unwrap();
    for _ in 0..5 {
        pauses.pause();
        drop(drive.machine().freeze().unwrap());
    }
    let verdict = ask(&mut drive);
    assert!(verdict.starts_with("ok "), "a clone: {verdict}");
}

#[test]
fn no_port_read_is_lost_or_done_twice_by_a_freeze_or_a_restore() {
    let image = Image::Small(guest("counter"));
    let start = ColdStart {
        host: Host::open(None).unwrap(),
        shape: SHAPE,
        image: &image,
        command_line: String::new(),
        generation: [0; 16],
        drives: Vec::new(),
        console: ConsoleSink::Memory(Box::new(io::sink())),
    };
    let mut machine = boot(start, &mut Timeline::start()).unwrap();
    let mut conversation = Conversation::cold(&contract()).unwrap();
    let mut drive = Drive::new(&mut machine, &mut conversation);
    boot_to_ready(&mut drive, soon(), &mut Answer::default()).unwrap();
    // It stands still at its warm point; without an event it counts from there on.
    drive.release().unwrap();

    let (mut pauses, mut last, mut moved) = (Pauses(1), 0, 0);
    for number in 1..=FREEZES {
        pauses.pause();
        let mut frozen = drive.machine().freeze().unwrap();
        let snapshot = snapshot(&mut frozen);
        drop(frozen);
        let now = sequence(&snapshot.state);
        moved += u32::from(now > last);
        last = now;
        if number % CLONE_EVERY == 0 {
            check_clone(&snapshot, &mut pauses);
        }
    }
    // A pause may be too short for a read, most are not.
    assert!(moved > FREEZES / 2, "the guest counted between {moved} of {FREEZES} freezes");
    let verdict = ask(&mut drive);
    assert!(verdict.starts_with("ok "), "{verdict}");
    let reads: u64 = verdict["ok ".len()..].parse().unwrap();
    assert!(reads >= u64::from(last), "{reads} reads, and {last} were counted at the last freeze");
}

#[test]
fn an_msr_that_kvm_does_not_take_or_give_is_named_and_none_is_left_out_in_silence() {
    // KVM stops there, and says only how many came before it.
    const UNKNOWN: u32 = 0x4000_ffff;
    const STAR: u32 = 0xc000_0081;
    const LSTAR: u32 = 0xc000_0082;
    let vm = System::open().unwrap().create_vm().unwrap();
    vm.create_irqchip().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let entry = |index| kvm_msr_entry { index, data: 8, ..Default::default() };
    let refused = vcpu.set_msrs(&[entry(STAR), entry(UNKNOWN), entry(LSTAR)]).unwrap_err();
    assert!(matches!(refused, VmError::Msr { verb: "set", index: UNKNOWN }), "{refused}");
    let withheld = vcpu.msrs(&[STAR, UNKNOWN, LSTAR]).unwrap_err();
    assert!(matches!(withheld, VmError::Msr { verb: "read", index: UNKNOWN }), "{withheld}");
    let got: Vec<u64> = vcpu.msrs(&[STAR, LSTAR]).unwrap().iter().map(|msr| msr.data).collect();
    assert_eq!(got, [8, 0], "what stood before it was set, what stood behind it was not");
}
