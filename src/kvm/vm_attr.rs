//! Device attributes of a vCPU, which `kvm_ioctls` offers on Arm only.

use kvm_bindings::{KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::vm::VmError;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// Reads the attribute into the place that `attr.addr` names; false where the kernel does not know it.
pub(super) fn get(fd: &VcpuFd, attr: &kvm_device_attr) -> Result<bool, VmError> {
    // SAFETY: `attr.addr` points at a live u64, which is what the attributes used here hold.
    let ret = unsafe { ioctl_with_ref(fd, KVM_GET_DEVICE_ATTR(), attr) };
    known("KVM_GET_DEVICE_ATTR", ret)
}

/// Sets the attribute from the place that `attr.addr` names; false where the kernel does not know it.
pub(super) fn set(fd: &VcpuFd, attr: &kvm_device_attr) -> Result<bool, VmError> {
    // SAFETY: `attr.addr` points at a live u64, which is what the attributes used here hold.
    let ret = unsafe { ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), attr) };
    known("KVM_SET_DEVICE_ATTR", ret)
}

fn known(call: &'static str, ret: i32) -> Result<bool, VmError> {
    if ret >= 0 {
        return Ok(true);
    }
    let source = kvm_ioctls::Error::last();
    // ENXIO: no such attribute. ENOTTY or EINVAL: a kernel before 5.16, without attributes of a vCPU.
    match source.errno() {
        libc::ENXIO | libc::ENOTTY | libc::EINVAL => Ok(false),
        _ => Err(VmError::Ioctl { call, source }),
    }
}
