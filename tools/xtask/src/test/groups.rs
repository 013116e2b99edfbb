//! Which black-box tests run together, where, and with what.

use anyhow::{Result, anyhow};

use crate::rig::{DEFAULT_CPU, DEFAULT_MEMORY_MIB};

/// What a group needs of the machine it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// VMX or SVM, for Linux guests: natively where it is there, else in the rig.
    Linux,
    /// The same, and the rights to give files any owner.
    LinuxAsRoot,
    /// Any working /dev/kvm, for small guests: natively where it is there, and in the rig as well.
    Small,
    /// In the rig only: the tests beside the code, which natively are unit tests, what needs another processor, and what moves the
    /// host's clock.
    Rig,
    /// No virtual machine at all: natively.
    Anywhere,
}

/// Tests that share one boot of the emulated host.
///
/// A group holds the files `tests/NAME.rs` and `tests/NAME_*.rs`.
#[derive(Debug)]
pub struct Group {
    pub name: &'static str,
    pub place: Place,
    /// In the rig, time is the number of executed instructions. Guests have one vCPU then.
    pub icount: bool,
    /// Whether there is a program in which faults can be injected.
    pub faults: bool,
    /// Memory of the emulated host.
    pub memory_mib: u32,
    /// Seconds that each case may take, by the clock of where it runs.
    pub case_limit: u64,
    /// In the rig, the processor: QEMU's `-cpu`.
    pub cpu: &'static str,
    /// In the rig, the processor of the cases whose names begin with [`OTHER_CPU`]. They run last and find the
    /// bundles of the others.
    pub other_cpu: Option<&'static str>,
}

/// Beginning of the names of cases that run on another processor.
pub const OTHER_CPU: &str = "other_cpu::";

impl Group {
    const fn new(name: &'static str, place: Place, case_limit: u64) -> Self {
        Self {
            name,
            place,
            icount: false,
            faults: false,
            memory_mib: DEFAULT_MEMORY_MIB,
            case_limit,
            cpu: DEFAULT_CPU,
            other_cpu: None,
        }
    }

    const fn icount(mut self) -> Self {
        self.icount = true;
        self
    }

    const fn other_cpu(mut self, cpu: &'static str) -> Self {
        self.other_cpu = Some(cpu);
        self
    }

    const fn faults(mut self) -> Self {
        self.faults = true;
        self
    }

    const fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }
}

/// All groups. Two run at a time in this order, so the long ones come first.
pub const GROUPS: [Group; 24] = [
    // Bakes of a busy guest one after the other (with --full ten, and of a large one).
    Group::new("whole_cycles", Place::Linux, 3000).memory_mib(12 * 1024),
    // Clones that are baked again, several times; one writes all the time, which is 200 s beside another emulated host.
    Group::new("whole_linux", Place::Linux, 600),
    // Many clones (with --full a thousand, each of which takes one to two seconds on a slow machine), agents that fail to answer, each waited for.
    Group::new("clones_unique", Place::Linux, 2400).faults(),
    // Bundles for two clock sources, and clones that wait for a timer.
    Group::new("clones_time", Place::Rig, 600),
    // The client's imports and several bundles of it.
    Group::new("linux_lambda", Place::Linux, 300),
    // Memory up to both sides of the hole below 4 GiB.
    Group::new("linux_memory", Place::Linux, 400).memory_mib(12 * 1024),
    // The most cases.
    Group::new("small_serve", Place::Small, 120),
    Group::new("small", Place::Small, 120),
    // Attackers that are waited out; with --full, guests that run wild for an hour.
    Group::new("hostile", Place::Small, 3900),
    // Guests that never get ready, each waited for.
    Group::new("linux_bad", Place::Linux, 300),
    Group::new("linux_serve", Place::Linux, 300),
    Group::new("linux_http", Place::Linux, 300),
    Group::new("linux_hostile", Place::Linux, 300),
    Group::new("linux_exec", Place::Linux, 300),
    Group::new("linux_restore", Place::Linux, 300),
    // Control groups and a disk that fails: on a host of its own.
    Group::new("linux_paging", Place::Rig, 300),
    Group::new("linux_isolation", Place::Linux, 300),
    // Images are made and unpacked by umoci and skopeo.
    Group::new("linux_oci", Place::LinuxAsRoot, 300),
    // With --full eight vCPUs, all of them busy.
    Group::new("linux_smp", Place::Linux, 600),
    // What is asserted there is counted in instructions.
    Group::new("figures", Place::Linux, 300).icount(),
    Group::new("whole_cpu", Place::Rig, 120).other_cpu("EPYC,+svm,+npt,-cx16,-avx2,-bmi2,-rdtscp,-xsaveopt"),
    Group::new("whole", Place::Small, 120),
    Group::new("beside", Place::Rig, 120),
    Group::new("offline", Place::Anywhere, 120),
];

/// The group of a test binary.
pub fn of_binary(binary: &str) -> Result<&'static Group> {
    let holds =
        |group: &&Group| binary.strip_prefix(group.name).is_some_and(|r| r.is_empty() || r.starts_with('_'));
    GROUPS.iter().find(holds).ok_or_else(|| {
        anyhow!(
            "tests/{binary}.rs is in no group: name it GROUP.rs or GROUP_*.rs after a row of \
             tools/xtask/src/test/groups.rs, or add a row"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_belongs_to_the_group_it_is_named_after() {
        assert_eq!(of_binary("small").unwrap().name, "small");
        assert_eq!(of_binary("small_restore").unwrap().name, "small");
        assert!(of_binary("smaller").unwrap_err().to_string().contains("smaller.rs is in no group"));
    }

    #[test]
    fn every_group_has_its_own_name() {
        let mut names: Vec<&str> = GROUPS.iter().map(|group| group.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), GROUPS.len());
    }
}
