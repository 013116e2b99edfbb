//! How a guest ends: the ACPI sleep-control and reset registers, and the keyboard controller's reset line.

use crate::bus::{BusDevice, Request, RequestLine};

/// I/O port of the i8042's command register, one port long.
pub(super) const I8042_PORT: u64 = 0x64;
/// Length of the window at [`layout::POWER_PORT`](crate::memory::layout::POWER_PORT).
pub(super) const POWER_LEN: u64 = 2;

/// Offset of the sleep-control register (ACPI 6.5, 4.8.3.7); the tables in `boot` name its port.
const SLEEP_CONTROL: u64 = 0;
/// Offset of the reset register (ACPI 6.5, 4.8.3.6).
const RESET: u64 = 1;
/// SLP_EN, and the SLP_TYP that the tables give for S5.
const POWER_OFF: u8 = 1 << 5 | 5 << 2;
/// The value the tables give for the reset register.
const RESET_VALUE: u8 = 6;
/// "Pulse the reset line", the i8042 command that Linux falls back to.
const PULSE_RESET: u8 = 0xfe;

/// The power device.
#[derive(Debug)]
pub(super) struct Power(pub RequestLine);

impl BusDevice for Power {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SLEEP_CONTROL, [POWER_OFF]) => raise(&self.0, Request::PowerOff),
            (RESET, [RESET_VALUE]) => raise(&self.0, Request::Reset),
            _ => {}
        }
    }
}

/// The command register of a keyboard controller that is not there.
#[derive(Debug)]
pub(super) struct Keyboard(pub RequestLine);

impl BusDevice for Keyboard {
    /// All ones, as where no controller is: a driver that found one would wait for its answers.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [PULSE_RESET] {
            raise(&self.0, Request::Reset);
        }
    }
}

fn raise(line: &RequestLine, request: Request) {
    // Fails only when 2^64 - 1 requests wait already; the request itself is noted first.
    line.raise(request).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(
        device: impl FnOnce(RequestLine) -> Box<dyn BusDevice>,
        offset: u64,
        data: &[u8],
    ) -> Vec<Request> {
        let line = RequestLine::new().unwrap();
        device(line.clone()).write(offset, data);
        line.take()
    }

    #[test]
    fn the_sleep_register_powers_off_and_the_reset_register_resets() {
        let power = |line| Box::new(Power(line)) as Box<dyn BusDevice>;
        assert_eq!(requests(power, 0, &[0x34]), [Request::PowerOff]);
        assert_eq!(requests(power, 1, &[6]), [Request::Reset]);
        for (offset, data) in [(0, [0x14u8].as_slice()), (0, &[0x34, 6]), (1, &[0x34]), (0, &[])] {
            assert_eq!(requests(power, offset, data), [], "{offset} {data:?}");
        }
    }

    #[test]
    fn the_keyboard_controller_resets_and_looks_absent() {
        let keyboard = |line| Box::new(Keyboard(line)) as Box<dyn BusDevice>;
        assert_eq!(requests(keyboard, 0, &[0xfe]), [Request::Reset]);
        assert_eq!(requests(keyboard, 0, &[0xd1]), []);
        let mut data = [0];
        keyboard(RequestLine::new().unwrap()).read(0, &mut data);
        assert_eq!(data, [0xff]);
    }
}
