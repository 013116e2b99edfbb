//! What the host says.

use crate::fields::{Fields, PayloadError};
use crate::frame::{PAYLOAD_MAX, Raw, Sink, put};
use crate::{ENTROPY_LEN, GENERATION_LEN, MACHINE_ID_LEN, is_host_name};

const CONTRACT: u8 = 0x81;
const RESTORE: u8 = 0x82;
const EVENT: u8 = 0x83;
const DATA: u8 = 0x84;
const FINISH: u8 = 0x85;
const SETTLE: u8 = 0x86;
const FREEZE: u8 = 0x87;

/// Entry of a restore frame: `KEY=VALUE`.
const ENTRY_ENV: u16 = 1;
/// Entry of a restore frame: the host name, text.
const ENTRY_HOST_NAME: u16 = 2;
/// Entry of a restore frame: the machine id, 16 bytes.
const ENTRY_MACHINE_ID: u16 = 3;
/// Entry of a restore frame since version 2: u64 nanoseconds since the epoch, u64 TSC, u32 kHz.
const ENTRY_CLOCK: u16 = 4;

/// Bytes of an [`EventHead`] in an event frame.
pub const EVENT_HEAD_LEN: usize = 32;

/// A frame from the host to the agent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ToGuest<'a> {
    /// A part of the function contract's JSON.
    Contract {
        /// Whether it is the last part.
        last: bool,
        /// The part.
        json: &'a [u8],
    },
    /// The first thing a clone is told.
    Restore(Restore<'a>),
    /// An event begins.
    Event {
        /// Its head.
        head: EventHead,
        /// Its first bytes; the others follow in `Data` frames.
        first: &'a [u8],
    },
    /// More of the event.
    Data {
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The host has the whole answer: the agent need not wait for the function to hang up.
    Finish,
    /// Drop the guest's clean caches.
    Settle,
    /// Get ready for the freeze.
    Freeze,
}

/// What the agent must know about an event before its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventHead {
    /// Length of the whole event, bytes.
    pub total: u64,
    /// When its answer is due, milliseconds since the epoch by the guest's clock.
    pub deadline_unix_ms: u64,
    /// lambda: the request id.
    pub request_id: [u8; 16],
}

impl EventHead {
    fn to_bytes(self) -> [u8; EVENT_HEAD_LEN] {
        let mut bytes = [0; EVENT_HEAD_LEN];
        let (total, rest) = bytes.split_at_mut(8);
        let (deadline, id) = rest.split_at_mut(8);
        total.copy_from_slice(&self.total.to_le_bytes());
        deadline.copy_from_slice(&self.deadline_unix_ms.to_le_bytes());
        id.copy_from_slice(&self.request_id);
        bytes
    }
}

/// What makes a clone unique.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Restore<'a> {
    /// The clone's generation; the acknowledgement repeats it.
    pub generation: [u8; GENERATION_LEN],
    /// Fresh entropy of the host.
    pub entropy: [u8; ENTROPY_LEN],
    /// The host's wall clock, nanoseconds since the epoch.
    pub unix_time_ns: u64,
    /// Everything else.
    pub entries: RestoreEntries<'a>,
}

/// The entries of a restore frame, checked when it was decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RestoreEntries<'a>(&'a [u8]);

/// One entry of a restore frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreEntry<'a> {
    /// An environment variable, `KEY=VALUE`.
    Env(&'a [u8]),
    /// The clone's host name, one that [`is_host_name`] takes.
    HostName(&'a str),
    /// The clone's machine id.
    MachineId([u8; MACHINE_ID_LEN]),
    /// The host's wall clock at one moment of the guest's TSC; for agents of version 2 and newer.
    Clock(ClockReading),
}

/// What the host's wall clock showed when the guest's TSC (Intel SDM volume 3B, section 19.17) had this value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockReading {
    /// Nanoseconds since the epoch.
    pub unix_time_ns: u64,
    /// The guest's TSC.
    pub tsc: u64,
    /// Its frequency, kHz.
    pub tsc_khz: u32,
}

impl ClockReading {
    /// The wall clock when the TSC has come to `tsc`, nanoseconds since the epoch; `None` where it has gone back, or has no frequency.
    pub fn at(&self, tsc: u64) -> Option<u64> {
        let ticks = u128::from(tsc.checked_sub(self.tsc)?);
        let passed = (ticks * 1_000_000).checked_div(u128::from(self.tsc_khz))?;
        self.unix_time_ns.checked_add(u64::try_from(passed).ok()?)
    }

    fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        let (time, rest) = bytes.split_at_mut(8);
        let (tsc, khz) = rest.split_at_mut(8);
        time.copy_from_slice(&self.unix_time_ns.to_le_bytes());
        tsc.copy_from_slice(&self.tsc.to_le_bytes());
        khz.copy_from_slice(&self.tsc_khz.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, PayloadError> {
        let mut fields = Fields::new("restore", bytes);
        let reading = ClockReading {
            unix_time_ns: fields.u64("clock")?,
            tsc: fields.u64("clock")?,
            tsc_khz: fields.u32("clock")?,
        };
        fields.end().map(|()| reading)
    }
}

impl<'a> RestoreEntries<'a> {
    /// No entries.
    pub const EMPTY: RestoreEntries<'static> = RestoreEntries(&[]);

    /// Entries that [`RestoreEntry::append_to`] has written; anything else is refused when the frame is decoded.
    pub const fn from_bytes(bytes: &'a [u8]) -> Self {
        RestoreEntries(bytes)
    }

    /// Each environment variable, `KEY=VALUE`.
    pub fn variables(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.iter().filter_map(|entry| match entry {
            RestoreEntry::Env(variable) => Some(variable),
            RestoreEntry::HostName(_) | RestoreEntry::MachineId(_) | RestoreEntry::Clock(_) => None,
        })
    }

    /// What the host's wall clock showed at a moment of the guest's TSC, where the host tells.
    pub fn clock(&self) -> Option<ClockReading> {
        self.iter().find_map(|entry| match entry {
            RestoreEntry::Clock(reading) => Some(reading),
            RestoreEntry::Env(_) | RestoreEntry::HostName(_) | RestoreEntry::MachineId(_) => None,
        })
    }

    /// Whether there is an environment variable.
    pub fn has_variables(&self) -> bool {
        self.variables().next().is_some()
    }

    /// Each entry in the order of the frame.
    pub fn iter(&self) -> impl Iterator<Item = RestoreEntry<'a>> + use<'a> {
        let mut fields = Fields::new("restore", self.0);
        std::iter::from_fn(move || RestoreEntry::take(&mut fields).ok().flatten())
    }

    fn check(self) -> Result<Self, PayloadError> {
        let mut fields = Fields::new("restore", self.0);
        while RestoreEntry::take(&mut fields)?.is_some() {}
        Ok(self)
    }
}

impl<'a> RestoreEntry<'a> {
    /// Appends the entry to the bytes of a [`RestoreEntries`].
    pub fn append_to(&self, sink: &mut impl Sink) {
        let clock;
        let (tag, bytes) = match self {
            RestoreEntry::Env(variable) => (ENTRY_ENV, *variable),
            RestoreEntry::HostName(name) => (ENTRY_HOST_NAME, name.as_bytes()),
            RestoreEntry::MachineId(id) => (ENTRY_MACHINE_ID, id.as_slice()),
            RestoreEntry::Clock(reading) => {
                clock = reading.to_bytes();
                (ENTRY_CLOCK, clock.as_slice())
            }
        };
        sink.put(&tag.to_le_bytes());
        sink.put(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        sink.put(bytes);
    }

    fn take(fields: &mut Fields<'a>) -> Result<Option<Self>, PayloadError> {
        if fields.is_empty() {
            return Ok(None);
        }
        let tag = fields.u16("entry")?;
        let len = fields.u32("entry")?;
        let bytes = fields.bytes("entry", usize::try_from(len).unwrap_or(usize::MAX))?;
        match tag {
            ENTRY_ENV => Ok(Some(RestoreEntry::Env(bytes))),
            ENTRY_HOST_NAME => host_name(bytes).map(|name| Some(RestoreEntry::HostName(name))),
            ENTRY_MACHINE_ID => {
                let mut fields = Fields::new("restore", bytes);
                let id = fields.array("machine id")?;
                fields.end().map(|()| Some(RestoreEntry::MachineId(id)))
            }
            ENTRY_CLOCK => ClockReading::decode(bytes).map(|reading| Some(RestoreEntry::Clock(reading))),
            // Not skipped: what a clone is told and does not do would leave it less unique than the host believes.
            tag => Err(PayloadError::Value { frame: "restore", field: "entry", value: u64::from(tag) }),
        }
    }
}

impl<'a> ToGuest<'a> {
    /// Most bytes of an event that fit into its first frame.
    pub const FIRST_MAX: usize = PAYLOAD_MAX - EVENT_HEAD_LEN;
    /// Most bytes of entries that fit into a restore frame.
    pub const ENTRIES_MAX: usize = PAYLOAD_MAX - GENERATION_LEN - ENTROPY_LEN - 8;

    /// Appends the frame. What it holds must fit into one, see [`PAYLOAD_MAX`].
    pub fn append_to(&self, sink: &mut impl Sink) {
        match self {
            ToGuest::Contract { last, json } => put(sink, CONTRACT, &[&[u8::from(*last)], json]),
            ToGuest::Restore(restore) => {
                let Restore { generation, entropy, unix_time_ns, entries } = restore;
                put(sink, RESTORE, &[generation, entropy, &unix_time_ns.to_le_bytes(), entries.0]);
            }
            ToGuest::Event { head, first } => put(sink, EVENT, &[&head.to_bytes(), first]),
            ToGuest::Data { bytes } => put(sink, DATA, &[bytes]),
            ToGuest::Finish => put(sink, FINISH, &[]),
            ToGuest::Settle => put(sink, SETTLE, &[]),
            ToGuest::Freeze => put(sink, FREEZE, &[]),
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// See [`PayloadError`].
    pub fn decode(raw: Raw<'a>) -> Result<Self, PayloadError> {
        match raw.kind {
            CONTRACT => contract(raw.payload),
            RESTORE => restore(raw.payload).map(ToGuest::Restore),
            EVENT => event(raw.payload),
            DATA => Ok(ToGuest::Data { bytes: raw.payload }),
            FINISH => Fields::new("finish", raw.payload).end().map(|()| ToGuest::Finish),
            SETTLE => Fields::new("settle", raw.payload).end().map(|()| ToGuest::Settle),
            FREEZE => Fields::new("freeze", raw.payload).end().map(|()| ToGuest::Freeze),
            kind => Err(PayloadError::Kind { kind }),
        }
    }

    /// What the frame is called in documents and messages.
    pub fn name(&self) -> &'static str {
        match self {
            ToGuest::Contract { .. } => "contract",
            ToGuest::Restore(_) => "restore",
            ToGuest::Event { .. } => "event",
            ToGuest::Data { .. } => "data",
            ToGuest::Finish => "finish",
            ToGuest::Settle => "settle",
            ToGuest::Freeze => "freeze",
        }
    }
}

fn contract(payload: &[u8]) -> Result<ToGuest<'_>, PayloadError> {
    let mut fields = Fields::new("contract", payload);
    let last = match fields.byte("last flag")? {
        0 => false,
        1 => true,
        value => {
            let value = u64::from(value);
            return Err(PayloadError::Value { frame: "contract", field: "last flag", value });
        }
    };
    Ok(ToGuest::Contract { last, json: fields.rest() })
}

fn host_name(bytes: &[u8]) -> Result<&str, PayloadError> {
    let name = std::str::from_utf8(bytes).ok().filter(|name| is_host_name(name));
    name.ok_or(PayloadError::Text { frame: "restore", field: "host name" })
}

fn restore(payload: &[u8]) -> Result<Restore<'_>, PayloadError> {
    let mut fields = Fields::new("restore", payload);
    Ok(Restore {
        generation: fields.array("generation")?,
        entropy: fields.array("entropy")?,
        unix_time_ns: fields.u64("time")?,
        entries: RestoreEntries(fields.rest()).check()?,
    })
}

fn event(payload: &[u8]) -> Result<ToGuest<'_>, PayloadError> {
    let mut fields = Fields::new("event", payload);
    let head = EventHead {
        total: fields.u64("length")?,
        deadline_unix_ms: fields.u64("deadline")?,
        request_id: fields.array("request id")?,
    };
    Ok(ToGuest::Event { head, first: fields.rest() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_goes_on_with_the_tsc_from_where_it_was_read() {
        let reading = ClockReading { unix_time_ns: 5_000_000_000, tsc: 1 << 60, tsc_khz: 2_500_000 };
        assert_eq!(reading.at(1 << 60), Some(5_000_000_000));
        assert_eq!(reading.at((1 << 60) + 5_000_000_000), Some(7_000_000_000));
        assert_eq!(reading.at((1 << 60) - 1), None, "it has gone back");
        assert_eq!(ClockReading { tsc_khz: 0, ..reading }.at(1 << 60), None);
        assert_eq!(ClockReading { tsc: 0, tsc_khz: 1, ..reading }.at(u64::MAX), None, "beyond all time");
    }
}
