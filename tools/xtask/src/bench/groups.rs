//! Which benches there are, and where they are measured.

use std::path::Path;

use anyhow::Result;

use super::figures;
use super::report::Measured;
use crate::rig::DEFAULT_MEMORY_MIB;

/// Where figures have a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the emulated host with the exact clock: figures are counts of instructions, the same on any machine.
    ExactRig,
    /// On this machine's own KVM: figures are time, and belong to this machine.
    Native,
}

/// What belongs together.
#[derive(Debug)]
pub struct Group {
    pub name: &'static str,
    pub parts: &'static [Part],
}

/// A script under `benches/` that takes samples, and what is made of them.
#[derive(Debug)]
pub struct Part {
    /// Of its directory of raw samples.
    pub name: &'static str,
    pub script: &'static str,
    pub place: Place,
    pub memory_mib: u32,
    /// Seconds of wall clock.
    pub limit: u64,
    /// Makes figures of the directory that the script has filled.
    pub figures: fn(&Path) -> Result<Measured>,
}

/// All groups.
pub const GROUPS: [Group; 1] = [Group {
    name: "main",
    parts: &[
        Part {
            name: "main",
            script: "main.sh",
            place: Place::ExactRig,
            memory_mib: DEFAULT_MEMORY_MIB,
            limit: 3600,
            figures: figures::main,
        },
        Part {
            name: "native",
            script: "native.sh",
            place: Place::Native,
            memory_mib: 0,
            limit: 600,
            figures: figures::native,
        },
    ],
}];
