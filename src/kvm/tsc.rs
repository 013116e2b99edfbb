//! The TSC of a vCPU as an offset to the host's, which does not move while it is set.

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::ioctl_iow_nr;

use super::run::KvmVcpu;
use super::vm::VmError;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);

/// The attribute (Documentation/virt/kvm/devices/vcpu.rst, KVM_VCPU_TSC_CTRL), whose value is at `address`.
fn attribute(address: u64) -> kvm_device_attr {
    let attr = u64::from(KVM_VCPU_TSC_OFFSET);
    kvm_device_attr { group: KVM_VCPU_TSC_CTRL, attr, addr: address, flags: 0 }
}

fn check(call: &'static str, result: i32) -> Result<(), VmError> {
    if result == 0 { Ok(()) } else { Err(VmError::Ioctl { call, source: kvm_ioctls::Error::last() }) }
}

impl KvmVcpu {
    /// Whether the offset can be read and set (Linux 5.16).
    pub fn has_tsc_offset(&self) -> bool {
        // SAFETY: the kernel reads the attribute and nothing behind its address.
        unsafe { ioctl_with_ref(&self.fd, KVM_HAS_DEVICE_ATTR(), &attribute(0)) == 0 }
    }

    /// What is added to the host's TSC, modulo 2^64.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn tsc_offset(&self) -> Result<u64, VmError> {
        let mut offset = 0_u64;
        let mut attribute = attribute(std::ptr::from_mut(&mut offset) as u64);
        // SAFETY: the kernel writes 8 bytes to the attribute's address, where `offset` lives.
        let result = unsafe { ioctl_with_mut_ref(&self.fd, KVM_GET_DEVICE_ATTR(), &mut attribute) };
        check("KVM_GET_DEVICE_ATTR (TSC offset)", result)?;
        Ok(offset)
    }

    /// Sets what is added to the host's TSC.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn set_tsc_offset(&self, offset: u64) -> Result<(), VmError> {
        let attribute = attribute(std::ptr::from_ref(&offset) as u64);
        // SAFETY: the kernel reads 8 bytes at the attribute's address, where `offset` lives.
        let result = unsafe { ioctl_with_ref(&self.fd, KVM_SET_DEVICE_ATTR(), &attribute) };
        check("KVM_SET_DEVICE_ATTR (TSC offset)", result)
    }
}
