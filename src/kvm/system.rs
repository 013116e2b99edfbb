//! `/dev/kvm`: what the host's KVM is able to do.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use super::vm::{KvmVm, VmError};

/// What every Ember machine needs of KVM, with the name to print when it is missing.
pub const REQUIRED: [(Cap, &str); 13] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// The one KVM API version there has been since Linux 2.6.22 (Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;

/// Why KVM cannot be used on this host.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// `/dev/kvm` is missing.
    #[error("There is no /dev/kvm on this host; load the kvm_intel or kvm_amd module, or see `ember doctor`")]
    Missing,
    /// The user may not open it.
    #[error(
        "No permission to open /dev/kvm; add the user to its group (`usermod -aG kvm USER`), or see `ember doctor`"
    )]
    Permission,
    /// Any other failure to open it.
    #[error("Cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// Something else bears its name, as a container's `/dev` may have it.
    #[error(
        "/dev/kvm is not the device of KVM; give this machine or container the host's /dev/kvm (character device 10, 232)"
    )]
    NotKvm,
    /// Not the API this program was written for.
    #[error("KVM's API version is {found}, Ember needs {API_VERSION}")]
    ApiVersion {
        /// What the kernel answered.
        found: i32,
    },
    /// The kernel lacks something.
    #[error("This host's KVM lacks {name}; a newer kernel is needed")]
    Capability {
        /// Name of the capability.
        name: &'static str,
    },
    /// An ioctl on /dev/kvm failed.
    #[error("KVM refused {call}")]
    Ioctl {
        /// The ioctl.
        call: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// An open, checked `/dev/kvm`.
#[derive(Debug)]
pub struct System {
    kvm: Kvm,
}

impl System {
    /// Opens `/dev/kvm` and checks what every machine needs.
    ///
    /// # Errors
    /// See [`SystemError`]; nothing is created on failure.
    pub fn open() -> Result<Self, SystemError> {
        let kvm = Kvm::new().map_err(|e| match e.errno() {
            libc::ENOENT => SystemError::Missing,
            libc::EACCES | libc::EPERM => SystemError::Permission,
            errno => SystemError::Open(io::Error::from_raw_os_error(errno)),
        })?;
        Self::check(kvm)
    }

    /// Takes over an already opened `/dev/kvm`.
    ///
    /// # Errors
    /// See [`SystemError`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SystemError> {
        // SAFETY: the descriptor is owned and is given away here.
        let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
        Self::check(kvm)
    }

    fn check(kvm: Kvm) -> Result<Self, SystemError> {
        let found = kvm.get_api_version();
        if found < 0 {
            return Err(SystemError::NotKvm);
        }
        if found != API_VERSION {
            return Err(SystemError::ApiVersion { found });
        }
        if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(SystemError::Capability { name });
        }
        Ok(System { kvm })
    }

    /// Whether the kernel offers `cap`.
    pub fn has(&self, cap: Cap) -> bool {
        self.kvm.check_extension(cap)
    }

    /// Whether a guest's TSC can run at another frequency than the host's (Documentation/virt/kvm/api.rst, 4.55).
    pub fn scales_tsc(&self) -> bool {
        self.has(Cap::TscControl)
    }

    /// Whether pages can be mapped for a guest before it asks (Documentation/virt/kvm/api.rst, 4.143, KVM_CAP_PRE_FAULT_MEMORY).
    pub fn maps_ahead(&self) -> bool {
        const KVM_CAP_PRE_FAULT_MEMORY: libc::c_ulong = 236;
        self.kvm.check_extension_raw(KVM_CAP_PRE_FAULT_MEMORY) > 0
    }

    /// Creates an empty VM.
    ///
    /// # Errors
    /// The kernel is out of memory or descriptors.
    pub fn create_vm(&self) -> Result<KvmVm, VmError> {
        let fd = self.kvm.create_vm().map_err(|source| VmError::Ioctl { call: "KVM_CREATE_VM", source })?;
        Ok(KvmVm::new(fd, self.xsave_len()))
    }

    /// Length of the XSAVE area, bytes: 4096 unless `KVM_CAP_XSAVE2` says more.
    pub fn xsave_len(&self) -> usize {
        usize::try_from(self.kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0).max(4096)
    }

    /// The CPUID leaves KVM can virtualise on this host.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn supported_cpuid(&self) -> Result<CpuId, SystemError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|source| SystemError::Ioctl { call: "KVM_GET_SUPPORTED_CPUID", source })
    }

    /// Every MSR that KVM says belongs to a guest's state on this host.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn msr_indices(&self) -> Result<Vec<u32>, SystemError> {
        let list = self
            .kvm
            .get_msr_index_list()
            .map_err(|source| SystemError::Ioctl { call: "KVM_GET_MSR_INDEX_LIST", source })?;
        Ok(list.as_slice().to_vec())
    }
}
