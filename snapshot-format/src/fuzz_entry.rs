//! One entry point per decoder, for the fuzz targets (`fuzz/`) and for the mutation tests.
//!
//! Every input is tried as it is and once more with its checksums made right: a fuzzer that never gets past a CRC
//! tests only the CRC.

use crate::index::MemoryIndex;
use crate::manifest::{self, Manifest, Parsed};
use crate::state::{self, Reader, decode_any};
use crate::working_set::{self, WorkingSet};
use crate::{index, manifest::ManifestError};

/// What a decoder made of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Refused with an error.
    Refused,
    /// Decoded.
    Accepted,
    /// Decoded, but what was decoded does not give the input again: a bug.
    Broken,
}

/// A decoder's name, which is also its fuzz target's and its corpus', and its entry point.
pub type Target = (&'static str, fn(&[u8]) -> Verdict);

/// Every decoder.
pub const TARGETS: &[Target] =
    &[("state", state), ("index", index), ("working_set", working_set), ("manifest", manifest)];

/// The `state` file, every section of it.
pub fn state(bytes: &[u8]) -> Verdict {
    both(bytes, |sealed| state::reseal(sealed), state_once)
}

fn state_once(bytes: &[u8]) -> Verdict {
    let Ok(mut reader) = Reader::open(bytes) else { return Verdict::Refused };
    let sections = reader.sections().to_vec();
    let all = sections.iter().all(|section| decode_any(&mut reader, section.id, section.instance).is_ok());
    if all && reader.finish().is_ok() { Verdict::Accepted } else { Verdict::Refused }
}

/// The `memory.index` file.
pub fn index(bytes: &[u8]) -> Verdict {
    both(bytes, |sealed| index::reseal(sealed), index_once)
}

fn index_once(bytes: &[u8]) -> Verdict {
    let Ok(index) = MemoryIndex::decode(bytes) else { return Verdict::Refused };
    same(index.encode().is_ok_and(|again| again == bytes))
}

/// The `working-set` file.
pub fn working_set(bytes: &[u8]) -> Verdict {
    both(bytes, |sealed| working_set::reseal(sealed), working_set_once)
}

fn working_set_once(bytes: &[u8]) -> Verdict {
    let Ok(set) = WorkingSet::decode(bytes) else { return Verdict::Refused };
    same(set.encode().is_ok_and(|again| again == bytes))
}

/// `manifest.json`.
pub fn manifest(bytes: &[u8]) -> Verdict {
    both(bytes, manifest::reseal, manifest_once)
}

/// The text may be laid out otherwise than ours: compared is what it says.
fn manifest_once(bytes: &[u8]) -> Verdict {
    let Ok(manifest) = Parsed::from_json(bytes).and_then(Parsed::trust) else { return Verdict::Refused };
    match manifest.to_json() {
        Ok(again) => same(Manifest::from_json(&again).as_ref() == Ok(&manifest)),
        // The same manifest laid out with indentation can be longer than the limit.
        Err(ManifestError::TooLong { .. }) => Verdict::Accepted,
        Err(_) => Verdict::Broken,
    }
}

fn both(bytes: &[u8], reseal: impl Fn(&mut Vec<u8>), decode: fn(&[u8]) -> Verdict) -> Verdict {
    let mut sealed = bytes.to_vec();
    reseal(&mut sealed);
    match (decode(bytes), decode(&sealed)) {
        (Verdict::Broken, _) | (_, Verdict::Broken) => Verdict::Broken,
        (Verdict::Accepted, _) | (_, Verdict::Accepted) => Verdict::Accepted,
        (Verdict::Refused, Verdict::Refused) => Verdict::Refused,
    }
}

fn same(same: bool) -> Verdict {
    if same { Verdict::Accepted } else { Verdict::Broken }
}
