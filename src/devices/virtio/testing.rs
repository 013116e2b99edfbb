//! A driver for tests: lays rings out in guest memory and sets a device up through its registers.

use std::sync::Arc;

use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::bus::{BusDevice, IrqLine};
use crate::memory::{Bytes, GuestAddress, anonymous};

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;
/// RAM of the test guest.
pub(crate) const RAM: u64 = 2 << 20;
/// Where a test may put its buffers.
pub(crate) const BUFFERS: u64 = 1 << 20;

/// A ring in guest memory, seen from the driver's side.
#[derive(Debug)]
pub(crate) struct TestRing {
    memory: GuestMemory,
    pub base: u64,
    pub size: u16,
    avail: u16,
    used: u16,
}

impl TestRing {
    pub(crate) fn avail_ring(&self) -> u64 {
        self.base + 0x1000
    }

    pub(crate) fn used_ring(&self) -> u64 {
        self.base + 0x2000
    }

    pub(crate) fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + u64::from(index) * 16;
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes the chain that begins at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let entry = self.avail_ring() + 4 + u64::from(self.avail % self.size) * 2;
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.set_avail(self.avail.wrapping_add(1));
    }

    pub(crate) fn set_avail(&mut self, index: u16) {
        self.avail = index;
        self.memory.write_obj(index, GuestAddress(self.avail_ring() + 2)).unwrap();
    }

    /// Lays a chain out from descriptor `first` on, and makes it available.
    pub(crate) fn offer_chain(&mut self, first: u16, buffers: &[(u64, u32, u16)]) {
        for (index, (address, len, flags)) in (first..).zip(buffers) {
            let last = usize::from(index - first) + 1 == buffers.len();
            self.descriptor(index, *address, *len, flags | if last { 0 } else { NEXT }, index + 1);
        }
        self.offer(first);
    }

    /// What the device has handed back since the last call: (head, bytes written).
    pub(crate) fn take_used(&mut self) -> Vec<(u32, u32)> {
        let until: u16 = self.memory.read_obj(GuestAddress(self.used_ring() + 2)).unwrap();
        let mut all = Vec::new();
        while self.used != until {
            let at = self.used_ring() + 4 + u64::from(self.used % self.size) * 8;
            let head = self.memory.read_obj(GuestAddress(at)).unwrap();
            all.push((head, self.memory.read_obj(GuestAddress(at + 4)).unwrap()));
            self.used = self.used.wrapping_add(1);
        }
        all
    }
}

/// A device that a well-behaved driver has brought to DRIVER_OK, and its rings.
#[derive(Debug)]
pub(crate) struct Rig<D> {
    pub mmio: VirtioMmio<D>,
    pub rings: Vec<TestRing>,
    pub memory: GuestMemory,
    pub bells: Vec<Option<Arc<EventFd>>>,
    pub line: IrqLine,
}

pub(crate) fn test_memory() -> GuestMemory {
    anonymous(RAM).unwrap()
}

pub(crate) fn fill(memory: &GuestMemory, address: u64, bytes: &[u8]) {
    memory.write_slice(bytes, GuestAddress(address)).unwrap();
}

pub(crate) fn bytes(memory: &GuestMemory, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

/// The device in `state`, or in its cold one.
pub(crate) fn transport<D: VirtioDevice>(
    setup: D::Setup,
    state: Option<D::State>,
    memory: &GuestMemory,
) -> Result<VirtioMmio<D>, DeviceError> {
    let id = D::id(&setup);
    let cold = || D::cold(&setup, cold_transport::<D>(id.clone()));
    let state = state.map_or_else(cold, Ok)?;
    let (device, state) = D::new(setup, state)?;
    let parts = Parts {
        id: id.clone(),
        state,
        memory: memory.clone(),
        line: IrqLine::new(5).unwrap(),
        doorbells: D::QUEUES
            .iter()
            .map(|spec| spec.doorbell.then(|| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())))
            .collect(),
    };
    VirtioMmio::new(device, parts).map_err(|fault| fault.of(&id))
}

pub(crate) fn read<D: VirtioDevice>(mmio: &mut VirtioMmio<D>, register: u64) -> u32 {
    let mut data = [0; 4];
    mmio.read(register, &mut data);
    u32::from_le_bytes(data)
}

pub(crate) fn write<D: VirtioDevice>(mmio: &mut VirtioMmio<D>, register: u64, value: u32) {
    mmio.write(register, &value.to_le_bytes());
}

/// Features a driver takes by default: all that are offered but event indices, so that every completion interrupts.
pub(crate) fn all_features<D: VirtioDevice>(mmio: &mut VirtioMmio<D>) -> u64 {
    let mut features = 0;
    for select in 0..2 {
        write(mmio, 0x14, select);
        features |= u64::from(read(mmio, 0x10)) << (32 * select);
    }
    features
}

impl<D: VirtioDevice> Rig<D> {
    pub(crate) fn new(setup: D::Setup) -> Self {
        let memory = test_memory();
        let mmio = transport::<D>(setup, None, &memory).unwrap();
        Self::bring_up(mmio, memory, 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX)
    }

    /// What a driver does (3.1.1), without the features in `declined`.
    pub(crate) fn bring_up(mut mmio: VirtioMmio<D>, memory: GuestMemory, declined: u64) -> Self {
        write(&mut mmio, 0x70, 0);
        write(&mut mmio, 0x70, 1);
        write(&mut mmio, 0x70, 3);
        let features = all_features(&mut mmio) & !declined;
        for select in 0..2u32 {
            write(&mut mmio, 0x24, select);
            write(&mut mmio, 0x20, u32::try_from(features >> (32 * select) & 0xffff_ffff).unwrap());
        }
        write(&mut mmio, 0x70, 11);
        assert_eq!(read(&mut mmio, 0x70), 11);
        let rings = (0u32..).zip(D::QUEUES).map(|(index, spec)| {
            let base = 0x10000 + u64::from(index) * 0x4000;
            let ring = TestRing { memory: memory.clone(), base, size: spec.size, avail: 0, used: 0 };
            fill(&memory, base, &[0; 0x4000]);
            write(&mut mmio, 0x30, index);
            write(&mut mmio, 0x38, spec.size.into());
            for (register, address) in [(0x80, base), (0x90, ring.avail_ring()), (0xa0, ring.used_ring())] {
                write(&mut mmio, register, u32::try_from(address).unwrap());
                write(&mut mmio, register + 4, 0);
            }
            write(&mut mmio, 0x44, 1);
            ring
        });
        let rings = rings.collect();
        write(&mut mmio, 0x70, 15);
        let (bells, line) = mmio.wires();
        let rig = Rig { mmio, rings, memory, bells, line };
        rig.bells.iter().flatten().for_each(|bell| drop(bell.read()));
        rig
    }

    pub(crate) fn status(&mut self) -> u32 {
        read(&mut self.mmio, 0x70)
    }

    pub(crate) fn is_broken(&mut self) -> bool {
        self.status() & 64 != 0
    }

    /// Asserts that the device has stopped, said so, and comes back after a reset.
    pub(crate) fn assert_broken(&mut self) {
        assert!(self.is_broken());
        assert!(self.mmio.fault().is_some());
        assert_eq!(read(&mut self.mmio, 0x60) & 2, 2, "a configuration change is announced");
        self.mmio.serve();
        write(&mut self.mmio, 0x70, 0);
        assert_eq!(read(&mut self.mmio, 0x70), 0);
    }
}

/// A device with one queue that answers every request with one byte: for tests of ring and transport.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    pub served: u64,
}

impl VirtioDevice for Probe {
    type Setup = ();
    type State = snapshot_format::sections::RngState;
    const TYPE: u32 = 42;
    const QUEUES: &'static [QueueSpec] = &[QueueSpec { size: 8, doorbell: true }];

    fn id(_setup: &()) -> String {
        "probe".to_owned()
    }

    fn cold(_setup: &(), transport: VirtioState) -> Result<Self::State, DeviceError> {
        Ok(Self::State { transport })
    }

    fn new(_setup: (), state: Self::State) -> Result<(Self, VirtioState), DeviceError> {
        Ok((Probe::default(), state.transport))
    }

    fn save(&self, transport: VirtioState) -> Result<Self::State, DeviceError> {
        Ok(Self::State { transport })
    }

    fn features(&self) -> u64 {
        1
    }

    fn config(&self) -> &[u8] {
        &[1, 2, 3, 4, 5]
    }

    fn serve(&mut self, queues: &mut [Virtqueue], memory: &GuestMemory) -> Result<Work, DriverFault> {
        while let Some(chain) = queues[0].pop_or_listen(memory)? {
            chain.writer(memory).write(&[0xaa])?;
            queues[0].complete(memory, chain, 1)?;
            self.served += 1;
        }
        Ok(Work::Done)
    }

    fn reset(&mut self) {}
}

/// An access to a register: (offset, length, value); lengths of 0 are reads of four bytes.
pub(crate) fn register_access() -> impl Strategy<Value = (u64, usize, u64)> {
    let offset = prop_oneof![4 => (0u64..0x44).prop_map(|n| n * 4), 1 => 0u64..0x200, 1 => any::<u64>()];
    let value = prop_oneof![
        4 => proptest::sample::select(vec![0u64, 1, 2, 3, 8, 11, 15, 64, 128, 0x10000, 0x11000, 0x12000]),
        1 => any::<u64>(),
    ];
    (offset, prop_oneof![6 => Just(4usize), 2 => Just(0), 1 => 1usize..=8], value)
}

/// Applies accesses, serving in between, and checks that the state can be saved and taken up again at any time.
pub(crate) fn scramble<D: VirtioDevice>(rig: &mut Rig<D>, accesses: &[(u64, usize, u64)]) {
    for (offset, len, value) in accesses {
        if *len == 0 {
            rig.mmio.read(*offset, &mut [0; 4]);
        } else {
            rig.mmio.write(*offset, &value.to_le_bytes()[..*len]);
        }
        rig.mmio.serve();
    }
    let state = rig.mmio.state();
    let queues = state.queues.iter().map(|queue| Virtqueue::new(queue.clone(), &rig.memory));
    assert!(queues.collect::<Result<Vec<_>, _>>().is_ok());
}

/// A ring as a hostile driver lays it out: descriptors, available heads, and the available index.
#[derive(Debug, Clone)]
pub(crate) struct AnyRing {
    descriptors: Vec<(u64, u32, u16, u16)>,
    heads: Vec<u16>,
    index: Option<u16>,
    bytes: Vec<u8>,
}

pub(crate) fn any_ring() -> impl Strategy<Value = AnyRing> {
    let address = prop_oneof![8 => BUFFERS..BUFFERS + 4096, 2 => RAM - 64..RAM + 64, 1 => any::<u64>()];
    let len = prop_oneof![8 => 0u32..2048, 1 => any::<u32>()];
    let flags = prop_oneof![20 => 0u16..4, 1 => any::<u16>()];
    let next = prop_oneof![20 => 0u16..8, 1 => any::<u16>()];
    let descriptors = proptest::collection::vec((address, len, flags, next), 1..8);
    let heads = proptest::collection::vec(prop_oneof![20 => 0u16..8, 1 => any::<u16>()], 1..8);
    let index = prop_oneof![8 => Just(None), 1 => any::<u16>().prop_map(Some)];
    // Small numbers make headers that are close to right.
    let bytes = proptest::collection::vec(prop_oneof![4 => 0u8..8, 1 => any::<u8>()], 64);
    (descriptors, heads, index, bytes).prop_map(|(descriptors, heads, index, bytes)| AnyRing {
        descriptors,
        heads,
        index,
        bytes,
    })
}

/// Serves rings in queue `queue`, resetting the device when it stopped.
pub(crate) fn serve_rings<D: VirtioDevice>(rig: &mut Rig<D>, queue: usize, rings: &[AnyRing]) {
    for any in rings {
        fill(&rig.memory, BUFFERS, &any.bytes);
        let ring = &mut rig.rings[queue];
        for (index, (address, len, flags, next)) in (0u16..).zip(&any.descriptors) {
            ring.descriptor(index, *address, *len, *flags, *next);
        }
        any.heads.iter().for_each(|head| ring.offer(*head));
        if let Some(index) = any.index {
            ring.set_avail(index);
        }
        rig.mmio.serve();
        assert!(rig.is_broken() == rig.mmio.fault().is_some());
    }
}
