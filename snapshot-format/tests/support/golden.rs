//! Golden bundles: bundles of released formats, kept small enough for the repository.
//!
//! A golden is a bundle whose `memory` is replaced by `memory.pages`: for each page that is not zero its offset (u64,
//! little-endian) and its 4096 bytes, in file order.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The memory of a golden.
const PAGES: &str = "memory.pages";
/// The memory of a bundle.
const MEMORY: &str = "memory";
const PAGE: usize = 4096;
const OFFSET: usize = size_of::<u64>();

/// Makes a golden of a bundle.
pub fn pack(bundle: &Path, golden: &Path) -> io::Result<()> {
    copy_all_but(bundle, golden, MEMORY)?;
    let mut pages = Vec::new();
    for (number, page) in (0u64..).zip(fs::read(bundle.join(MEMORY))?.chunks(PAGE)) {
        if page.iter().any(|byte| *byte != 0) {
            pages.extend_from_slice(&(number * PAGE as u64).to_le_bytes());
            pages.extend_from_slice(page);
        }
    }
    fs::write(golden.join(PAGES), pages)
}

/// Makes a bundle of a golden whose guest has `memory_len` bytes of memory.
pub fn unpack(golden: &Path, bundle: &Path, memory_len: u64) -> io::Result<()> {
    copy_all_but(golden, bundle, PAGES)?;
    let memory = File::create(bundle.join(MEMORY))?;
    memory.set_len(memory_len)?;
    for record in fs::read(golden.join(PAGES))?.chunks_exact(OFFSET + PAGE) {
        let (offset, page) = record.split_at(OFFSET);
        let offset = offset.try_into().map(u64::from_le_bytes).map_err(io::Error::other)?;
        memory.write_all_at(page, offset)?;
    }
    Ok(())
}

fn copy_all_but(from: &Path, to: &Path, left_out: &str) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        if name != left_out {
            fs::copy(from.join(&name), to.join(&name))?;
        }
    }
    Ok(())
}

/// Every golden, by path: `goldens/FORMAT/NAME/`.
pub fn all(goldens: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for format in fs::read_dir(goldens)? {
        let format = format?.path();
        if format.is_dir() {
            let entries = fs::read_dir(format)?.map(|entry| Ok(entry?.path()));
            found.extend(entries.collect::<io::Result<Vec<_>>>()?.into_iter().filter(|path| path.is_dir()));
        }
    }
    found.sort();
    Ok(found)
}
