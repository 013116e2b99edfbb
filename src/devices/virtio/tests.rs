//! Ring and transport against drivers of all kinds.

use proptest::prelude::*;

use super::testing::*;
use super::*;
use crate::bus::BusDevice;
use crate::memory::{Bytes, GuestAddress};

fn rig() -> Rig<Probe> {
    Rig::new(())
}

/// Offers what `set_up` lays out, and expects the device to stop.
fn expect_broken(set_up: impl FnOnce(&mut TestRing, &GuestMemory)) {
    let mut rig = rig();
    let memory = rig.memory.clone();
    set_up(&mut rig.rings[0], &memory);
    rig.mmio.serve();
    assert!(rig.rings[0].take_used().is_empty());
    assert!(rig.mmio.take_due(), "the driver is told");
    rig.assert_broken();
}

#[test]
fn a_request_is_served_and_announced() {
    let mut rig = rig();
    rig.rings[0].offer_chain(3, &[(BUFFERS, 16, 0), (BUFFERS + 16, 4, WRITE)]);
    rig.mmio.serve();
    assert_eq!(rig.rings[0].take_used(), [(3, 1)]);
    assert_eq!(bytes(&rig.memory, BUFFERS + 16, 1), [0xaa]);
    assert_eq!(read(&mut rig.mmio, 0x60), 1);
    assert!(rig.mmio.take_due());
    write(&mut rig.mmio, 0x64, 1);
    assert_eq!(read(&mut rig.mmio, 0x60), 0);
    rig.mmio.serve();
    assert!(!rig.mmio.take_due(), "nothing new, no interrupt");
}

#[test]
fn many_turns_of_the_ring_are_served() {
    let mut rig = rig();
    for turn in 0..70_000u32 {
        rig.rings[0].offer_chain((turn % 8) as u16, &[(BUFFERS, 1, WRITE)]);
        rig.mmio.serve();
        assert_eq!(rig.rings[0].take_used().len(), 1, "turn {turn}");
    }
}

#[test]
fn with_event_indices_only_the_asked_for_interrupts_come() {
    let memory = test_memory();
    let mut rig = Rig::bring_up(transport::<Probe>((), None, &memory).unwrap(), memory.clone(), 0);
    let used_event = rig.rings[0].avail_ring() + 4 + 8 * 2;
    let avail_event = rig.rings[0].used_ring() + 4 + 8 * 8;
    memory.write_obj(1u16, GuestAddress(used_event)).unwrap();
    for (turn, due) in [(0, false), (1, true), (2, false)] {
        rig.rings[0].offer_chain(turn, &[(BUFFERS, 1, WRITE)]);
        rig.mmio.serve();
        assert_eq!(rig.mmio.take_due(), due, "turn {turn}");
        assert_eq!(memory.read_obj::<u16>(GuestAddress(avail_event)).unwrap(), turn + 1);
    }
}

#[test]
fn a_descriptor_loop_is_a_device_error() {
    expect_broken(|ring, _| {
        ring.descriptor(0, BUFFERS, 4, NEXT, 1);
        ring.descriptor(1, BUFFERS, 4, NEXT, 0);
        ring.offer(0);
    });
    expect_broken(|ring, _| {
        ring.descriptor(5, BUFFERS, 4, NEXT | WRITE, 5);
        ring.offer(5);
    });
}

#[test]
fn an_index_out_of_the_table_is_a_device_error() {
    expect_broken(|ring, _| ring.offer(8));
    expect_broken(|ring, _| ring.offer(u16::MAX));
    expect_broken(|ring, _| ring.offer_chain(7, &[(BUFFERS, 4, 0), (BUFFERS, 4, WRITE)]));
}

#[test]
fn a_buffer_outside_of_ram_is_a_device_error() {
    for (address, len) in
        [(RAM, 1), (RAM - 4, 8), (u64::MAX, 1), (u64::MAX - 3, 8), (0xd000_0000, 4), (BUFFERS, u32::MAX)]
    {
        expect_broken(|ring, _| ring.offer_chain(0, &[(address, len, WRITE)]));
    }
}

#[test]
fn an_empty_descriptor_is_a_device_error() {
    expect_broken(|ring, _| ring.offer_chain(0, &[(BUFFERS, 0, WRITE)]));
    expect_broken(|ring, _| ring.offer_chain(0, &[(BUFFERS, 4, 0), (BUFFERS, 0, 0), (BUFFERS, 4, WRITE)]));
}

#[test]
fn a_readable_descriptor_behind_a_writable_one_is_a_device_error() {
    expect_broken(|ring, _| {
        ring.offer_chain(0, &[(BUFFERS, 4, WRITE), (BUFFERS, 4, 0), (BUFFERS, 4, WRITE)])
    });
}

#[test]
fn a_request_without_room_for_its_answer_is_a_device_error() {
    expect_broken(|ring, _| ring.offer_chain(0, &[(BUFFERS, 4, 0)]));
}

#[test]
fn a_jump_of_the_available_index_is_a_device_error() {
    for index in [9, 100, u16::MAX] {
        expect_broken(|ring, _| ring.set_avail(index));
    }
}

fn indirect(memory: &GuestMemory, entries: u16, flags: u16) {
    for index in 0..entries {
        let at = BUFFERS + u64::from(index) * 16;
        let next = if index + 1 < entries { NEXT } else { 0 };
        memory.write_obj(BUFFERS, GuestAddress(at)).unwrap();
        memory.write_obj(1u32, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags | next, GuestAddress(at + 12)).unwrap();
        memory.write_obj(index + 1, GuestAddress(at + 14)).unwrap();
    }
}

#[test]
fn an_indirect_table_that_is_too_long_or_nested_or_nowhere_is_a_device_error() {
    expect_broken(|ring, memory| {
        indirect(memory, 9, WRITE);
        ring.offer_chain(0, &[(BUFFERS, 9 * 16, INDIRECT)]);
    });
    expect_broken(|ring, memory| {
        indirect(memory, 2000, WRITE);
        ring.offer_chain(0, &[(BUFFERS, 2000 * 16, INDIRECT)]);
    });
    expect_broken(|ring, memory| {
        indirect(memory, 1, INDIRECT);
        ring.offer_chain(0, &[(BUFFERS, 16, INDIRECT)]);
    });
    expect_broken(|ring, _| ring.offer_chain(0, &[(BUFFERS, 15, INDIRECT)]));
    expect_broken(|ring, _| ring.offer_chain(0, &[(RAM, 16, INDIRECT)]));
    expect_broken(|ring, _| ring.offer_chain(0, &[(BUFFERS, 4, 0), (u64::MAX, 16, INDIRECT)]));
}

#[test]
fn a_broken_device_is_deaf_until_it_is_reset() {
    let mut rig = rig();
    rig.rings[0].offer(8);
    rig.mmio.serve();
    assert!(rig.is_broken());
    write(&mut rig.mmio, 0x70, 15);
    assert!(rig.is_broken(), "only a reset takes it back");
    let memory = rig.memory.clone();
    let mut rig = Rig::bring_up(rig.mmio, memory, 0);
    rig.rings[0].offer_chain(0, &[(BUFFERS, 1, WRITE)]);
    rig.mmio.serve();
    assert_eq!(rig.rings[0].take_used(), [(0, 1)]);
    assert!(rig.mmio.fault().is_none());
}

/// A device as far as FEATURES_OK, queue 0 selected.
fn negotiated() -> VirtioMmio<Probe> {
    let mut mmio = transport::<Probe>((), None, &test_memory()).unwrap();
    for (register, value) in [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
        write(&mut mmio, register, value);
    }
    assert_eq!(read(&mut mmio, 0x70), 11);
    mmio
}

#[test]
fn a_queue_that_cannot_be_used_is_a_device_error() {
    let set_ups: [&[(u64, u32)]; 7] = [
        &[(0x38, 3)],
        &[(0x38, 16)],
        &[(0x38, 0)],
        &[(0x38, 0x1_0008)],
        &[(0x80, 0x8)],
        &[(0x90, 1)],
        &[(0x84, 1), (0x44, 1)],
    ];
    for set_up in set_ups {
        let mut mmio = negotiated();
        set_up.iter().for_each(|(register, value)| write(&mut mmio, *register, *value));
        assert_eq!(read(&mut mmio, 0x70), 11 | 64, "{set_up:x?}");
        assert_eq!(read(&mut mmio, 0x44), 0);
    }
}

#[test]
fn identity_registers_say_what_the_specification_wants() {
    let mut mmio = transport::<Probe>((), None, &test_memory()).unwrap();
    let found: Vec<u32> = [0, 4, 8, 0x34, 0x44, 0xb0, 0xfc].map(|r| read(&mut mmio, r)).into();
    assert_eq!(found, [0x7472_6976, 2, 42, 8, 0, u32::MAX, 0]);
    write(&mut mmio, 0x30, 1);
    assert_eq!(read(&mut mmio, 0x34), 0, "there is no second queue");
    let mut config = [9; 4];
    mmio.read(0x102, &mut config);
    assert_eq!(config, [3, 4, 5, 9], "the bus gives zeros behind the end");
}

#[test]
fn features_without_version_1_or_that_were_not_offered_are_not_accepted() {
    for (low, high) in [(1, 0), (2, 1), (0, 0x8000_0001), (0, 0)] {
        let mut mmio = transport::<Probe>((), None, &test_memory()).unwrap();
        for (register, value) in
            [(0x70, 1), (0x70, 3), (0x24, 0), (0x20, low), (0x24, 1), (0x20, high), (0x70, 11)]
        {
            write(&mut mmio, register, value);
        }
        assert_eq!(read(&mut mmio, 0x70), 3, "{low:x} {high:x}");
    }
}

#[test]
fn queues_and_features_stay_as_they_are_once_they_are_in_use() {
    let mut rig = rig();
    let before = rig.mmio.state();
    for (register, value) in [(0x38, 4), (0x80, 0), (0x94, 7), (0x24, 0), (0x20, 0), (0x20, u32::MAX)] {
        write(&mut rig.mmio, register, value);
    }
    let after = rig.mmio.state();
    assert_eq!((after.queues, after.driver_features), (before.queues, before.driver_features));
}

#[test]
fn a_queue_is_reset_alone_and_set_up_again() {
    let mut rig = rig();
    rig.rings[0].offer_chain(0, &[(BUFFERS, 1, WRITE)]);
    rig.mmio.serve();
    write(&mut rig.mmio, 0x30, 0);
    write(&mut rig.mmio, 0xc0, 1);
    assert_eq!((read(&mut rig.mmio, 0xc0), read(&mut rig.mmio, 0x44)), (0, 0));
    rig.mmio.serve();
    let queue = rig.mmio.state().queues.remove(0);
    assert_eq!(queue, queue::cold_state(8), "also its indices are back at 0");
    assert_eq!(rig.status(), 15);
}

#[test]
fn a_notification_without_its_shortcut_rings_the_bell() {
    let mut rig = rig();
    write(&mut rig.mmio, 0x50, 0);
    let bell = rig.bells[0].clone().unwrap();
    assert_eq!(bell.read().unwrap(), 1);
    write(&mut rig.mmio, 0x50, 1);
    write(&mut rig.mmio, 0x50, u32::MAX);
    assert!(bell.read().is_err());
}

#[test]
fn what_a_driver_queued_before_it_was_ready_is_looked_at() {
    let mut mmio = negotiated();
    let (bells, _) = mmio.wires();
    let bell = bells[0].clone().unwrap();
    assert!(bell.read().is_err());
    write(&mut mmio, 0x70, 15);
    assert_eq!(bell.read().unwrap(), 1);
    write(&mut mmio, 0x70, 15);
    assert!(bell.read().is_err(), "once is enough");
}

#[test]
fn registers_are_four_bytes_wide_and_aligned() {
    let mut rig = rig();
    let before = rig.mmio.state();
    for offset in 0..0x100 {
        for len in [1, 2, 3, 8] {
            let mut data = vec![0; len];
            rig.mmio.read(offset, &mut data);
            assert!(data.iter().all(|byte| *byte == 0), "{offset:#x}");
            rig.mmio.write(offset, &vec![0; len]);
        }
        if offset % 4 != 0 {
            write(&mut rig.mmio, offset, 0);
        }
    }
    assert_eq!(rig.mmio.state(), before);
}

#[test]
fn a_saved_device_runs_on_where_it_stopped() {
    let mut rig = rig();
    rig.rings[0].offer_chain(0, &[(BUFFERS, 1, WRITE)]);
    rig.mmio.serve();
    let saved = rig.mmio.save().unwrap();
    assert_eq!(saved.transport.interrupt_status, 1);
    rig.mmio = transport::<Probe>((), Some(saved.clone()), &rig.memory).unwrap();
    assert_eq!(rig.mmio.save().unwrap(), saved);
    assert!(rig.mmio.interrupt_pending());
    rig.rings[0].offer_chain(1, &[(BUFFERS, 1, WRITE)]);
    rig.mmio.serve();
    assert_eq!(rig.rings[0].take_used(), [(0, 1), (1, 1)]);
}

/// Changes a good state so that it must be refused.
type Spoil = fn(&mut VirtioState);

#[test]
fn a_state_that_no_driver_can_bring_about_is_refused() {
    let good = rig().mmio.save().unwrap();
    let memory = test_memory();
    assert!(transport::<Probe>((), Some(good.clone()), &memory).is_ok());
    let spoils: [Spoil; 16] = [
        |s| s.id = "other".to_owned(),
        |s| s.device_type = 2,
        |s| s.queues.clear(),
        |s| s.queues.push(s.queues[0].clone()),
        |s| s.status = 4,
        |s| s.status = 0x115,
        |s| s.interrupt_status = 4,
        |s| s.driver_features |= 2,
        |s| s.driver_features = 0,
        |s| s.queues[0].size = 3,
        |s| s.queues[0].size = 16,
        |s| s.queues[0].max_size = 2048,
        |s| s.queues[0].desc_table = RAM,
        |s| s.queues[0].used_ring = u64::MAX - 3,
        |s| s.queues[0].avail_ring = 1,
        |s| s.queues[0].event_idx = true,
    ];
    for (index, spoil) in spoils.iter().enumerate() {
        let mut bad = good.clone();
        spoil(&mut bad.transport);
        let made = transport::<Probe>((), Some(bad), &memory);
        assert!(matches!(made, Err(DeviceError::State { .. })), "spoil {index}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_register_access_panics(
        accesses in proptest::collection::vec(register_access(), 0..200),
    ) {
        let mut rig = rig();
        scramble(&mut rig, &accesses);
    }

    #[test]
    fn no_ring_panics(rings in proptest::collection::vec(any_ring(), 1..4)) {
        let mut rig = rig();
        serve_rings(&mut rig, 0, &rings);
    }
}
