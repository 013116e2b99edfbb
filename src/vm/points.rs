//! Machines that are frozen at one exact point: what is under way there happens once, in the guest that goes on and in every
//! clone of it.
//!
//! These are tests beside the code because no command freezes a guest just there. They need a KVM that runs small guests:
//! `cargo xtask test` runs them in the emulated host, and natively where one is.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MP_STATE_HALTED, kvm_lapic_state, kvm_mp_state, kvm_msr_entry};
use snapshot_format::sections::{BlockState, PortState, VcpuState};
use snapshot_format::state::{CURRENT, Reader};

use crate::bus::{SharedDevice, lock};
use crate::devices::{ConsoleSink, DeviceSetup, DriveBacking, DriveSetup};
use crate::function::Conversation;
use crate::memory::{self, layout};
use crate::vcpu::{from_blob, list_from_blob};

use super::prefetch::Ahead;
use super::testing::{Answer, SHAPE, ask, contract, guest, restored, soon};
use super::*;

/// Time enough for a vCPU to come to where it stops by itself, and for a deadline that is soon to pass.
const A_WHILE: Duration = Duration::from_millis(200);
/// How long the guest waits before its first access, and then some.
const GUEST_WAITS: Duration = Duration::from_millis(1200);
/// Accesses that the guest makes of the kind that is cut in two.
const ACCESSES: usize = 1000;
/// The vector of the guest's one interrupt.
const VECTOR: usize = 0x40;
const TSC_DEADLINE: u32 = 0x6e0;

/// What a guest has printed.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Console {
    /// What has come once `len` bytes are there, or nothing more comes for a while.
    fn text(&self, len: usize) -> String {
        let end = Instant::now() + A_WHILE;
        while lock(&self.0).len() < len && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        String::from_utf8(lock(&self.0).clone()).unwrap()
    }
}

/// A machine and everything around it.
struct Rig {
    machine: Machine,
    conversation: Conversation,
    console: Console,
}

/// State and memory at one freeze.
struct Snapshot {
    state: Vec<u8>,
    memory: File,
}

fn setup(console: &Console) -> DeviceSetup {
    // A virtio device whose registers can be read.
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(4096).unwrap();
    DeviceSetup {
        drives: vec![DriveSetup { id: "disk".to_owned(), backing: DriveBacking::ReadOnly(disk) }],
        vsock_cid: None,
        rng: false,
        generation: None,
        port: true,
        console: ConsoleSink::Stream(Box::new(console.clone())),
        thread_start: Box::new(|| Ok(())),
    }
}

impl Rig {
    /// The guest before its first instruction.
    fn boot(point: &str) -> Rig {
        let (image, console) = (Image::Small(guest("points")), Console::default());
        let load = |memory: &memory::GuestMemory, _: &[crate::devices::VirtioWindow]| match &image {
            Image::Small(guest) => Ok(guest.load(memory, point)?),
            Image::Linux { .. } => panic!("no small guest"),
        };
        let machine = Machine::build(Plan {
            host: Host::open(None).unwrap(),
            shape: SHAPE,
            memory: memory::anonymous(SHAPE.memory_bytes).unwrap(),
            devices: setup(&console),
            origin: Origin::Cold(&load),
            ahead: Ahead::default(),
            count_faults: false,
            timeline: &mut Timeline::start(),
        })
        .unwrap();
        Rig { machine, conversation: Conversation::cold(&contract()).unwrap(), console }
    }

    /// A clone that has not run. `warm`: it was frozen at its warm point.
    fn clone_of(snapshot: &Snapshot, warm: bool) -> Rig {
        let console = Console::default();
        let saved = SavedMachine::take(Reader::open(&snapshot.state).unwrap(), &SHAPE).unwrap();
        let machine = Machine::build(Plan {
            host: Host::open(None).unwrap(),
            shape: SHAPE,
            memory: memory::copy_on_write(&snapshot.memory, SHAPE.memory_bytes, &[]).unwrap(),
            devices: setup(&console),
            origin: Origin::Saved(Box::new(saved)),
            ahead: Ahead::default(),
            count_faults: false,
            timeline: &mut Timeline::start(),
        })
        .unwrap();
        let conversation = if warm { restored() } else { Conversation::cold(&contract()).unwrap() };
        Rig { machine, conversation, console }
    }

    fn get_warm(&mut self) {
        let mut drive = Drive::new(&mut self.machine, &mut self.conversation);
        boot_to_ready(&mut drive, soon(), &mut Answer::default()).unwrap();
    }

    fn snapshot(&mut self) -> Snapshot {
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(SHAPE.memory_bytes).unwrap();
        let mut frozen = self.machine.freeze().unwrap();
        // Also right for a guest that was booted: what is nowhere is zero.
        let behind = std::slice::from_ref(&(0..SHAPE.memory_bytes));
        memory::visit_content(frozen.memory(), behind, |offset, bytes| memory.write_all_at(bytes, offset))
            .unwrap();
        let state = frozen.capture(CURRENT).unwrap();
        frozen.keep();
        Snapshot { state, memory }
    }

    /// Lets the guest go on from its warm point with an event.
    fn ask(&mut self) -> String {
        ask(&mut Drive::new(&mut self.machine, &mut self.conversation))
    }

    /// Everything the guest has printed: the end of the machine hands out the rest.
    fn last_words(self) -> String {
        let Rig { machine, console, .. } = self;
        drop(machine);
        console.text(0)
    }
}

impl Snapshot {
    fn vcpu(&self) -> VcpuState {
        Reader::open(&self.state).unwrap().take(0).unwrap()
    }

    /// Whether the interrupt is requested and not delivered (Intel SDM volume 3A, 12.8.4: IRR).
    fn is_requested(&self) -> bool {
        let lapic: kvm_lapic_state = from_blob("local APIC", &self.vcpu().lapic).unwrap();
        lapic.regs[0x200 + VECTOR / 32 * 16 + VECTOR % 32 / 8].cast_unsigned() >> (VECTOR % 8) & 1 != 0
    }

    fn deadline(&self) -> u64 {
        let msrs = list_from_blob::<kvm_msr_entry>("MSRs", &self.vcpu().msrs).unwrap();
        msrs.iter().find(|msr| msr.index == TSC_DEADLINE).unwrap().data
    }

    fn mp_state(&self) -> u32 {
        from_blob::<kvm_mp_state>("multiprocessor state", &self.vcpu().mp_state).unwrap().mp_state
    }

    fn sequence(&self) -> u32 {
        Reader::open(&self.state).unwrap().take::<PortState>(0).unwrap().sequence
    }

    /// Which queue of the disk was selected last.
    fn selected_queue(&self) -> u32 {
        Reader::open(&self.state).unwrap().take::<BlockState>(0).unwrap().transport.queue_select
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(SHAPE.memory_bytes).unwrap()];
        self.memory.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[track_caller]
    fn is_the_same_as(&self, other: &Snapshot) {
        assert!(self.state == other.state, "the states differ");
        assert!(self.memory() == other.memory(), "the memories differ");
    }
}

/// A guest frozen at its warm point, which it reached by `point`; a while passes before.
fn frozen_warm(point: &str) -> (Rig, Snapshot) {
    let mut rig = Rig::boot(point);
    rig.get_warm();
    std::thread::sleep(A_WHILE);
    let snapshot = rig.snapshot();
    (rig, snapshot)
}

/// What the guest that goes on, a clone, and a clone of that clone tell.
fn all_answers(mut original: Rig, snapshot: &Snapshot) -> [String; 3] {
    let mut clone = Rig::clone_of(snapshot, true);
    let again = clone.snapshot();
    [original.ask(), clone.ask(), Rig::clone_of(&again, true).ask()]
}

#[track_caller]
fn one_interrupt_in_all(original: Rig, snapshot: &Snapshot) {
    assert_eq!(all_answers(original, snapshot), ["interrupts 1 right 0"; 3]);
}

#[test]
fn a_pending_interrupt_is_delivered_once() {
    let (original, snapshot) = frozen_warm("pending");
    assert!(snapshot.is_requested());
    one_interrupt_in_all(original, &snapshot);
}

#[test]
fn a_timer_that_expires_while_the_guest_stands_still_fires_once() {
    let (original, snapshot) = frozen_warm("expiring");
    assert!(!snapshot.is_requested(), "the interrupt had been requested already");
    assert_ne!(snapshot.deadline(), 0, "the timer was not armed any more");
    one_interrupt_in_all(original, &snapshot);
}

#[test]
fn a_timer_whose_interrupt_is_held_back_fires_once() {
    let (original, snapshot) = frozen_warm("expired");
    assert!(snapshot.is_requested());
    one_interrupt_in_all(original, &snapshot);
}

#[test]
fn a_timer_that_has_fired_does_not_fire_again() {
    let (original, snapshot) = frozen_warm("handled");
    assert!(!snapshot.is_requested());
    one_interrupt_in_all(original, &snapshot);
}

#[test]
fn serial_output_in_flight_comes_once_and_its_interrupt_is_not_lost() {
    let (original, snapshot) = frozen_warm("serial");
    assert!(snapshot.is_requested());
    let mut clone = Rig::clone_of(&snapshot, true);
    clone.ask();
    assert_eq!(clone.last_words(), "", "a clone printed it again");
    let console = original.console.clone();
    // An edge that is lost with its eventfd would be one too few, so it is raised again; a driver asks the port what there is.
    let fine = ["interrupts 1 right 0", "interrupts 2 right 0"];
    let answers = all_answers(original, &snapshot);
    assert!(answers.iter().all(|answer| fine.contains(&answer.as_str())), "{answers:?}");
    assert_eq!(console.text(1), "!");
}

#[test]
fn a_halted_vcpu_is_woken_by_its_timer() {
    let mut original = Rig::boot("halted");
    original.machine.run().unwrap();
    std::thread::sleep(A_WHILE);
    let snapshot = original.snapshot();
    assert_eq!(snapshot.mp_state(), KVM_MP_STATE_HALTED);
    for rig in [&mut Rig::clone_of(&snapshot, false), &mut original] {
        rig.get_warm();
        assert_eq!(rig.ask(), "interrupts 1 right 0");
    }
}

/// Freezes the guest in the middle of its first access to `device`: the vCPU waits there for the device until it has been
/// told to stop.
#[track_caller]
fn frozen_within_access(rig: &mut Rig, device: SharedDevice) -> Snapshot {
    // Not before: a machine that starts looks after its devices.
    rig.machine.run().unwrap();
    let release = hold(device);
    // Its first exit is its first access: nothing else that it does until then reaches a device of ours.
    assert_eq!(rig.machine.first_exit(), None, "the guest did not wait for the host");
    std::thread::sleep(GUEST_WAITS);
    assert!(rig.machine.first_exit().is_some(), "the guest does not wait for the device");
    release.send(()).unwrap();
    rig.snapshot()
}

/// Holds the device until a while after the sender has been used.
fn hold(device: SharedDevice) -> Sender<()> {
    let ((held, is_held), (release, released)) = (channel(), channel());
    std::thread::spawn(move || {
        let guard = lock(&device);
        held.send(()).unwrap();
        released.recv().unwrap();
        std::thread::sleep(A_WHILE);
        drop(guard);
    });
    is_held.recv().unwrap();
    release
}

#[track_caller]
fn all_go_on(mut original: Rig, snapshot: &Snapshot, expected: &str) -> (Rig, Rig) {
    let mut clone = Rig::clone_of(snapshot, false);
    for rig in [&mut clone, &mut original] {
        rig.get_warm();
        assert_eq!(rig.ask(), expected);
    }
    (original, clone)
}

#[test]
fn a_port_read_that_is_half_done_is_done_once() {
    let mut original = Rig::boot("in");
    let device = original.machine.devices().pio().device_at(layout::GUEST_PORT + 8).unwrap();
    let snapshot = frozen_within_access(&mut original, device);
    assert_eq!(snapshot.sequence(), 1, "not in the middle of the first read");
    all_go_on(original, &snapshot, "interrupts 0 right 1000");
}

#[test]
fn a_port_write_that_is_half_done_is_done_once() {
    let mut original = Rig::boot("out");
    let device = original.machine.devices().pio().device_at(layout::SERIAL_PORT).unwrap();
    let snapshot = frozen_within_access(&mut original, device);
    assert_eq!(original.console.text(1), "\n", "not in the middle of the first write");
    let (original, clone) = all_go_on(original, &snapshot, "interrupts 0 right 0");
    let all: String = std::iter::once('\n').chain('a'..='z').cycle().take(ACCESSES).collect();
    assert_eq!(original.last_words(), all);
    assert_eq!(clone.last_words(), all[1..]);
}

#[test]
fn an_mmio_read_that_is_half_done_is_done() {
    let mut original = Rig::boot("mmio");
    let device = original.machine.devices().mmio().device_at(layout::VIRTIO_MMIO_START).unwrap();
    let snapshot = frozen_within_access(&mut original, device);
    all_go_on(original, &snapshot, "interrupts 0 right 1000");
}

#[test]
fn an_mmio_write_that_is_half_done_is_done_once() {
    let mut original = Rig::boot("mmio-write");
    let device = original.machine.devices().mmio().device_at(layout::VIRTIO_MMIO_START).unwrap();
    let snapshot = frozen_within_access(&mut original, device);
    assert_eq!(snapshot.selected_queue(), 1, "not in the middle of the first write");
    all_go_on(original, &snapshot, "interrupts 0 right 1000");
}

#[test]
fn two_captures_of_one_freeze_are_the_same_bytes() {
    let (mut rig, first) = frozen_warm("expiring");
    std::thread::sleep(A_WHILE);
    rig.snapshot().is_the_same_as(&first);
    rig.ask();
    let third = rig.snapshot();
    assert!(
        first.state != third.state && first.memory() != third.memory(),
        "a guest that has run was not read anew"
    );
}

#[test]
fn two_captures_of_one_clone_are_the_same_bytes() {
    let (_original, snapshot) = frozen_warm("expiring");
    let mut clone = Rig::clone_of(&snapshot, true);
    for has_run in [false, true] {
        if has_run {
            clone.ask();
        }
        let first = clone.snapshot();
        assert_eq!(first.memory() != snapshot.memory(), has_run);
        std::thread::sleep(A_WHILE);
        clone.snapshot().is_the_same_as(&first);
    }
}
