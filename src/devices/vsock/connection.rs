//! The control connection's counters: who may send how much (virtio 1.2, 5.10.6.3). All are modulo 2^32.

use snapshot_format::sections::VsockConnectionState;

use super::packet::{Header, SHUTDOWN_BOTH, op};

/// Bytes of the guest that wait for the host: what the host announces as its buffer.
pub(super) const RECEIVE_BUFFER: u32 = 256 << 10;

/// Names a connection: the guest's context id is the device's, the host's is 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub host: u32,
    pub guest: u32,
}

/// An accepted connection.
#[derive(Debug)]
pub(super) struct Connection {
    ports: Ports,
    received: u32,
    forwarded: u32,
    /// The `forwarded` that the guest was last told.
    told: u32,
    sent: u32,
    peer_buffer: u32,
    peer_forwarded: u32,
    /// The guest does not know yet that it was accepted.
    respond: bool,
    /// The guest wants to know, or has to know, how much it may send.
    update: bool,
    /// Directions the guest has shut down.
    shut: u32,
}

impl Connection {
    /// Accepts the connection that `request` asks for.
    pub(super) fn accept(ports: Ports, request: &Header) -> Self {
        Connection {
            ports,
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            peer_buffer: request.buf_alloc.get(),
            peer_forwarded: request.fwd_cnt.get(),
            respond: true,
            update: false,
            shut: 0,
        }
    }

    /// Takes a connection up where it was saved; `None` when bytes of it were lost.
    pub(super) fn from_saved(state: &VsockConnectionState) -> Option<Self> {
        let VsockConnectionState {
            host_port,
            guest_port,
            forwarded,
            received,
            sent,
            peer_buffer,
            peer_forwarded,
        } = *state;
        (received == forwarded).then_some(Connection {
            ports: Ports { host: host_port, guest: guest_port },
            received,
            forwarded,
            told: forwarded,
            sent,
            peer_buffer,
            peer_forwarded,
            respond: false,
            update: false,
            shut: 0,
        })
    }

    /// Its saved form, and whether it can be taken up again from that.
    pub(super) fn save(&self) -> (VsockConnectionState, bool) {
        let Connection {
            ports: Ports { host, guest },
            received,
            forwarded,
            // The first packet after a restore tells it again.
            told: _,
            sent,
            peer_buffer,
            peer_forwarded,
            respond,
            update: _,
            shut,
        } = self;
        let state = VsockConnectionState {
            host_port: *host,
            guest_port: *guest,
            forwarded: *forwarded,
            received: *received,
            sent: *sent,
            peer_buffer: *peer_buffer,
            peer_forwarded: *peer_forwarded,
        };
        (state, !respond && *shut == 0)
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// Whether bytes can go both ways.
    pub(super) fn is_open(&self) -> bool {
        self.shut == 0
    }

    /// Takes note of the guest's counters, which every packet carries.
    pub(super) fn hear(&mut self, header: &Header) {
        self.peer_buffer = header.buf_alloc.get();
        self.peer_forwarded = header.fwd_cnt.get();
    }

    /// Bytes the guest has room for.
    pub(super) fn peer_room(&self) -> u32 {
        self.peer_buffer.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// Counts `len` bytes from the guest; false when it had no right to send them.
    #[must_use]
    pub(super) fn receive(&mut self, len: u32) -> bool {
        let waiting = self.received.wrapping_sub(self.forwarded);
        let fits = waiting.checked_add(len).is_some_and(|sum| sum <= RECEIVE_BUFFER);
        if fits {
            self.received = self.received.wrapping_add(len);
        }
        fits
    }

    /// Counts `len` bytes that the host has taken. The guest is told before it runs dry, and not at every byte.
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
        let known_room = RECEIVE_BUFFER.saturating_sub(self.received.wrapping_sub(self.told));
        if known_room < RECEIVE_BUFFER / 2 && self.told != self.forwarded {
            self.update = true;
        }
    }

    /// The guest asks how much it may send.
    pub(super) fn ask_update(&mut self) {
        self.update = true;
    }

    /// The guest will not receive or send any more; true when it is both.
    pub(super) fn shut(&mut self, flags: u32) -> bool {
        self.shut |= flags & SHUTDOWN_BOTH;
        self.shut == SHUTDOWN_BOTH
    }

    /// What has to be said before any data.
    pub(super) fn pending(&self) -> Option<u16> {
        match (self.respond, self.update) {
            (true, _) => Some(op::RESPONSE),
            (false, true) => Some(op::CREDIT_UPDATE),
            (false, false) => None,
        }
    }

    /// The counters of a packet that is sent now with `len` bytes of data.
    pub(super) fn stamp(&mut self, operation: u16, len: u32) -> Stamp {
        self.sent = self.sent.wrapping_add(len);
        self.told = self.forwarded;
        // Every packet carries the counters, and so does the update's work.
        self.update = false;
        if operation == op::RESPONSE {
            self.respond = false;
        }
        Stamp { buffer: RECEIVE_BUFFER, forwarded: self.forwarded }
    }
}

/// The credit fields of a packet from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    pub buffer: u32,
    pub forwarded: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(peer_buffer: u32) -> Connection {
        let header = Header { buf_alloc: peer_buffer.into(), ..Header::default() };
        let mut connection = Connection::accept(Ports { host: 1024, guest: 7 }, &header);
        connection.stamp(op::RESPONSE, 0);
        connection
    }

    #[test]
    fn the_guests_room_shrinks_with_what_is_sent_and_grows_with_what_it_reads() {
        let mut connection = connection(100);
        connection.stamp(op::RW, 70);
        assert_eq!(connection.peer_room(), 30);
        connection.hear(&Header { buf_alloc: 100.into(), fwd_cnt: 50.into(), ..Header::default() });
        assert_eq!(connection.peer_room(), 80);
        connection.hear(&Header { buf_alloc: 10.into(), fwd_cnt: 50.into(), ..Header::default() });
        assert_eq!(connection.peer_room(), 0, "a buffer that shrank");
        connection.hear(&Header { buf_alloc: 100.into(), fwd_cnt: 90.into(), ..Header::default() });
        assert_eq!(connection.peer_room(), 0, "a guest that claims to have read what was never sent");
    }

    #[test]
    fn counters_wrap() {
        let state = VsockConnectionState {
            forwarded: u32::MAX,
            received: u32::MAX,
            sent: u32::MAX - 1,
            peer_buffer: 64,
            peer_forwarded: u32::MAX - 1,
            ..Default::default()
        };
        let mut connection = Connection::from_saved(&state).unwrap();
        assert_eq!(connection.peer_room(), 64);
        connection.stamp(op::RW, 10);
        assert_eq!(connection.peer_room(), 54);
        assert!(connection.receive(5));
        connection.forward(5);
        assert_eq!(connection.stamp(op::RW, 0).forwarded, 4);
    }

    #[test]
    fn a_guest_that_sends_more_than_it_may_is_found_out() {
        let mut connection = connection(0);
        assert!(connection.receive(RECEIVE_BUFFER));
        assert!(!connection.receive(1));
        connection.forward(1);
        assert!(connection.receive(1));
        assert!(!connection.receive(u32::MAX));
    }

    #[test]
    fn the_guest_is_told_of_room_once_half_is_used_and_not_before() {
        let mut connection = connection(0);
        assert!(connection.receive(RECEIVE_BUFFER / 2));
        connection.forward(RECEIVE_BUFFER / 2);
        assert_eq!(connection.pending(), None);
        assert!(connection.receive(1));
        connection.forward(1);
        assert_eq!(connection.pending(), Some(op::CREDIT_UPDATE));
        connection.stamp(op::CREDIT_UPDATE, 0);
        assert_eq!(connection.pending(), None);
    }

    #[test]
    fn a_saved_connection_that_lost_bytes_is_not_taken_up() {
        let state = VsockConnectionState { received: 2, forwarded: 1, ..Default::default() };
        assert!(Connection::from_saved(&state).is_none());
    }
}
