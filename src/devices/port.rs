//! The small guests' port device: one byte stream each way, "warm" and "done", and a counter (docs/port-interface.md).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use snapshot_format::sections::PortState;

use crate::bus::{BusDevice, Request, RequestLine, lock};

use super::ControlStream;
use super::error::{DeviceError, StateFault};

/// Length of the window, ports.
pub(super) const PORT_LEN: u64 = 12;
/// Most event bytes that wait for the guest, and answer bytes that wait for the host: the longest event or answer.
const BUFFER_MAX: usize = 32 << 20;

const DATA: u64 = 0;
const LENGTH_AND_COMMAND: u64 = 4;
const SEQUENCE: u64 = 8;

const WARM: u32 = 1;
const DONE: u32 = 2;
/// `DONE_WITH + n`: done with exit code `n`, 0 to 255.
const DONE_WITH: u32 = 0x100;

/// The device.
#[derive(Debug)]
pub(super) struct Port {
    sequence: u32,
    input: VecDeque<u8>,
    output: Vec<u8>,
    exit_code: Option<i32>,
    requests: RequestLine,
}

impl Port {
    /// The device in the given state.
    ///
    /// # Errors
    /// The state holds more bytes than the device can.
    pub(super) fn new(state: PortState, requests: RequestLine) -> Result<Self, DeviceError> {
        let PortState { sequence, input, output } = state;
        if input.len() > BUFFER_MAX || output.len() > BUFFER_MAX {
            return Err(StateFault::Buffer.of("port"));
        }
        Ok(Port { sequence, input: input.into(), output, exit_code: None, requests })
    }

    /// Its saved form.
    pub(super) fn save(&self) -> PortState {
        // What the guest was done with belongs to this run of it.
        let Port { sequence, input, output, exit_code: _, requests: _ } = self;
        PortState { sequence: *sequence, input: input.iter().copied().collect(), output: output.clone() }
    }

    /// The exit code of the guest's last "done".
    pub(super) fn exit_code(&self) -> Option<i32> {
        self.exit_code
    }

    fn next_in_sequence(&mut self) -> u32 {
        let value = self.sequence;
        self.sequence = value.wrapping_add(1);
        value
    }

    fn answer(&mut self, byte: u8) {
        if self.output.len() < BUFFER_MAX {
            self.output.push(byte);
        } else {
            // An answer with a hole in it must not look whole.
            self.raise(Request::Broken);
        }
    }

    fn command(&mut self, command: u32) {
        match command {
            WARM => self.raise(Request::Warm),
            DONE => self.done(0),
            _ => {
                if let Some(code) = command.checked_sub(DONE_WITH).and_then(|code| u8::try_from(code).ok()) {
                    self.done(code);
                }
            }
        }
    }

    fn done(&mut self, exit_code: u8) {
        self.exit_code = Some(exit_code.into());
        self.raise(Request::Done);
    }

    fn raise(&self, request: Request) {
        // Fails only when 2^64 - 1 requests wait already; the request itself is noted first.
        self.requests.raise(request).ok();
    }
}

impl BusDevice for Port {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (DATA, [byte]) => *byte = self.input.pop_front().unwrap_or(0),
            (LENGTH_AND_COMMAND, data @ [_, _, _, _]) => {
                let len = u32::try_from(self.input.len()).unwrap_or(u32::MAX);
                data.copy_from_slice(&len.to_le_bytes());
            }
            (SEQUENCE, data @ [_, _, _, _]) => data.copy_from_slice(&self.next_in_sequence().to_le_bytes()),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (DATA, [byte]) => self.answer(*byte),
            (LENGTH_AND_COMMAND, data) => {
                if let Ok(command) = <[u8; 4]>::try_from(data) {
                    self.command(u32::from_le_bytes(command));
                }
            }
            _ => {}
        }
    }
}

/// The host's end of the two byte streams.
#[derive(Debug)]
pub(super) struct PortStream(pub Arc<Mutex<Port>>);

impl ControlStream for PortStream {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut port = lock(&self.0);
        let room = BUFFER_MAX.saturating_sub(port.input.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        port.input.extend(taken);
        taken.len()
    }

    fn read_into(&mut self, to: &mut Vec<u8>) -> usize {
        let mut port = lock(&self.0);
        let count = port.output.len();
        if to.is_empty() {
            std::mem::swap(to, &mut port.output);
        } else {
            to.append(&mut port.output);
        }
        count
    }

    fn is_open(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> (Arc<Mutex<Port>>, PortStream, RequestLine) {
        let requests = RequestLine::new().unwrap();
        let port = Arc::new(Mutex::new(Port::new(PortState::default(), requests.clone()).unwrap()));
        (port.clone(), PortStream(port), requests)
    }

    fn read(port: &Mutex<Port>, offset: u64) -> u32 {
        let mut data = [0; 4];
        lock(port).read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn read_byte(port: &Mutex<Port>) -> u8 {
        let mut data = [0];
        lock(port).read(0, &mut data);
        data[0]
    }

    #[test]
    fn bytes_go_both_ways() {
        let (port, mut stream, _) = port();
        assert_eq!(stream.write(b"ab"), 2);
        assert_eq!(read(&port, 4), 2);
        assert_eq!([read_byte(&port), read_byte(&port), read_byte(&port)], [b'a', b'b', 0]);
        lock(&port).write(0, b"x");
        lock(&port).write(0, b"y");
        let mut answer = b">".to_vec();
        assert_eq!(stream.read_into(&mut answer), 2);
        assert_eq!(answer, b">xy");
        assert_eq!(stream.read_into(&mut answer), 0);
    }

    #[test]
    fn commands_become_requests_and_others_nothing() {
        let (port, _, requests) = port();
        let command = |value: u32| {
            lock(&port).write(4, &value.to_le_bytes());
            (requests.take(), lock(&port).exit_code())
        };
        assert_eq!(command(1), (vec![Request::Warm], None));
        assert_eq!(command(2), (vec![Request::Done], Some(0)));
        assert_eq!(command(0x1ff), (vec![Request::Done], Some(255)));
        for value in [0, 3, 0xff, 0x200, u32::MAX] {
            assert_eq!(command(value), (vec![], Some(255)), "{value:#x}");
        }
    }

    #[test]
    fn the_sequence_goes_up_by_one_and_over_a_save() {
        let (port, mut stream, requests) = port();
        assert_eq!([read(&port, 8), read(&port, 8)], [0, 1]);
        stream.write(b"rest");
        lock(&port).write(0, b"a");
        let saved = lock(&port).save();
        let restored = Mutex::new(Port::new(saved.clone(), requests).unwrap());
        assert_eq!((read(&restored, 8), read(&restored, 4)), (2, 4));
        assert_eq!(saved.output, b"a");
    }

    #[test]
    fn an_access_of_a_wrong_size_does_nothing() {
        let (port, mut stream, requests) = port();
        stream.write(b"ab");
        for offset in 0..16 {
            for len in [0, 2, 3, 8] {
                let mut data = vec![0; len];
                lock(&port).read(offset, &mut data);
                assert!(data.iter().all(|byte| *byte == 0));
                lock(&port).write(offset, &vec![1; len]);
            }
        }
        assert!(requests.take().is_empty());
        assert_eq!(read(&port, 4), 2);
    }
}
