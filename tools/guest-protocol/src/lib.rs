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
pub use to_guest::{EVENT_HEAD_LEN, EventHead, Restore, RestoreEntries, RestoreEntry, ToGuest};
pub use to_host::{AGENT_TEXT_MAX, Cause, Failure, Hello, Stream, TEXT_MAX, ToHost};

/// Port on the host (CID [`HOST_CID`]) that the agent's control stream connects to.
pub const CONTROL_PORT: u32 = 1024;
/// The host's vsock context id (virtio specification 1.2, section 5.10.4).
pub const HOST_CID: u32 = 2;
/// The newest version of the protocol, which this release's agent speaks.
pub const VERSION: u16 = 1;
/// Longest event, bytes.
pub const EVENT_MAX: u64 = 32 << 20;
/// Longest function contract, bytes of JSON.
pub const CONTRACT_MAX: usize = 256 << 10;
/// Length of a clone's generation, bytes.
pub const GENERATION_LEN: usize = 16;
/// Length of the entropy that a clone is given, bytes.
pub const ENTROPY_LEN: usize = 64;
