//! Everything a manifest says, compared with what is possible.

use std::collections::BTreeSet;

use super::{
    CpuRequirements, Drive, FileEntry, FunctionContract, Interface, MachineShape, Manifest, ManifestError,
    brief, names,
};
use crate::index::{INDEX_MAX, MEMORY_MAX};
use crate::state::{FormatVersion, STATE_MAX};
use crate::zero::PAGE;

/// Least guest memory, bytes.
pub const MEMORY_MIN: u64 = 2 << 20;
/// Most vCPUs.
pub const VCPUS_MAX: u32 = 8;
/// Most drives: what is left of the interrupt lines once vsock and rng have theirs.
pub const DRIVES_MAX: usize = 17;
/// Most files of a bundle.
pub const FILES_MAX: usize = 64;
/// Longest kernel command line, bytes: the kernel's own `COMMAND_LINE_SIZE` less the final zero.
pub const COMMAND_LINE_MAX: usize = 2047;
/// Longest time limit, milliseconds: a week.
pub const TIMEOUT_MAX_MS: u64 = 7 * 24 * 3_600_000;
/// Longest file name, bytes.
const NAME_MAX: usize = 64;
/// Longest id of a drive, bytes.
const ID_MAX: usize = 16;
/// Longest text of one line (creator, vendor), bytes.
const LINE_MAX: usize = 64;

/// Whether `name` can be a file of a bundle: letters, digits, `.`, `_` and `-`, no dot in front, so that it never
/// leaves the directory and never hides in it.
pub fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty() && name.len() <= NAME_MAX && !name.starts_with('.') && name.bytes().all(plain)
}

/// Whether `id` can name a drive: `[a-z0-9-]{1,16}`.
pub fn is_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=ID_MAX).contains(&id.len()) && id.bytes().all(plain)
}

type Checked = Result<(), ManifestError>;

/// Refuses `field` with what `detail` says unless `fine`.
fn ensure(fine: bool, field: &'static str, detail: impl FnOnce() -> String) -> Checked {
    if fine { Ok(()) } else { Err(ManifestError::Value { field, detail: detail() }) }
}

impl Manifest {
    /// Compares everything the manifest says with what is possible.
    ///
    /// # Errors
    /// The first thing that is not.
    pub fn check(&self) -> Result<(), ManifestError> {
        self.version()?;
        ensure(is_line(&self.creator), "creator", || {
            format!("{:?} is no line of text", brief(&self.creator))
        })?;
        self.machine.check()?;
        self.cpu.check()?;
        self.function.check()?;
        self.check_files()?;
        self.check_drives()?;
        let digest = self.parent.as_ref().map(|parent| parent.manifest_sha256.as_str());
        ensure(digest.is_none_or(is_sha256), "parent.manifest_sha256", || {
            "it is not 64 lower-case hexadecimal digits".to_owned()
        })
    }

    /// The format of the bundle's files.
    ///
    /// # Errors
    /// Not a version, or none that this release reads.
    pub fn version(&self) -> Result<FormatVersion, ManifestError> {
        let version: FormatVersion = self.format.parse().map_err(|_| ManifestError::Value {
            field: "format",
            detail: format!("{:?} is no version", brief(&self.format)),
        })?;
        if FormatVersion::readable().contains(&version) {
            Ok(version)
        } else {
            Err(ManifestError::Version { version, creator: brief(&self.creator) })
        }
    }

    fn check_files(&self) -> Checked {
        ensure(self.files.len() <= FILES_MAX, "files", || {
            format!("{} files are more than the limit of {FILES_MAX}", self.files.len())
        })?;
        for (name, entry) in &self.files {
            entry.check(name)?;
        }
        let limits =
            [(names::STATE, STATE_MAX as u64), (names::INDEX, INDEX_MAX), (names::MEMORY, MEMORY_MAX)];
        for (name, limit) in limits {
            let entry = self.files.get(name);
            ensure(entry.is_some(), "files", || format!("{name} is missing"))?;
            ensure(entry.is_some_and(|entry| entry.len <= limit), "files", || {
                format!("{name} is longer than the limit of {limit} bytes")
            })?;
        }
        let memory = self.files.get(names::MEMORY).map_or(0, |entry| entry.len);
        ensure(memory == self.machine.memory_bytes, "files", || {
            format!("memory is {memory} bytes long, the machine has {}", self.machine.memory_bytes)
        })
    }

    fn check_drives(&self) -> Checked {
        ensure(self.drives.len() <= DRIVES_MAX, "drives", || {
            format!("{} drives are more than the limit of {DRIVES_MAX}", self.drives.len())
        })?;
        let (mut ids, mut files) = (BTreeSet::new(), BTreeSet::new());
        for drive in &self.drives {
            drive.check(self)?;
            ensure(ids.insert(&drive.id), "drives", || format!("{} is there twice", drive.id))?;
            ensure(files.insert(&drive.file), "drives", || format!("{} backs two of them", drive.file))?;
        }
        Ok(())
    }
}

impl MachineShape {
    fn check(&self) -> Checked {
        let fits = (MEMORY_MIN..=MEMORY_MAX).contains(&self.memory_bytes);
        ensure(fits && self.memory_bytes.is_multiple_of(PAGE as u64), "machine.memory_bytes", || {
            format!("{} is not a multiple of 4 KiB from 2 MiB to 8 GiB", self.memory_bytes)
        })?;
        ensure((1..=VCPUS_MAX).contains(&self.vcpus), "machine.vcpus", || {
            format!("{} is not from 1 to {VCPUS_MAX}", self.vcpus)
        })?;
        let line = &self.kernel_cmdline;
        ensure(line.len() <= COMMAND_LINE_MAX && !has_control(line), "machine.kernel_cmdline", || {
            format!("it is no line of at most {COMMAND_LINE_MAX} bytes")
        })
    }
}

impl CpuRequirements {
    fn check(&self) -> Checked {
        ensure(self.arch == "x86_64", "cpu.arch", || {
            format!(
                "{:?} is not x86_64; bake on a host of the architecture you restore on",
                brief(&self.arch)
            )
        })?;
        ensure(is_line(&self.vendor), "cpu.vendor", || {
            format!("{:?} is no line of text", brief(&self.vendor))
        })
    }
}

impl Drive {
    fn check(&self, manifest: &Manifest) -> Checked {
        ensure(is_id(&self.id), "drives", || {
            format!("{:?} is no id: 1 to 16 of a-z, 0-9 and -", brief(&self.id))
        })?;
        let fixed = [names::STATE, names::MEMORY, names::INDEX].contains(&self.file.as_str());
        ensure(!fixed && manifest.files.contains_key(&self.file), "drives", || {
            format!("{} is backed by {:?}, which is no image in files", self.id, brief(&self.file))
        })
    }
}

impl FileEntry {
    fn check(&self, name: &str) -> Checked {
        ensure(is_plain_name(name) && name != names::MANIFEST, "files", || {
            format!("{:?} is no plain file name", brief(name))
        })?;
        if name == names::MEMORY {
            return ensure(self.sha256.is_none(), "files", || {
                "memory has a digest; its index has them".to_owned()
            });
        }
        ensure(self.sha256.as_deref().is_some_and(is_sha256), "files", || {
            format!("the sha256 of {name} is not 64 lower-case hexadecimal digits")
        })
    }
}

impl FunctionContract {
    fn check(&self) -> Checked {
        ensure(self.interface == Interface::Port || !self.command.is_empty(), "function.command", || {
            "there is none to run".to_owned()
        })?;
        let texts = self.command.iter().chain([&self.workdir]).chain(&self.user).chain(self.env.values());
        ensure(texts.chain(self.env.keys()).all(|text| !text.contains('\0')), "function", || {
            "a text in it holds a NUL byte, which no process can be given".to_owned()
        })?;
        ensure(self.env.keys().all(|key| !key.is_empty() && !key.contains('=')), "function.env", || {
            "a name in it is empty or holds =".to_owned()
        })?;
        let limits = [self.ready_timeout_ms, self.event_timeout_ms];
        ensure(limits.iter().all(|limit| (1..=TIMEOUT_MAX_MS).contains(limit)), "function", || {
            "a time limit in it is not from 1 ms to a week".to_owned()
        })?;
        self.check_interface()
    }

    fn check_interface(&self) -> Checked {
        match self.interface {
            Interface::Http => {
                let http = self.http.as_ref();
                let fine = http.is_some_and(|http| http.port != 0 && http.ready_path.starts_with('/'));
                ensure(
                    fine && http.is_none_or(|http| !has_control(&http.ready_path)),
                    "function.http",
                    || "it does not say a port and a readiness path that begins with /".to_owned(),
                )
            }
            Interface::Lambda => {
                ensure(self.lambda.is_some(), "function.lambda", || "the handler is missing".to_owned())
            }
            Interface::Exec | Interface::Port => Ok(()),
        }
    }
}

fn is_sha256(digest: &str) -> bool {
    digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn is_line(text: &str) -> bool {
    text.len() <= LINE_MAX && !has_control(text)
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}
