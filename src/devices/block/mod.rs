//! The block device (virtio 1.2, 5.2): a drive of the guest on a file of the host.

mod backing;
mod bucket;
mod overlay;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::time::Instant;

use snapshot_format::sections::{BlockState, VirtioState};
use virtio_bindings::{virtio_blk, virtio_ids};

use crate::memory::GuestMemory;

use super::DriveSetup;
use super::error::{DeviceError, StateFault};
use super::virtio::{Chain, ChainReader, ChainWriter, DriverFault, QueueSpec, VirtioDevice, Virtqueue, Work};

use backing::Backing;
pub use bucket::BlockRate;
use bucket::Bucket;

/// Bytes of a sector, whatever the file system's block size (5.2.4).
const SECTOR: u64 = 512;
/// Entries of the queue.
const QUEUE_SIZE: u16 = 128;
/// Most data buffers of a request: the queue less header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most bytes of one request; Linux sends 1.25 MiB at most. A longer one could stall every other device.
const REQUEST_MAX: usize = 32 << 20;
/// Bytes moved between file and guest at a time.
const STEP: usize = 64 << 10;
/// Requests, and bytes of their data, served before other devices have their turn.
const TURN: usize = 64;
const TURN_BYTES: usize = REQUEST_MAX;
/// Length of a request's header (5.2.6).
const HEADER_LEN: usize = 16;
/// Length of the answer to GET_ID.
const ID_LEN: usize = virtio_blk::VIRTIO_BLK_ID_BYTES as usize;
/// The configuration space as far as a negotiated feature reaches: up to and with `seg_max` (5.2.4).
const CONFIG_LEN: usize = 16;

/// How a request ended; the number is the status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Outcome {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Why moving a request's data stopped.
enum Stop {
    Host,
    Driver(DriverFault),
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Stop::Host
    }
}

impl From<DriverFault> for Stop {
    fn from(fault: DriverFault) -> Self {
        Stop::Driver(fault)
    }
}

/// The device.
#[derive(Debug)]
pub(super) struct Block {
    id: String,
    backing: Backing,
    sectors: u64,
    config: [u8; CONFIG_LEN],
    requests: u64,
    /// How fast it may be, where that is limited.
    bucket: Option<Bucket>,
    /// When requests that the bucket holds back are served.
    due: Option<Instant>,
    /// Between file and guest; made by the first request.
    buffer: Vec<u8>,
}

impl Block {
    /// The drive's id.
    pub(super) fn drive_id(&self) -> &str {
        &self.id
    }

    /// Requests served since construction.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// Limits the rate from now on.
    pub(super) fn limit(&mut self, rate: BlockRate) {
        self.bucket = Some(Bucket::new(rate, Instant::now()));
    }

    /// Whether the bucket holds requests back now.
    fn is_held_back(&mut self) -> bool {
        self.due = self.bucket.as_mut().and_then(|bucket| bucket.wait(Instant::now()));
        self.due.is_some()
    }

    /// Writes the content of a writable drive to `to`, an empty file.
    ///
    /// # Errors
    /// The drive is read-only, or a file failed.
    pub(super) fn write_content(&self, to: &File) -> Result<(), DeviceError> {
        let Backing::CopyOnWrite(overlay) = &self.backing else {
            return Err(DeviceError::NoDrive { id: self.id.clone() });
        };
        overlay.write_to(to).map_err(|source| DeviceError::WriteDrive { id: self.id.clone(), source })
    }

    /// Serves one request; returns how many bytes of its writable part are filled in.
    fn serve_one(&mut self, chain: &Chain, memory: &GuestMemory) -> Result<usize, DriverFault> {
        let room = chain.writable_len().checked_sub(1).ok_or(DriverFault::TooShort)?;
        let given = chain.readable_len().checked_sub(HEADER_LEN).ok_or(DriverFault::TooShort)?;
        let mut reader = chain.reader(memory);
        let (kind, sector) = read_header(&mut reader)?;
        let mut writer = chain.writer(memory);
        let (outcome, written) = match kind {
            virtio_blk::VIRTIO_BLK_T_IN => self.read(sector, room, &mut writer)?,
            virtio_blk::VIRTIO_BLK_T_OUT => (self.write(sector, given, &mut reader)?, 0),
            // What was written is where it stays: in a private file that dies with the machine.
            virtio_blk::VIRTIO_BLK_T_FLUSH => (Outcome::Ok, 0),
            virtio_blk::VIRTIO_BLK_T_GET_ID => self.tell_id(room, &mut writer)?,
            _ => (Outcome::Unsupported, 0),
        };
        self.requests += 1;
        let mut status = chain.writer(memory);
        status.skip(room)?;
        status.write(&[outcome as u8])?;
        Ok(written + 1)
    }

    fn read(
        &mut self,
        sector: u64,
        len: usize,
        writer: &mut ChainWriter<'_>,
    ) -> Result<(Outcome, usize), DriverFault> {
        let Some(start) = self.place(sector, len) else { return Ok((Outcome::IoError, 0)) };
        let Block { backing, buffer, .. } = self;
        let outcome = in_steps(buffer, start, len, |offset, step| {
            backing.read_at(step, offset)?;
            Ok(writer.write(step)?)
        })?;
        Ok((outcome, if outcome == Outcome::Ok { len } else { 0 }))
    }

    fn write(
        &mut self,
        sector: u64,
        len: usize,
        reader: &mut ChainReader<'_>,
    ) -> Result<Outcome, DriverFault> {
        let Some(start) = self.place(sector, len) else { return Ok(Outcome::IoError) };
        let Block { backing, buffer, .. } = self;
        // 5.2.6.2: nothing of a request to a read-only drive is written.
        let Backing::CopyOnWrite(overlay) = backing else { return Ok(Outcome::IoError) };
        in_steps(buffer, start, len, |offset, step| {
            reader.read(step)?;
            Ok(overlay.write_at(step, offset)?)
        })
    }

    fn tell_id(&self, room: usize, writer: &mut ChainWriter<'_>) -> Result<(Outcome, usize), DriverFault> {
        let mut answer = [0; ID_LEN];
        for (to, from) in answer.iter_mut().zip(self.id.bytes()) {
            *to = from;
        }
        let len = room.min(ID_LEN);
        writer.write(answer.get(..len).unwrap_or_default())?;
        Ok((Outcome::Ok, len))
    }

    /// Where in the file `len` bytes from `sector` on lie; `None` when they do not all lie on the drive.
    fn place(&self, sector: u64, len: usize) -> Option<u64> {
        if len > REQUEST_MAX {
            return None;
        }
        let len = u64::try_from(len).ok().filter(|len| len.is_multiple_of(SECTOR))?;
        let end = sector.checked_add(len / SECTOR)?;
        if end > self.sectors { None } else { sector.checked_mul(SECTOR) }
    }
}

/// A request's type and first sector.
fn read_header(reader: &mut ChainReader<'_>) -> Result<(u32, u64), DriverFault> {
    let (mut kind, mut reserved, mut sector) = ([0; 4], [0; 4], [0; 8]);
    reader.read(&mut kind)?;
    reader.read(&mut reserved)?;
    reader.read(&mut sector)?;
    Ok((u32::from_le_bytes(kind), u64::from_le_bytes(sector)))
}

/// Goes over `len` bytes of the file from `start` on, one buffer full after the other.
fn in_steps(
    buffer: &mut Vec<u8>,
    start: u64,
    len: usize,
    mut step: impl FnMut(u64, &mut [u8]) -> Result<(), Stop>,
) -> Result<Outcome, DriverFault> {
    buffer.resize(STEP, 0);
    for done in (0..len).step_by(STEP) {
        let piece = buffer.get_mut(..STEP.min(len - done)).unwrap_or_default();
        match step(start + done as u64, piece) {
            Ok(()) => {}
            Err(Stop::Host) => return Ok(Outcome::IoError),
            Err(Stop::Driver(fault)) => return Err(fault),
        }
    }
    Ok(Outcome::Ok)
}

impl VirtioDevice for Block {
    type Setup = DriveSetup;
    type State = BlockState;
    const TYPE: u32 = virtio_ids::VIRTIO_ID_BLOCK;
    const QUEUES: &'static [QueueSpec] = &[QueueSpec { size: QUEUE_SIZE, doorbell: true }];

    fn id(setup: &DriveSetup) -> String {
        setup.id.clone()
    }

    fn cold(setup: &DriveSetup, transport: VirtioState) -> Result<BlockState, DeviceError> {
        let sectors = backing::len(setup)? / SECTOR;
        Ok(BlockState { transport, sectors, read_only: setup.backing.is_read_only() })
    }

    fn new(setup: DriveSetup, state: BlockState) -> Result<(Self, VirtioState), DeviceError> {
        let BlockState { transport, sectors, read_only } = state;
        let len = backing::len(&setup)?;
        if sectors != len / SECTOR || read_only != setup.backing.is_read_only() {
            return Err(StateFault::Drive { saved: sectors, read_only, found: len / SECTOR }.of(&setup.id));
        }
        let DriveSetup { id, backing } = setup;
        let backing = Backing::new(&id, backing, len)?;
        let block = Block {
            id,
            backing,
            sectors,
            config: config(sectors),
            requests: 0,
            bucket: None,
            due: None,
            buffer: Vec::new(),
        };
        Ok((block, transport))
    }

    fn save(&self, transport: VirtioState) -> Result<BlockState, DeviceError> {
        // The backing is bound by the id at restore; its content is in the bundle's drive file. A limit belongs to one run.
        let Block { id: _, backing, sectors, config: _, requests: _, bucket: _, due: _, buffer: _ } = self;
        Ok(BlockState { transport, sectors: *sectors, read_only: backing.is_read_only() })
    }

    /// No VIRTIO_BLK_F_FLUSH: a driver that knows no cache never waits for one to be written back.
    fn features(&self) -> u64 {
        let read_only = u64::from(self.backing.is_read_only()) << virtio_blk::VIRTIO_BLK_F_RO;
        1 << virtio_blk::VIRTIO_BLK_F_SEG_MAX | read_only
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn serve(&mut self, queues: &mut [Virtqueue], memory: &GuestMemory) -> Result<Work, DriverFault> {
        let [queue] = queues else { return Ok(Work::Done) };
        let mut bytes = 0;
        for _ in 0..TURN {
            if bytes > TURN_BYTES {
                break;
            }
            // What is held back stays in the driver's ring, also over a freeze.
            if self.bucket.is_some() && self.is_held_back() {
                return Ok(Work::Done);
            }
            let Some(chain) = queue.pop_or_listen(memory)? else { return Ok(Work::Done) };
            let len = chain.readable_len() + chain.writable_len();
            bytes += len;
            if let Some(bucket) = &mut self.bucket {
                bucket.take(len);
            }
            let written = self.serve_one(&chain, memory)?;
            queue.complete(memory, chain, written)?;
        }
        Ok(Work::More)
    }

    fn due(&self) -> Option<Instant> {
        self.due
    }

    fn reset(&mut self) {
        self.due = None;
    }
}

fn config(sectors: u64) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let fields = sectors.to_le_bytes().into_iter().chain([0; 4]).chain(SEGMENTS_MAX.to_le_bytes());
    for (to, from) in config.iter_mut().zip(fields) {
        *to = from;
    }
    config
}
