//! The `working-set` file: damage, and ranges that cannot be.

mod support;

use snapshot_format::working_set::{PageRange, WorkingSet, WorkingSetError};
use support::{MEMORY_LEN, working_set};

#[test]
fn every_flipped_bit_and_every_wrong_length_is_found() {
    let good = working_set().encode().unwrap();
    assert_eq!(WorkingSet::decode(&good), Ok(working_set()));
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(WorkingSet::decode(&bad).is_err(), "bit {bit}");
    }
    (0..good.len()).for_each(|len| assert!(WorkingSet::decode(&good[..len]).is_err(), "{len} bytes"));
    assert!(WorkingSet::decode(&[good.as_slice(), &[0]].concat()).is_err());
}

#[test]
fn ranges_ascend_with_gaps_within_memory() {
    let range = |first, count| PageRange { first, count };
    let encode = |read: &[PageRange], write: &[PageRange]| {
        let (read, late_write) = (read.to_vec(), write.to_vec());
        WorkingSet { memory_len: MEMORY_LEN, read, late_write, ..WorkingSet::default() }.encode()
    };
    let bad = |number| Err(WorkingSetError::Range { number });
    assert_eq!(encode(&[range(3, 0)], &[]), bad(0), "empty");
    assert_eq!(encode(&[range(3, 2), range(5, 1)], &[]), bad(1), "no gap");
    assert_eq!(encode(&[range(3, 2)], &[range(512, 1)]), bad(1), "behind memory");
    assert_eq!(encode(&[range(u32::MAX, u32::MAX)], &[]), bad(0), "far behind memory");
    assert!(encode(&[range(3, 2)], &[range(0, 512)]).is_ok());
}
