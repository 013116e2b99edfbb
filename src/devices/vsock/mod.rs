//! The socket device (virtio 1.2, 5.10), as much of it as Ember needs: one stream, from the guest agent to port 1024 of
//! the host. The first connection to that port is the control stream; every other request is answered with a reset.
//!
//! The host holds no copy of what it sends: [`Vsock::send`] writes straight into the guest's receive buffers and takes no
//! more than those and the guest's credit allow. What the guest sends waits in a buffer as long as its credit.

mod connection;
mod packet;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use snapshot_format::sections::{VirtioState, VsockConnectionState, VsockState};
use virtio_bindings::virtio_ids;
use zerocopy::{FromZeros, IntoBytes};

use crate::memory::GuestMemory;

use super::error::{DeviceError, StateFault};
use super::virtio::{Chain, DriverFault, QueueSpec, VirtioDevice, Virtqueue, Work};

use connection::{Connection, Ports, Stamp};
use packet::{HEADER_LEN, Header, STREAM, op};

pub(super) use stream::VsockStream;

/// The host's context id (5.10.4).
const HOST_CID: u64 = 2;
/// Host port of the control stream; docs/guest-protocol.md.
const CONTROL_PORT: u32 = 1024;
/// Packets from the guest taken before other devices have their turn.
const TURN: usize = 128;
/// Most resets that wait for room in the guest's receive queue. When they are this many, the guest is not listened to.
const RESETS_MAX: usize = 64;
/// Most connections that a restore resets.
const SAVED_RESETS_MAX: usize = 1024;
/// Most data of one packet; Linux drops a packet longer than 64 KiB.
const DATA_MAX: usize = 64 << 10;

/// The device.
#[derive(Debug)]
pub(super) struct Vsock {
    cid: u64,
    config: [u8; 8],
    control: Option<Connection>,
    /// A connection to the control port was accepted since the driver started.
    taken: bool,
    /// Connections that the guest is to be told are closed.
    resets: VecDeque<Ports>,
    /// What the guest has sent on the control stream and the host has not read.
    inbox: Vec<u8>,
}

impl Vsock {
    /// Whether the control stream is there and open both ways.
    fn is_open(&self) -> bool {
        self.control.as_ref().is_some_and(Connection::is_open)
    }

    /// Sends as much of `bytes` as the guest has room for; returns how much.
    fn send(
        &mut self,
        bytes: &[u8],
        queues: &mut [Virtqueue],
        memory: &GuestMemory,
    ) -> Result<usize, DriverFault> {
        let [rx, ..] = queues else { return Ok(0) };
        self.flush(rx, memory)?;
        let mut left = bytes;
        while let Some(room) = self.sendable(left.len()) {
            let Some(chain) = rx.pop_or_listen(memory)? else { break };
            let fits = chain.writable_len().checked_sub(HEADER_LEN).filter(|fits| *fits > 0);
            let (now, later) = left.split_at(fits.ok_or(DriverFault::TooShort)?.min(room));
            self.deliver_data(chain, now, rx, memory)?;
            left = later;
        }
        Ok(bytes.len() - left.len())
    }

    /// How many of `len` bytes may be sent now; `None` when that is none.
    fn sendable(&self, len: usize) -> Option<usize> {
        let connection = self.control.as_ref().filter(|c| c.is_open() && c.pending().is_none())?;
        let room = usize::try_from(connection.peer_room()).ok()?;
        Some(room.min(len).min(DATA_MAX)).filter(|room| *room > 0)
    }

    fn deliver_data(
        &mut self,
        chain: Chain,
        data: &[u8],
        rx: &mut Virtqueue,
        memory: &GuestMemory,
    ) -> Result<(), DriverFault> {
        let Some(connection) = self.control.as_mut() else { return Ok(()) };
        let len = u32::try_from(data.len()).map_err(|_| DriverFault::TooShort)?;
        let (ports, stamp) = (connection.ports(), connection.stamp(op::RW, len));
        let header = self.header(ports, op::RW, len, stamp);
        deliver(chain, &header, data, rx, memory)
    }

    /// Gives the guest what it is to be told, as far as it has made room.
    fn flush(&mut self, rx: &mut Virtqueue, memory: &GuestMemory) -> Result<(), DriverFault> {
        while self.has_pending() {
            let Some(chain) = rx.pop_or_listen(memory)? else { return Ok(()) };
            if let Some(header) = self.next_pending() {
                deliver(chain, &header, &[], rx, memory)?;
            }
        }
        Ok(())
    }

    fn has_pending(&self) -> bool {
        !self.resets.is_empty() || self.control.as_ref().is_some_and(|c| c.pending().is_some())
    }

    fn next_pending(&mut self) -> Option<Header> {
        if let Some(ports) = self.resets.pop_front() {
            return Some(self.header(ports, op::RST, 0, Stamp::default()));
        }
        let connection = self.control.as_mut()?;
        let operation = connection.pending()?;
        let (ports, stamp) = (connection.ports(), connection.stamp(operation, 0));
        Some(self.header(ports, operation, 0, stamp))
    }

    fn header(&self, ports: Ports, operation: u16, len: u32, stamp: Stamp) -> Header {
        Header {
            src_cid: HOST_CID.into(),
            dst_cid: self.cid.into(),
            src_port: ports.host.into(),
            dst_port: ports.guest.into(),
            len: len.into(),
            kind: STREAM.into(),
            op: operation.into(),
            flags: 0.into(),
            buf_alloc: stamp.buffer.into(),
            fwd_cnt: stamp.forwarded.into(),
        }
    }

    /// Takes one packet from the guest.
    fn receive(&mut self, chain: &Chain, memory: &GuestMemory) -> Result<(), DriverFault> {
        if chain.writable_len() > 0 {
            return Err(DriverFault::Direction);
        }
        let data_len = chain.readable_len().checked_sub(HEADER_LEN).ok_or(DriverFault::TooShort)?;
        let mut reader = chain.reader(memory);
        let mut header = Header::new_zeroed();
        reader.read(header.as_mut_bytes())?;
        let len = usize::try_from(header.len.get()).map_err(|_| DriverFault::TooShort)?;
        if len > data_len {
            return Err(DriverFault::TooShort);
        }
        // Nobody is there to answer for another host, or to another guest.
        if header.src_cid.get() != self.cid || header.dst_cid.get() != HOST_CID {
            return Ok(());
        }
        let ports = Ports { host: header.dst_port.get(), guest: header.src_port.get() };
        match self.control.as_ref() {
            Some(control) if control.ports() == ports && header.kind.get() == STREAM => {
                self.receive_control(&header, |to| reader.read(to))
            }
            _ => {
                self.receive_other(ports, &header);
                Ok(())
            }
        }
    }

    /// A packet that belongs to no connection.
    fn receive_other(&mut self, ports: Ports, header: &Header) {
        let wanted = (header.op.get(), header.kind.get(), ports.host) == (op::REQUEST, STREAM, CONTROL_PORT);
        if wanted && !self.taken {
            self.control = Some(Connection::accept(ports, header));
            self.taken = true;
        } else if header.op.get() != op::RST {
            self.resets.push_back(ports);
        }
    }

    fn receive_control(
        &mut self,
        header: &Header,
        read: impl FnOnce(&mut [u8]) -> Result<(), DriverFault>,
    ) -> Result<(), DriverFault> {
        let Some(control) = self.control.as_mut() else { return Ok(()) };
        control.hear(header);
        let keep = match header.op.get() {
            op::RW if control.receive(header.len.get()) => {
                let start = self.inbox.len();
                // No more than the receive buffer, or `receive` had refused it.
                self.inbox.resize(start.saturating_add(header.len.get() as usize), 0);
                read(self.inbox.get_mut(start..).unwrap_or_default())?;
                true
            }
            op::CREDIT_UPDATE => true,
            op::CREDIT_REQUEST => {
                control.ask_update();
                true
            }
            op::SHUTDOWN => !control.shut(header.flags.get()),
            op::RST => {
                self.control = None;
                return Ok(());
            }
            // More bytes than there is room for, a second request, or an operation that there is not.
            _ => false,
        };
        if !keep {
            self.resets.push_back(control.ports());
            self.control = None;
        }
        Ok(())
    }

    /// Gives what the guest sent to `to`; returns how many bytes.
    fn read_into(&mut self, to: &mut Vec<u8>) -> usize {
        let count = self.inbox.len();
        if to.is_empty() {
            // No second copy, and both vectors keep their room.
            std::mem::swap(to, &mut self.inbox);
        } else {
            to.append(&mut self.inbox);
        }
        if let Some(control) = self.control.as_mut() {
            control.forward(u32::try_from(count).unwrap_or(u32::MAX));
        }
        count
    }
}

/// Puts one packet into one receive buffer.
fn deliver(
    chain: Chain,
    header: &Header,
    data: &[u8],
    rx: &mut Virtqueue,
    memory: &GuestMemory,
) -> Result<(), DriverFault> {
    if chain.readable_len() > 0 {
        return Err(DriverFault::Direction);
    }
    let mut writer = chain.writer(memory);
    writer.write(header.as_bytes())?;
    writer.write(data)?;
    rx.complete(memory, chain, HEADER_LEN + data.len())
}

impl VirtioDevice for Vsock {
    /// The guest's context id.
    type Setup = u64;
    type State = VsockState;
    const TYPE: u32 = virtio_ids::VIRTIO_ID_VSOCK;
    /// Receive, transmit, event. No event is ever sent: a transport reset would take the control stream along.
    const QUEUES: &'static [QueueSpec] = &[
        QueueSpec { size: 128, doorbell: true },
        QueueSpec { size: 128, doorbell: true },
        QueueSpec { size: 8, doorbell: false },
    ];

    fn id(_cid: &u64) -> String {
        "vsock".to_owned()
    }

    fn cold(cid: &u64, transport: VirtioState) -> Result<VsockState, DeviceError> {
        Ok(VsockState { transport, guest_cid: *cid, ..VsockState::default() })
    }

    fn new(cid: u64, state: VsockState) -> Result<(Self, VirtioState), DeviceError> {
        let VsockState { transport, guest_cid, control, other } = state;
        let id = Self::id(&cid);
        if guest_cid != cid {
            return Err(StateFault::Cid { saved: guest_cid, found: cid }.of(&id));
        }
        let control = taken_up(&control).map_err(|fault| fault.of(&id))?;
        if other.len() > SAVED_RESETS_MAX {
            return Err(StateFault::Connections.of(&id));
        }
        let resets = other.iter().map(|c| Ports { host: c.host_port, guest: c.guest_port }).collect();
        let taken = control.is_some();
        let inbox = Vec::new();
        Ok((Vsock { cid, config: cid.to_le_bytes(), control, taken, resets, inbox }, transport))
    }

    fn save(&self, transport: VirtioState) -> Result<VsockState, DeviceError> {
        // `taken`: a guest whose control stream is gone may open a new one after a restore.
        let Vsock { cid, config: _, control, taken: _, resets, inbox } = self;
        if !inbox.is_empty() {
            return Err(DeviceError::Unread { bytes: inbox.len() });
        }
        let mut state = VsockState { transport, guest_cid: *cid, ..VsockState::default() };
        // A reset that the guest has not got yet is one that the restored guest gets.
        state.other = resets.iter().map(reset_state).collect();
        if let Some((connection, steady)) = control.as_ref().map(Connection::save) {
            if steady { &mut state.control } else { &mut state.other }.push(connection);
        }
        Ok(state)
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn serve(&mut self, queues: &mut [Virtqueue], memory: &GuestMemory) -> Result<Work, DriverFault> {
        let [rx, tx, _] = queues else { return Ok(Work::Done) };
        self.flush(rx, memory)?;
        for _ in 0..TURN {
            if self.resets.len() >= RESETS_MAX {
                self.flush(rx, memory)?;
            }
            // A guest that takes no answers gets no more of them; its next receive buffer comes with a notification.
            if self.resets.len() >= RESETS_MAX {
                return Ok(Work::Done);
            }
            let Some(chain) = tx.pop_or_listen(memory)? else {
                self.flush(rx, memory)?;
                return Ok(Work::Done);
            };
            self.receive(&chain, memory)?;
            tx.complete(memory, chain, 0)?;
        }
        self.flush(rx, memory)?;
        Ok(Work::More)
    }

    fn reset(&mut self) {
        self.control = None;
        self.taken = false;
        self.resets.clear();
        self.inbox.clear();
    }
}

/// The control connection of a saved state, if it has one.
fn taken_up(saved: &[VsockConnectionState]) -> Result<Option<Connection>, StateFault> {
    match saved {
        [] => Ok(None),
        [one] if one.host_port == CONTROL_PORT => {
            Connection::from_saved(one).map(Some).ok_or(StateFault::Connections)
        }
        _ => Err(StateFault::Connections),
    }
}

fn reset_state(ports: &Ports) -> VsockConnectionState {
    VsockConnectionState { host_port: ports.host, guest_port: ports.guest, ..Default::default() }
}
