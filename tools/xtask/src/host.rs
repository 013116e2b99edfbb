//! What this machine can do for microVMs.

use std::fs::OpenOptions;
use std::path::Path;

use crate::process;
use crate::setup;

/// Where microVMs can run on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kvm {
    /// VMX or SVM is behind it: everything runs natively.
    Hardware,
    /// It works without VMX or SVM: small guests run, Linux does not.
    Software,
    /// It is absent, or this user may not open it.
    Unusable,
}

impl Kvm {
    /// Looks at this machine.
    pub fn of_this_machine() -> Self {
        let opens = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
        Self::from_facts(opens, loaded("kvm_intel") || loaded("kvm_amd"))
    }

    fn from_facts(opens: bool, vendor_module: bool) -> Self {
        match (opens, vendor_module) {
            (false, _) => Self::Unusable,
            (true, true) => Self::Hardware,
            (true, false) => Self::Software,
        }
    }

    /// Whether Linux guests run natively.
    pub fn runs_linux(self) -> bool {
        self == Self::Hardware
    }

    /// Whether small guests run natively.
    pub fn runs_small_guests(self) -> bool {
        self != Self::Unusable
    }

    /// Why Linux guests do not run natively, as half a sentence.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Hardware => "/dev/kvm has VMX or SVM behind it",
            Self::Software => "/dev/kvm has no VMX or SVM behind it",
            Self::Unusable => "there is no /dev/kvm that this user may open",
        }
    }
}

/// Whether this user gets a userfaultfd that serves the kernel's own accesses: the device, or a system call that is root's unless the
/// host gives it to all.
pub fn lazy_paging() -> bool {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").is_ok();
    let for_all = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    device || setup::is_root() || for_all.is_ok_and(|value| value.trim() == "1")
}

/// The machine's processor as Linux names it.
pub fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.to_owned())
}

/// The running kernel's release.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Memory that could be used without swapping, in MiB.
pub fn available_memory_mib() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Room on the disk that holds the current directory, in MiB.
fn free_disk_mib() -> u64 {
    let table =
        process::read(process::command("df").args(["-BM", "--output=avail", "."])).unwrap_or_default();
    table.lines().last().and_then(|line| line.trim().strip_suffix('M')?.parse().ok()).unwrap_or(0)
}

/// What a machine that does not do what it should may have run out of.
pub fn what_is_left() -> String {
    format!("{} MiB of memory and {} MiB of disk are free", available_memory_mib(), free_disk_mib())
}

/// The machine's name, safe as part of a file name.
pub fn file_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let kept: String = name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    if kept.is_empty() { "host".to_owned() } else { kept }
}

#[cfg(test)]
mod tests {
    use super::Kvm;

    #[test]
    fn linux_runs_only_where_a_vendor_module_is_loaded() {
        assert_eq!(Kvm::from_facts(true, true), Kvm::Hardware);
        assert_eq!(Kvm::from_facts(true, false), Kvm::Software);
        assert_eq!(Kvm::from_facts(false, true), Kvm::Unusable);
        assert!(!Kvm::Software.runs_linux() && Kvm::Software.runs_small_guests());
    }
}
