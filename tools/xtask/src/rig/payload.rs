//! The read-only disk of the emulated host: the product, what guests are made of, and the tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::build::{Product, TestBinary};
use crate::environment::FAULTY;
use crate::process::{self, command};
use crate::progress::step;
use crate::setup::{self, Guest};
use crate::workspace::{Workspace, make_dir, make_empty_dir, write};
use crate::{image, tree};

/// Programs of the development machine that Ember or its tests call; their libraries come along.
const PROGRAMS: [&str; 10] = [
    "dash",
    "mke2fs",
    "debugfs",
    "e2fsck",
    "dumpe2fs",
    "resize2fs",
    "umoci",
    "skopeo",
    "curl",
    // busybox has one that drops no capabilities.
    "setpriv",
];

/// What the payload is made of.
#[derive(Debug)]
pub struct Contents {
    pub guest: Guest,
    pub product: Product,
    /// A directory of ELF files.
    pub small_guests: PathBuf,
    pub tests: Vec<TestBinary>,
}

/// Makes the disk unless nothing has changed, and returns its path.
pub fn prepare(workspace: &Workspace, contents: &Contents) -> Result<PathBuf> {
    let files = list(workspace, contents)?;
    let image = workspace.target("rig/payload.ext4");
    let stamp = workspace.target("rig/payload.stamp");
    let state = state_of(&files)?;
    if image.exists() && std::fs::read_to_string(&stamp).is_ok_and(|old| old == state) {
        return Ok(image);
    }
    step("Packing the emulated host's disk", || {
        let tree = workspace.target("rig/payload");
        make_empty_dir(&tree)?;
        files.iter().try_for_each(|file| place(&file.from, &tree.join(&file.to)))?;
        image::of_directory(&tree, &image)
    })?;
    write(&stamp, state)?;
    Ok(image)
}

/// A short name for everything that baked bundles are made of: with another one they are baked again.
pub fn content_key(workspace: &Workspace, contents: &Contents) -> Result<String> {
    let (guest, product) = (&contents.guest, &contents.product);
    let mut command = command("find");
    command.args([
        &product.ember,
        &product.agent,
        &guest.kernel,
        &guest.python_image,
        &guest.stress_image,
        // Its processor is in every bundle.
        &guest.emulator.program,
        &contents.small_guests,
    ]);
    let examples = workspace.path("examples");
    if examples.exists() {
        command.arg(examples);
    }
    let mut sums: Vec<String> = process::read(command.args(["-type", "f", "-exec", "sha256sum", "{}", "+"]))?
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect();
    sums.sort();
    let mut key = setup::digest(&sums.concat());
    key.truncate(16);
    Ok(key)
}

/// A file or directory and its place on the disk.
struct Placed {
    from: PathBuf,
    to: PathBuf,
}

fn list(workspace: &Workspace, contents: &Contents) -> Result<Vec<Placed>> {
    let guest = &contents.guest;
    let mut files = Vec::new();
    let mut add = |from: &Path, to: &str| files.push(Placed { from: from.to_owned(), to: to.into() });
    add(&contents.product.ember, "bin/ember");
    add(&contents.product.agent, "bin/ember-agent");
    if let Some(faulty) = &contents.product.faulty {
        add(faulty, FAULTY);
    }
    add(&guest.kernel, "guest/vmlinuz");
    add(&guest.modules, &format!("guest/lib/modules/{}", guest.release));
    add(&guest.python_image, "guest/python-root.ext4");
    add(&guest.stress_image, "guest/stress-root.ext4");
    add(&contents.small_guests, "small-guests");
    for test in &contents.tests {
        add(&test.path, &format!("tests/{}", test.name));
    }
    for (from, to) in
        [("examples", "examples"), ("benches", "benches"), ("snapshot-format/tests/goldens", "goldens")]
    {
        let from = workspace.path(from);
        if from.exists() {
            add(&from, to);
        }
    }
    for file in programs_with_libraries()? {
        files
            .push(Placed { to: Path::new("host").join(file.strip_prefix("/").unwrap_or(&file)), from: file });
    }
    Ok(files)
}

fn programs_with_libraries() -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for program in PROGRAMS {
        let path = process::find(program).with_context(|| format!("{program} is not installed"))?;
        // ldd fails on a static program, which needs nothing.
        let libraries = process::read(command("ldd").arg(&path)).unwrap_or_default();
        files.extend(libraries_of(&libraries));
        files.insert(path);
    }
    Ok(files)
}

/// The files in ldd's answer: `libc.so.6 => /lib/libc.so.6 (0x7f)` and the loader, which has a path only.
fn libraries_of(ldd: &str) -> impl Iterator<Item = PathBuf> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
}

/// Puts a copy into the tree: a hard link where the file system allows it, with symbolic links at the top followed.
fn place(from: &Path, to: &Path) -> Result<()> {
    let from = from.canonicalize().with_context(|| format!("Cannot find {}", from.display()))?;
    if let Some(parent) = to.parent() {
        make_dir(parent)?;
    }
    let copy = |option: &str| process::quiet(command("cp").args(["-a", option, "--"]).arg(&from).arg(to));
    copy("--link").or_else(|_| copy("--sparse=always"))
}

fn state_of(files: &[Placed]) -> Result<String> {
    files.iter().map(|file| tree::state(&file.from, &file.to)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_loader_are_found_in_the_answer_of_ldd() {
        let text =
            "\tlinux-vdso.so.1 (0x7ffc)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f00)\n\t/lib64/ld.so.2 (0x7f01)\n";
        let found: Vec<PathBuf> = libraries_of(text).collect();
        assert_eq!(found, [PathBuf::from("/lib/libc.so.6"), PathBuf::from("/lib64/ld.so.2")]);
    }
}
