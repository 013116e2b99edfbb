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
        ],
        Err(error) => vec![finding("/dev/kvm", Verdict::Bad, chain(&error), kvm_mend(&error))],
    };
    findings.push(lazy_paging());
    findings
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
