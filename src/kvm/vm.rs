//! One VM: memory slots, interrupt controllers, wiring, clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMemory;

use super::run::KvmVcpu;

/// Why KVM refused a step of building or saving a VM.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// An ioctl failed.
    #[error("KVM refused {call}")]
    Ioctl {
        /// The ioctl.
        call: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A vCPU's XSAVE area has another length than this host's.
    #[error("The XSAVE area holds {found} bytes, this host's has {expected}")]
    XsaveLength {
        /// Bytes in the saved state.
        found: usize,
        /// Bytes on this host.
        expected: usize,
    },
    /// KVM took or gave fewer MSRs than asked.
    #[error("KVM could not {verb} MSR {index:#x}")]
    Msr {
        /// `read` or `set`.
        verb: &'static str,
        /// The first MSR it stopped at.
        index: u32,
    },
    /// More entries than KVM accepts.
    #[error("{what} has {count} entries, more than KVM accepts")]
    TooMany {
        /// What is too long.
        what: &'static str,
        /// How long it is.
        count: usize,
    },
}

/// Wraps an ioctl's failure with its name.
pub(super) fn ioctl(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Ioctl { call, source }
}

/// The three chips of the in-kernel interrupt controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqChip {
    /// 8259 master.
    PicMaster,
    /// 8259 slave.
    PicSlave,
    /// I/O APIC.
    IoApic,
}

impl IrqChip {
    fn id(self) -> u32 {
        match self {
            IrqChip::PicMaster => KVM_IRQCHIP_PIC_MASTER,
            IrqChip::PicSlave => KVM_IRQCHIP_PIC_SLAVE,
            IrqChip::IoApic => KVM_IRQCHIP_IOAPIC,
        }
    }
}

/// A VM's file descriptor. Closing it tears the VM down, which takes milliseconds once the guest has run.
#[derive(Debug)]
pub struct KvmVm {
    fd: VmFd,
    xsave_len: usize,
}

impl KvmVm {
    pub(super) fn new(fd: VmFd, xsave_len: usize) -> Self {
        KvmVm { fd, xsave_len }
    }

    /// Gives the guest its RAM: one memory slot a region.
    ///
    /// # Errors
    /// KVM refused a slot (overlap, out of memory).
    pub fn set_memory(&self, memory: &GuestMemory) -> Result<(), VmError> {
        for (slot, region) in (0u32..).zip(memory.iter()) {
            self.set_slot(slot, region)?;
        }
        Ok(())
    }

    fn set_slot(&self, slot: u32, region: &GuestRegionMmap<()>) -> Result<(), VmError> {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a live mapping of exactly this length, and guest memory is never unmapped while the
        // process lives (`memory::mapping`).
        unsafe { self.fd.set_user_memory_region(slot) }.map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))
    }

    /// Where VMX keeps the three pages it needs for real mode.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn set_tss_address(&self, address: u64) -> Result<(), VmError> {
        let address = usize::try_from(address).unwrap_or(usize::MAX);
        self.fd.set_tss_address(address).map_err(ioctl("KVM_SET_TSS_ADDR"))
    }

    /// Creates the in-kernel PICs, I/O APIC and local APICs.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn create_irqchip(&self) -> Result<(), VmError> {
        self.fd.create_irq_chip().map_err(ioctl("KVM_CREATE_IRQCHIP"))
    }

    /// Lets a write to `event` raise `gsi`.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.fd.register_irqfd(event, gsi).map_err(ioctl("KVM_IRQFD"))
    }

    /// Lets a guest's 32-bit write of `value` at `address` signal `event` without an exit.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn register_doorbell(&self, event: &EventFd, address: u64, value: u32) -> Result<(), VmError> {
        self.fd.register_ioevent(event, &IoEventAddress::Mmio(address), value).map_err(ioctl("KVM_IOEVENTFD"))
    }

    /// Creates vCPU `index` (which is also its APIC id).
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn create_vcpu(&self, index: u32) -> Result<KvmVcpu, VmError> {
        let fd = self.fd.create_vcpu(u64::from(index)).map_err(ioctl("KVM_CREATE_VCPU"))?;
        Ok(KvmVcpu::new(fd, self.xsave_len))
    }

    /// State of one interrupt controller.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn irqchip(&self, chip: IrqChip) -> Result<kvm_irqchip, VmError> {
        let mut state = kvm_irqchip { chip_id: chip.id(), ..Default::default() };
        self.fd.get_irqchip(&mut state).map_err(ioctl("KVM_GET_IRQCHIP"))?;
        Ok(state)
    }

    /// Sets the state of the interrupt controller that `state.chip_id` names.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn set_irqchip(&self, state: &kvm_irqchip) -> Result<(), VmError> {
        self.fd.set_irqchip(state).map_err(ioctl("KVM_SET_IRQCHIP"))
    }

    /// Raises an edge-triggered interrupt. It is pending when this returns (Documentation/virt/kvm/api.rst, 4.25, KVM_IRQ_LINE).
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn raise_edge(&self, gsi: u32) -> Result<(), VmError> {
        [true, false]
            .into_iter()
            .try_for_each(|level| self.fd.set_irq_line(gsi, level).map_err(ioctl("KVM_IRQ_LINE")))
    }

    /// The guest's kvm-clock.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn clock(&self) -> Result<kvm_clock_data, VmError> {
        self.fd.get_clock().map_err(ioctl("KVM_GET_CLOCK"))
    }

    /// Sets the guest's kvm-clock to `nanoseconds`, from where it runs on; the time on disk is not added.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn set_clock(&self, nanoseconds: u64) -> Result<(), VmError> {
        let clock = kvm_clock_data { clock: nanoseconds, ..Default::default() };
        self.fd.set_clock(&clock).map_err(ioctl("KVM_SET_CLOCK"))
    }

    /// Whether this VM offers `cap`.
    pub fn has(&self, cap: Cap) -> bool {
        self.fd.check_extension(cap)
    }
}
