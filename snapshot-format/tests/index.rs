//! The `memory.index` file: size, lookups, damage, and tables that no release writes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod support;

use snapshot_format::crc::crc64;
use snapshot_format::index::{
    BuildError, Builder, Chunk, Granule, IndexError, MEMORY_MAX, MemoryIndex, Place,
};
use snapshot_format::sections::{MachineState, RegionState};
use support::{MEMORY_LEN, index, layered_index, machine};

/// Where the runs begin in the file, and where a run keeps its number of chunks.
const RUNS: usize = 80;
const RUN: usize = 16;
const COUNT_IN_RUN: usize = 4;
const OFFSET_IN_RUN: usize = 8;

fn sealed(mut bytes: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut bytes);
    let table = crc64(&bytes[RUNS..]).to_le_bytes();
    bytes[64..72].copy_from_slice(&table);
    let header = crc64(&bytes[..72]).to_le_bytes();
    bytes[72..80].copy_from_slice(&header);
    bytes
}

/// Length of the index of a 256 MiB guest with content in the chunks that `has_content` names.
fn index_len(has_content: impl Fn(u64) -> bool) -> usize {
    let granule = Granule::for_memory(256 << 20);
    let mut builder = Builder::new(&machine(256 << 20), granule).unwrap();
    let granule = granule.bytes();
    for number in (0..(256 << 20) / granule).filter(|number| has_content(*number)) {
        builder.add(number * granule, &[1]).unwrap();
    }
    builder.finish().unwrap().len()
}

#[test]
fn the_index_of_a_guest_of_256_mib_is_as_long_as_what_is_in_it_demands() {
    assert_eq!(index_len(|_| false), RUNS + RUN);
    assert_eq!(index_len(|_| true), RUNS + RUN + (512 << 10));
    assert_eq!(index_len(|number| number % 2 == 0), RUNS + (1280 << 10));
}

#[test]
fn a_large_memory_gets_large_chunks_and_a_bounded_index() {
    let granule = |memory_len: u64| Granule::for_memory(memory_len).bytes();
    assert_eq!((granule(2 << 20), granule(512 << 20), granule((512 << 20) + 4096)), (4096, 4096, 8192));
    assert_eq!((granule(4 << 30), granule(MEMORY_MAX)), (32 << 10, 64 << 10));
    let chunks = |memory_len: u64| memory_len.div_ceil(granule(memory_len));
    assert!((1..=8192).all(|mib: u64| chunks(mib << 20) <= 131_072));
}

#[test]
fn chunks_are_found_by_number_and_there_is_none_behind_the_last() {
    let index = MemoryIndex::decode(&index(Granule::MIN)).unwrap();
    let place = |number| index.chunk(number).unwrap().place;
    assert_eq!([0, 2, 3, 4, 13, 14, 510, 511].map(place), {
        use Place::{Here, Zero};
        [Zero, Zero, Here, Here, Here, Zero, Zero, Here]
    });
    let last = [[0; 4080].as_slice(), &[9; 16]].concat();
    assert_eq!(index.chunk(511), Some(Chunk { place: Place::Here, crc: crc64(&last) }));
    assert_eq!((index.chunk(512), index.chunk(u32::MAX), index.map().extent(512)), (None, None, None));
    assert_eq!(index.map().count(|place| place == Place::Here), 12);
}

#[test]
fn the_last_chunk_may_be_short() {
    let machine = machine(MEMORY_LEN + 4096);
    let mut builder = Builder::new(&machine, Granule::MAX).unwrap();
    builder.add(MEMORY_LEN, &[5; 10]).unwrap();
    let index = MemoryIndex::decode(&builder.finish().unwrap()).unwrap();
    assert_eq!(index.map().extent(32), Some((MEMORY_LEN, 4096)));
    let content = [[5; 10].as_slice(), &[0; 4086]].concat();
    assert_eq!(index.chunk(32).unwrap().crc, crc64(&content));
}

#[test]
fn chunks_in_ancestors_keep_their_offsets() {
    let index = MemoryIndex::decode(&layered_index()).unwrap();
    let granule = Granule::MAX.bytes();
    assert_eq!(index.chunk(9).unwrap().place, Place::Parent { generation: 1, offset: 9 * granule });
    assert_eq!(index.chunk(23).unwrap().place, Place::Parent { generation: 2, offset: 24 * granule });
    assert_eq!(index.map().runs().count(), 4);
}

#[test]
fn an_index_is_bound_to_its_machine() {
    let index = MemoryIndex::decode(&index(Granule::MAX)).unwrap();
    assert_eq!(index.map().check_machine(&machine(MEMORY_LEN)), Ok(()));
    let differs = |machine: &MachineState| match index.map().check_machine(machine) {
        Err(IndexError::Machine { what }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(differs(&machine(MEMORY_LEN * 2)), "memory size");
    assert_eq!(differs(&MachineState { tsc_khz: 1, ..machine(MEMORY_LEN) }), "TSC frequency");
    let moved = RegionState { start: 4096, len: MEMORY_LEN, file_offset: 0 };
    assert_eq!(differs(&MachineState { regions: vec![moved], ..machine(MEMORY_LEN) }), "memory layout");
}

#[test]
fn every_flipped_bit_and_every_wrong_length_is_found() {
    for good in [index(Granule::MIN), layered_index()] {
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(MemoryIndex::decode(&bad).is_err(), "bit {bit}");
        }
        (0..good.len()).for_each(|len| assert!(MemoryIndex::decode(&good[..len]).is_err(), "{len} bytes"));
        assert!(MemoryIndex::decode(&[good.as_slice(), &[0]].concat()).is_err());
    }
}

#[test]
fn runs_that_no_release_writes_are_refused() {
    let spoilt =
        |at: usize, byte: u8| MemoryIndex::decode(&sealed(layered_index(), |file| file[RUNS + at] = byte));
    assert_eq!(spoilt(0, 9), Err(IndexError::Run { number: 0 }), "an unknown kind");
    assert_eq!(spoilt(0, 0), Err(IndexError::Run { number: 0 }), "no kind");
    assert_eq!(spoilt(2, 1), Err(IndexError::Run { number: 0 }), "a zero run of an ancestor");
    assert_eq!(spoilt(COUNT_IN_RUN, 0), Err(IndexError::Run { number: 0 }), "an empty run");
    assert_eq!(spoilt(COUNT_IN_RUN + 3, 255), Err(IndexError::Run { number: 0 }), "a run past the end");
    assert_eq!(spoilt(OFFSET_IN_RUN, 1), Err(IndexError::Run { number: 0 }), "zeros with an offset");
    assert_eq!(spoilt(RUN, 1), Err(IndexError::Run { number: 1 }), "two runs that are one");
    assert_eq!(spoilt(RUN + 2, 0), Err(IndexError::Run { number: 1 }), "an ancestor of no generation");
    assert_eq!(
        spoilt(RUN + OFFSET_IN_RUN, 1),
        Err(IndexError::Run { number: 1 }),
        "an offset inside a chunk"
    );
    assert_eq!(
        spoilt(3 * RUN + OFFSET_IN_RUN, 1),
        Err(IndexError::Run { number: 3 }),
        "content out of place"
    );
    assert!(matches!(spoilt(COUNT_IN_RUN, 7), Err(IndexError::Count { .. } | IndexError::Run { .. })));
}

#[test]
fn headers_that_no_release_writes_are_refused() {
    let spoilt =
        |at: usize, byte: u8| MemoryIndex::decode(&sealed(index(Granule::MIN), |file| file[at] = byte));
    assert_eq!(spoilt(0, b'E'), Err(IndexError::Magic));
    assert_eq!(spoilt(12, 2), Err(IndexError::Version { version: 2 }));
    assert_eq!(spoilt(14, 1), Err(IndexError::Reserved));
    assert_eq!(spoilt(52, 1), Err(IndexError::Reserved));
    assert_eq!(spoilt(16, 1), Err(IndexError::Granule { granule: 4097 }));
    assert_eq!(spoilt(24, 1), Err(IndexError::MemoryLen { len: MEMORY_LEN + 1 }));
    assert!(matches!(spoilt(40, 9), Err(IndexError::Count { what: "chunks", .. })));
    assert!(
        matches!(spoilt(47, 255), Err(IndexError::Length { .. })),
        "a run count of 4 billion costs nothing"
    );
}

#[test]
fn content_comes_in_file_order_and_within_memory() {
    let mut builder = Builder::new(&machine(MEMORY_LEN), Granule::MIN).unwrap();
    builder.add(8192, &[1]).unwrap();
    assert_eq!(builder.add(8192, &[1]), Err(BuildError::Order { offset: 8192, position: 8193 }));
    let past = |offset| BuildError::PastEnd { offset, len: 2 };
    assert_eq!(builder.add(MEMORY_LEN - 1, &[1, 2]), Err(past(MEMORY_LEN - 1)));
    assert_eq!(builder.add(u64::MAX, &[1, 2]), Err(past(u64::MAX)));
}

#[test]
fn memory_that_no_guest_has_is_not_indexed() {
    for len in [0, 4095, MEMORY_MAX + 4096] {
        assert_eq!(Builder::new(&machine(len), Granule::MIN).err(), Some(BuildError::Memory), "{len}");
    }
    let huge = RegionState { start: 0, len: u64::MAX, file_offset: 0 };
    let machine = MachineState { regions: vec![huge.clone(), huge], ..machine(4096) };
    assert_eq!(Builder::new(&machine, Granule::MIN).err(), Some(BuildError::Memory));
}

#[test]
fn granules_are_powers_of_two_from_4_to_64_kib() {
    let fine: Vec<u32> =
        (0..=20).map(|shift| 1 << shift).filter(|bytes| Granule::new(*bytes).is_some()).collect();
    assert_eq!(fine, [4096, 8192, 16_384, 32_768, 65_536]);
    assert_eq!((Granule::new(0), Granule::new(12_288)), (None, None));
}
