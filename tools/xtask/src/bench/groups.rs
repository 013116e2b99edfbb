//! Which benches there are, and where they are measured.

use crate::rig::DEFAULT_MEMORY_MIB;

/// Where a group's figures have a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the emulated host with the exact clock: figures are counts of instructions, the same on any machine.
    ExactRig,
    /// On this machine's own KVM: figures are time, and belong to this machine.
    Native,
}

/// A script under `benches/`.
#[derive(Debug)]
pub struct Group {
    pub name: &'static str,
    pub script: &'static str,
    pub place: Place,
    pub memory_mib: u32,
    /// Seconds of wall clock.
    pub limit: u64,
}

/// All groups.
pub const GROUPS: [Group; 2] = [
    Group {
        name: "main",
        script: "main.sh",
        place: Place::ExactRig,
        memory_mib: DEFAULT_MEMORY_MIB,
        limit: 3600,
    },
    Group { name: "native", script: "native.sh", place: Place::Native, memory_mib: 0, limit: 600 },
];
