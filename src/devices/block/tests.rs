use std::io::Write;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::*;
use crate::devices::DriveBacking;
use crate::devices::virtio::testing::*;

const SECTORS: u64 = 64;
/// Where the tests put header, data and status.
const HEADER: u64 = BUFFERS;
const DATA: u64 = BUFFERS + 0x1000;
const STATUS: u64 = BUFFERS + 0xf000;

fn pattern() -> Vec<u8> {
    (0..SECTORS * SECTOR).map(|i| (i / 512 + i % 7).to_le_bytes()[0]).collect()
}

fn file() -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pattern()).unwrap();
    file
}

fn read_only() -> DriveSetup {
    DriveSetup { id: "root".to_owned(), backing: DriveBacking::ReadOnly(file()) }
}

fn writable() -> DriveSetup {
    let backing = DriveBacking::CopyOnWrite { base: file(), delta: tempfile::tempfile().unwrap() };
    DriveSetup { id: "data-of-a-long-name-indeed".to_owned(), backing }
}

/// Sends one request with `len` bytes of data in two buffers; returns the status byte and the used length.
fn request(rig: &mut Rig<Block>, kind: u32, sector: u64, len: u32) -> (u8, u32) {
    fill(&rig.memory, HEADER, &kind.to_le_bytes());
    fill(&rig.memory, HEADER + 8, &sector.to_le_bytes());
    fill(&rig.memory, STATUS, &[0xff]);
    let flags = if kind == 1 { 0 } else { WRITE };
    let data = [(DATA, len / 2, flags), (DATA + u64::from(len / 2), len - len / 2, flags)];
    let mut chain = vec![(HEADER, 16, 0)];
    chain.extend(data.iter().filter(|(_, len, _)| *len > 0));
    chain.push((STATUS, 1, WRITE));
    rig.rings[0].offer_chain(0, &chain);
    rig.mmio.serve();
    let used = rig.rings[0].take_used();
    assert_eq!(used.len(), 1, "{:?}", rig.mmio.fault());
    (bytes(&rig.memory, STATUS, 1)[0], used[0].1)
}

#[test]
fn sectors_are_read_where_they_lie() {
    for setup in [read_only(), writable()] {
        let mut rig = Rig::<Block>::new(setup);
        assert_eq!(request(&mut rig, 0, 3, 1024), (0, 1025));
        assert_eq!(bytes(&rig.memory, DATA, 1024), pattern()[3 * 512..5 * 512]);
        assert_eq!(rig.mmio.device().requests(), 1);
    }
}

#[test]
fn what_is_written_is_read_back_and_never_reaches_the_base() {
    let base = file();
    let backing =
        DriveBacking::CopyOnWrite { base: base.try_clone().unwrap(), delta: tempfile::tempfile().unwrap() };
    let mut rig = Rig::<Block>::new(DriveSetup { id: "data".to_owned(), backing });
    fill(&rig.memory, DATA, &[0x77; 1536]);
    assert_eq!(request(&mut rig, 1, 7, 1536), (0, 1));
    assert_eq!(request(&mut rig, 4, 0, 0), (0, 1), "flush");
    assert_eq!(request(&mut rig, 0, 6, 4096).0, 0);
    let mut expected = pattern();
    expected[7 * 512..10 * 512].fill(0x77);
    assert_eq!(bytes(&rig.memory, DATA, 4096), expected[6 * 512..14 * 512]);
    let mut on_disk = vec![0; pattern().len()];
    base.read_exact_at(&mut on_disk, 0).unwrap();
    assert!(on_disk == pattern());
    let merged = tempfile::tempfile().unwrap();
    rig.mmio.device().write_content(&merged).unwrap();
    merged.read_exact_at(&mut on_disk, 0).unwrap();
    assert!(on_disk == expected);
}

#[test]
fn a_read_only_drive_refuses_writes_and_says_so_beforehand() {
    let mut rig = Rig::<Block>::new(read_only());
    assert_eq!(all_features(&mut rig.mmio) & 1 << 5, 1 << 5);
    assert_eq!(request(&mut rig, 1, 0, 512), (1, 1));
    assert_eq!(rig.status(), 15, "the device goes on");
    assert!(rig.mmio.device().write_content(&tempfile::tempfile().unwrap()).is_err());
    let mut rig = Rig::<Block>::new(writable());
    assert_eq!(all_features(&mut rig.mmio) & 1 << 5, 0);
}

#[test]
fn the_id_is_cut_to_twenty_bytes() {
    let mut rig = Rig::<Block>::new(writable());
    assert_eq!(request(&mut rig, 8, 0, 20), (0, 21));
    assert_eq!(bytes(&rig.memory, DATA, 20), b"data-of-a-long-name-");
}

#[test]
fn what_lies_behind_the_end_or_is_no_whole_sector_is_an_io_error() {
    let mut rig = Rig::<Block>::new(writable());
    let end = SECTORS;
    for (sector, len) in [(end, 512), (end - 1, 1024), (u64::MAX, 512), (1 << 60, 512), (0, 513), (0, 100)] {
        for kind in [0, 1] {
            assert_eq!(request(&mut rig, kind, sector, len), (1, 1), "{kind} {sector:#x} {len}");
        }
    }
    assert_eq!(request(&mut rig, 0, end - 1, 512).0, 0);
}

#[test]
fn an_unknown_request_is_unsupported() {
    let mut rig = Rig::<Block>::new(writable());
    for kind in [2, 11, 13, 0x8000_0000, u32::MAX] {
        assert_eq!(request(&mut rig, kind, 0, 512), (2, 1));
    }
}

#[test]
fn a_file_that_became_shorter_is_an_io_error() {
    let file = file();
    let backing = DriveBacking::ReadOnly(file.try_clone().unwrap());
    let mut rig = Rig::<Block>::new(DriveSetup { id: "root".to_owned(), backing });
    file.set_len(512).unwrap();
    assert_eq!(request(&mut rig, 0, 1, 512), (1, 1));
    assert_eq!(request(&mut rig, 0, 0, 512).0, 0);
}

#[test]
fn a_request_without_header_or_status_is_a_device_error() {
    let chains: [&[(u64, u32, u16)]; 3] =
        [&[(HEADER, 15, 0), (STATUS, 1, WRITE)], &[(HEADER, 16, 0)], &[(STATUS, 1, WRITE)]];
    for chain in chains {
        let mut rig = Rig::<Block>::new(read_only());
        rig.rings[0].offer_chain(0, chain);
        rig.mmio.serve();
        assert!(rig.rings[0].take_used().is_empty());
        rig.assert_broken();
    }
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    let mut rig = Rig::<Block>::new(read_only());
    fill(&rig.memory, HEADER, &[0; 16]);
    let chain = [
        (HEADER, 5, 0),
        (HEADER + 5, 11, 0),
        (DATA, 500, WRITE),
        (DATA + 500, 13, WRITE), // twelve bytes of data and the status
    ];
    rig.rings[0].offer_chain(0, &chain);
    rig.mmio.serve();
    assert_eq!(rig.rings[0].take_used(), [(0, 513)]);
    assert_eq!(bytes(&rig.memory, DATA, 512), pattern()[..512]);
    assert_eq!(bytes(&rig.memory, DATA + 512, 1), [0]);
}

#[test]
fn a_long_queue_is_served_in_turns() {
    let mut rig = Rig::<Block>::new(read_only());
    for head in 0..128 {
        // No header, so every chain alone would stop the device: none is looked at after the first.
        rig.rings[0].descriptor(head, HEADER, 16, NEXT, 127);
    }
    rig.rings[0].descriptor(127, STATUS, 1, WRITE, 0);
    fill(&rig.memory, HEADER, &4u32.to_le_bytes());
    (0..100).for_each(|head| rig.rings[0].offer(head));
    rig.mmio.serve();
    assert_eq!(rig.rings[0].take_used().len(), TURN);
    let bell = rig.bells[0].clone().unwrap();
    assert_eq!(bell.read().unwrap(), 1, "the rest announces itself");
    rig.mmio.serve();
    assert_eq!(rig.rings[0].take_used().len(), 100 - TURN);
    assert!(bell.read().is_err());
}

/// A read of `mib` MiB from the start, all into the same MiB of RAM; needs `mib + 2` descriptors from `first` on.
fn offer_long_read(rig: &mut Rig<Block>, first: u16, mib: usize) {
    fill(&rig.memory, HEADER, &[0; 16]);
    fill(&rig.memory, STATUS, &[0xff]);
    let mut chain = vec![(HEADER, 16, 0)];
    chain.extend(vec![(0x80000, 1 << 20, WRITE); mib - 1]);
    chain.extend([(0x80000, (1 << 20) - 512, WRITE), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    rig.rings[0].offer_chain(first, &chain);
}

fn long_drive() -> Rig<Block> {
    let base = tempfile::tempfile().unwrap();
    base.set_len(64 << 20).unwrap();
    Rig::new(DriveSetup { id: "root".to_owned(), backing: DriveBacking::ReadOnly(base) })
}

#[test]
fn long_requests_are_served_in_turns() {
    let mut rig = long_drive();
    for first in [0, 30, 60] {
        offer_long_read(&mut rig, first, 20);
    }
    rig.mmio.serve();
    assert_eq!(rig.rings[0].take_used(), [(0, (20 << 20) + 1), (30, (20 << 20) + 1)]);
    rig.mmio.serve();
    assert_eq!(rig.rings[0].take_used().len(), 1);
}

#[test]
fn a_request_that_would_stall_the_others_is_an_io_error() {
    let mut rig = long_drive();
    offer_long_read(&mut rig, 0, 33);
    rig.mmio.serve();
    assert_eq!(rig.rings[0].take_used(), [(0, 1)]);
    assert_eq!(bytes(&rig.memory, STATUS, 1), [1]);
}

#[test]
fn the_configuration_tells_capacity_and_segments() {
    let mut rig = Rig::<Block>::new(read_only());
    assert_eq!([0x100, 0x104, 0x108, 0x10c, 0x110].map(|r| read(&mut rig.mmio, r)), [64, 0, 0, 126, 0]);
    assert_ne!(all_features(&mut rig.mmio) & 1 << VIRTIO_F_VERSION_1, 0);
}

#[test]
fn a_drive_of_another_size_or_kind_than_the_guest_knows_is_refused() {
    let saved = Rig::<Block>::new(read_only()).mmio.save().unwrap();
    assert_eq!((saved.sectors, saved.read_only), (SECTORS, true));
    let memory = test_memory();
    assert!(transport::<Block>(read_only(), Some(saved.clone()), &memory).is_ok());
    let refused = |setup, state| {
        let made = transport::<Block>(setup, Some(state), &memory);
        matches!(made, Err(DeviceError::State { source: StateFault::Drive { .. }, .. }))
    };
    assert!(refused(read_only(), BlockState { sectors: SECTORS + 1, ..saved.clone() }));
    assert!(refused(read_only(), BlockState { read_only: false, ..saved.clone() }));
    let writable = DriveSetup { id: "root".to_owned(), ..writable() };
    assert!(refused(writable, saved));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_ring_panics(rings in proptest::collection::vec(any_ring(), 1..4), is_writable in any::<bool>()) {
        let mut rig = Rig::<Block>::new(if is_writable { writable() } else { read_only() });
        serve_rings(&mut rig, 0, &rings);
    }

    #[test]
    fn no_register_access_panics(accesses in proptest::collection::vec(register_access(), 0..100)) {
        let mut rig = Rig::<Block>::new(writable());
        scramble(&mut rig, &accesses);
    }
}
