use std::io::Write;

use proptest::prelude::*;

use snapshot_format::state::{CURRENT, DecodeError, Reader};

use super::*;
use crate::bus::Request;
use crate::devices::{ConsoleSink, DriveBacking, DriveSetup};
use crate::memory::anonymous;

fn drive(id: &str, writable: bool) -> DriveSetup {
    let mut base = tempfile::tempfile().unwrap();
    base.write_all(&[7; 8192]).unwrap();
    let backing = if writable {
        DriveBacking::CopyOnWrite { base, delta: tempfile::tempfile().unwrap() }
    } else {
        DriveBacking::ReadOnly(base)
    };
    DriveSetup { id: id.to_owned(), backing }
}

fn linux() -> DeviceSetup {
    DeviceSetup {
        drives: vec![drive("root", false), drive("data", true)],
        vsock_cid: Some(3),
        rng: true,
        generation: Some([1; GENERATION_LEN]),
        port: false,
        console: ConsoleSink::Memory(Box::new(std::io::sink())),
        thread_start: Box::new(|| Ok(())),
    }
}

fn small() -> DeviceSetup {
    DeviceSetup { drives: Vec::new(), vsock_cid: None, rng: false, generation: None, port: true, ..linux() }
}

fn build(setup: DeviceSetup, states: DeviceStates) -> Result<DeviceTable, DeviceError> {
    DeviceTable::new(setup, anonymous(2 << 20).unwrap(), RequestLine::new().unwrap(), states)
}

fn cold(setup: DeviceSetup) -> DeviceTable {
    build(setup, DeviceStates::default()).unwrap()
}

fn saved(table: &DeviceTable) -> Vec<u8> {
    let mut writer = Writer::new(CURRENT);
    table.save(&mut writer).unwrap();
    writer.finish().unwrap()
}

fn states(bytes: &[u8]) -> DeviceStates {
    let mut reader = Reader::open(bytes).unwrap();
    let states = DeviceStates::take(&mut reader).unwrap();
    assert_eq!(reader.finish(), Ok::<(), DecodeError>(()), "no section is left");
    states
}

fn read(bus: &Bus, address: u64) -> u32 {
    let mut data = [0; 4];
    assert!(bus.read(address, &mut data));
    u32::from_le_bytes(data)
}

#[test]
fn virtio_devices_lie_in_slots_with_drives_first() {
    let table = cold(linux());
    let windows = table.virtio_windows();
    let mmio = table.mmio();
    let kinds: Vec<u32> = windows.iter().map(|w| read(&mmio, w.base + 8)).collect();
    assert_eq!(kinds, [2, 2, 19, 4]);
    assert_eq!(windows[3], VirtioWindow { base: 0xd000_3000, len: 0x1000, gsi: 8 });
    let mut gsis: Vec<u32> = table.irq_lines().map(IrqLine::gsi).collect();
    gsis.sort_unstable();
    assert_eq!(gsis, [4, 5, 6, 7, 8]);
}

#[test]
fn every_queue_that_is_listened_to_has_a_doorbell_and_an_event_source() {
    let table = cold(linux());
    let bells: Vec<_> = table.doorbells().iter().map(|b| (b.address, b.queue)).collect();
    let notify = |slot: u64| 0xd000_0050 + slot * 0x1000;
    assert_eq!(bells, [(notify(0), 0), (notify(1), 0), (notify(2), 0), (notify(2), 1), (notify(3), 0)]);
    let sources = table.event_sources();
    assert_eq!(sources.len(), bells.len());
    table.doorbells()[3].event.write(1).unwrap();
    table.handle_event(sources[3].1).unwrap();
    assert!(table.doorbells()[3].event.read().is_err(), "the notification was taken");
    table.handle_event(sources[3].1).unwrap();
}

#[test]
fn a_saved_table_is_built_again_and_saves_the_same() {
    for setup in [linux, small] {
        let table = cold(setup());
        let bytes = saved(&table);
        let again = build(setup(), states(&bytes)).unwrap();
        assert_eq!(saved(&again), bytes);
    }
}

#[test]
fn a_state_for_other_devices_is_refused() {
    let bytes = saved(&cold(linux()));
    let refused = |setup| build(setup, states(&bytes)).unwrap_err();
    assert!(matches!(refused(DeviceSetup { rng: false, ..linux() }), DeviceError::Leftover { .. }));
    assert!(matches!(refused(DeviceSetup { port: true, ..linux() }), DeviceError::Missing { .. }));
    let drives = vec![drive("root", false)];
    assert!(matches!(refused(DeviceSetup { drives, ..linux() }), DeviceError::Missing { .. }));
    let drives = vec![drive("root", false), drive("other", true)];
    assert!(matches!(refused(DeviceSetup { drives, ..linux() }), DeviceError::State { .. }));
}

#[test]
fn more_devices_than_interrupt_lines_are_refused() {
    let drives = |count: usize| (0..count).map(|index| drive(&index.to_string(), false)).collect();
    assert!(build(DeviceSetup { drives: drives(17), ..linux() }, DeviceStates::default()).is_ok());
    let made = build(DeviceSetup { drives: drives(18), ..linux() }, DeviceStates::default());
    assert!(matches!(made, Err(DeviceError::TooMany { max: 19 })));
}

#[test]
fn an_interrupt_that_nobody_acknowledged_is_raised_again_before_the_guest_runs() {
    let table = cold(linux());
    let base = table.virtio_windows()[3].base;
    let mmio = table.mmio();
    let write = |register: u64, value: u32| assert!(mmio.write(base + register, &value.to_le_bytes()));
    for (register, value) in [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x70, 15)] {
        write(register, value);
    }
    let events = |table: &DeviceTable| {
        let line = table.irq_lines().find(|line| line.gsi() == 8).cloned().unwrap();
        line.event().read().unwrap_or(0)
    };
    // A queue of an impossible size: the device stops, and tells so.
    write(0x38, 3);
    assert_eq!(table.faults().len(), 1);
    assert_eq!(events(&table), 1);
    let mut again = build(linux(), states(&saved(&table))).unwrap();
    assert_eq!(events(&again), 0, "not while the interrupt controller has no state yet");
    again.kick().unwrap();
    assert_eq!(events(&again), 1);
}

#[test]
fn the_guest_can_power_off_and_reset() {
    let requests = RequestLine::new().unwrap();
    let memory = anonymous(2 << 20).unwrap();
    let table = DeviceTable::new(linux(), memory, requests.clone(), DeviceStates::default()).unwrap();
    assert!(table.pio().write(0x604, &[0x34]));
    assert!(table.pio().write(0x605, &[6]));
    assert_eq!(requests.take(), [Request::PowerOff, Request::Reset]);
    assert!(table.pio().write(0x64, &[0xfe]));
    assert_eq!(requests.take(), [Request::Reset]);
}

#[test]
fn the_control_stream_is_the_socket_or_the_port() {
    let mut port = cold(small());
    let stream = port.control().unwrap();
    assert!(stream.is_open());
    assert_eq!(stream.write(b"event"), 5);
    assert_eq!(read(&port.pio(), layout::GUEST_PORT + 4), 5);
    port.pio().write(layout::GUEST_PORT + 4, &0x103u32.to_le_bytes());
    assert_eq!(port.port_exit_code(), Some(3));

    let mut socket = cold(linux());
    assert!(!socket.control().unwrap().is_open());
    assert_eq!(socket.port_exit_code(), None);

    let mut neither = cold(DeviceSetup { vsock_cid: None, ..linux() });
    assert!(neither.control().is_none());
}

#[test]
fn only_a_writable_drive_has_content_of_its_own() {
    let table = cold(linux());
    let to = tempfile::tempfile().unwrap();
    table.write_drive("data", &to).unwrap();
    assert_eq!(to.metadata().unwrap().len(), 8192);
    for id in ["root", "nobody"] {
        assert!(matches!(table.write_drive(id, &to), Err(DeviceError::NoDrive { .. })));
    }
    assert_eq!(table.block_requests(), 0);
}

/// An access to a bus: (is it MMIO, is it a write, address, length, value).
fn bus_access() -> impl Strategy<Value = (bool, bool, u64, usize, u64)> {
    let port = prop_oneof![Just(0x64u64), 0xe0u64..0xec, 0x3f8u64..0x400, 0x604u64..0x606, any::<u64>()];
    let register = (0u64..4, 0u64..0x48).prop_map(|(slot, n)| 0xd000_0000 + slot * 0x1000 + n * 4);
    let value = prop_oneof![
        proptest::sample::select(vec![0u64, 1, 2, 3, 11, 15, 0x100, 0x1_0000, 0x2_0000]),
        any::<u64>()
    ];
    prop_oneof![
        (any::<bool>(), port, 0usize..=8, value.clone()).prop_map(|(w, a, l, v)| (false, w, a, l, v)),
        (any::<bool>(), register, Just(4usize), value).prop_map(|(w, a, l, v)| (true, w, a, l, v)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_a_guest_does_can_be_saved_and_taken_up_again(
        accesses in proptest::collection::vec(bus_access(), 0..300),
        is_small in any::<bool>(),
    ) {
        let setup = if is_small { small } else { linux };
        let memory = anonymous(2 << 20).unwrap();
        let build = |states| {
            DeviceTable::new(setup(), memory.clone(), RequestLine::new().unwrap(), states).unwrap()
        };
        let mut table = build(DeviceStates::default());
        for (is_mmio, is_write, address, len, value) in accesses {
            let bus = if is_mmio { table.mmio() } else { table.pio() };
            let mut data = value.to_le_bytes();
            if is_write { bus.write(address, &data[..len]) } else { bus.read(address, &mut data[..len]) };
            table.event_sources().into_iter().for_each(|(_, token)| table.handle_event(token).unwrap());
        }
        table.kick().unwrap();
        let bytes = saved(&table);
        prop_assert_eq!(saved(&build(states(&bytes))), bytes);
    }
}
