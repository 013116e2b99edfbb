//! The `state` file: versions, damage, and sections that a reader must not miss.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod support;

use snapshot_format::sections::{MachineState, SerialState, VcpuState, VmState};
use snapshot_format::state::{
    DecodeError, EncodeError, FormatVersion, Reader, SectionId, Table, Writer, decode_any,
};
use support::{FROZEN_AT, MEMORY_LEN, machine, state, vcpu, vm};

const V1_0: FormatVersion = FormatVersion::V1_0;
const V1_1: FormatVersion = FormatVersion::V1_1;

fn taken_vm(file: &[u8]) -> VmState {
    Reader::open(file).unwrap().take(0).unwrap()
}

#[test]
fn the_moment_of_the_freeze_is_in_1_1_and_not_in_1_0() {
    assert_eq!(taken_vm(&state(V1_1)), vm());
    assert_eq!(taken_vm(&state(V1_0)), VmState { frozen_at_unix_ns: 0, ..vm() });
    assert_eq!(state(V1_1).len() - state(V1_0).len(), size_of_val(&FROZEN_AT));
}

#[test]
fn a_1_1_machine_can_be_written_as_1_0_and_keeps_everything_else() {
    let mut newer = Reader::open(&state(V1_1)).unwrap();
    let mut writer = Writer::new(V1_0);
    writer.put(0, &newer.take::<MachineState>(0).unwrap()).unwrap();
    writer.put(0, &newer.take::<VcpuState>(0).unwrap()).unwrap();
    writer.put(0, &newer.take::<VmState>(0).unwrap()).unwrap();
    let mut older = Reader::open(&writer.finish().unwrap()).unwrap();
    assert_eq!(older.header().version, V1_0);
    assert_eq!(older.take::<MachineState>(0), Ok(machine(MEMORY_LEN)));
    assert_eq!(older.take::<VcpuState>(0), Ok(vcpu(0)));
    assert_eq!(older.take::<VmState>(0), Ok(VmState { frozen_at_unix_ns: 0, ..vm() }));
    older.finish().unwrap();
}

#[test]
fn every_section_of_every_version_decodes() {
    for version in FormatVersion::readable() {
        let mut reader = Reader::open(&state(*version)).unwrap();
        for section in reader.sections().to_vec() {
            decode_any(&mut reader, section.id, section.instance).unwrap();
        }
        reader.finish().unwrap();
    }
}

#[test]
fn header_and_table_are_known_without_the_sections() {
    let file = state(V1_1);
    let whole = Reader::open(&file).unwrap();
    let beginning = &file[..Table::MAX_LEN.min(file.len())];
    let table = Table::check(beginning, file.len() as u64).unwrap();
    assert_eq!((&table.header, table.entries.as_slice()), (whole.header(), whole.sections()));
    assert_eq!(table.header.creator, "ember sample");
}

#[test]
fn every_flipped_bit_is_found() {
    let good = state(V1_1);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Reader::open(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn every_wrong_length_is_refused() {
    let good = state(V1_1);
    for len in 0..good.len() {
        assert!(Reader::open(&good[..len]).is_err(), "{len} bytes");
    }
    let longer = [good.as_slice(), &[0]].concat();
    assert!(matches!(Reader::open(&longer), Err(DecodeError::Length { .. })));
}

#[test]
fn a_required_section_that_nobody_takes_is_an_error() {
    let mut reader = Reader::open(&state(V1_1)).unwrap();
    reader.take::<MachineState>(0).unwrap();
    assert!(matches!(reader.finish(), Err(DecodeError::Leftover { id: SectionId::SERIAL, instance: 0 })));
}

#[test]
fn a_section_is_taken_once_and_must_be_there() {
    let mut reader = Reader::open(&state(V1_1)).unwrap();
    reader.take::<SerialState>(0).unwrap();
    let missing = |instance| Err(DecodeError::Missing { id: SectionId::SERIAL, instance });
    assert_eq!(reader.take::<SerialState>(0), missing(0));
    assert_eq!(reader.take::<SerialState>(9), missing(9));
}

#[test]
fn the_same_section_is_not_written_twice() {
    let mut writer = Writer::new(V1_1);
    writer.put(0, &vm()).unwrap();
    assert_eq!(writer.put(0, &vm()), Err(EncodeError::Duplicate { id: SectionId::VM, instance: 0 }));
}

#[test]
fn a_version_that_no_release_knows_is_not_written() {
    let version = FormatVersion { major: 9, minor: 0 };
    assert_eq!(Writer::new(version).finish(), Err(EncodeError::Version { version }));
}
