use proptest::prelude::*;

use super::super::pax::tests::record;
use super::*;

/// One tar entry, header and padded content.
pub fn entry(flag: u8, name: &str, content: &[u8], adjust: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::new(flag));
    header.set_mode(0o100_644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_size(content.len() as u64);
    adjust(&mut header);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn plain(flag: u8, name: &str, content: &[u8]) -> Vec<u8> {
    entry(flag, name, content, |_| {})
}

fn link(flag: u8, name: &str, target: &str) -> Vec<u8> {
    entry(flag, name, b"", |header| header.set_link_name_literal(target).unwrap())
}

fn changes(entries: &[Vec<u8>]) -> Result<Vec<Change>, LayerError> {
    let bytes = [entries.concat(), vec![0; 1024]].concat();
    let mut spool = Spool::new(&std::env::temp_dir()).unwrap();
    read(&mut bytes.as_slice(), &mut spool, &mut 1000)
}

fn one(entries: &[Vec<u8>]) -> Change {
    let mut all = changes(entries).unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[test]
fn every_kind_of_entry_is_read() {
    let device = entry(b'4', "disk", b"", |header| {
        header.set_device_major(259).unwrap();
        header.set_device_minor(3).unwrap();
    });
    let all = changes(&[
        plain(b'0', "file", b"content"),
        plain(b'5', "dir/", b""),
        plain(0, "old-dir/", b""),
        link(b'2', "symlink", "/target"),
        link(b'1', "hard", "file"),
        device,
        plain(b'6', "fifo", b""),
    ])
    .unwrap();
    let kinds: Vec<&What> = all.iter().map(|change| &change.what).collect();
    let meta = Metadata {
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: Time { seconds: 3, nanoseconds: 0 },
        ..Default::default()
    };
    let put = |kind| What::Put(meta.clone(), kind);
    let expected = [
        put(Kind::File(Content::Spool { offset: 0, len: 7 })),
        put(Kind::Directory(BTreeMap::new())),
        put(Kind::Directory(BTreeMap::new())),
        put(Kind::Symlink(b"/target".to_vec())),
        What::Link(b"file".to_vec()),
        put(Kind::Device { block: true, major: 259, minor: 3 }),
        put(Kind::Fifo),
    ];
    assert_eq!(kinds, expected.iter().collect::<Vec<_>>());
}

#[test]
fn pax_headers_speak_about_the_next_entry_only() {
    let pax = [
        record("path", "long/\u{e4}".as_bytes()),
        record("uid", b"3000000"),
        record("mtime", b"-1.25"),
        record("SCHILY.xattr.security.capability", b"\x01\n\x02"),
    ]
    .concat();
    let all =
        changes(&[plain(b'x', "pax", &pax), plain(b'0', "short", b""), plain(b'0', "next", b"")]).unwrap();
    assert_eq!(all[0].path, "long/\u{e4}".as_bytes());
    let What::Put(meta, _) = &all[0].what else { panic!("{all:?}") };
    assert_eq!((meta.uid, meta.gid), (3_000_000, 2));
    assert_eq!(meta.mtime, Time { seconds: -2, nanoseconds: 750_000_000 });
    assert_eq!(meta.xattrs, BTreeMap::from([(b"security.capability".to_vec(), b"\x01\n\x02".to_vec())]));
    let What::Put(meta, _) = &all[1].what else { panic!("{all:?}") };
    assert_eq!((all[1].path.as_slice(), meta.uid, meta.xattrs.len()), (b"next".as_slice(), 1, 0));
}

#[test]
fn long_names_of_gnu_tar_are_used() {
    let name = "n".repeat(200);
    let nul = [name.as_bytes(), b"\0"].concat();
    let change =
        one(&[plain(b'L', "././@LongLink", &nul), plain(b'K', "././@LongLink", &nul), link(b'2', "s", "t")]);
    assert_eq!(change.path, name.as_bytes());
    assert!(matches!(change.what, What::Put(_, Kind::Symlink(target)) if target == name.as_bytes()));
}

#[test]
fn whiteouts_name_what_is_gone() {
    assert_eq!(one(&[plain(b'0', "a/.wh.b", b"")]), Change { path: b"a//b".to_vec(), what: What::Remove });
    assert_eq!(
        one(&[plain(b'0', "a/.wh..wh..opq", b"")]),
        Change { path: b"a/".to_vec(), what: What::Clear }
    );
    assert_eq!(changes(&[plain(b'0', ".wh..wh.plnk", b"")]).unwrap(), []);
    for name in [".wh.", "a/.wh..", ".wh..."] {
        assert!(matches!(changes(&[plain(b'0', name, b"")]), Err(LayerError::Entry { .. })), "{name}");
    }
}

#[test]
fn what_is_not_supported_is_refused() {
    assert!(matches!(changes(&[plain(b'S', "sparse", b"")]), Err(LayerError::Type { kind: 'S', .. })));
    assert!(matches!(changes(&[plain(b'M', "volume", b"")]), Err(LayerError::Type { .. })));
    let sparse = plain(b'x', "pax", &record("GNU.sparse.major", b"1"));
    assert!(matches!(changes(&[sparse, plain(b'0', "f", b"")]), Err(LayerError::Entry { .. })));
    let size = plain(b'x', "pax", &record("size", b"7"));
    assert!(matches!(changes(&[size, plain(b'0', "f", b"")]), Err(LayerError::Entry { .. })));
    assert!(matches!(changes(&[plain(b'2', "s", b"")]), Err(LayerError::Entry { what: "link target", .. })));
}

#[test]
fn too_many_entries_and_too_long_headers_are_refused() {
    let bytes = plain(b'0', "f", b"").repeat(5);
    let mut spool = Spool::new(&std::env::temp_dir()).unwrap();
    let result = read(&mut bytes.as_slice(), &mut spool, &mut 4);
    assert!(matches!(result, Err(LayerError::TooLarge)));
    let long = entry(b'x', "pax", b"", |header| header.set_size(limits::PAX + 1));
    assert!(matches!(changes(&[long]), Err(LayerError::TooLarge)));
}

#[test]
fn an_archive_may_end_with_the_last_byte_of_a_file() {
    let whole = [plain(b'5', "folder", b""), plain(b'0', "folder/file", &[7; 700])].concat();
    for len in [1024 + 700, 1024 + 701, 1024 + 1024] {
        let mut spool = Spool::new(&std::env::temp_dir()).unwrap();
        assert_eq!(read(&mut &whole[..len], &mut spool, &mut 10).unwrap().len(), 2, "{len}");
    }
}

#[test]
fn an_archive_cut_off_is_refused() {
    let whole = plain(b'0', "file", &[7; 700]);
    for len in [100, 511, 513, 1000, 1100, 512 + 699] {
        let mut spool = Spool::new(&std::env::temp_dir()).unwrap();
        let result = read(&mut &whole[..len], &mut spool, &mut 10);
        assert!(matches!(result, Err(LayerError::Read(_))), "{len}: {result:?}");
    }
}

proptest! {
    #[test]
    fn damaged_archives_never_panic(at in 0usize..512, value: u8, tail in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut bytes = plain(b'0', "file", b"content");
        bytes[at] = value;
        bytes.extend(tail);
        let mut spool = Spool::new(&std::env::temp_dir()).unwrap();
        read(&mut bytes.as_slice(), &mut spool, &mut 10).ok();
    }

    #[test]
    fn pax_times_never_panic(text in "-?[0-9]{0,22}(\\.[0-9a-z]{0,12})?") {
        if let Some(found) = time(&text) {
            prop_assert!(found.nanoseconds < 1_000_000_000);
        }
    }
}
