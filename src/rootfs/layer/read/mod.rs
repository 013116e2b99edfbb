//! Reads a layer's tar archive into changes; contents go to the spool.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{Archive, Entry, Header};

use super::pax::records;
use super::{Change, LayerError, What};
use crate::rootfs::limits;
use crate::rootfs::spool::Spool;
use crate::rootfs::tree::{Content, Kind, Metadata, Time, text};

/// Names that begin so are not files but say that one is gone.
const WHITEOUT: &[u8] = b".wh.";
/// The whole directory is gone.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Book-keeping of the file system that whiteouts come from.
const AUFS: &[u8] = b".wh..wh.";
/// Prefix of extended attributes in PAX headers.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// Prefix of sparse files in PAX headers.
const SPARSE: &[u8] = b"GNU.sparse.";

/// Reads every entry. `entries_left` is counted down over all layers of an image.
///
/// # Errors
/// The archive is damaged, too large, or has entries of an unknown type.
pub fn read(
    from: &mut dyn Read,
    spool: &mut Spool,
    entries_left: &mut usize,
) -> Result<Vec<Change>, LayerError> {
    let mut changes = Vec::new();
    let mut next = Next::default();
    let at_content_end = Cell::new(false);
    let mut archive = Archive::new(WholeBlocks { from, filled: 0, at_content_end: &at_content_end });
    // Raw: long names and PAX headers come as entries of their own, whose length can be bounded.
    for entry in archive.entries().map_err(LayerError::Read)?.raw(true) {
        let mut entry = entry.map_err(LayerError::Read)?;
        at_content_end.set(false);
        *entries_left = entries_left.checked_sub(1).ok_or(LayerError::TooLarge)?;
        if next.take(&mut entry)? {
            continue;
        }
        if let Some(change) = change(&mut entry, std::mem::take(&mut next), spool)? {
            changes.push(change);
        }
        at_content_end.set(true);
    }
    Ok(changes)
}

/// Fills the last block of an archive that ends with the last byte of a file, as `umoci insert` leaves it. One that ends within a
/// file is cut off.
struct WholeBlocks<'a> {
    from: &'a mut dyn Read,
    /// Bytes of the last block that were read.
    filled: usize,
    at_content_end: &'a Cell<bool>,
}

impl Read for WholeBlocks<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        const BLOCK: usize = 512;
        let mut read = self.from.read(to)?;
        if read == 0 && self.at_content_end.get() && self.filled > 0 {
            read = to.len().min(BLOCK - self.filled);
            to[..read].fill(0);
        }
        self.filled = (self.filled + read) % BLOCK;
        Ok(read)
    }
}

/// What entries without a file of their own say about the next one.
#[derive(Debug, Default)]
struct Next {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Time>,
    size: Option<u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse: bool,
}

impl Next {
    /// True when the entry was about the next one.
    fn take(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<bool, LayerError> {
        match entry.header().entry_type().as_byte() {
            b'L' => self.path = Some(long_name(entry)?),
            b'K' => self.link = Some(long_name(entry)?),
            b'x' => self.pax(&bounded(entry)?)?,
            // A global header holds a comment in practice (git archive); its length counts all the same.
            b'g' => drop(bounded(entry)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn pax(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        let damaged = || LayerError::Entry { path: "PAX header".into(), what: "record" };
        for (key, value) in records(bytes).ok_or_else(damaged)? {
            let number = || std::str::from_utf8(value).ok().ok_or_else(damaged);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"uid" => self.uid = Some(number()?.parse().map_err(|_| damaged())?),
                b"gid" => self.gid = Some(number()?.parse().map_err(|_| damaged())?),
                b"size" => self.size = Some(number()?.parse().map_err(|_| damaged())?),
                b"mtime" => self.mtime = Some(time(number()?).ok_or_else(damaged)?),
                _ if key.starts_with(SPARSE) => self.sparse = true,
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        self.xattrs.insert(name.to_vec(), value.to_vec());
                    }
                }
            }
        }
        Ok(())
    }
}

fn bounded(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, LayerError> {
    if entry.size() > limits::PAX {
        return Err(LayerError::TooLarge);
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(LayerError::Read)?;
    Ok(bytes)
}

/// GNU's long names end with a NUL.
fn long_name(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, LayerError> {
    let bytes = bounded(entry)?;
    Ok(bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec())
}

/// Seconds with an optional fraction, of which nine digits count.
fn time(value: &str) -> Option<Time> {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    match (whole.starts_with('-'), nanoseconds) {
        // A negative time with a fraction counts down from its whole seconds.
        (true, 1..) => {
            Some(Time { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds })
        }
        _ => Some(Time { seconds, nanoseconds }),
    }
}

fn change(
    entry: &mut Entry<'_, impl Read>,
    next: Next,
    spool: &mut Spool,
) -> Result<Option<Change>, LayerError> {
    let path = next.path.clone().unwrap_or_else(|| entry.path_bytes().into_owned());
    if path.len() > limits::PATH {
        return Err(LayerError::Entry { path: text(path.get(..64).unwrap_or_default()), what: "name" });
    }
    let (dir, name) = last_name(&path);
    if name == OPAQUE {
        return Ok(Some(Change { path: dir.to_vec(), what: What::Clear }));
    }
    if name.starts_with(AUFS) {
        return Ok(None);
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(LayerError::Entry { path: text(&path), what: "whiteout" });
        }
        return Ok(Some(Change { path: [dir, b"/", hidden].concat(), what: What::Remove }));
    }
    let what = what(entry, &path, next, spool)?;
    Ok(Some(Change { path, what }))
}

/// A path's directory and last name, whatever slashes it ends with.
fn last_name(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let trimmed = &path[..end];
    let start = trimmed.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    (&trimmed[..start], &trimmed[start..])
}

fn what(
    entry: &mut Entry<'_, impl Read>,
    path: &[u8],
    next: Next,
    spool: &mut Spool,
) -> Result<What, LayerError> {
    let damaged = |what| LayerError::Entry { path: text(path), what };
    let header = entry.header().clone();
    let flag = header.entry_type().as_byte();
    if next.sparse || next.size.is_some_and(|size| size != entry.size()) {
        return Err(damaged("size (sparse files and files over 8 GiB are not supported)"));
    }
    let target = || {
        let link = next.link.clone().or_else(|| entry.link_name_bytes().map(|name| name.into_owned()));
        link.filter(|target| (1..=limits::PATH).contains(&target.len())).ok_or_else(|| damaged("link target"))
    };
    let kind = match flag {
        b'1' => return Ok(What::Link(target()?)),
        b'2' => Kind::Symlink(target()?),
        b'3' | b'4' => device(&header, flag == b'4').ok_or_else(|| damaged("device number"))?,
        b'5' => Kind::Directory(BTreeMap::new()),
        b'6' => Kind::Fifo,
        // Before POSIX a directory was a file whose name ends with a slash.
        0 | b'0' if path.ends_with(b"/") => Kind::Directory(BTreeMap::new()),
        0 | b'0' | b'7' => Kind::File(content(entry, spool)?),
        _ => return Err(LayerError::Type { path: text(path), kind: char::from(flag) }),
    };
    let meta = metadata(&header, next).ok_or_else(|| damaged("owner, mode or time"))?;
    Ok(What::Put(meta, kind))
}

fn content(entry: &mut Entry<'_, impl Read>, spool: &mut Spool) -> Result<Content, LayerError> {
    let expected = entry.size();
    let content = spool.append(entry)?;
    if content.bytes() != expected {
        return Err(LayerError::Read(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(content)
}

fn device(header: &Header, block: bool) -> Option<Kind> {
    // What Linux can have: 12 and 20 bits.
    let major = header.device_major().ok()?.filter(|major| *major < 1 << 12)?;
    let minor = header.device_minor().ok()?.filter(|minor| *minor < 1 << 20)?;
    Some(Kind::Device { block, major, minor })
}

fn metadata(header: &Header, next: Next) -> Option<Metadata> {
    let owner = |given: Option<u32>, field: io::Result<u64>| match given {
        Some(id) => Some(id),
        None => u32::try_from(field.ok()?).ok(),
    };
    let mtime = match next.mtime {
        Some(time) => time,
        None => Time { seconds: i64::try_from(header.mtime().ok()?).ok()?, nanoseconds: 0 },
    };
    Some(Metadata {
        mode: (header.mode().ok()? & 0o7777) as u16,
        uid: owner(next.uid, header.uid())?,
        gid: owner(next.gid, header.gid())?,
        mtime,
        xattrs: next.xattrs,
    })
}

#[cfg(test)]
mod tests;
