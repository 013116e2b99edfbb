//! A descriptor chain that has been walked and checked once, and cursors over its bytes.

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryBackend;

use crate::memory::{Bytes, GuestAddress, GuestMemory};

use super::DriverFault;

/// One buffer of a chain, known to lie in RAM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    address: u64,
    len: usize,
}

/// A request taken from a ring: readable buffers first, then writable ones (virtio 1.2, 2.7.4.2). It has to be given
/// back with [`Virtqueue::complete`](super::Virtqueue::complete).
#[derive(Debug)]
pub(in crate::devices) struct Chain {
    head: u16,
    segments: Vec<Segment>,
    writable_from: usize,
}

impl Chain {
    /// Walks and checks a chain of at most `limit` descriptors. `room` is an old vector to fill.
    pub(super) fn walk(
        descriptors: DescriptorChain<&GuestMemory>,
        memory: &GuestMemory,
        limit: u16,
        room: Vec<Segment>,
    ) -> Result<Self, DriverFault> {
        let head = descriptors.head_index();
        let mut chain = Chain { head, segments: room, writable_from: 0 };
        chain.segments.clear();
        let mut ended = false;
        for descriptor in descriptors {
            // An indirect table could be longer than the ring, which 2.7.5.3.1 forbids.
            if chain.segments.len() == usize::from(limit) {
                return Err(DriverFault::Endless);
            }
            let len = usize::try_from(descriptor.len()).map_err(|_| DriverFault::Endless)?;
            chain.push(Segment { address: descriptor.addr().0, len }, descriptor.is_write_only(), memory)?;
            // The iterator ends without a word at a loop or a bad index: then the last one still has a successor.
            ended = !descriptor.has_next();
        }
        if ended { Ok(chain) } else { Err(DriverFault::Endless) }
    }

    fn push(&mut self, segment: Segment, writable: bool, memory: &GuestMemory) -> Result<(), DriverFault> {
        let Segment { address, len } = segment;
        if len == 0 {
            return Err(DriverFault::Empty);
        }
        if !GuestMemoryBackend::check_range(memory, GuestAddress(address), len) {
            return Err(DriverFault::OutOfRange { address, len });
        }
        if !writable && self.writable_from < self.segments.len() {
            return Err(DriverFault::Direction);
        }
        self.segments.push(segment);
        if !writable {
            self.writable_from = self.segments.len();
        }
        Ok(())
    }

    /// Index of its first descriptor, which names it in the used ring.
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// Gives the vector back for the next walk.
    pub(super) fn into_room(self) -> Vec<Segment> {
        self.segments
    }

    fn readable(&self) -> &[Segment] {
        self.segments.get(..self.writable_from).unwrap_or_default()
    }

    fn writable(&self) -> &[Segment] {
        self.segments.get(self.writable_from..).unwrap_or_default()
    }

    /// Bytes the driver gives.
    pub(in crate::devices) fn readable_len(&self) -> usize {
        total(self.readable())
    }

    /// Bytes the driver takes.
    pub(in crate::devices) fn writable_len(&self) -> usize {
        total(self.writable())
    }

    /// Reads what the driver gives, from its first byte on.
    pub(in crate::devices) fn reader<'a>(&'a self, memory: &'a GuestMemory) -> ChainReader<'a> {
        ChainReader(Cursor { memory, segments: self.readable(), done: 0 })
    }

    /// Writes what the driver takes, from its first byte on.
    pub(in crate::devices) fn writer<'a>(&'a self, memory: &'a GuestMemory) -> ChainWriter<'a> {
        ChainWriter(Cursor { memory, segments: self.writable(), done: 0 })
    }
}

/// The crate refuses chains of 4 GiB and more, so the sum cannot overflow.
fn total(segments: &[Segment]) -> usize {
    segments.iter().map(|segment| segment.len).sum()
}

/// A place in a list of buffers.
#[derive(Debug, Clone)]
struct Cursor<'a> {
    memory: &'a GuestMemory,
    segments: &'a [Segment],
    /// Bytes of the first segment that are behind the cursor; less than its length.
    done: usize,
}

impl Cursor<'_> {
    /// Moves over at most `max` bytes that lie in one buffer, and tells where they are.
    fn advance(&mut self, max: usize) -> Option<(GuestAddress, usize)> {
        let (first, rest) = self.segments.split_first()?;
        let address = first.address.checked_add(self.done as u64)?;
        let left = first.len.checked_sub(self.done)?;
        let len = left.min(max);
        if len == left {
            (self.segments, self.done) = (rest, 0);
        } else {
            self.done += len;
        }
        Some((GuestAddress(address), len))
    }
}

/// Reads the readable part of a chain in order.
#[derive(Debug, Clone)]
pub(in crate::devices) struct ChainReader<'a>(Cursor<'a>);

impl ChainReader<'_> {
    /// Fills `to`.
    ///
    /// # Errors
    /// The chain ends before.
    pub(in crate::devices) fn read(&mut self, mut to: &mut [u8]) -> Result<(), DriverFault> {
        while !to.is_empty() {
            let (address, len) = self.0.advance(to.len()).ok_or(DriverFault::TooShort)?;
            let (now, later) = to.split_at_mut(len);
            self.0.memory.read_slice(now, address)?;
            to = later;
        }
        Ok(())
    }
}

/// Writes the writable part of a chain in order.
#[derive(Debug, Clone)]
pub(in crate::devices) struct ChainWriter<'a>(Cursor<'a>);

impl ChainWriter<'_> {
    /// Writes all of `from`.
    ///
    /// # Errors
    /// The chain ends before.
    pub(in crate::devices) fn write(&mut self, mut from: &[u8]) -> Result<(), DriverFault> {
        while !from.is_empty() {
            let (address, len) = self.0.advance(from.len()).ok_or(DriverFault::TooShort)?;
            let (now, later) = from.split_at(len);
            self.0.memory.write_slice(now, address)?;
            from = later;
        }
        Ok(())
    }

    /// Leaves `count` bytes as they are.
    ///
    /// # Errors
    /// The chain ends before.
    pub(in crate::devices) fn skip(&mut self, mut count: usize) -> Result<(), DriverFault> {
        while count > 0 {
            let (_, len) = self.0.advance(count).ok_or(DriverFault::TooShort)?;
            count -= len;
        }
        Ok(())
    }
}
