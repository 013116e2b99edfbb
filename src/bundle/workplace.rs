//! Where a bundle is written until it is whole: a locked directory beside the target.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::RenameFlags;
use rustix::io::Errno;
use snapshot_format::manifest::names;

use super::directory::Directory;
use super::draft::DraftError;

/// Names tried for the directory before giving up.
const TRIES: u32 = 1000;

/// A directory `.NAME.tmp-PID-N` beside the target. Its lock tells a living writer from a dead one; dropping it before
/// it is published removes it.
#[derive(Debug)]
pub(super) struct Workplace {
    parent: Directory,
    target: PathBuf,
    target_name: OsString,
    name: OsString,
    directory: Directory,
    unfinished: bool,
}

impl Workplace {
    /// Makes the directory, once those of dead writers to the same target are removed.
    pub fn make(target: &Path, force: bool) -> Result<Self, DraftError> {
        let target_name =
            target.file_name().ok_or(DraftError::Target { path: target.to_owned() })?.to_owned();
        let beside = target.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let unusable = |source| DraftError::Directory { path: beside.to_owned(), source };
        let parent = Directory::open(beside).map_err(unusable)?;
        check_target(&parent, target, &target_name, force)?;
        let mut prefix = OsString::from(".");
        prefix.push(&target_name);
        prefix.push(".tmp-");
        sweep(&parent, &prefix).map_err(unusable)?;
        let (name, directory) = make_locked(&parent, &prefix).map_err(unusable)?;
        Ok(Workplace { parent, target: target.to_owned(), target_name, name, directory, unfinished: true })
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.target.with_file_name(&self.name)
    }

    /// The directory to write in.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// A second handle on it, for reading.
    pub fn reopen(&self) -> io::Result<Directory> {
        self.parent.open_inside(&self.name)
    }

    /// Where the bundle will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Syncs the directory and gives it its name. Gives the path of the bundle that was replaced when that could not be
    /// removed.
    pub fn publish(mut self, force: bool) -> Result<Option<PathBuf>, DraftError> {
        let path = self.target.clone();
        let failed = |source: io::Error| DraftError::Publish { path: path.clone(), source };
        self.directory.sync().map_err(failed)?;
        let replaced = self.rename(force)?;
        self.unfinished = false;
        self.parent.sync().map_err(failed)?;
        Ok((replaced && self.parent.remove_flat(&self.name).is_err())
            .then(|| self.target.with_file_name(&self.name)))
    }

    /// True when a bundle was there, which then has the temporary name.
    fn rename(&self, force: bool) -> Result<bool, DraftError> {
        let (from, to, path) = (&self.name, &self.target_name, &self.target);
        let failed = |e: Errno| DraftError::Publish { path: path.clone(), source: e.into() };
        match self.parent.rename(from, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(false),
            Err(Errno::EXIST) => {}
            // A file system that knows no flags; a directory never replaces one that is not empty.
            Err(Errno::INVAL) if !force => {
                check_target(&self.parent, path, to, false)?;
                return self.parent.rename(from, to, RenameFlags::empty()).map(|()| false).map_err(failed);
            }
            Err(e) => return Err(failed(e)),
        }
        // It may have come while we were writing.
        check_target(&self.parent, path, to, force)?;
        match self.parent.rename(from, to, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL) => Err(DraftError::NoExchange { path: path.clone() }),
            Err(e) => Err(failed(e)),
        }
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // One that cannot be removed now is removed as a dead writer's by the next bake.
        if self.unfinished && self.parent.remove_flat(&self.name).is_ok() {
            self.unfinished = false;
        }
    }
}

/// Refuses a target that exists, unless it is a bundle that may be replaced.
fn check_target(parent: &Directory, path: &Path, name: &OsStr, force: bool) -> Result<(), DraftError> {
    let unusable = |source| DraftError::Directory { path: path.to_owned(), source };
    if !parent.has(name).map_err(unusable)? {
        return Ok(());
    }
    if !force {
        return Err(DraftError::Exists { path: path.to_owned() });
    }
    // Nothing but a bundle is ever replaced: a mistyped target must not cost a home directory.
    let foreign = || DraftError::Foreign { path: path.to_owned() };
    let there = parent.open_inside(name).map_err(|_| foreign())?;
    if there.has(OsStr::new(names::MANIFEST)).map_err(unusable)?
        || there.names().map_err(unusable)?.is_empty()
    {
        Ok(())
    } else {
        Err(foreign())
    }
}

/// Removes what writers left that no longer live.
fn sweep(parent: &Directory, prefix: &OsStr) -> io::Result<()> {
    for name in parent.names()? {
        if !name.as_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        // Whatever goes wrong with somebody's leftovers, it does not stop this bake.
        let abandoned = parent.open_inside(&name).is_ok_and(|left| left.try_lock().unwrap_or(false));
        if abandoned && parent.remove_flat(&name).is_err() {
            continue;
        }
    }
    Ok(())
}

fn make_locked(parent: &Directory, prefix: &OsStr) -> io::Result<(OsString, Directory)> {
    for number in 0..TRIES {
        let mut name = prefix.to_owned();
        name.push(format!("{}-{number}", std::process::id()));
        match parent.make(&name) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        }
        // Between making and locking it another bake may take it for a dead writer's and remove it.
        if let Ok(directory) = parent.open_inside(&name)
            && directory.try_lock()?
            && directory.is_called(parent, &name)?
        {
            return Ok((name, directory));
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
