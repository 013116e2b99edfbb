use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use zerocopy::FromBytes;

use super::connection::RECEIVE_BUFFER;
use super::*;
use crate::bus::lock;
use crate::devices::ControlStream;
use crate::devices::virtio::VirtioMmio;
use crate::devices::virtio::testing::*;

const CID: u64 = 3;
const GUEST_PORT: u32 = 5000;
/// Receive buffers, and where the guest puts what it sends.
const RX: u64 = BUFFERS;
const RX_LEN: u32 = 4096;
const TX: u64 = BUFFERS + 0xc0000;

/// A guest with a socket device, and the host's end.
struct Guest {
    stream: VsockStream,
    rings: Vec<TestRing>,
    memory: GuestMemory,
    buffers: u16,
    fwd: u32,
    buf_alloc: u32,
}

impl Guest {
    fn new() -> Self {
        Self::on(Rig::<Vsock>::new(CID))
    }

    fn on(rig: Rig<Vsock>) -> Self {
        let Rig { mmio, rings, memory, bells: _, line } = rig;
        let device = Arc::new(Mutex::new(mmio));
        Guest { stream: VsockStream { device, line }, rings, memory, buffers: 0, fwd: 0, buf_alloc: 1 << 18 }
    }

    /// A guest whose agent has its control stream, and `buffers` free receive buffers.
    fn connected(buffers: u16) -> Self {
        let mut guest = Guest::new();
        guest.offer_buffers(buffers + 1);
        guest.send(op::REQUEST, &[]);
        assert_eq!(guest.take(), [(op::RESPONSE, GUEST_PORT, vec![])]);
        guest
    }

    fn offer_buffers(&mut self, count: u16) {
        for _ in 0..count {
            let slot = self.buffers % 128;
            let at = RX + u64::from(slot) * u64::from(RX_LEN);
            self.rings[0].offer_chain(slot, &[(at, RX_LEN, WRITE)]);
            self.buffers = self.buffers.wrapping_add(1);
        }
        self.serve();
    }

    fn serve(&mut self) {
        lock(&self.stream.device).serve();
    }

    fn header(&self, operation: u16, len: usize) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID.into(),
            src_port: GUEST_PORT.into(),
            dst_port: CONTROL_PORT.into(),
            len: u32::try_from(len).unwrap().into(),
            kind: STREAM.into(),
            op: operation.into(),
            flags: 0.into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.fwd.into(),
        }
    }

    fn send(&mut self, operation: u16, data: &[u8]) {
        self.send_as(self.header(operation, data.len()), data);
    }

    fn send_as(&mut self, header: Header, data: &[u8]) {
        fill(&self.memory, TX, header.as_bytes());
        fill(&self.memory, TX + 44, data);
        let len = u32::try_from(data.len()).unwrap();
        let chain = [(TX, 44, 0), (TX + 44, len, 0)];
        self.rings[1].offer_chain(0, if data.is_empty() { &chain[..1] } else { &chain });
        self.serve();
        self.rings[1].take_used();
    }

    /// Packets that have arrived: operation, guest port, data. The guest has then read them.
    fn take(&mut self) -> Vec<(u16, u32, Vec<u8>)> {
        let used = self.rings[0].take_used();
        let packets = used.into_iter().map(|(slot, len)| {
            let at = RX + u64::from(slot) * u64::from(RX_LEN);
            let raw = bytes(&self.memory, at, usize::try_from(len).unwrap());
            let (header, data) = Header::read_from_prefix(&raw).unwrap();
            assert_eq!((header.src_cid.get(), header.dst_cid.get()), (HOST_CID, CID));
            assert_eq!(header.len.get() as usize, data.len());
            if header.op.get() == op::RW {
                self.fwd = self.fwd.wrapping_add(header.len.get());
            }
            (header.op.get(), header.dst_port.get(), data.to_vec())
        });
        packets.collect()
    }

    fn data(&mut self) -> Vec<u8> {
        self.take().into_iter().flat_map(|(_, _, data)| data).collect()
    }

    fn host_reads(&mut self) -> Vec<u8> {
        let mut to = Vec::new();
        self.stream.read_into(&mut to);
        to
    }

    fn device(&self) -> std::sync::MutexGuard<'_, VirtioMmio<Vsock>> {
        lock(&self.stream.device)
    }

    /// The same guest over a save and a restore.
    fn restored(self) -> Self {
        let saved = self.device().save().unwrap();
        let mmio = transport::<Vsock>(CID, Some(saved), &self.memory).unwrap();
        let (_, line) = mmio.wires();
        Guest { stream: VsockStream { device: Arc::new(Mutex::new(mmio)), line }, ..self }
    }
}

#[test]
fn the_first_connection_to_the_control_port_is_the_control_stream() {
    let mut guest = Guest::connected(4);
    assert!(guest.stream.is_open());
    guest.send(op::RW, b"hello");
    assert_eq!(guest.host_reads(), b"hello");
    assert_eq!(guest.stream.write(b"restore"), 7);
    assert_eq!(guest.take(), [(op::RW, GUEST_PORT, b"restore".to_vec())]);
    assert_eq!(guest.stream.line.event().read().unwrap(), 1, "the guest is interrupted");
}

#[test]
fn every_other_packet_is_answered_with_a_reset() {
    let mut guest = Guest::connected(16);
    let mut cases = Vec::new();
    for operation in [op::REQUEST, op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, 0, 99] {
        cases.push(Header { src_port: 6000.into(), ..guest.header(operation, 0) });
    }
    cases.push(Header { dst_port: 80.into(), src_port: 6000.into(), ..guest.header(op::REQUEST, 0) });
    cases.push(Header { kind: 2.into(), src_port: 6000.into(), ..guest.header(op::REQUEST, 0) });
    for header in cases {
        guest.send_as(header, &[]);
        assert_eq!(guest.take(), [(op::RST, 6000, vec![])], "{header:?}");
    }
    guest.send_as(Header { src_port: 6000.into(), ..guest.header(op::RST, 0) }, &[]);
    assert_eq!(guest.take(), [], "a reset is not answered");
    assert!(guest.stream.is_open());
}

#[test]
fn packets_for_another_host_or_from_another_guest_are_dropped() {
    let mut guest = Guest::new();
    guest.offer_buffers(2);
    guest.send_as(Header { dst_cid: 7.into(), ..guest.header(op::REQUEST, 0) }, &[]);
    guest.send_as(Header { src_cid: 7.into(), ..guest.header(op::REQUEST, 0) }, &[]);
    assert_eq!(guest.take(), []);
    assert!(!guest.stream.is_open());
}

#[test]
fn a_closed_control_stream_is_not_opened_again_before_the_driver_starts_anew() {
    let mut guest = Guest::connected(8);
    guest.send(op::RW, b"last words");
    let shutdown = Header { flags: 1.into(), ..guest.header(op::SHUTDOWN, 0) };
    guest.send_as(shutdown, &[]);
    assert!(!guest.stream.is_open(), "one direction is not enough");
    assert_eq!(guest.take(), []);
    guest.send_as(Header { flags: 2.into(), ..shutdown }, &[]);
    assert_eq!(guest.take(), [(op::RST, GUEST_PORT, vec![])]);
    assert_eq!(guest.host_reads(), b"last words");
    assert_eq!(guest.stream.write(b"more"), 0);
    guest.send(op::REQUEST, &[]);
    assert_eq!(guest.take(), [(op::RST, GUEST_PORT, vec![])]);
    write(&mut guest.device(), 0x70, 0);
    assert!(!guest.device().device().taken);
}

#[test]
fn a_reset_closes_the_control_stream() {
    let mut guest = Guest::connected(8);
    guest.send(op::RST, &[]);
    assert!(!guest.stream.is_open());
    assert_eq!(guest.take(), []);
}

#[test]
fn the_host_sends_no_more_than_the_guest_has_buffers_for_and_hears_of_new_ones() {
    let mut guest = Guest::connected(2);
    let message = vec![5; 10_000];
    let sent = guest.stream.write(&message);
    assert_eq!(sent, 2 * (4096 - 44));
    assert_eq!(guest.stream.write(&message[sent..]), 0);
    let mut all = guest.data();
    guest.offer_buffers(1);
    assert_eq!(guest.stream.write(&message[sent..]), 10_000 - sent);
    all.extend(guest.data());
    assert!(all == message);
}

#[test]
fn a_host_that_lacks_receive_buffers_asks_to_hear_of_new_ones() {
    let memory = test_memory();
    let mmio = transport::<Vsock>(CID, None, &memory).unwrap();
    let mut guest = Guest::on(Rig::bring_up(mmio, memory, 0));
    guest.offer_buffers(2);
    guest.send(op::REQUEST, &[]);
    let avail_event = |guest: &Guest| bytes(&guest.memory, guest.rings[0].used_ring() + 4 + 128 * 8, 2);
    assert_eq!(guest.stream.write(b"one"), 3);
    assert_eq!(avail_event(&guest), [0, 0], "two buffers were enough");
    assert_eq!(guest.stream.write(b"two"), 0);
    assert_eq!(avail_event(&guest), [2, 0], "the third buffer comes with a notification");
}

#[test]
fn the_host_sends_no_more_than_the_guests_credit() {
    let mut guest = Guest::new();
    guest.buf_alloc = 100;
    guest.offer_buffers(8);
    guest.send(op::REQUEST, &[]);
    guest.take();
    assert_eq!(guest.stream.write(&[1; 150]), 100);
    assert_eq!(guest.stream.write(&[1; 50]), 0);
    assert_eq!(guest.data().len(), 100);
    guest.send(op::CREDIT_UPDATE, &[]);
    assert_eq!(guest.stream.write(&[1; 50]), 50);
}

#[test]
fn events_and_answers_of_32_mib_stream_through() {
    let mut guest = Guest::connected(100);
    let message: Vec<u8> = (0..32u32 << 20).map(|i| (i / 4093).to_le_bytes()[0]).collect();
    let (mut sent, mut received) = (0, Vec::with_capacity(message.len()));
    while received.len() < message.len() {
        sent += guest.stream.write(&message[sent..]);
        let packets = guest.take();
        assert!(!packets.is_empty(), "stuck at {sent}");
        let count = u16::try_from(packets.len()).unwrap();
        received.extend(packets.into_iter().flat_map(|(_, _, data)| data));
        guest.offer_buffers(count);
        guest.send(op::CREDIT_UPDATE, &[]);
    }
    assert!(received == message);
    let (mut back, mut room, mut told) = (Vec::new(), 0usize, 0usize);
    for part in message.chunks(64 << 10) {
        guest.send(op::RW, part);
        let mut answer = Vec::new();
        guest.stream.read_into(&mut answer);
        back.extend(answer);
        room += part.len();
        let updates = guest.take();
        told += updates.iter().filter(|(operation, ..)| *operation == op::CREDIT_UPDATE).count();
        guest.offer_buffers(u16::try_from(updates.len()).unwrap());
    }
    assert!(back == message);
    assert!(told >= room / RECEIVE_BUFFER as usize, "the guest is told of room in time: {told}");
    assert!(told <= 2 * room / (RECEIVE_BUFFER / 2) as usize, "and not at every packet: {told}");
}

#[test]
fn a_guest_that_overruns_its_credit_is_cut_off_and_costs_no_more_memory() {
    let mut guest = Guest::connected(8);
    for _ in 0..4 {
        guest.send(op::RW, &[1; 64 << 10]);
    }
    assert!(guest.stream.is_open());
    guest.send(op::RW, &[1]);
    assert!(!guest.stream.is_open());
    assert_eq!(guest.take(), [(op::RST, GUEST_PORT, vec![])]);
    assert_eq!(guest.host_reads().len(), RECEIVE_BUFFER as usize);
}

#[test]
fn a_credit_request_is_answered() {
    let mut guest = Guest::connected(8);
    guest.send(op::CREDIT_REQUEST, &[]);
    assert_eq!(guest.take(), [(op::CREDIT_UPDATE, GUEST_PORT, vec![])]);
}

#[test]
fn a_guest_that_takes_no_answers_is_not_listened_to_for_ever() {
    let mut guest = Guest::new();
    let header = Header { dst_port: 9.into(), ..guest.header(op::REQUEST, 0) };
    for _ in 0..RESETS_MAX + 100 {
        guest.send_as(header, &[]);
    }
    assert_eq!(guest.device().device().resets.len(), RESETS_MAX);
    let mut resets = 0;
    for _ in 0..4 {
        guest.offer_buffers(50);
        resets += guest.take().len();
    }
    assert_eq!(resets, RESETS_MAX + 100, "what waited in the ring is heard once there is room");
}

#[test]
fn the_control_stream_survives_a_restore_and_the_others_are_reset_one_by_one() {
    let mut guest = Guest::connected(8);
    guest.send(op::RW, b"ready");
    assert_eq!(guest.host_reads(), b"ready");
    guest.stream.write(b"event");
    guest.data();
    let mut saved = guest.device().save().unwrap();
    assert_eq!((saved.control.len(), saved.other.len()), (1, 0));
    assert_eq!((saved.control[0].received, saved.control[0].sent), (5, 5));
    saved.other =
        [6001, 6002].map(|guest_port| VsockConnectionState { guest_port, ..saved.control[0].clone() }).into();
    let mmio = transport::<Vsock>(CID, Some(saved), &guest.memory).unwrap();
    guest.stream.device = Arc::new(Mutex::new(mmio));
    assert!(guest.stream.is_open());
    // Written before the first kick: it is there, behind the resets.
    assert_eq!(guest.stream.write(b"restore message"), 15);
    guest.serve();
    let reset = |port| (op::RST, port, vec![]);
    let message = (op::RW, GUEST_PORT, b"restore message".to_vec());
    assert_eq!(guest.take(), [reset(6001), reset(6002), message]);
    guest.send(op::RW, b"acknowledged");
    assert_eq!(guest.host_reads(), b"acknowledged");
}

#[test]
fn a_connection_that_was_not_settled_is_reset_at_the_restore() {
    let mut guest = Guest::new();
    guest.send(op::REQUEST, &[]);
    guest.send_as(Header { dst_port: 9.into(), ..guest.header(op::REQUEST, 0) }, &[]);
    let mut guest = guest.restored();
    assert!(!guest.stream.is_open());
    guest.offer_buffers(4);
    assert_eq!(guest.take(), [(op::RST, GUEST_PORT, vec![]), (op::RST, GUEST_PORT, vec![])]);
}

#[test]
fn bytes_that_nobody_has_read_cannot_be_saved() {
    let mut guest = Guest::connected(2);
    guest.send(op::RW, b"unread");
    assert!(matches!(guest.device().save(), Err(DeviceError::Unread { bytes: 6 })));
    guest.host_reads();
    assert!(guest.device().save().is_ok());
}

#[test]
fn connections_that_cannot_be_are_refused() {
    let guest = Guest::connected(2);
    let good = guest.device().save().unwrap();
    let one = good.control[0].clone();
    let bad = [
        VsockState { guest_cid: 4, ..good.clone() },
        VsockState { control: vec![one.clone(), one.clone()], ..good.clone() },
        VsockState { control: vec![VsockConnectionState { host_port: 1, ..one.clone() }], ..good.clone() },
        VsockState { control: vec![VsockConnectionState { received: 9, ..one.clone() }], ..good.clone() },
        VsockState { other: vec![one; 1025], ..good.clone() },
    ];
    for state in bad {
        assert!(transport::<Vsock>(CID, Some(state), &guest.memory).is_err());
    }
    assert!(transport::<Vsock>(CID, Some(good), &guest.memory).is_ok());
}

#[test]
fn a_bad_packet_or_buffer_is_a_device_error() {
    let rig = || Rig::<Vsock>::new(CID);
    let broken = |mut rig: Rig<Vsock>| {
        rig.mmio.serve();
        rig.assert_broken();
    };
    let chains: [&[(u64, u32, u16)]; 3] =
        [&[(TX, 43, 0)], &[(TX, 44, WRITE)], &[(TX, 44, 0), (TX, 4, WRITE)]];
    for chain in chains {
        let mut rig = rig();
        rig.rings[1].offer_chain(0, chain);
        broken(rig);
    }
    let mut longer_than_it_is = rig();
    fill(&longer_than_it_is.memory, TX, &[0xff; 44]);
    longer_than_it_is.rings[1].offer_chain(0, &[(TX, 44, 0)]);
    broken(longer_than_it_is);
    for buffer in [(RX, 43, WRITE), (RX, 4096, 0)] {
        let mut rig = rig();
        rig.rings[0].offer_chain(0, &[buffer]);
        fill(&rig.memory, TX, Guest::new().header(op::REQUEST, 0).as_bytes());
        rig.rings[1].offer_chain(0, &[(TX, 44, 0)]);
        broken(rig);
    }
}

#[test]
fn a_receive_buffer_without_room_for_data_is_a_device_error() {
    let mut guest = Guest::connected(0);
    guest.rings[0].offer_chain(100, &[(RX, 44, WRITE)]);
    assert_eq!(guest.stream.write(b"x"), 0);
    assert!(!guest.stream.is_open());
    assert!(guest.device().fault().is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_ring_panics(rx in proptest::collection::vec(any_ring(), 1..3), tx in proptest::collection::vec(any_ring(), 1..3)) {
        let mut rig = Rig::<Vsock>::new(CID);
        serve_rings(&mut rig, 0, &rx);
        serve_rings(&mut rig, 1, &tx);
    }

    #[test]
    fn no_packet_panics(packets in proptest::collection::vec(any_packet(), 0..40)) {
        let mut guest = Guest::connected(100);
        for (operation, guest_port, host_port, len, flags, credit, claim) in packets {
            let mut header = guest.header(operation, usize::from(len));
            header.src_port = guest_port.into();
            header.dst_port = host_port.into();
            header.flags = flags.into();
            header.fwd_cnt = credit.into();
            if claim {
                header.buf_alloc = credit.into();
            }
            guest.send_as(header, &vec![1; usize::from(len)]);
            guest.stream.write(&[1; 5000]);
            guest.host_reads();
            assert!(guest.device().device().resets.len() <= RESETS_MAX);
        }
        assert!(guest.device().fault().is_none());
    }

    #[test]
    fn no_register_access_panics(accesses in proptest::collection::vec(register_access(), 0..100)) {
        let mut rig = Rig::<Vsock>::new(CID);
        scramble(&mut rig, &accesses);
    }
}

fn any_packet() -> impl Strategy<Value = (u16, u32, u32, u16, u32, u32, bool)> {
    let host_port = prop_oneof![4 => Just(CONTROL_PORT), 1 => any::<u32>()];
    let guest_port = prop_oneof![4 => Just(GUEST_PORT), 1 => any::<u32>()];
    (0u16..9, guest_port, host_port, 0u16..3000, 0u32..5, any::<u32>(), any::<bool>())
}
