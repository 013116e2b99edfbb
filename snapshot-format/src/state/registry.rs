//! Which sections there are, and the one place where versionize's versions are known.

use std::any::TypeId;
use std::fmt;
use std::sync::OnceLock;

use versionize::{VersionMap, Versionize};

use super::{DecodeError, Reader};
use crate::sections::{
    BlockState, MachineState, PortState, RngState, SerialState, VcpuState, VmState, VsockState,
};

/// Kind of a section. Numbers are never used again for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionId(pub u32);

/// A saved type that is a section of its own.
pub trait Section: Versionize + Sized {
    const ID: SectionId;
    /// Whether a reader that does not know or does not take the section must refuse the file.
    const REQUIRED: bool = true;
}

macro_rules! sections {
    ($($id:ident = $number:literal, $name:literal, $type:ident;)*) => {
        impl SectionId {
            $(pub const $id: SectionId = SectionId($number);)*

            /// The section's name, `None` when this release does not know it.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(SectionId::$id => Some($name),)*
                    _ => None,
                }
            }
        }

        $(impl Section for $type {
            const ID: SectionId = SectionId::$id;
        })*

        /// Decodes a section of whatever kind and gives its debug text: for `inspect` and for fuzzing.
        pub fn decode_any(reader: &mut Reader, id: SectionId, instance: u32) -> Result<String, DecodeError> {
            match id {
                $(SectionId::$id => reader.take::<$type>(instance).map(|section| format!("{section:?}")),)*
                _ => Err(DecodeError::UnknownSection { id }),
            }
        }

        #[cfg(test)]
        const SECTION_TYPES: &[(&str, SectionId)] = &[$((stringify!($type), SectionId::$id)),*];
    };
}

sections! {
    MACHINE = 1, "machine", MachineState;
    VM = 2, "vm", VmState;
    VCPU = 3, "vcpu", VcpuState;
    SERIAL = 16, "serial", SerialState;
    BLOCK = 17, "block", BlockState;
    VSOCK = 18, "vsock", VsockState;
    RNG = 19, "rng", RngState;
    PORT = 20, "port", PortState;
}

impl fmt::Display for SectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "number {}", self.0),
        }
    }
}

/// Types that differ between versions of the format: (root version, type, its version from there on).
/// A type that is not named here has version 1 everywhere.
fn type_versions() -> [(u16, TypeId, u16); 1] {
    [(2, <VmState as Versionize>::type_id(), 2)]
}

/// versionize's map: one root version per format version.
pub(super) fn version_map() -> &'static VersionMap {
    static MAP: OnceLock<VersionMap> = OnceLock::new();
    MAP.get_or_init(|| {
        let mut map = VersionMap::new();
        for root in 1..=super::CURRENT.root().unwrap_or(1) {
            if root > 1 {
                map.new_version();
            }
            for (_, type_id, version) in type_versions().into_iter().filter(|(since, ..)| *since == root) {
                map.set_type_version(type_id, version);
            }
        }
        map
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sections::{Blob, QueueState, RegionState, VirtioState, VsockConnectionState};
    use crate::state::FormatVersion;

    /// Every type of `sections.rs`: name, versionize's id, newest version its derive knows, round trip at a root.
    type Entry = (&'static str, TypeId, u16, fn(u16));

    fn round_trip<T: Versionize + Default + PartialEq + fmt::Debug>(root: u16) {
        let mut bytes = Vec::new();
        T::default().serialize(&mut bytes, version_map(), root).unwrap();
        let mut rest = bytes.as_slice();
        assert_eq!(T::deserialize(&mut rest, version_map(), root).unwrap(), T::default());
        assert!(rest.is_empty());
    }

    macro_rules! entries {
        ($($type:ident),*) => {
            [$((stringify!($type), <$type as Versionize>::type_id(), <$type as Versionize>::version(),
                round_trip::<$type> as fn(u16))),*]
        };
    }

    fn types() -> Vec<Entry> {
        Vec::from(entries!(
            Blob,
            RegionState,
            MachineState,
            VmState,
            VcpuState,
            SerialState,
            QueueState,
            VirtioState,
            BlockState,
            VsockConnectionState,
            VsockState,
            RngState,
            PortState
        ))
    }

    #[test]
    fn no_type_has_a_version_its_derive_does_not_know_so_versionize_cannot_panic() {
        for version in FormatVersion::readable() {
            let root = version.root().unwrap();
            for (name, type_id, newest, round_trip) in types() {
                let mapped = version_map().get_type_version(root, type_id);
                assert!((1..=newest).contains(&mapped), "{name} in {version}");
                round_trip(root);
            }
        }
    }

    #[test]
    fn the_newest_root_uses_the_newest_version_of_every_type() {
        for (name, type_id, newest, _) in types() {
            assert_eq!(
                version_map().get_type_version(version_map().latest_version(), type_id),
                newest,
                "{name}"
            );
        }
    }

    #[test]
    fn every_saved_type_in_the_source_is_walked_by_these_tests() {
        let source = include_str!("../sections.rs");
        let derived = source
            .split("Versionize)]\npub struct ")
            .skip(1)
            .map(|rest| rest.split([' ', '(', '{']).next().unwrap());
        let walked: Vec<&str> = types().iter().map(|entry| entry.0).collect();
        let mut count = 0;
        for name in derived {
            assert!(walked.contains(&name), "{name} is missing in types()");
            count += 1;
        }
        assert_eq!(count + 1, walked.len(), "Blob is written by hand, every other type derives");
    }

    #[test]
    fn ids_and_names_are_unique() {
        let mut ids: Vec<u32> = SECTION_TYPES.iter().map(|(_, id)| id.0).collect();
        let mut names: Vec<_> = SECTION_TYPES.iter().map(|(_, id)| id.name().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        names.sort_unstable();
        names.dedup();
        assert_eq!((ids.len(), names.len()), (SECTION_TYPES.len(), SECTION_TYPES.len()));
    }

    #[test]
    fn roots_of_the_map_are_the_readable_versions() {
        assert_eq!(usize::from(version_map().latest_version()), FormatVersion::readable().len());
    }
}
