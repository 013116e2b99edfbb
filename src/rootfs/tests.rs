//! Whole images, read back with e2fsprogs where it is installed.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use sha2::{Digest, Sha256};

use super::*;

/// A layer under construction.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Layer(tar::Builder::new(Vec::new()))
    }

    fn header(mode: u32, owner: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner + 1);
        header.set_mtime(1_600_000_000);
        header.set_size(0);
        header
    }

    fn file(mut self, path: &str, mode: u32, owner: u64, content: &[u8]) -> Self {
        let mut header = Layer::header(mode, owner);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.0.append_pax_extensions([(format!("SCHILY.xattr.{name}").as_str(), value)]).unwrap();
        self
    }

    fn other(mut self, kind: tar::EntryType, path: &str, target: &str) -> Self {
        let mut header = Layer::header(0o755, 0);
        header.set_entry_type(kind);
        if kind == tar::EntryType::Char {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        if target.is_empty() {
            self.0.append_data(&mut header, path, std::io::empty()).unwrap();
        } else {
            self.0.append_link(&mut header, path, target).unwrap();
        }
        self
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes image layouts.
struct Layout {
    dir: tempfile::TempDir,
}

impl Layout {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout { dir }
    }

    fn blob(&self, bytes: &[u8]) -> String {
        let hex = sha256(bytes);
        fs::write(self.dir.path().join("blobs/sha256").join(&hex), bytes).unwrap();
        format!(r#"{{"digest":"sha256:{hex}","size":{}"#, bytes.len())
    }

    /// Layers as (packed, unpacked).
    fn manifest(&self, layers: &[(Vec<u8>, Vec<u8>)]) -> String {
        let ids: Vec<String> =
            layers.iter().map(|(_, plain)| format!(r#""sha256:{}""#, sha256(plain))).collect();
        let config = format!(
            r#"{{"os":"linux","architecture":"amd64","config":{{"Cmd":["/bin/app"],"Env":["A=1"],"WorkingDir":"/srv"}},
            "rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            ids.join(",")
        );
        let config = self.blob(config.as_bytes());
        let layers: Vec<String> = layers.iter().map(|(packed, _)| self.blob(packed) + "}").collect();
        self.blob(
            format!(r#"{{"schemaVersion":2,"config":{config}}},"layers":[{}]}}"#, layers.join(","))
                .as_bytes(),
        )
    }

    fn index(&self, entries: &[String]) {
        let json = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        fs::write(self.dir.path().join("index.json"), json).unwrap();
    }

    fn source(&self, reference: Option<&str>) -> Source {
        Source::OciLayout { dir: self.dir.path().into(), reference: reference.map(str::to_owned) }
    }

    /// The same layout as one tar file.
    fn archive(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_dir_all(".", self.dir.path()).unwrap();
        tar.into_inner().unwrap()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Two layers that use everything; the first packed with gzip, the second with zstd.
fn layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    use tar::EntryType as T;
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'\n'];
    let first = Layer::new()
        .other(T::Directory, "./", "")
        .other(T::Directory, "bin/", "")
        .file("bin/app", 0o4755, 0, b"app")
        .other(T::Link, "bin/same", "bin/app")
        .xattr("security.capability", &capability)
        .file("bin/ping", 0o755, 0, &[1; 5000])
        .xattr("user.large", &[b'x'; 2000])
        .file("data/attr", 0o600, 1000, b"")
        .file("data/gone", 0o644, 1000, b"gone")
        .file("data/kept", 0o644, 70_000, &vec![7; 300_000])
        .file("old/a", 0o644, 0, b"a")
        .other(T::Symlink, "lib", "usr/lib")
        .other(T::Symlink, "long", &"x/".repeat(45))
        .other(T::Char, "dev/null", "")
        .other(T::Fifo, "run/fifo", "")
        .finish();
    let second = Layer::new()
        .file("old/b", 0o644, 0, b"b")
        .file("data/.wh.gone", 0o644, 0, b"")
        .file("old/.wh..wh..opq", 0o644, 0, b"")
        .file("lib/libc.so", 0o755, 0, b"libc")
        .finish();
    let packed = zstd::encode_all(second.as_slice(), 1).unwrap();
    vec![(gzip(&first), first), (packed, second)]
}

fn made(source: &Source, size: Option<u64>) -> Result<(tempfile::TempDir, PathBuf, Built), RootfsError> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("root.img");
    let built = build(source, &out, size, &mut |_| {});
    assert_eq!(out.exists(), built.is_ok(), "an image is there when it is whole and only then");
    Ok((dir, out, built?))
}

/// Output of a tool of e2fsprogs, which `cargo xtask setup` installs.
fn e2(tool: &str, arguments: &[&str], image: &Path) -> String {
    let tool = ["/usr/sbin", "/sbin", "/usr/bin"]
        .map(|dir| Path::new(dir).join(tool))
        .into_iter()
        .find(|t| t.exists());
    let tool = tool.expect("e2fsprogs is not installed");
    let output = Command::new(tool).args(arguments).arg(image).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn debugfs(image: &Path, request: &str) -> String {
    e2("debugfs", &["-R", request], image)
}

fn names(image: &Path, dir: &str) -> Vec<String> {
    let listing = debugfs(image, &format!("ls -p {dir}"));
    let name =
        |line: &str| line.split('/').nth(5).filter(|name| !matches!(*name, "." | "..")).map(str::to_owned);
    listing.lines().filter_map(name).collect()
}

#[test]
fn an_oci_image_becomes_a_file_system_that_e2fsck_likes() {
    let layout = Layout::new();
    layout.index(&[layout.manifest(&layers()) + "}"]);
    let (_dir, image, built) = made(&layout.source(None), None).unwrap();
    assert_eq!(built.config.unwrap().command, ["/bin/app"]);
    assert_eq!(fs::metadata(&image).unwrap().len(), built.bytes);
    e2("e2fsck", &["-f", "-n"], &image);
    let list = |dir| names(&image, dir);
    assert_eq!(list("/"), ["bin", "data", "dev", "lib", "long", "old", "run", "usr"]);
    assert_eq!(list("/data"), ["attr", "kept"]);
    assert_eq!(list("/old"), ["b"]);
    assert_eq!(list("/usr/lib"), ["libc.so"]);
    let stat = |path: &str| debugfs(&image, &format!("stat {path}"));
    let app = stat("/bin/app");
    assert!(app.contains("Mode:  04755") && app.contains("Links: 2"), "{app}");
    assert!(app.contains("mtime: 0x5f5e1000:00000000"), "{app}");
    assert_eq!(app, stat("/bin/same"));
    let kept = stat("/data/kept");
    assert!(
        kept.contains("User: 70000") && kept.contains("Group: 70001") && kept.contains("Size: 300000"),
        "{kept}"
    );
    assert!(stat("/dev/null").contains("Device major/minor number: 01:03"));
    assert!(stat("/run/fifo").contains("Type: FIFO"));
    assert!(stat("/lib").contains("Fast link dest: \"usr/lib\""));
    assert_eq!(debugfs(&image, "cat /long"), "x/".repeat(45));
    let capability = debugfs(&image, "ea_get -x /bin/ping security.capability");
    assert!(capability.contains("01 00 00 02 00 04") && capability.contains("0a"), "{capability}");
    assert!(debugfs(&image, "ea_get /data/attr user.large").contains(&"x".repeat(2000)));
    assert_eq!(debugfs(&image, "cat /data/kept").len(), 300_000);
}

#[test]
fn the_same_source_gives_the_same_bytes() {
    let layout = Layout::new();
    layout.index(&[layout.manifest(&layers()) + "}"]);
    let image = || {
        let (_dir, path, built) = made(&layout.source(None), Some(8 << 20)).unwrap();
        assert_eq!(built.bytes, 8 << 20);
        sha256(&fs::read(path).unwrap())
    };
    assert_eq!(image(), image());
}

#[test]
fn archives_of_both_kinds_give_the_layouts_image() {
    let layout = Layout::new();
    layout.index(&[layout.manifest(&layers()) + "}"]);
    let bytes = |source: &Source| {
        let (_dir, path, built) = made(source, None).unwrap();
        (sha256(&fs::read(path).unwrap()), built)
    };
    let expected = bytes(&layout.source(None));
    let dir = tempfile::tempdir().unwrap();
    let oci = layout.archive();
    let docker = docker_archive();
    for (name, content) in [
        ("oci.tar", oci.clone()),
        ("oci.tar.gz", gzip(&oci)),
        ("oci.tar.zst", zstd::encode_all(oci.as_slice(), 1).unwrap()),
        ("docker.tar", docker.clone()),
        ("docker.tar.gz", gzip(&docker)),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        let source = Source::detect(&path).unwrap();
        assert_eq!(source, Source::Archive(path));
        assert_eq!(bytes(&source), expected, "{name}");
    }
}

/// The layers as `docker save` writes them: unpacked, named by `manifest.json`.
fn docker_archive() -> Vec<u8> {
    let layers = layers();
    let ids: Vec<String> = layers.iter().map(|(_, plain)| format!(r#""sha256:{}""#, sha256(plain))).collect();
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","config":{{"Cmd":["/bin/app"],"Env":["A=1"],"WorkingDir":"/srv"}},
        "rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    let manifest = br#"[{"Config":"c.json","RepoTags":["x:latest"],"Layers":["1/layer.tar","2/layer.tar"]}]"#;
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [
        ("c.json", config.as_bytes()),
        ("1/layer.tar", &layers[0].1),
        ("2/layer.tar", &layers[1].1),
        ("manifest.json", manifest),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn an_image_is_chosen_by_name_and_platform() {
    let layout = Layout::new();
    let ours = layout.manifest(&layers());
    let nested = layout.blob(
        format!(
            r#"{{"manifests":[{ours},"platform":{{"os":"linux","architecture":"arm64"}}}},
            {ours},"platform":{{"os":"unknown","architecture":"unknown"}}}},
            {ours},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
        )
        .as_bytes(),
    );
    let named = |descriptor: &str, name: &str| {
        format!(r#"{descriptor},"annotations":{{"org.opencontainers.image.ref.name":"{name}"}}}}"#)
    };
    layout.index(&[named(&nested, "multi"), named(&ours, "plain")]);
    for name in ["multi", "plain"] {
        assert!(made(&layout.source(Some(name)), None).is_ok(), "{name}");
    }
    let error = made(&layout.source(Some("gone")), None).unwrap_err();
    assert_eq!(error.to_string(), "There is no image \"gone\"; there are: multi, plain");
    assert!(matches!(
        made(&layout.source(None), None),
        Err(RootfsError::Source(ImageError::Ambiguous { .. }))
    ));
    layout.index(&[ours + r#","platform":{"os":"linux","architecture":"s390x"}}"#]);
    let error = made(&layout.source(None), None).unwrap_err();
    assert_eq!(error.to_string(), "The image is for linux/s390x, not for linux/amd64");
    let dir = layout.dir.path().to_str().unwrap().to_owned();
    let source = Source::detect(Path::new(&format!("{dir}:plain"))).unwrap();
    assert_eq!(source, layout.source(Some("plain")));
}

#[test]
fn damage_is_found_by_digest_and_length() {
    let intact = Layout::new();
    intact.index(&[intact.manifest(&layers()) + "}"]);
    let blobs: Vec<PathBuf> = fs::read_dir(intact.dir.path().join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(blobs.len(), 4);
    for path in blobs {
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for bad in [flipped, whole[..whole.len() - 1].to_vec(), [whole.as_slice(), b"\n"].concat()] {
            fs::write(&path, bad).unwrap();
            assert!(made(&intact.source(None), None).is_err(), "{}", path.display());
        }
        fs::write(&path, whole).unwrap();
    }
    assert!(made(&intact.source(None), None).is_ok());
}

#[test]
fn a_layer_that_is_not_what_the_configuration_says_is_refused() {
    let mut layers = layers();
    layers[1].1 = layers[0].1.clone();
    let layout = Layout::new();
    layout.index(&[layout.manifest(&layers) + "}"]);
    let error = made(&layout.source(None), None).unwrap_err();
    assert!(matches!(error, RootfsError::Source(ImageError::Damaged { what: "digest", .. })), "{error}");
}

#[test]
fn a_directory_keeps_links_modes_and_contents() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("a/b")).unwrap();
    fs::write(path("a/file"), b"hello").unwrap();
    fs::set_permissions(path("a/file"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::hard_link(path("a/file"), path("a/b/again")).unwrap();
    symlink("../outside", path("link")).unwrap();
    fs::write(path("a/sp ace\n\"q\""), b"odd").unwrap();
    let source = Source::detect(dir.path()).unwrap();
    let (_out, image, built) = made(&source, None).unwrap();
    assert_eq!(built.config, None);
    e2("e2fsck", &["-f", "-n"], &image);
    assert_eq!(debugfs(&image, "cat /a/b/again"), "hello");
    let stat = debugfs(&image, "stat /a/file");
    assert!(
        stat.contains("Mode:  04711") && stat.contains("Links: 2") && stat.contains("User:     0"),
        "{stat}"
    );
    assert_eq!(names(&image, "/"), ["a", "link"]);
    let listing = debugfs(&image, "ls /a");
    assert!(listing.contains(r#"sp ace\x0a"q""#), "{listing}");
}

#[test]
fn many_files_and_a_long_one_are_laid_out() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("many")).unwrap();
    for n in 0..3000 {
        fs::write(dir.path().join(format!("many/file-with-a-longer-name-{n}")), [1; 3]).unwrap();
    }
    // More than four extents: an extent block is needed. All of it is a hole.
    File::create(dir.path().join("long")).unwrap().set_len(700 << 20).unwrap();
    let (_out, image, _) = made(&Source::Directory(dir.path().into()), None).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert!(fs::metadata(&image).unwrap().blocks() * 512 < 32 << 20, "holes stay holes");
    e2("e2fsck", &["-f", "-n"], &image);
    assert_eq!(names(&image, "/many").len(), 3000);
    let extents = debugfs(&image, "dump_extents /long");
    assert!(extents.lines().count() >= 7, "{extents}");
}

#[test]
fn an_ext4_image_is_copied_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"content").unwrap();
    let (_first, image, built) = made(&Source::Directory(dir.path().into()), None).unwrap();
    let source = Source::detect(&image).unwrap();
    assert_eq!(source, Source::Ext4Image(image.clone()));
    let (_second, copy, again) = made(&source, None).unwrap();
    assert_eq!(again.bytes, built.bytes);
    assert_eq!(fs::read(copy).unwrap(), fs::read(&image).unwrap());
    assert!(matches!(made(&source, Some(1 << 20)), Err(RootfsError::Resize)));
    OpenOptions::new().write(true).open(&image).unwrap().set_len(built.bytes - 4096).unwrap();
    assert!(matches!(made(&source, None), Err(RootfsError::Source(ImageError::Truncated { .. }))));
}

#[test]
fn other_files_are_no_source() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    fs::write(&path, "hello").unwrap();
    assert!(matches!(Source::detect(&path), Err(DetectError::Unknown { .. })));
    assert!(matches!(Source::detect(&dir.path().join("gone")), Err(DetectError::Read { .. })));
    fs::write(&path, Layer::new().file("a", 0o644, 0, b"").finish()).unwrap();
    let error = made(&Source::detect(&path).unwrap(), None).unwrap_err();
    assert!(error.to_string().contains("neither an OCI archive"), "{error}");
}

#[test]
fn a_layer_that_leads_out_of_the_root_is_refused() {
    let mut header = Layer::header(0o644, 0);
    header.as_mut_bytes()[..9].copy_from_slice(b"../escape");
    header.set_cksum();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&header, std::io::empty()).unwrap();
    let layer = tar.into_inner().unwrap();
    let layout = Layout::new();
    layout.index(&[layout.manifest(&[(layer.clone(), layer)]) + "}"]);
    let error = made(&layout.source(None), None).unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    assert_eq!(
        cause.as_deref(),
        Some("The path \"../escape\" is not allowed: it has \"..\", or a name or itself is too long")
    );
}

#[test]
fn an_output_that_exists_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("root.img");
    fs::write(&out, "precious").unwrap();
    let result = build(&Source::Directory(dir.path().into()), &out, None, &mut |_| {});
    assert!(matches!(result, Err(RootfsError::Create { .. })));
    assert_eq!(fs::read(&out).unwrap(), b"precious");
}
