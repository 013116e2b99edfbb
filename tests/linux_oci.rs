//! Roots from OCI images that umoci and skopeo made: the guest sees what `umoci unpack` would give it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Place, USAGE, ember, finish};
use linux::{bake, busybox_root, kept, python_root, run, with_root};
use rustix::fs::XattrFlags;

/// An image of three layers, and what `umoci unpack` makes of it.
struct Image {
    /// On a file system with extended attributes, as `/tmp` need not be.
    place: tempfile::TempDir,
}

const NAME: &str = "demo";

impl Image {
    fn new() -> Self {
        let image = Image { place: tempfile::tempdir_in(kept()).unwrap() };
        image.umoci(&["init", "--layout", image.layout().to_str().unwrap()]);
        image.umoci(&["new", "--image", &image.reference()]);
        image.layer("one", |root| {
            busybox_root(root);
            first_layer(root);
        });
        image.layer("two", second_layer);
        // An opaque directory: what lower layers have there is hidden.
        let fresh = image.path("fresh");
        fs::create_dir(&fresh).unwrap();
        fs::write(fresh.join("new"), "new").unwrap();
        image.umoci(&[
            "insert",
            "--image",
            &image.reference(),
            "--opaque",
            fresh.to_str().unwrap(),
            "/opaque",
        ]);
        image.umoci(
            &[
                &["config", "--image", &image.reference()][..],
                &[
                    "--config.entrypoint",
                    "/bin/sh",
                    "--config.workingdir",
                    "/work",
                    "--config.user",
                    "worker",
                ],
                &["--config.env", "FROM_IMAGE=yes", "--config.env", "BOTH=image"],
            ]
            .concat(),
        );
        image
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn layout(&self) -> PathBuf {
        self.path("layout")
    }

    fn reference(&self) -> String {
        format!("{}:{NAME}", self.layout().display())
    }

    fn umoci(&self, arguments: &[&str]) {
        finish(Command::new("umoci").args(arguments)).succeeds();
    }

    /// Unpacks what there is, lets `change` work on it, and makes a layer of the difference.
    fn layer(&self, name: &str, change: impl FnOnce(&Path)) {
        let bundle = self.unpack(name);
        change(&bundle.join("rootfs"));
        self.umoci(&["repack", "--image", &self.reference(), bundle.to_str().unwrap()]);
    }

    fn unpack(&self, name: &str) -> PathBuf {
        let bundle = self.path(name);
        self.umoci(&["unpack", "--image", &self.reference(), bundle.to_str().unwrap()]);
        bundle
    }

    /// The same in one file, as `skopeo` writes it.
    fn archive(&self, transport: &str) -> PathBuf {
        let path = self.path(&format!("{transport}.tar"));
        let target = format!("{transport}:{}:{NAME}:latest", path.display());
        let mut skopeo = Command::new("skopeo");
        finish(skopeo.args([
            "copy",
            "--quiet",
            "--insecure-policy",
            &format!("oci:{}", self.reference()),
            &target,
        ]))
        .succeeds();
        path
    }
}

fn first_layer(root: &Path) {
    for folder in ["opaque/deep", "kept", "gone/deep", "changed", "work"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for file in [
        "opaque/old",
        "opaque/deep/old",
        "kept/file",
        "kept/removed",
        "gone/deep/file",
        "changed/file",
        "replaced",
    ] {
        fs::write(root.join(file), file).unwrap();
    }
    fs::write(root.join("kept/large"), "0123456789abcdef".repeat(100_000)).unwrap();
    fs::write(root.join("kept/empty"), "").unwrap();
    fs::hard_link(root.join("kept/file"), root.join("kept/link")).unwrap();
    fs::hard_link(root.join("kept/file"), root.join("other-link")).unwrap();
    symlink("../kept/file", root.join("changed/symlink")).unwrap();
    symlink("/nowhere", root.join("dangling")).unwrap();
    fs::write(root.join("setuid"), "#!/bin/sh\n").unwrap();
    chown(root.join("setuid"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(root.join("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(root.join("kept"), fs::Permissions::from_mode(0o3771)).unwrap();
    chown(root.join("kept/large"), Some(100_000), Some(200_000)).unwrap();
    lchown(root.join("dangling"), Some(7), Some(8)).unwrap();
    chown(root.join("work"), Some(1234), Some(1234)).unwrap();
    set_xattr(&root.join("kept/file"), "user.comment", b"with \0 zero");
    set_xattr(&root.join("kept"), "user.folder", b"of a folder");
    // capabilities(7): cap_net_bind_service, effective and permitted, in the second version of the format.
    let capability: Vec<u8> =
        [0x0200_0001_u32, 1 << 10, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    set_xattr(&root.join("kept/large"), "security.capability", &capability);
}

fn second_layer(root: &Path) {
    // Whiteouts of a file and of a folder; a file in place of a folder's content and a folder in place of a file.
    fs::remove_file(root.join("kept/removed")).unwrap();
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::remove_file(root.join("replaced")).unwrap();
    fs::create_dir(root.join("replaced")).unwrap();
    fs::write(root.join("replaced/inside"), "a folder now").unwrap();
    fs::write(root.join("changed/file"), "other content").unwrap();
    fs::write(root.join("ünïcode and spaces"), "x").unwrap();
    fs::write(root.join("l".repeat(200)), "a long name").unwrap();
    chown(root.join("kept/empty"), Some(5), Some(6)).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// A line for each file: name, type and mode, owners, time, what it links to, content, attributes, and the first name of the same
/// inode. The guest's python writes the same.
fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    let mut inodes = HashMap::new();
    let mut names = Vec::new();
    collect(root, Path::new(""), &mut names);
    names.sort();
    for name in names {
        let path = root.join(&name);
        let metadata = fs::symlink_metadata(&path).unwrap();
        let first = inodes.entry(metadata.ino()).or_insert_with(|| name.clone()).clone();
        let mut line =
            format!("{:o} {} {} {}", metadata.mode(), metadata.uid(), metadata.gid(), metadata.mtime());
        if metadata.is_symlink() {
            write!(line, " -> {}", fs::read_link(&path).unwrap().display()).unwrap();
        }
        if metadata.is_file() {
            write!(line, " {} = {first}", digest(&fs::read(&path).unwrap())).unwrap();
        }
        for (key, value) in xattrs(&path) {
            write!(line, " {key}={}", hex(&value)).unwrap();
        }
        lines.insert(name, line);
    }
    lines
}

const LISTING: &str = r#"
import hashlib, os, stat
root, inodes, names = "/mnt/image", {}, []
for folder, folders, files in os.walk(root):
    names += [os.path.relpath(os.path.join(folder, name), root) for name in folders + files]
for name in sorted(names, key=os.fsencode):
    path = os.path.join(root, name)
    found = os.lstat(path)
    first = inodes.setdefault(found.st_ino, name)
    line = f"{found.st_mode:o} {found.st_uid} {found.st_gid} {int(found.st_mtime)}"
    if stat.S_ISLNK(found.st_mode):
        line += " -> " + os.readlink(path)
    if stat.S_ISREG(found.st_mode):
        line += f" {hashlib.sha256(open(path, 'rb').read()).hexdigest()} = {first}"
    for key in sorted(os.listxattr(path, follow_symlinks=False)):
        line += f" {key}={os.getxattr(path, key, follow_symlinks=False).hex()}"
    sys.stdout.buffer.write(f"{name}\t{line}\n".encode())
"#;

fn collect(root: &Path, folder: &Path, names: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = folder.join(entry.file_name());
        names.push(name.to_str().unwrap().to_owned());
        if entry.file_type().unwrap().is_dir() {
            collect(root, &name, names);
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 1 << 12];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let name = String::from_utf8(name.to_vec()).unwrap();
        let mut value = vec![0; 1 << 12];
        let length = rustix::fs::lgetxattr(path, &*name, &mut value[..]).unwrap();
        (name, value[..length].to_vec())
    };
    names.map(value).collect()
}

#[test]
fn the_guest_sees_the_tree_that_umoci_unpacks() {
    let (image, place) = (Image::new(), Place::new());
    let expected = listing(&image.unpack("expected").join("rootfs"));
    // What this is about must be there.
    assert!(!expected.contains_key("opaque/old") && !expected.contains_key("gone"), "{expected:?}");
    for (name, words) in [
        ("other-link", "= kept/file"),
        ("setuid", "106755 1234 4321"),
        ("kept/file", "user.comment="),
        ("kept/large", "security.capability="),
    ] {
        assert!(expected[name].contains(words), "{name}: {}", expected[name]);
    }

    let drive = place.join("image.ext4");
    finish(ember(["image"]).arg(image.layout()).arg(&drive)).succeeds();
    let program = format!("import sys\n{LISTING}");
    let drive = format!("image={}", drive.display());
    let bundle = place.join("b");
    bake(&bundle, with_root(&python_root(), &["--drive", &drive, "--", "/usr/bin/python3", "-c", &program]))
        .succeeds();
    let ended = run(&bundle, "");
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for line in ended.succeeds().text().lines() {
        let (name, line) = line.split_once('\t').unwrap();
        seen.insert(name.to_owned(), line.to_owned());
    }
    // Every ext4 has one.
    seen.remove("lost+found");
    for name in expected.keys().chain(seen.keys()) {
        assert_eq!(seen.get(name), expected.get(name), "{name}: in the guest, and by umoci");
    }
}

#[test]
fn an_image_is_run_as_it_says_unless_told_otherwise() {
    let (image, place) = (Image::new(), Place::new());
    let bundle = place.join("b");
    bake(&bundle, with_root(&image.layout(), &["--memory", "128MiB", "--env", "BOTH=flag"])).succeeds();
    let script = "id -u; pwd; echo $FROM_IMAGE $BOTH; cat /opaque/* /changed/symlink /replaced/inside; test -e /gone || echo gone";
    run(&bundle, script).answers("1234\n/work\nyes flag\nnewkept/filea folder nowgone\n");
    // The user has no right to it, but the file has its owner's bits.
    let ended = run(&bundle, "echo x >/kept/large || echo refused");
    assert_eq!(ended.text(), "refused\n", "{ended:?}");
}

#[test]
fn a_layout_and_both_kinds_of_archive_make_the_same_root() {
    let (image, place) = (Image::new(), Place::new());
    let make = |source: &Path, name: &str| {
        let path = place.join(name);
        finish(ember(["image"]).arg(source).arg(&path)).succeeds();
        fs::read(path).unwrap()
    };
    let from_layout = make(&image.layout(), "layout");
    for transport in ["oci-archive", "docker-archive"] {
        assert!(make(&image.archive(transport), transport) == from_layout, "{transport} makes another");
    }
    for name in ["layout", "oci-archive", "docker-archive"] {
        finish(Command::new("e2fsck").arg("-fn").arg(place.join(name))).succeeds();
    }
}

#[test]
fn an_image_with_a_changed_blob_is_refused() {
    let (image, place) = (Image::new(), Place::new());
    let blobs = image.layout().join("blobs/sha256");
    let layer = common::names(&blobs)
        .into_iter()
        .max_by_key(|name| fs::metadata(blobs.join(name)).unwrap().len())
        .unwrap();
    common::bundles::flip(&blobs.join(layer), 8 * 1000);
    let ended = bake(&place.join("b"), with_root(&image.layout(), &["--", "/bin/sh"]));
    ended.fails(USAGE, "sha256");
    assert!(place.names().is_empty());
}

#[test]
fn an_image_that_the_layout_does_not_have_is_refused() {
    let (image, place) = (Image::new(), Place::new());
    let more = ["--reference", "other", "--", "/bin/sh"];
    bake(&place.join("b"), with_root(&image.layout(), &more)).fails(USAGE, "other");
    assert!(place.names().is_empty());
}
