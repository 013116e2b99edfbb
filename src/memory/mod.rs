//! Guest memory: addresses, layout, mapping.
//!
//! This room knows neither KVM nor bundles nor devices: it gets open files and ranges.

// UNSAFE: mapping files and asking for residency are contracts with the kernel that the compiler cannot see.
#![allow(unsafe_code)]

mod ahead;
mod collapse;
pub mod layout;
mod mapping;
mod place;
mod prefetch;
mod program;
mod source;
mod uffd;

pub use ahead::{GuestTables, MappedAhead, map_ahead};
pub use collapse::{make_huge, tmpfs_has_huge_pages};
pub use mapping::{
    MapError, addresses, anonymous, copy_on_write, copy_on_write_over, expect_to_be_filled, own_pages,
    visit_content,
};
pub use prefetch::{
    Expected, Late, Prefetched, bytes_of, copy_written, fillable, read_ahead, unchanged_pages, within,
};
pub use program::Program;
pub use source::{ChunkError, ChunkSource, chunks_around};
pub use uffd::{
    Door, OnFailure, OnStart, PagedError, Pager, PagerError, PagerStatistics, RecordError, Recorder, Touch,
    UffdError, lazy_paging, paged, recorded,
};
pub use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

/// All of a guest's RAM, cheap to clone (regions are shared).
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
