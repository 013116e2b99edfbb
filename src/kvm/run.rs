//! One vCPU: running it and moving its state, each ioctl once and checked.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::kick::KickTarget;
use super::vm::{VmError, ioctl};

/// `KVM_MAX_MSR_ENTRIES` of the kernel: how many MSRs one call takes (Documentation/virt/kvm/api.rst, 4.18).
const MSRS_PER_CALL: usize = 256;

/// What KVM says no more of than EFAULT. A memory file that was cut short is found out by whoever has it open.
const NO_PAGE: &str =
    "a page of its memory cannot be brought in, as when the disk that holds the bundle fails";

/// Size of `struct kvm_xsave` without the dynamic part.
const XSAVE_MIN: usize = 4096;

/// Why a vCPU left guest mode. `data` of a port access is one or more elements of `size` bytes (string instructions).
#[derive(Debug)]
pub enum Exit<'a> {
    /// `in`: fill `data`.
    PortRead {
        /// I/O port.
        port: u16,
        /// Bytes an element: 1, 2 or 4.
        size: usize,
        /// The elements to fill.
        data: &'a mut [u8],
    },
    /// `out`.
    PortWrite {
        /// I/O port.
        port: u16,
        /// Bytes an element: 1, 2 or 4.
        size: usize,
        /// The elements written.
        data: &'a [u8],
    },
    /// Load from an address without RAM: fill `data`.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// Up to 8 bytes.
        data: &'a mut [u8],
    },
    /// Store to an address without RAM.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// Up to 8 bytes.
        data: &'a [u8],
    },
    /// A signal or `immediate_exit`: nothing of the guest is pending.
    Interrupted,
    /// Triple fault.
    Shutdown,
    /// The guest cannot go on; the text says why.
    Broken(String),
}

/// A vCPU's file descriptor and its shared `kvm_run` page.
#[derive(Debug)]
pub struct KvmVcpu {
    pub(super) fd: VcpuFd,
    xsave_len: usize,
}

impl KvmVcpu {
    pub(super) fn new(fd: VcpuFd, xsave_len: usize) -> Self {
        KvmVcpu { fd, xsave_len }
    }

    /// Runs the guest until it exits.
    ///
    /// # Errors
    /// KVM_RUN failed for a reason other than an interruption.
    pub fn run(&mut self) -> Result<Exit<'_>, VmError> {
        let element = self.port_element_size();
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => Ok(Exit::PortRead { port, size: element.get(), data }),
            Ok(VcpuExit::IoOut(port, data)) => Ok(Exit::PortWrite { port, size: element.get(), data }),
            Ok(VcpuExit::MmioRead(address, data)) => Ok(Exit::MmioRead { address, data }),
            Ok(VcpuExit::MmioWrite(address, data)) => Ok(Exit::MmioWrite { address, data }),
            Ok(VcpuExit::Intr) => Ok(Exit::Interrupted),
            Ok(VcpuExit::Shutdown) => Ok(Exit::Shutdown),
            Ok(VcpuExit::FailEntry(reason, cpu)) => Ok(Exit::Broken(format!(
                "the processor refused the guest's state (reason {reason:#x}, CPU {cpu})"
            ))),
            Ok(VcpuExit::InternalError) => {
                Ok(Exit::Broken("KVM could not emulate an instruction".to_owned()))
            }
            Ok(other) => Ok(Exit::Broken(format!("of an exit that Ember does not serve: {other:?}"))),
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => Ok(Exit::Interrupted),
            Err(e) if e.errno() == libc::EFAULT => Ok(Exit::Broken(NO_PAGE.to_owned())),
            Err(source) => Err(VmError::Ioctl { call: "KVM_RUN", source }),
        }
    }

    /// The `io.size` field of `kvm_run`, to be read after an exit while its data is borrowed.
    fn port_element_size(&mut self) -> ElementSize {
        let run: *const kvm_bindings::kvm_run = self.fd.get_kvm_run();
        // SAFETY: computes an address inside the mapped `kvm_run`, without reading it.
        ElementSize(unsafe { &raw const (*run).__bindgen_anon_1.io.size })
    }

    /// Makes the next [`run`](Self::run) finish what the last exit left half done and return at once.
    pub fn set_immediate_exit(&mut self, on: bool) {
        self.fd.set_kvm_immediate_exit(u8::from(on));
    }

    /// What a kick of this vCPU's thread sets.
    pub fn kick_target(&mut self) -> KickTarget {
        let run: *mut kvm_bindings::kvm_run = self.fd.get_kvm_run();
        // SAFETY: computes an address inside the mapped `kvm_run`, which lives as long as this vCPU.
        KickTarget::new(unsafe { &raw mut (*run).immediate_exit })
    }

    /// All registers of the integer unit.
    ///
    /// # Errors
    /// The ioctl failed; so for every getter and setter below.
    pub fn regs(&self) -> Result<kvm_regs, VmError> {
        self.fd.get_regs().map_err(ioctl("KVM_GET_REGS"))
    }
    /// Sets [`regs`](Self::regs); clears a pending exception.
    pub fn set_regs(&self, regs: &kvm_regs) -> Result<(), VmError> {
        self.fd.set_regs(regs).map_err(ioctl("KVM_SET_REGS"))
    }
    /// Segments, control registers, EFER, APIC base.
    pub fn sregs(&self) -> Result<kvm_sregs, VmError> {
        self.fd.get_sregs().map_err(ioctl("KVM_GET_SREGS"))
    }
    /// Sets [`sregs`](Self::sregs).
    pub fn set_sregs(&self, sregs: &kvm_sregs) -> Result<(), VmError> {
        self.fd.set_sregs(sregs).map_err(ioctl("KVM_SET_SREGS"))
    }
    /// Whether the vCPU runs, waits for SIPI or is halted. Reading it may deliver INIT or SIPI, so it is read first.
    pub fn mp_state(&self) -> Result<kvm_mp_state, VmError> {
        self.fd.get_mp_state().map_err(ioctl("KVM_GET_MP_STATE"))
    }
    /// Sets [`mp_state`](Self::mp_state).
    pub fn set_mp_state(&self, state: kvm_mp_state) -> Result<(), VmError> {
        self.fd.set_mp_state(state).map_err(ioctl("KVM_SET_MP_STATE"))
    }
    /// Extended control registers.
    pub fn xcrs(&self) -> Result<kvm_xcrs, VmError> {
        self.fd.get_xcrs().map_err(ioctl("KVM_GET_XCRS"))
    }
    /// Sets [`xcrs`](Self::xcrs).
    pub fn set_xcrs(&self, xcrs: &kvm_xcrs) -> Result<(), VmError> {
        self.fd.set_xcrs(xcrs).map_err(ioctl("KVM_SET_XCRS"))
    }
    /// Debug registers.
    pub fn debugregs(&self) -> Result<kvm_debugregs, VmError> {
        self.fd.get_debug_regs().map_err(ioctl("KVM_GET_DEBUGREGS"))
    }
    /// Sets [`debugregs`](Self::debugregs).
    pub fn set_debugregs(&self, regs: &kvm_debugregs) -> Result<(), VmError> {
        self.fd.set_debug_regs(regs).map_err(ioctl("KVM_SET_DEBUGREGS"))
    }
    /// The local APIC's register page.
    pub fn lapic(&self) -> Result<kvm_lapic_state, VmError> {
        self.fd.get_lapic().map_err(ioctl("KVM_GET_LAPIC"))
    }
    /// Sets [`lapic`](Self::lapic).
    pub fn set_lapic(&self, state: &kvm_lapic_state) -> Result<(), VmError> {
        self.fd.set_lapic(state).map_err(ioctl("KVM_SET_LAPIC"))
    }
    /// Pending exceptions, interrupts, NMIs and SMIs.
    pub fn events(&self) -> Result<kvm_vcpu_events, VmError> {
        self.fd.get_vcpu_events().map_err(ioctl("KVM_GET_VCPU_EVENTS"))
    }
    /// Sets [`events`](Self::events).
    pub fn set_events(&self, events: &kvm_vcpu_events) -> Result<(), VmError> {
        self.fd.set_vcpu_events(events).map_err(ioctl("KVM_SET_VCPU_EVENTS"))
    }
    /// The CPUID the guest sees.
    pub fn cpuid(&self) -> Result<CpuId, VmError> {
        self.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(ioctl("KVM_GET_CPUID2"))
    }
    /// Sets [`cpuid`](Self::cpuid); comes before everything that is checked against it.
    pub fn set_cpuid(&self, cpuid: &CpuId) -> Result<(), VmError> {
        self.fd.set_cpuid2(cpuid).map_err(ioctl("KVM_SET_CPUID2"))
    }
    /// Guest TSC frequency, kHz.
    pub fn tsc_khz(&self) -> Result<u32, VmError> {
        self.fd.get_tsc_khz().map_err(ioctl("KVM_GET_TSC_KHZ"))
    }
    /// Sets the guest TSC frequency; needs `KVM_CAP_TSC_CONTROL` for anything but the host's own.
    pub fn set_tsc_khz(&self, khz: u32) -> Result<(), VmError> {
        self.fd.set_tsc_khz(khz).map_err(ioctl("KVM_SET_TSC_KHZ"))
    }

    /// Tells the guest's kvm-clock that it was stopped, so that its soft-lockup watchdog stays quiet.
    pub fn clock_was_stopped(&self) -> Result<(), VmError> {
        match self.fd.kvmclock_ctrl() {
            // EINVAL: the guest has no kvm-clock (yet).
            Err(e) if e.errno() != libc::EINVAL => {
                Err(VmError::Ioctl { call: "KVM_KVMCLOCK_CTRL", source: e })
            }
            _ => Ok(()),
        }
    }

    /// The XSAVE area: x87, SSE, AVX and whatever else the guest's XCR0 allows.
    pub fn xsave(&self) -> Result<Vec<u8>, VmError> {
        if self.xsave_len <= XSAVE_MIN {
            let area = self.fd.get_xsave().map_err(ioctl("KVM_GET_XSAVE"))?;
            return Ok(area.region.iter().flat_map(|word| word.to_le_bytes()).collect());
        }
        let mut area = empty_xsave(self.xsave_len)?;
        // SAFETY: the area was made as long as KVM_CAP_XSAVE2 asks for.
        unsafe { self.fd.get_xsave2(&mut area) }.map_err(ioctl("KVM_GET_XSAVE2"))?;
        let fixed = area.as_fam_struct_ref().xsave.region.iter().chain(area.as_slice());
        Ok(fixed.flat_map(|word| word.to_le_bytes()).collect())
    }

    /// Sets [`xsave`](Self::xsave); `bytes` must be as long as this host's area.
    pub fn set_xsave(&self, bytes: &[u8]) -> Result<(), VmError> {
        if bytes.len() != self.xsave_len {
            return Err(VmError::XsaveLength { found: bytes.len(), expected: self.xsave_len });
        }
        let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        if self.xsave_len <= XSAVE_MIN {
            let mut area = kvm_xsave::default();
            area.region.iter_mut().zip(words).for_each(|(to, from)| *to = from);
            // SAFETY: the area holds the 4096 bytes that KVM reads when KVM_CAP_XSAVE2 asks for no more.
            return unsafe { self.fd.set_xsave(&area) }.map_err(ioctl("KVM_SET_XSAVE"));
        }
        let mut area = empty_xsave(self.xsave_len)?;
        // SAFETY: only the fixed part is written; the length of the dynamic part stays as it is.
        let header = unsafe { area.as_mut_fam_struct() };
        header.xsave.region.iter_mut().zip(words.by_ref()).for_each(|(to, from)| *to = from);
        area.as_mut_slice().iter_mut().zip(words).for_each(|(to, from)| *to = from);
        // SAFETY: the area was made as long as KVM_CAP_XSAVE2 asks for.
        unsafe { self.fd.set_xsave2(&area) }.map_err(ioctl("KVM_SET_XSAVE2"))
    }

    /// Reads `indices`, all of them.
    ///
    /// # Errors
    /// [`VmError::Msr`] names the first one KVM did not give.
    pub fn msrs(&self, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, VmError> {
        let mut all = Vec::with_capacity(indices.len());
        for chunk in indices.chunks(MSRS_PER_CALL) {
            let entries: Vec<_> =
                chunk.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
            let mut msrs = msr_list(&entries)?;
            let got = self.fd.get_msrs(&mut msrs).map_err(ioctl("KVM_GET_MSRS"))?;
            if let Some(missing) = chunk.get(got) {
                return Err(VmError::Msr { verb: "read", index: *missing });
            }
            all.extend_from_slice(msrs.as_slice());
        }
        Ok(all)
    }

    /// Sets `entries`, all of them, in their order.
    ///
    /// # Errors
    /// [`VmError::Msr`] names the first one KVM did not take.
    pub fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<(), VmError> {
        for chunk in entries.chunks(MSRS_PER_CALL) {
            let set = self.fd.set_msrs(&msr_list(chunk)?).map_err(ioctl("KVM_SET_MSRS"))?;
            if let Some(refused) = chunk.get(set) {
                return Err(VmError::Msr { verb: "set", index: refused.index });
            }
        }
        Ok(())
    }
}

/// Where KVM will write the element size of a port access.
struct ElementSize(*const u8);

impl ElementSize {
    fn get(self) -> usize {
        // SAFETY: the pointer lies in `kvm_run`, mapped as long as the vCPU; a u8 has no invalid value, and the guest's
        // data that is borrowed meanwhile lies behind the structure.
        usize::from(unsafe { self.0.read_volatile() }).max(1)
    }
}

fn msr_list(entries: &[kvm_msr_entry]) -> Result<Msrs, VmError> {
    Msrs::from_entries(entries).map_err(|_| VmError::TooMany { what: "The MSR list", count: entries.len() })
}

fn empty_xsave(len: usize) -> Result<Xsave, VmError> {
    let extra = (len - XSAVE_MIN).div_ceil(4);
    Xsave::new(extra).map_err(|_| VmError::TooMany { what: "The XSAVE area", count: extra })
}
