//! Guests without Linux for tests and benches, compiled by the host's C compiler.
//!
//! Each guest is one C file in `guests/`, whose first comment says what it does and what it answers. They speak the
//! port interface (docs/port-interface.md) and nothing else, so that the whole restore path can be measured and tested
//! in milliseconds, also where `/dev/kvm` cannot run Linux.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

/// Every guest, by the name of its file in `guests/`.
pub const GUESTS: [&str; 17] = [
    "echo",
    "counter",
    "memory",
    "toucher",
    "xsave",
    "points",
    "strings",
    "serial",
    "spin",
    "flood",
    "wild",
    "halt",
    "triple-fault",
    "faulty",
    "chaos",
    "attacker",
    EXAMPLE,
];

/// The one that users are shown: `examples/port`, alone in its file.
const EXAMPLE: &str = "shout";

/// What makes a program freestanding, fixed in place, and the same on every build. Vector code stays at the baseline of
/// x86-64; only `hold.S` goes beyond, after asking the processor.
const FLAGS: [&str; 21] = [
    "-std=c11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-march=x86-64",
    "-ffreestanding",
    "-fno-pic",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    // Otherwise gcc turns the loop inside memcpy into a call of memcpy.
    "-fno-tree-loop-distribute-patterns",
    "-mno-red-zone",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    // Symbol names of temporary files would make every build another file, and every baked bundle another key.
    "-Wl,--strip-all",
    "-Wl,-z,noexecstack",
    "-Wl,-z,max-page-size=4096",
    "-Wl,-z,norelro",
];

/// Why the guests could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The output directory, or a file in it, could not be made.
    #[error("Cannot write {}", path.display())]
    Output {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no compiler.
    #[error("Cannot run the C compiler {}; install gcc and binutils, or name a compiler in CC", compiler.display())]
    Compiler {
        /// The program that was tried.
        compiler: OsString,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The compiler refused a guest.
    #[error("The C compiler refused the guest {guest}:\n{message}")]
    Refused {
        /// The guest.
        guest: &'static str,
        /// What the compiler printed.
        message: String,
    },
}

/// Compiles every guest into `out_dir`, which is made when it is missing, as `NAME.elf` (see [`elf`]). Several processes
/// may do so at once: a file is there whole or not at all.
///
/// # Errors
/// See [`BuildError`].
pub fn build(out_dir: &Path) -> Result<(), BuildError> {
    fs::create_dir_all(out_dir).map_err(|source| BuildError::Output { path: out_dir.to_owned(), source })?;
    GUESTS.iter().try_for_each(|guest| build_one(guest, out_dir))
}

/// Where [`build`] puts the guest `name`.
pub fn elf(out_dir: &Path, name: &str) -> PathBuf {
    out_dir.join(format!("{name}.elf"))
}

fn build_one(guest: &'static str, out_dir: &Path) -> Result<(), BuildError> {
    let unfinished = unfinished(guest, out_dir);
    compile(guest, &unfinished)?;
    let path = elf(out_dir, guest);
    fs::rename(&unfinished, &path).map_err(|source| BuildError::Output { path, source })
}

/// A name that no other process or thread uses.
fn unfinished(guest: &str, out_dir: &Path) -> PathBuf {
    static BUILDS: AtomicU32 = AtomicU32::new(0);
    let build = BUILDS.fetch_add(1, Ordering::Relaxed);
    out_dir.join(format!(".{guest}.{}-{build}", process::id()))
}

fn compile(guest: &'static str, to: &Path) -> Result<(), BuildError> {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let result = Command::new(&compiler)
        .current_dir(sources())
        .args(FLAGS)
        .args(["-Ilib", "-Wl,-T,lib/small-guest.ld"])
        .args(more_flags(guest))
        .args(files(guest))
        .arg("-o")
        .arg(std::path::absolute(to).unwrap_or_else(|_| to.to_owned()))
        .output()
        .map_err(|source| BuildError::Compiler { compiler, source })?;
    if result.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&result.stderr).trim_end().to_owned();
    Err(BuildError::Refused { guest, message })
}

fn sources() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/guests"))
}

/// A guest that is entered as Linux is finds no vector registers switched on.
fn more_flags(guest: &str) -> &'static [&'static str] {
    if is_kernel(guest) { &["-mgeneral-regs-only"] } else { &[] }
}

/// Whether a guest is loaded and entered like a Linux kernel, for `ember bake` without `--interface port`.
fn is_kernel(guest: &str) -> bool {
    guest == "attacker"
}

fn files(guest: &str) -> Vec<String> {
    if guest == EXAMPLE {
        return vec![format!("../../../examples/port/{guest}.S")];
    }
    let start = if is_kernel(guest) { "lib/kernel-start.S" } else { "lib/start.S" };
    let mut files = vec![format!("{guest}.c"), "lib/guest.c".to_owned(), start.to_owned()];
    let more: &[&str] = match guest {
        "chaos" | "attacker" => &["lib/chaos.c"],
        "xsave" => &["hold.S"],
        "points" => &["lib/interrupts.c", "lib/interrupt-stubs.S"],
        _ => &[],
    };
    files.extend(more.iter().map(|file| (*file).to_owned()));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where docs/port-interface.md lets an image begin, and the RAM of the smallest machine.
    const IMAGE_START: u64 = 1 << 20;
    const SMALLEST_RAM: u64 = 2 << 20;
    const PT_LOAD: u64 = 1;

    fn number(elf: &[u8], at: u64, bytes: u64) -> u64 {
        (at..at + bytes).rev().fold(0, |value, at| value << 8 | u64::from(elf[usize::try_from(at).unwrap()]))
    }

    /// Start and end of every loaded segment (ELF-64 object file format, program header table).
    fn segments(elf: &[u8]) -> Vec<(u64, u64)> {
        let table = number(elf, 32, 8);
        (0..number(elf, 56, 2))
            .map(|index| table + index * 56)
            .filter(|header| number(elf, *header, 4) == PT_LOAD)
            .map(|header| (number(elf, header + 24, 8), number(elf, header + 40, 8)))
            .map(|(start, len)| (start, start + len))
            .collect()
    }

    #[test]
    fn every_guest_is_an_elf_that_fits_into_the_smallest_machine() {
        let dir = tempfile::tempdir().unwrap();
        build(dir.path()).unwrap();
        for guest in GUESTS {
            let file = fs::read(elf(dir.path(), guest)).unwrap();
            assert_eq!(file[..6], *b"\x7fELF\x02\x01", "{guest} is no little-endian ELF64");
            let segments = segments(&file);
            assert!(
                segments.iter().all(|(start, end)| IMAGE_START <= *start && *end <= SMALLEST_RAM),
                "{guest}"
            );
            let entry = number(&file, 24, 8);
            assert!(segments.iter().any(|(start, end)| (*start..*end).contains(&entry)), "{guest}");
        }
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, GUESTS.len(), "an unfinished file was left behind");
    }

    #[test]
    fn every_c_file_is_in_the_list() {
        let files = fs::read_dir(sources()).unwrap().map(|entry| entry.unwrap().path());
        let mut found: Vec<_> = files
            .filter(|path| path.extension().is_some_and(|e| e == "c"))
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        found.sort();
        let mut listed: Vec<&str> = GUESTS.into_iter().filter(|guest| *guest != EXAMPLE).collect();
        listed.sort_unstable();
        assert_eq!(found, listed);
    }

    #[test]
    fn two_builds_give_the_same_bytes() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        build_one("echo", a.path()).unwrap();
        build_one("echo", b.path()).unwrap();
        assert_eq!(fs::read(elf(a.path(), "echo")).unwrap(), fs::read(elf(b.path(), "echo")).unwrap());
    }
}
