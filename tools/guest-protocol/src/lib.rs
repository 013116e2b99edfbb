//! The frames that the host and the guest agent exchange (docs/guest-protocol.md): encoding, and decoding of whatever the
//! other side sends. Sans IO, and without an allocation on the agent's side.
//!
//! Both sides take the other for hostile: a length is checked before it is used, memory is only ever taken for bytes that
//! have arrived, and a frame with a byte too many is as wrong as one with a byte too few.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod chunked;
mod fields;
mod frame;
mod to_guest;
mod to_host;

pub use chunked::{Chunked, ChunkedError};
pub use fields::PayloadError;
pub use frame::{Decoder, FRAME_MAX, FrameError, HEADER_LEN, PAYLOAD_MAX, Raw, Sink, header, split};
pub use to_guest::{ClockReading, EVENT_HEAD_LEN, EventHead, Restore, RestoreEntries, RestoreEntry, ToGuest};
pub use to_host::{AGENT_TEXT_MAX, Cause, Failure, Hello, Stream, TEXT_MAX, ToHost};

/// Port on the host (CID [`HOST_CID`]) that the agent's control stream connects to.
pub const CONTROL_PORT: u32 = 1024;
/// The host's vsock context id (virtio specification 1.2, section 5.10.4).
pub const HOST_CID: u32 = 2;
/// The newest version of the protocol, which this release's agent speaks.
pub const VERSION: u16 = 2;
/// Longest event, bytes.
pub const EVENT_MAX: u64 = 32 << 20;
/// Longest function contract, bytes of JSON.
pub const CONTRACT_MAX: usize = 256 << 10;
/// Length of a clone's generation, bytes.
pub const GENERATION_LEN: usize = 16;
/// Length of the entropy that a clone is given, bytes.
pub const ENTROPY_LEN: usize = 64;
/// Length of a machine id (machine-id(5)), bytes.
pub const MACHINE_ID_LEN: usize = 16;
/// Longest host name, bytes (HOST_NAME_MAX of Linux).
pub const HOST_NAME_MAX: usize = 64;
/// How long a clone may take to become unique, hooks included: the agent gives up then, the host a little later.
pub const UNIQUE_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// Whether `name` can be a host name: letters, digits, `-` and `.`, with a letter or digit at both ends (hostname(7)).
pub fn is_host_name(name: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.".contains(byte);
    name.len() <= HOST_NAME_MAX && bytes.iter().all(plain) && ends(bytes.first()) && ends(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_plain_and_short() {
        for good in ["a", "clone-0a1b2c3d", "A.b.9", &"x".repeat(64)] {
            assert!(is_host_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", ".", "a b", "a\n", "\u{e4}", "a/b", "a_b", &"x".repeat(65)] {
            assert!(!is_host_name(bad), "{bad}");
        }
    }
}
