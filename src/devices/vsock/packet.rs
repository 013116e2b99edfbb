//! A vsock packet's header (virtio 1.2, 5.10.6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `struct virtio_vsock_hdr`.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub src_cid: U64,
    pub dst_cid: U64,
    pub src_port: U32,
    pub dst_port: U32,
    pub len: U32,
    pub kind: U16,
    pub op: U16,
    pub flags: U32,
    pub buf_alloc: U32,
    pub fwd_cnt: U32,
}

/// Length of a header, bytes.
pub(super) const HEADER_LEN: usize = size_of::<Header>();
const _: () = assert!(HEADER_LEN == 44);

/// VIRTIO_VSOCK_TYPE_STREAM.
pub(super) const STREAM: u16 = 1;

/// Operations: VIRTIO_VSOCK_OP_*.
pub(super) mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE and _SEND: the peer takes and sends no more.
pub(super) const SHUTDOWN_BOTH: u32 = 3;
