//! Which benches there are, and where they are measured.

use std::path::Path;

use anyhow::Result;

use super::report::Measured;
use super::{clones, figures, paging, peer, pool};
use crate::rig::DEFAULT_MEMORY_MIB;

/// Where figures have a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the emulated host with the exact clock: figures are counts of instructions, the same on any machine.
    ExactRig,
    /// The same, with a program that the user has brought.
    ExactRigWithPeer,
    /// In the emulated host by the wall clock: figures are counts of what went right or wrong. Guests may have several vCPUs.
    Rig,
    /// On this machine's own KVM: figures are time, and belong to this machine.
    Native,
}

/// What belongs together.
#[derive(Debug)]
pub struct Group {
    pub name: &'static str,
    /// Whether there is a program in which faults can be injected.
    pub faults: bool,
    pub parts: &'static [Part],
}

/// A script under `benches/` that takes samples, and what is made of them.
#[derive(Debug)]
pub struct Part {
    /// Of its directory of raw samples.
    pub name: &'static str,
    pub script: &'static str,
    /// Given to the script.
    pub argument: &'static str,
    pub place: Place,
    pub memory_mib: u32,
    /// Boots of the emulated host, each of which takes its share of the samples.
    pub runs: u32,
    /// Seconds of wall clock, of each run.
    pub limit: u64,
    /// Makes figures of the directory that the script has filled.
    pub figures: fn(&Path) -> Result<Measured>,
}

/// All groups. A part in the emulated host is a boot of it, so that one that hangs does not cost the others.
pub const GROUPS: [Group; 5] = [
    Group {
        name: "main",
        faults: false,
        parts: &[
            in_rig("echo", "main.sh", figures::echo),
            Part { runs: 5, ..in_rig("echo-cold", "main.sh", figures::echo_cold) },
            in_rig("python", "main.sh", figures::python),
            Part { runs: 5, ..in_rig("python-cold", "main.sh", figures::python_cold) },
            Part { runs: 5, ..in_rig("python-long", "main.sh", figures::python_long) },
            Part { runs: 5, ..in_rig("python-import", "main.sh", figures::python_import) },
            natively("native", "native.sh", figures::native),
        ],
    },
    Group {
        name: "clones",
        faults: true,
        parts: &[
            Part { argument: "cost", ..in_rig("clones-cost", "clones.sh", clones::cost) },
            Part {
                argument: "cycles 1",
                place: Place::Rig,
                limit: 3000,
                ..in_rig("clones-cycles-1", "clones.sh", clones::cycles)
            },
            Part {
                argument: "cycles 2",
                place: Place::Rig,
                limit: 3000,
                ..in_rig("clones-cycles-2", "clones.sh", clones::cycles)
            },
            Part {
                argument: "lots",
                place: Place::Rig,
                limit: 3000,
                ..in_rig("clones-lots", "clones.sh", clones::lots)
            },
        ],
    },
    Group { name: "jail", faults: false, parts: &[natively("jail", "jail.sh", figures::jail)] },
    Group {
        name: "pool",
        faults: false,
        parts: &[
            Part { limit: 1800, ..natively("pool-native", "pool.sh", pool::pool) },
            Part { argument: "answer", ..in_rig("pool-linux", "pool-linux.sh", pool::linux_answer) },
            Part { argument: "density", ..in_rig("pool-density", "pool-linux.sh", pool::linux_density) },
        ],
    },
    Group {
        name: "paging",
        faults: false,
        parts: &[
            Part { argument: "echo", ..in_rig("paging-echo", "paging.sh", paging::echo) },
            Part { argument: "lambda", ..in_rig("paging-lambda", "paging.sh", paging::lambda) },
            Part { argument: "drift", ..in_rig("paging-drift", "paging.sh", paging::lambda_drift) },
            Part {
                argument: "small",
                memory_mib: 8192,
                ..in_rig("paging-small", "paging.sh", paging::small)
            },
            Part {
                name: "paging-native",
                script: "paging-native.sh",
                argument: "",
                place: Place::Native,
                memory_mib: 0,
                runs: 1,
                limit: 900,
                figures: paging::native,
            },
            peer::ECHO,
            peer::PYTHON,
        ],
    },
];

const fn in_rig(name: &'static str, script: &'static str, figures: fn(&Path) -> Result<Measured>) -> Part {
    let (place, memory_mib) = (Place::ExactRig, DEFAULT_MEMORY_MIB);
    Part { name, script, argument: name, place, memory_mib, runs: 1, limit: 900, figures }
}

const fn natively(name: &'static str, script: &'static str, figures: fn(&Path) -> Result<Measured>) -> Part {
    Part { name, script, argument: "", place: Place::Native, memory_mib: 0, runs: 1, limit: 600, figures }
}
