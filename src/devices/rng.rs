//! The entropy device (virtio 1.2, 5.4): random bytes of the host's kernel.

use rustix::rand::{GetRandomFlags, getrandom};
use snapshot_format::sections::{RngState, VirtioState};
use virtio_bindings::virtio_ids;

use crate::memory::GuestMemory;

use super::error::DeviceError;
use super::virtio::{DriverFault, QueueSpec, VirtioDevice, Virtqueue, Work};

/// Most bytes given for one request: Linux asks for 64 at most, and the rest of a longer buffer is not used.
const REQUEST_MAX: usize = 4096;
/// Requests served before others have their turn.
const TURN: usize = 64;

/// The device. It holds nothing: every request is answered at once.
#[derive(Debug)]
pub(super) struct Rng;

impl VirtioDevice for Rng {
    type Setup = ();
    type State = RngState;
    const TYPE: u32 = virtio_ids::VIRTIO_ID_RNG;
    const QUEUES: &'static [QueueSpec] = &[QueueSpec { size: 8, doorbell: true }];

    fn id(_setup: &()) -> String {
        "rng".to_owned()
    }

    fn cold(_setup: &(), transport: VirtioState) -> Result<RngState, DeviceError> {
        Ok(RngState { transport })
    }

    fn new(_setup: (), state: RngState) -> Result<(Self, VirtioState), DeviceError> {
        let RngState { transport } = state;
        Ok((Rng, transport))
    }

    fn save(&self, transport: VirtioState) -> Result<RngState, DeviceError> {
        let Rng = self;
        Ok(RngState { transport })
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn serve(&mut self, queues: &mut [Virtqueue], memory: &GuestMemory) -> Result<Work, DriverFault> {
        let [queue] = queues else { return Ok(Work::Done) };
        for _ in 0..TURN {
            let Some(chain) = queue.pop_or_listen(memory)? else { return Ok(Work::Done) };
            if chain.readable_len() > 0 {
                return Err(DriverFault::Direction);
            }
            let mut bytes = [0; REQUEST_MAX];
            let asked = chain.writable_len().min(REQUEST_MAX);
            let given = random(bytes.get_mut(..asked).unwrap_or_default());
            chain.writer(memory).write(given)?;
            let given = given.len();
            queue.complete(memory, chain, given)?;
        }
        Ok(Work::More)
    }

    fn reset(&mut self) {}
}

/// The part of `bytes` that the kernel filled: all of it up to 256 bytes, unless it refuses.
fn random(bytes: &mut [u8]) -> &[u8] {
    let filled = getrandom(&mut *bytes, GetRandomFlags::empty()).unwrap_or(0);
    bytes.get(..filled).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::virtio::testing::{BUFFERS, Rig, WRITE, any_ring, bytes, serve_rings};
    use super::Rng;

    #[test]
    fn a_buffer_is_filled_with_random_bytes() {
        let mut rig = Rig::<Rng>::new(());
        rig.rings[0].offer_chain(0, &[(BUFFERS, 32, WRITE), (BUFFERS + 4096, 32, WRITE)]);
        rig.mmio.serve();
        assert_eq!(rig.rings[0].take_used(), [(0, 64)]);
        let (one, two) = (bytes(&rig.memory, BUFFERS, 32), bytes(&rig.memory, BUFFERS + 4096, 32));
        assert!(one != [0; 32] && two != [0; 32] && one != two);
        assert!(rig.mmio.take_due());
    }

    #[test]
    fn one_request_gets_a_bounded_number_of_bytes() {
        let mut rig = Rig::<Rng>::new(());
        rig.rings[0].offer_chain(0, &[(BUFFERS, 0x8000, WRITE)]);
        rig.mmio.serve();
        assert_eq!(rig.rings[0].take_used(), [(0, 4096)]);
    }

    #[test]
    fn a_buffer_that_cannot_be_written_is_a_device_error() {
        let mut rig = Rig::<Rng>::new(());
        rig.rings[0].offer_chain(0, &[(BUFFERS, 32, 0)]);
        rig.mmio.serve();
        rig.assert_broken();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn no_ring_panics(rings in proptest::collection::vec(any_ring(), 1..4)) {
            serve_rings(&mut Rig::<Rng>::new(()), 0, &rings);
        }
    }
}
