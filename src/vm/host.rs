//! Whether this host can run microVMs.

use std::error::Error;

use crate::kvm::{self, HostKind, SystemError};
use crate::memory;
use crate::vcpu;

/// How one examination ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Something works less well, or not at all, without it; the rest does.
    Limited,
    /// No microVM runs.
    Bad,
}

/// One thing that was examined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was examined.
    pub what: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found, one sentence.
    pub found: String,
    /// What to do about it.
    pub mend: Option<&'static str>,
}

/// Examines KVM and lazy paging.
pub fn examine_host() -> Vec<Finding> {
    let mut findings = match kvm::probe() {
        Ok(probe) => vec![
            finding("/dev/kvm", Verdict::Good, "can be opened and creates VMs".to_owned(), None),
            virtualisation(probe.kind),
            mapping_ahead(probe.maps_ahead),
        ],
        Err(error) => vec![finding("/dev/kvm", Verdict::Bad, chain(&error), kvm_mend(&error))],
    };
    findings.push(lazy_paging());
    findings.push(huge_pages(memory::tmpfs_has_huge_pages()));
    findings
}

fn mapping_ahead(can: bool) -> Finding {
    let what = "mapping ahead";
    if can {
        let found = "KVM maps the pages of a working set before a clone asks".to_owned();
        finding(what, Verdict::Good, found, None)
    } else {
        finding(
            what,
            Verdict::Limited,
            "KVM has no KVM_CAP_PRE_FAULT_MEMORY: a clone takes a page fault for each page of its working set".to_owned(),
            Some("use VMX or SVM with nested paging and Linux 6.11 or newer as the host's kernel"),
        )
    }
}

fn huge_pages(can: bool) -> Finding {
    let what = "huge pages of a tmpfs";
    if can {
        let found = "clones of a bundle on a tmpfs share what they only read in pages of 2 MiB".to_owned();
        finding(what, Verdict::Good, found, None)
    } else {
        finding(
            what,
            Verdict::Limited,
            "the kernel has none: clones of a bundle on a tmpfs fault for each 4 KiB that they read"
                .to_owned(),
            Some(
                "anything but `deny` in /sys/kernel/mm/transparent_hugepage/shmem_enabled, on a kernel with CONFIG_TRANSPARENT_HUGEPAGE, will do",
            ),
        )
    }
}

fn virtualisation(kind: HostKind) -> Finding {
    let what = "hardware virtualisation";
    match kind {
        HostKind::Hardware => {
            finding(what, Verdict::Good, "VMX or SVM stands behind /dev/kvm".to_owned(), None)
        }
        HostKind::Software => finding(
            what,
            Verdict::Limited,
            "/dev/kvm has no VMX or SVM behind it: small guests run, Linux does not boot".to_owned(),
            Some(
                "use a host (or an instance type with nested virtualisation) whose /proc/cpuinfo shows vmx or svm, and load kvm_intel or kvm_amd",
            ),
        ),
    }
}

fn kvm_mend(error: &SystemError) -> Option<&'static str> {
    match error {
        SystemError::Missing => Some(
            "load the module: modprobe kvm_intel or modprobe kvm_amd; in a VM, turn on nested virtualisation; in a container, pass --device /dev/kvm",
        ),
        SystemError::Permission => Some("usermod -aG kvm USER, then log in again"),
        SystemError::NotKvm => {
            Some("pass the host's device in: --device /dev/kvm; or mknod /dev/kvm c 10 232")
        }
        SystemError::ApiVersion { .. } | SystemError::Capability { .. } => {
            Some("use Linux 5.10 or newer as the host's kernel")
        }
        SystemError::Open(_) | SystemError::Ioctl { .. } => None,
    }
}

fn lazy_paging() -> Finding {
    let what = "userfaultfd";
    match memory::lazy_paging() {
        Ok(()) => finding(what, Verdict::Good, "available, for kernel faults too".to_owned(), None),
        Err(error) => finding(
            what,
            Verdict::Limited,
            chain(&error),
            Some(
                "chmod 666 /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1; bundles on local disks do not need it",
            ),
        ),
    }
}

fn finding(what: &'static str, verdict: Verdict, found: String, mend: Option<&'static str>) -> Finding {
    Finding { what, verdict, found, mend }
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Vendor string of this host's CPU (CPUID leaf 0).
pub fn cpu_vendor() -> String {
    vcpu::vendor()
}
