//! Finds kernel modules and what they depend on, in the order in which they must be loaded.
//!
//! Dependencies come from the modules themselves (`depends=` in .modinfo), not from modules.dep: depmod writes that file
//! when a kernel package is installed, and ours is only unpacked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::boot::elf::sections;
use crate::boot::unpack::{UnpackError, unpack};

/// Why modules could not be collected.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// No modules of this kernel at all.
    #[error("No modules of kernel {release} are under {}; give the lib/modules directory that came with the kernel", dir.display())]
    NoDirectory {
        /// The kernel.
        release: String,
        /// Where they were looked for.
        dir: PathBuf,
    },
    /// One is missing.
    #[error("Kernel {release} has no module {name}, neither built in nor under {}", dir.display())]
    Missing {
        /// The module.
        name: String,
        /// The kernel.
        release: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// A file or directory could not be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A packed module is damaged.
    #[error("Cannot unpack the module {}", path.display())]
    Unpack {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: UnpackError,
    },
    /// A module without the information modules have, or of another kernel.
    #[error("{} is no module of kernel {release} but of {found:?}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The kernel.
        release: String,
        /// What the module says it belongs to.
        found: String,
    },
    /// More than any kernel has.
    #[error("{} holds more than {FILES_MAX} files, nests them too deep, or has a file that is too long", path.display())]
    TooMuch {
        /// The file or directory.
        path: PathBuf,
    },
}

/// A module, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// With underscores, as the kernel calls it.
    pub name: String,
    /// The ELF file.
    pub bytes: Vec<u8>,
}

/// Files under a modules directory; Debian's cloud kernel has about 1300.
const FILES_MAX: usize = 100_000;
/// Depth of directories.
const DEPTH_MAX: usize = 16;
/// Longest module, packed or unpacked, bytes.
const MODULE_MAX: u64 = 64 << 20;

/// Collects `wanted` and everything they depend on; what is built into the kernel is left out.
///
/// # Errors
/// See [`ModuleError`].
pub fn collect(dir: &Path, release: &str, wanted: &[&str]) -> Result<Vec<Module>, ModuleError> {
    let dir = directory(dir, release)?;
    let mut files = BTreeMap::new();
    index(&dir.join("kernel"), DEPTH_MAX, &mut files)?;
    let builtin = builtin(&dir.join("modules.builtin"))?;
    let mut collector =
        Collector { dir: &dir, release, files, builtin, seen: BTreeSet::new(), modules: Vec::new() };
    for name in wanted {
        collector.add(name)?;
    }
    Ok(collector.modules)
}

fn directory(dir: &Path, release: &str) -> Result<PathBuf, ModuleError> {
    [dir.join(release), dir.to_path_buf()]
        .into_iter()
        .find(|candidate| candidate.join("kernel").is_dir())
        .ok_or_else(|| ModuleError::NoDirectory { release: release.into(), dir: dir.into() })
}

struct Collector<'a> {
    dir: &'a Path,
    release: &'a str,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    seen: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Collector<'_> {
    /// Depth first; a module that is being looked at counts as seen, so that a circle ends.
    fn add(&mut self, name: &str) -> Result<(), ModuleError> {
        let name = name.replace('-', "_");
        if self.builtin.contains(&name) || !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let path = self.files.get(&name).ok_or_else(|| ModuleError::Missing {
            name: name.clone(),
            release: self.release.into(),
            dir: self.dir.into(),
        })?;
        let bytes = module(path)?;
        let info = sections::find(&bytes, ".modinfo").unwrap_or_default();
        let found = field(info, "vermagic=").and_then(|magic| magic.split(' ').next()).unwrap_or_default();
        if found != self.release {
            let (path, release) = (path.clone(), self.release.into());
            return Err(ModuleError::Foreign { path, release, found: found.into() });
        }
        let depends = field(info, "depends=").unwrap_or_default().to_owned();
        for dependency in depends.split(',').filter(|name| !name.is_empty()) {
            self.add(dependency)?;
        }
        self.modules.push(Module { name, bytes: unsigned(bytes) });
        Ok(())
    }
}

/// Cuts a signature off (linux/include/linux/module_signature.h): magic at the end, before it a record that ends with the
/// signature's length.
///
/// The guest would check it against a key in its own kernel, which tells nothing about files the host gave it both, and
/// takes a generic RSA and SHA-256 for it: 300 of the first 1060 ms of a boot. The kernel marks itself as tainted (E).
fn unsigned(mut bytes: Vec<u8>) -> Vec<u8> {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    const RECORD: usize = 12;
    let signature = bytes.strip_suffix(MAGIC).and_then(|rest| {
        let (rest, len) = rest.split_last_chunk::<4>()?;
        rest.len().checked_sub(RECORD - len.len() + u32::from_be_bytes(*len) as usize)
    });
    bytes.truncate(signature.unwrap_or(bytes.len()));
    bytes
}

/// The value of a field of .modinfo, which holds NUL-terminated `key=value` strings.
fn field<'a>(info: &'a [u8], key: &str) -> Option<&'a str> {
    let found = info.split(|byte| *byte == 0).find_map(|line| line.strip_prefix(key.as_bytes()))?;
    std::str::from_utf8(found).ok()
}

fn module(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let bytes = read(path)?;
    if bytes.starts_with(b"\x7fELF") {
        return Ok(bytes);
    }
    unpack(&bytes, MODULE_MAX).map_err(|source| ModuleError::Unpack { path: path.into(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MODULE_MAX + 1).read_to_end(&mut bytes))
        .map_err(|source| ModuleError::Read { path: path.into(), source })?;
    if bytes.len() as u64 > MODULE_MAX {
        return Err(ModuleError::TooMuch { path: path.into() });
    }
    Ok(bytes)
}

/// Names of what is built in: lines such as `kernel/fs/ext4/ext4.ko`. A kernel without the list has everything as files.
fn builtin(path: &Path) -> Result<BTreeSet<String>, ModuleError> {
    if !path.exists() {
        return Ok(BTreeSet::new());
    }
    let list = String::from_utf8_lossy(&read(path)?).into_owned();
    Ok(list.lines().filter_map(|line| name_of(line.rsplit('/').next()?)).collect())
}

/// The module's name in a file name, `virtio-rng.ko.xz`.
fn name_of(file: &str) -> Option<String> {
    let (name, packed) = file.split_once(".ko")?;
    matches!(packed, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

fn index(dir: &Path, depth: usize, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ModuleError> {
    let failed = |source| ModuleError::Read { path: dir.into(), source };
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if depth == 0 || files.len() > FILES_MAX {
            return Err(ModuleError::TooMuch { path });
        }
        if entry.file_type().map_err(failed)?.is_dir() {
            index(&path, depth - 1, files)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(name_of) {
            files.insert(name, path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::cpio::tests::parse;
    use super::*;

    const RELEASE: &str = "6.1.2-test";

    /// A relocatable ELF file with a .modinfo section.
    fn module_file(release: &str, depends: &str) -> Vec<u8> {
        let info = format!("license=GPL\0depends={depends}\0vermagic={release} SMP mod_unload \0");
        let names = b"\0.modinfo\0.shstrtab\0";
        let info_at = 64u64;
        let names_at = info_at + info.len() as u64;
        let table = names_at + names.len() as u64;
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(40, 0);
        bytes.extend(table.to_le_bytes());
        bytes.extend([0; 10]);
        bytes.extend([64, 0, 3, 0, 2, 0]);
        bytes.extend(info.bytes());
        bytes.extend(names);
        for (name, at, len) in [(0u32, 0, 0), (1, info_at, info.len()), (10, names_at, names.len())] {
            bytes.extend(name.to_le_bytes());
            bytes.extend([0; 20]);
            bytes.extend(at.to_le_bytes());
            bytes.extend((len as u64).to_le_bytes());
            bytes.extend([0; 24]);
        }
        bytes
    }

    fn tree(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join(RELEASE).join("kernel/drivers");
        fs::create_dir_all(&kernel).unwrap();
        for (name, depends) in modules {
            fs::write(kernel.join(name), module_file(RELEASE, depends)).unwrap();
        }
        fs::write(
            dir.path().join(RELEASE).join("modules.builtin"),
            "kernel/fs/ext4/ext4.ko\nkernel/v/virtio-ring.ko\n",
        )
        .unwrap();
        dir
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = tree(&[
            ("top.ko", "mid-a,mid_b"),
            ("mid-a.ko", "base,virtio_ring"),
            ("mid-b.ko", "base"),
            ("base.ko", ""),
            ("other.ko", "base"),
        ]);
        let modules = collect(dir.path(), RELEASE, &["top", "other", "ext4"]).unwrap();
        assert_eq!(names(&modules), ["base", "mid_a", "mid_b", "top", "other"]);
        let again = collect(&dir.path().join(RELEASE), RELEASE, &["top", "other", "ext4"]).unwrap();
        assert_eq!(modules, again);
    }

    #[test]
    fn packed_modules_are_unpacked() {
        let dir = tree(&[("plain.ko", "")]);
        let packed = zstd::encode_all(module_file(RELEASE, "plain").as_slice(), 1).unwrap();
        fs::write(dir.path().join(RELEASE).join("kernel/packed.ko.zst"), packed).unwrap();
        let modules = collect(dir.path(), RELEASE, &["packed"]).unwrap();
        assert_eq!(names(&modules), ["plain", "packed"]);
        assert!(modules[1].bytes.starts_with(b"\x7fELF"));
    }

    #[test]
    fn signatures_are_cut_off_and_nothing_else() {
        let plain = module_file(RELEASE, "");
        let trailer =
            [&[7; 300][..], &[0; 8], &300u32.to_be_bytes(), b"~Module signature appended~\n"].concat();
        assert_eq!(unsigned([plain.clone(), trailer.clone()].concat()), plain);
        assert_eq!(unsigned(plain.clone()), plain);
        // A length that reaches beyond the file is none.
        assert_eq!(unsigned(trailer[200..].to_vec()), trailer[200..]);
    }

    #[test]
    fn a_circle_of_dependencies_ends() {
        let dir = tree(&[("a.ko", "b"), ("b.ko", "a")]);
        assert_eq!(names(&collect(dir.path(), RELEASE, &["a"]).unwrap()), ["b", "a"]);
    }

    #[test]
    fn missing_and_foreign_modules_are_named() {
        let dir = tree(&[("a.ko", "gone")]);
        let error = collect(dir.path(), RELEASE, &["a"]).unwrap_err();
        assert!(error.to_string().starts_with("Kernel 6.1.2-test has no module gone"), "{error}");
        let other = dir.path().join(RELEASE).join("kernel/b.ko");
        fs::write(&other, module_file("5.0.0", "")).unwrap();
        let error = collect(dir.path(), RELEASE, &["b"]).unwrap_err();
        assert!(matches!(error, ModuleError::Foreign { found, .. } if found == "5.0.0"));
        fs::write(&other, b"\x7fELF").unwrap();
        assert!(matches!(collect(dir.path(), RELEASE, &["b"]), Err(ModuleError::Foreign { .. })));
        assert!(matches!(collect(dir.path(), "9.9.9", &[]), Err(ModuleError::NoDirectory { .. })));
    }

    #[test]
    fn an_initramfs_is_the_same_every_time_and_numbers_its_modules() {
        let dir = tree(&[
            ("virtio_mmio.ko", ""),
            ("virtio_blk.ko", ""),
            ("vsock.ko", ""),
            ("vmw_vsock_virtio_transport.ko", "vsock"),
            ("virtio-rng.ko", ""),
            ("overlay.ko", ""),
        ]);
        let archive = super::super::build(b"agent", dir.path(), RELEASE).unwrap();
        assert_eq!(archive, super::super::build(b"agent", dir.path(), RELEASE).unwrap());
        let entries = parse(&archive);
        let files: Vec<&str> = entries
            .iter()
            .filter(|(_, mode, _)| mode >> 12 == 0o10)
            .map(|(name, ..)| name.as_str())
            .collect();
        assert_eq!(
            files,
            [
                "init",
                "modules/00-virtio_mmio.ko",
                "modules/01-virtio_blk.ko",
                "modules/02-vsock.ko",
                "modules/03-vmw_vsock_virtio_transport.ko",
                "modules/04-virtio_rng.ko",
                "modules/05-overlay.ko"
            ]
        );
        assert!(entries.iter().any(|(name, _, content)| name == "init" && content == b"agent"));
        assert!(entries.iter().any(|(name, ..)| name == "newroot"));
    }
}
