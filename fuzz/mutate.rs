//! The corpus of a fuzz target and mutations of it, the same ones on every machine: what the tests of each crate with decoders
//! share.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

use std::fs;
use std::path::Path;

/// Numbers that look like content, the same ones for the same seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut n = self.0;
        n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// The corpus of a target in the checkout at `repository`.
pub fn corpus(repository: &Path, name: &str) -> Vec<Vec<u8>> {
    let folder = repository.join("fuzz/corpus").join(name);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    // The same numbers give the same mutations on every machine.
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// One to eight changes of kinds that have broken decoders before.
pub fn mutate(seeds: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = seeds[numbers.below(seeds.len())].clone();
    for _ in 0..=numbers.below(8) {
        change(&mut bytes, seeds, numbers);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], numbers: &mut Numbers) {
    const TELLING: [u64; 10] =
        [0, 1, 0x7f, 0xff, 0x1000, 0xffff, 1 << 31, u32::MAX as u64, 1 << 63, u64::MAX];
    if bytes.is_empty() {
        bytes.push(0);
    }
    let (at, kind) = (numbers.below(bytes.len()), numbers.below(9));
    match kind {
        0..=2 => bytes[at] ^= 1 << numbers.below(8),
        3 => bytes[at] = numbers.next().to_le_bytes()[0],
        4 | 5 => {
            let value = TELLING[numbers.below(TELLING.len())].to_le_bytes();
            let width = [1, 2, 4, 8][numbers.below(4)].min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&value[..width]);
        }
        6 => bytes.truncate(at),
        7 => {
            let part = bytes[at..bytes.len().min(at + 1 + numbers.below(64))].to_vec();
            let to = numbers.below(bytes.len());
            bytes.splice(to..to, part);
        }
        _ => {
            let other = &seeds[numbers.below(seeds.len())];
            let from = numbers.below(other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}
