//! What a source may ask for. Far above anything sensible, far below what would bring a host down.

/// Entries of all layers together; also of a directory tree.
pub const ENTRIES: usize = 1_000_000;
/// Unpacked bytes of all layers together, and content of a tree.
pub const CONTENT: u64 = 32 << 30;
/// Length of one name in a path (ext4's own limit).
pub const NAME: usize = 255;
/// Length of a path or of a symlink's target (PATH_MAX without its NUL).
pub const PATH: usize = 4095;
/// Directories in directories.
pub const DEPTH: usize = 256;
/// Symlinks followed on the way to one entry, as in Linux.
pub const SYMLINKS: usize = 40;
/// Length of a PAX header.
pub const PAX: u64 = 1 << 20;
/// Length of an index, manifest or configuration.
pub const DOCUMENT: u64 = 4 << 20;
/// Layers of an image.
pub const LAYERS: usize = 1024;
/// Indexes within indexes.
pub const INDEXES: usize = 4;
/// Files in an archive of an image.
pub const ARCHIVE_ENTRIES: usize = 16_384;
