//! How a machine is built, in two halves: a shell, which needs to know no more than how much memory and how many vCPUs there
//! will be, and what fills it.
//!
//! This is the one order of construction. Boot and restore do both halves at once; a shell of a pool waits between them.

use std::os::fd::OwnedFd;

use kvm_bindings::CpuId;

use crate::bus::RequestLine;
use crate::devices::{DeviceSetup, DeviceStates, DeviceTable};
use crate::function::ClockReading;
use crate::kvm::{FaultCount, KvmVcpu, KvmVm, System, SystemError, VmError, install_kick_handler};
use crate::memory::{GuestMemory, layout};
use crate::vcpu::{self, Buses, MsrSelection, VcpuThread};

use super::capture::unix_ns;
use super::machine::{BuildError, Loader, Machine, Origin, Shape};
use super::opened::Host;
use super::prefetch::{Ahead, Done};
use super::saved::{Clocks, SavedMachine};
use super::timeline::Timeline;

/// Frequencies closer than this are the same: 250 ppm, as NTP may correct them.
const TSC_TOLERANCE_PPM: u64 = 250;

/// A VM with memory slots, interrupt controllers and vCPUs whose threads wait. It has no devices, and no content that counts.
#[derive(Debug)]
pub struct Shell {
    system: System,
    shape: Shape,
    vm: KvmVm,
    memory: GuestMemory,
    requests: RequestLine,
    vcpus: Vec<KvmVcpu>,
    threads: Vec<VcpuThread>,
    faults: Vec<FaultCount>,
    /// The CPUID that each vCPU has been shown ahead of need; empty where none has.
    shown: Vec<CpuId>,
}

/// What this host's KVM can show a guest: asked once for many shells, because KVM takes longer to say than to make a vCPU.
#[derive(Debug, Clone)]
pub struct HostCpu(CpuId);

impl HostCpu {
    /// Asks an open `/dev/kvm`.
    ///
    /// # Errors
    /// KVM does not tell.
    pub fn of_device(kvm: OwnedFd) -> Result<Self, SystemError> {
        Ok(HostCpu(System::from_fd(kvm)?.supported_cpuid()?))
    }
}

/// What a filled shell hands to the machine it becomes.
#[derive(Debug)]
pub(super) struct Built {
    pub shape: Shape,
    pub tsc_khz: u32,
    pub clock: Option<ClockReading>,
    pub msrs: MsrSelection,
    pub vcpus: Vec<VcpuThread>,
    pub devices: DeviceTable,
    pub vm: KvmVm,
    pub memory: GuestMemory,
    pub faults: Vec<FaultCount>,
    pub requests: RequestLine,
    pub prefetched: Done,
}

impl Shell {
    /// Builds an empty machine over `memory`, whose content may be replaced until it is filled.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(
        host: Host,
        shape: Shape,
        memory: GuestMemory,
        count_faults: bool,
        timeline: &mut Timeline,
    ) -> Result<Self, BuildError> {
        let requests = RequestLine::new().map_err(BuildError::Events)?;
        install_kick_handler()?;
        let (host, vm) = host.vm()?;
        timeline.mark("create VM");
        // Before the irqchip: afterwards each slot waits for an SRCU grace period (8 ms on Linux 6.18).
        vm.set_memory(&memory)?;
        timeline.mark("memory slots");
        vm.set_tss_address(layout::KVM_TSS_ADDR)?;
        // Before the vCPUs, whose local APICs it makes. It brings the default routes in one batch; no PIT.
        vm.create_irqchip()?;
        timeline.mark("irqchip");
        let vcpus = (0..shape.vcpus).map(|index| vm.create_vcpu(index)).collect::<Result<Vec<_>, _>>()?;
        let faults = vcpus.iter().filter(|_| count_faults).filter_map(KvmVcpu::fault_count).collect();
        timeline.mark("create vCPUs");
        let start = |index| VcpuThread::start(index, requests.clone(), host.confine_vcpu());
        let threads = (0..shape.vcpus).map(start).collect::<Result<Vec<_>, _>>()?;
        timeline.mark("threads");
        let system = host.system;
        Ok(Shell { system, shape, vm, memory, requests, vcpus, threads, faults, shown: Vec::new() })
    }

    /// Shows the vCPUs what a guest that is booted on this host is shown. A bundle that was baked here has the same, and takes that
    /// much less to fill; any other is filled as if nothing had been shown.
    ///
    /// # Errors
    /// KVM refused it.
    pub fn show(&mut self, cpu: &HostCpu) -> Result<(), BuildError> {
        let show = |(index, vcpu): (u32, &KvmVcpu)| {
            vcpu.set_cpuid(&vcpu::cpuid_for_vcpu(&cpu.0, index, self.shape.vcpus))?;
            // As a bundle has it: some KVMs show other features than they are given.
            vcpu.cpuid()
        };
        self.shown = (0u32..).zip(&self.vcpus).map(show).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Guest memory, into which content may be mapped.
    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Memory and vCPUs.
    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// Makes a machine of it: devices, their wiring, the state of everything. No guest instruction has run then.
    ///
    /// # Errors
    /// See [`BuildError`]; nothing of a half-built machine is left.
    pub fn fill(
        self,
        devices: DeviceSetup,
        origin: Origin<'_>,
        ahead: Ahead,
        timeline: &mut Timeline,
    ) -> Result<Machine, BuildError> {
        let Shell { system, shape, vm, memory, requests, vcpus, threads, faults, shown } = self;
        let (start, device_states) = Start::new(origin);
        let is_clone = matches!(start, Start::Saved { .. });
        let devices = DeviceTable::new(devices, memory.clone(), requests.clone(), device_states)?;
        wire(&vm, &devices)?;
        timeline.mark("devices");
        let target = Target {
            system: &system,
            vm: &vm,
            vcpus: &vcpus,
            shown: &shown,
            memory: &memory,
            devices: &devices,
        };
        let msrs = start.apply(&target)?;
        timeline.mark("vCPU state");
        // Before the threads have the vCPUs: one that runs answers no ioctl.
        let prefetched = ahead.map(&vcpus, &memory);
        timeline.mark("map ahead");
        let tsc_khz = vcpus.first().map_or(Ok(0), KvmVcpu::tsc_khz)?;
        let clock = if is_clone { clock_reading(&vcpus, tsc_khz)? } else { None };
        let buses = Buses { pio: devices.pio(), mmio: devices.mmio() };
        for (vcpu, thread) in vcpus.into_iter().zip(&threads) {
            thread.take(vcpu, buses.clone())?;
        }
        let vcpus = threads;
        let built =
            Built { shape, tsc_khz, clock, msrs, vcpus, devices, vm, memory, faults, requests, prefetched };
        let machine = Machine::new(built);
        timeline.mark("event loop");
        machine
    }
}

/// The host's wall clock at a moment of the guest's TSC.
fn clock_reading(vcpus: &[KvmVcpu], tsc_khz: u32) -> Result<Option<ClockReading>, VmError> {
    let Some(first) = vcpus.first() else { return Ok(None) };
    let before = unix_ns();
    let tsc = vcpu::tsc(first)?;
    // This process may have waited for a processor on either side of it.
    let unix_time_ns = before.midpoint(unix_ns());
    Ok(Some(ClockReading { unix_time_ns, tsc, tsc_khz }))
}

/// An origin without the devices' part.
enum Start<'a> {
    Cold(Loader<'a>),
    Saved {
        clocks: Clocks,
        irqchips: Box<[kvm_bindings::kvm_irqchip; 3]>,
        vcpus: Vec<snapshot_format::sections::VcpuState>,
    },
}

/// What a start is applied to.
struct Target<'a> {
    system: &'a System,
    vm: &'a KvmVm,
    vcpus: &'a [KvmVcpu],
    /// As in [`Shell`].
    shown: &'a [CpuId],
    memory: &'a GuestMemory,
    devices: &'a DeviceTable,
}

impl<'a> Start<'a> {
    fn new(origin: Origin<'a>) -> (Self, DeviceStates) {
        match origin {
            Origin::Cold(load) => (Start::Cold(load), DeviceStates::default()),
            Origin::Saved(saved) => {
                let clocks = Clocks::of(&saved);
                let SavedMachine { irqchips, vcpus, devices, .. } = *saved;
                (Start::Saved { clocks, irqchips: Box::new(irqchips), vcpus }, devices)
            }
        }
    }

    /// Puts vCPUs and interrupt controllers where they start from; tells what a save will read.
    fn apply(self, target: &Target<'_>) -> Result<MsrSelection, BuildError> {
        match self {
            Start::Cold(load) => cold(load, target),
            Start::Saved { clocks, irqchips, mut vcpus } => {
                // Before the MSRs: the TSC is set in units of it.
                set_tsc_frequency(target, clocks.tsc_khz)?;
                // Late, for a guest whose clocks are to go on misses whatever passes until they are set.
                if let ticks @ 1.. = clocks.ticks(unix_ns()) {
                    vcpu::align_tsc(&mut vcpus, ticks).map_err(vcpu::VcpuError::from)?;
                }
                let mut msrs = None;
                let mut shown = target.shown.iter();
                for (vcpu, state) in target.vcpus.iter().zip(&vcpus) {
                    msrs = Some(vcpu::restore(target.system, vcpu, shown.next(), state)?);
                }
                vcpu::share_tsc_offset(target.vcpus)?;
                // After the local APICs, to which the I/O APIC may deliver at once.
                irqchips.iter().try_for_each(|chip| target.vm.set_irqchip(chip))?;
                // Before that it would be lost.
                target.devices.generation_due().map_or(Ok(()), |gsi| target.vm.raise_edge(gsi))?;
                // Last: the guest's clock runs on from here, and must do so before the first instruction.
                target.vm.set_clock(clocks.clock_ns(unix_ns()))?;
                msrs.ok_or_else(no_vcpu)
            }
        }
    }
}

fn cold(load: Loader<'_>, target: &Target<'_>) -> Result<MsrSelection, BuildError> {
    let entry = load(target.memory, &target.devices.virtio_windows())?;
    let supported = target.system.supported_cpuid()?;
    let count = u32::try_from(target.vcpus.len()).unwrap_or(u32::MAX);
    for (index, vcpu) in (0u32..).zip(target.vcpus) {
        vcpu.set_cpuid(&vcpu::cpuid_for_vcpu(&supported, index, count))?;
        vcpu::reset_msrs(vcpu)?;
    }
    let first = target.vcpus.first().ok_or_else(no_vcpu)?;
    vcpu::enter(first, &entry)?;
    Ok(MsrSelection::choose(&target.system.msr_indices()?, first)?)
}

fn no_vcpu() -> BuildError {
    BuildError::Vm(VmError::TooMany { what: "The vCPU list", count: 0 })
}

/// Without scaling KVM takes a higher frequency all the same: it then moves the guest's TSC forward at every exit, in jumps.
fn set_tsc_frequency(target: &Target<'_>, guest: u32) -> Result<(), BuildError> {
    for vcpu in target.vcpus {
        let host = vcpu.tsc_khz()?;
        let difference = u64::from(host.abs_diff(guest)) * 1_000_000;
        if guest == 0 || difference <= u64::from(host) * TSC_TOLERANCE_PPM {
            continue;
        }
        if !target.system.scales_tsc() || vcpu.set_tsc_khz(guest).is_err() {
            return Err(BuildError::TscFrequency { guest, host });
        }
    }
    Ok(())
}

/// Interrupts in, notifications out, without an exit to user space.
fn wire(vm: &KvmVm, devices: &DeviceTable) -> Result<(), VmError> {
    for line in devices.irq_lines() {
        vm.register_irqfd(line.event(), line.gsi())?;
    }
    for bell in devices.doorbells() {
        vm.register_doorbell(&bell.event, bell.address, bell.queue)?;
    }
    Ok(())
}
