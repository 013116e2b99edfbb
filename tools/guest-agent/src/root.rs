//! The root that the function sees: the read-only drive under a layer of memory.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};

/// How long the root's drive may take to appear once its driver is there.
const APPEARS: Duration = Duration::from_secs(10);
/// Where the drive is mounted, before the function's root lies over it.
const LOWER: &str = "/lower";
/// The layer of memory.
const LAYER: &str = "/layer";
/// The function's root, before it becomes everybody's.
const NEW: &str = "/new";
/// File systems that a root drive may have, and how each is mounted: ext4 from a device that cannot be written must not
/// replay its journal.
const FILE_SYSTEMS: [(&str, &CStr); 3] = [("ext4", c""), ("ext4", c"noload"), ("erofs", c"")];

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error(
        "No drive appeared as {0}; does the kernel have virtio_mmio and virtio_blk, as modules or built in?"
    )]
    NoDrive(&'static str),
    #[error("The drive {0} holds neither ext4 nor erofs")]
    NoFileSystem(String, #[source] Errno),
    #[error(
        "The guest kernel has no overlay file system, without which the root cannot be written to: \
         give Ember a kernel with overlay.ko, or with CONFIG_OVERLAY_FS built in"
    )]
    NoOverlay,
    #[error("Cannot mount {what} at {at}")]
    Mount { what: &'static str, at: String, source: Errno },
    #[error("Cannot make {0}")]
    Make(String, #[source] io::Error),
    #[error("Cannot enter the new root")]
    Enter(#[source] io::Error),
}

/// Mounts `what` at `at`, which is made if it is not there.
pub fn mount_at(what: &'static str, at: &str, flags: MountFlags, options: &CStr) -> Result<(), RootError> {
    make_dir(at)?;
    mount(what, at, what, flags, options).map_err(|source| RootError::Mount {
        what,
        at: at.to_owned(),
        source,
    })
}

fn make_dir(at: &str) -> Result<(), RootError> {
    fs::create_dir_all(at).map_err(|error| RootError::Make(at.to_owned(), error))
}

/// Builds the root from `drive` and makes it everybody's `/`. What is mounted at /proc, /sys and /dev moves into it.
///
/// # Errors
/// See [`RootError`].
pub fn enter(drive: &'static str) -> Result<(), RootError> {
    if !appears(drive) {
        return Err(RootError::NoDrive(drive));
    }
    make_dir(LOWER)?;
    mount_drive(drive, LOWER, MountFlags::RDONLY)?;
    mount_at("tmpfs", LAYER, MountFlags::empty(), c"mode=0755")?;
    overlay()?;
    for at in ["/proc", "/sys", "/dev"] {
        let to = format!("{NEW}{at}");
        make_dir(&to)?;
        mount_move(at, &to).map_err(|source| RootError::Mount {
            what: "a moved file system",
            at: to,
            source,
        })?;
    }
    furnish()?;
    switch().map_err(RootError::Enter)
}

fn appears(drive: &str) -> bool {
    let end = Instant::now() + APPEARS;
    while !Path::new(drive).exists() {
        if Instant::now() >= end {
            return false;
        }
        sleep(Duration::from_millis(1));
    }
    true
}

fn mount_drive(drive: &str, at: &str, flags: MountFlags) -> Result<(), RootError> {
    let mut first = None;
    for (kind, options) in FILE_SYSTEMS {
        match mount(drive, at, kind, flags, options) {
            Ok(()) => return Ok(()),
            Err(error) => first.get_or_insert(error),
        };
    }
    Err(RootError::NoFileSystem(drive.to_owned(), first.unwrap_or(Errno::NODEV)))
}

fn overlay() -> Result<(), RootError> {
    let (upper, work) = (format!("{LAYER}/upper"), format!("{LAYER}/work"));
    make_dir(&upper)?;
    make_dir(&work)?;
    make_dir(NEW)?;
    let options =
        CString::new(format!("lowerdir={LOWER},upperdir={upper},workdir={work}")).unwrap_or_default();
    match mount("overlay", NEW, "overlay", MountFlags::empty(), options.as_c_str()) {
        Ok(()) => Ok(()),
        Err(Errno::NODEV) => Err(RootError::NoOverlay),
        Err(source) => Err(RootError::Mount { what: "overlay", at: NEW.to_owned(), source }),
    }
}

/// What programs expect besides their files.
fn furnish() -> Result<(), RootError> {
    let strict = MountFlags::NOSUID | MountFlags::NODEV;
    let inside = |at: &str| format!("{NEW}{at}");
    mount_at(
        "devpts",
        &inside("/dev/pts"),
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=0620,ptmxmode=0666",
    )?;
    mount_at("tmpfs", &inside("/dev/shm"), strict, c"mode=1777")?;
    mount_at("tmpfs", &inside("/tmp"), strict, c"mode=1777")?;
    mount_at("tmpfs", &inside("/run"), strict, c"mode=0755")?;
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let link = inside(link);
        match symlink(target, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(RootError::Make(link, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// As switch_root(8): the initramfs cannot be pivoted away from, but another root can be moved over it.
fn switch() -> io::Result<()> {
    rustix::process::chdir(NEW)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Mounts every other drive that has a name and a file system at /mnt/NAME; tells of those that have none.
///
/// # Errors
/// A mount point cannot be made.
pub fn mount_others(root: &str) -> Result<(), RootError> {
    for letter in 'a'..='z' {
        let drive = format!("/dev/vd{letter}");
        let serial = format!("/sys/block/vd{letter}/serial");
        let Some(name) = fs::read_to_string(serial).ok().filter(|_| drive != root).and_then(valid_name)
        else {
            continue;
        };
        let at = format!("/mnt/{name}");
        make_dir(&at)?;
        let mounted = mount_drive(&drive, &at, MountFlags::NOSUID | MountFlags::NODEV).or_else(|_| {
            mount_drive(&drive, &at, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RDONLY)
        });
        if let Err(error) = mounted {
            eprintln!("ember-agent: the drive {name} is {drive} and not mounted: {error}");
        }
    }
    Ok(())
}

/// The id of a drive, which the block device reports as its serial number (virtio specification 1.2, section 5.2.6).
fn valid_name(serial: String) -> Option<String> {
    let name = serial.trim();
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    ((1..=16).contains(&name.len()) && name.bytes().all(allowed)).then(|| name.to_owned())
}

/// Makes a directory that only its owner may write to.
pub fn make_private_dir(at: &str) -> io::Result<()> {
    match rustix::fs::mkdir(at, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_id_of_a_drive_becomes_a_path() {
        assert_eq!(valid_name("data-1\n".into()), Some("data-1".into()));
        for bad in ["", "../etc", "A", "a/b", "abcdefghijklmnopq"] {
            assert_eq!(valid_name(bad.into()), None, "{bad}");
        }
    }
}
