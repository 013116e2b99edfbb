//! The `state` file: everything of a machine but its memory.
//!
//! A fixed little-endian header, a section table, then the sections' bytes, with no gap and nothing behind them.
//! Whether a file can be read is decided from header, table and CRCs alone, before a byte of a section is decoded.
//! Sections are encoded with versionize; `registry` is the one place that knows its versions.

mod header;
mod reader;
mod registry;
mod version;
mod writer;

pub(crate) use header::reseal;
pub use header::{Arch, Header, SectionEntry, Table};
pub use reader::{DecodeError, Reader};
pub use registry::{Section, SectionId, decode_any};
pub use version::{CURRENT, FormatVersion, ParseVersionError, V1_0, V1_1};
pub use writer::{EncodeError, Writer};

/// Longest `state` file, bytes: eight vCPUs with full XSAVE areas and MSR lists take a tenth of a MiB.
pub const STATE_MAX: usize = 16 << 20;
/// Most sections of one file.
pub const SECTIONS_MAX: usize = 256;
