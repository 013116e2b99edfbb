//! What `ember doctor` asks: can this host run microVMs, and which?

use std::path::Path;

use super::system::{System, SystemError};

/// What stands behind `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// VMX or SVM: runs everything.
    Hardware,
    /// A software vendor module: interprets kernel code, so only small guests run.
    Software,
}

/// The result of a probe that opened `/dev/kvm`.
#[derive(Debug)]
pub struct Probe {
    /// What kind of virtualisation it is.
    pub kind: HostKind,
    /// Bytes of the XSAVE area.
    pub xsave_len: usize,
    /// Whether pages can be mapped for a guest before it asks.
    pub maps_ahead: bool,
}

/// Opens `/dev/kvm`, checks the capabilities, creates and drops a VM.
///
/// # Errors
/// What keeps this host from running any microVM.
pub fn probe() -> Result<Probe, SystemError> {
    let system = System::open()?;
    system.create_vm().map_err(|e| match e {
        super::VmError::Ioctl { call, source } => SystemError::Ioctl { call, source },
        _ => SystemError::Capability { name: "KVM_CREATE_VM" },
    })?;
    let kind = if has_hardware_virtualisation() { HostKind::Hardware } else { HostKind::Software };
    Ok(Probe { kind, xsave_len: system.xsave_len(), maps_ahead: system.maps_ahead() })
}

/// The kernel shows the CPU flag only when the feature is usable, and the module's folder only when it is loaded.
fn has_hardware_virtualisation() -> bool {
    ["/sys/module/kvm_intel", "/sys/module/kvm_amd"].iter().any(|module| Path::new(module).exists())
}
