//! The first serial port: a 16550A on `vm-superio`. Output only; nothing is typed into a function.

mod console;

use std::io;

use snapshot_format::sections::SerialState;
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

use crate::bus::{BusDevice, IrqLine};
use crate::memory::OnStart;

use super::error::{DeviceError, StateFault};

use console::Console;
pub use console::ConsoleSink;
pub(super) use console::LastWords;

/// Length of the window, ports.
pub(super) const SERIAL_LEN: u64 = 8;
/// Interrupt identification: no interrupt is pending (16550 data sheet, IIR bit 0).
const NONE_PENDING: u8 = 1;

/// The interrupt line as `vm-superio` wants it.
#[derive(Debug)]
struct Interrupt(IrqLine);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// The serial port.
#[derive(Debug)]
pub(super) struct Serial {
    uart: vm_superio::Serial<Interrupt, NoEvents, Console>,
}

/// The registers after power-on.
pub(super) fn cold_state() -> SerialState {
    saved(vm_superio::SerialState::default())
}

impl Serial {
    /// The port in the given state; what it sends goes to `sink`, if need be by a thread that does `first` before anything else.
    ///
    /// # Errors
    /// More received bytes than the port can hold, or the host has no room for a thread.
    pub(super) fn new(
        state: SerialState,
        line: IrqLine,
        sink: ConsoleSink,
        first: OnStart,
    ) -> Result<Self, DeviceError> {
        let console = Console::new(sink, first).map_err(DeviceError::Console)?;
        let uart = vm_superio::Serial::from_state(&live(state), Interrupt(line), NoEvents, console).map_err(
            |e| match e {
                vm_superio::serial::Error::Trigger(e) | vm_superio::serial::Error::IOError(e) => {
                    DeviceError::Signal(e)
                }
                vm_superio::serial::Error::FullFifo => StateFault::Buffer.of("serial"),
            },
        )?;
        Ok(Serial { uart })
    }

    /// Its saved form.
    pub(super) fn save(&self) -> SerialState {
        let Serial { uart } = self;
        saved(uart.state())
    }

    /// To wait for what was printed last.
    pub(super) fn last_words(&self) -> LastWords {
        self.uart.writer().last_words()
    }

    /// Whether the driver has an interrupt to look at.
    pub(super) fn interrupt_pending(&self) -> bool {
        let state = self.uart.state();
        state.interrupt_enable != 0 && state.interrupt_identification & NONE_PENDING == 0
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            *byte = self.uart.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            // The console takes every byte, and the interrupt fails only when 2^64 - 1 of them wait already.
            self.uart.write(offset, *byte).ok();
        }
    }
}

fn saved(state: vm_superio::SerialState) -> SerialState {
    let vm_superio::SerialState {
        baud_divisor_low,
        baud_divisor_high,
        interrupt_enable,
        interrupt_identification,
        line_control,
        line_status,
        modem_control,
        modem_status,
        scratch,
        in_buffer,
    } = state;
    SerialState {
        baud_divisor_low,
        baud_divisor_high,
        interrupt_enable,
        interrupt_identification,
        line_control,
        line_status,
        modem_control,
        modem_status,
        scratch,
        in_buffer,
    }
}

fn live(state: SerialState) -> vm_superio::SerialState {
    let SerialState {
        baud_divisor_low,
        baud_divisor_high,
        interrupt_enable,
        interrupt_identification,
        line_control,
        line_status,
        modem_control,
        modem_status,
        scratch,
        in_buffer,
    } = state;
    vm_superio::SerialState {
        baud_divisor_low,
        baud_divisor_high,
        interrupt_enable,
        interrupt_identification,
        line_control,
        line_status,
        modem_control,
        modem_status,
        scratch,
        in_buffer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port_in(state: SerialState) -> Result<Serial, DeviceError> {
        let sink = ConsoleSink::Memory(Box::new(io::sink()));
        Serial::new(state, IrqLine::new(4).unwrap(), sink, Box::new(|| Ok(())))
    }

    fn serial(state: SerialState) -> Serial {
        port_in(state).unwrap()
    }

    fn read(serial: &mut Serial, offset: u64) -> u8 {
        let mut data = [0];
        serial.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn registers_survive_a_save_and_a_pending_interrupt_is_known() {
        let mut port = serial(cold_state());
        assert_eq!(read(&mut port, 5), 0x60, "the transmitter is empty");
        port.write(7, &[0x5a]);
        assert!(!port.interrupt_pending());
        port.write(1, &[2]);
        assert!(port.interrupt_pending(), "an enabled transmitter interrupt is pending at once");
        let mut again = serial(port.save());
        assert_eq!(again.save(), port.save());
        assert!(again.interrupt_pending());
        assert_eq!(read(&mut again, 7), 0x5a);
        assert_eq!(read(&mut again, 2) & 0xf, 2);
        assert!(!again.interrupt_pending(), "reading the identification takes it back");
    }

    #[test]
    fn more_received_bytes_than_the_port_holds_are_refused() {
        let state = SerialState { in_buffer: vec![0; 65], ..cold_state() };
        let made = port_in(state);
        assert!(matches!(made, Err(DeviceError::State { source: StateFault::Buffer, .. })));
    }

    #[test]
    fn an_access_of_a_wrong_size_does_nothing() {
        let mut port = serial(cold_state());
        let before = port.save();
        let mut data = [0; 2];
        port.read(5, &mut data);
        assert_eq!(data, [0, 0]);
        port.write(7, &[1, 2]);
        port.write(7, &[]);
        port.read(1 << 40, &mut data[..1]);
        assert_eq!(port.save(), before);
    }
}
