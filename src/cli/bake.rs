//! `ember bake`: from a kernel, a root and a function to a bundle at its warm point.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use snapshot_format::manifest::{
    CpuRequirements, Drive as ManifestDrive, FunctionContract, Interface, MachineShape, Manifest, names,
};
use snapshot_format::state::{EncodeError, FormatVersion};

use crate::boot::{self, Kernel, SmallGuest, initramfs};
use crate::bundle::{Draft, Finished, MemoryReport, Sharing};
use crate::config::{
    Asked, AskedDrive, AskedFunction, AskedHttp, AskedLambda, AskedMachine, AskedRoot, Bake, DriveFile,
};
use crate::config::{EventText, ImageDefaults, Timeouts};
use crate::devices::{DriveBacking, DriveSetup};
use crate::function::Conversation;
use crate::jail::List;
use crate::rootfs::{self, Source};
use crate::vm::{self, ColdStart, Drive, Image, Machine, MemoryUse, Shape, Timeline, WarmUp};

use super::args::{BakeArgs, InterfaceArg};
use super::console::Console;
use super::failure::{Failure, Kind};
use super::progress::Progress;
use super::sink::LogSink;
use super::{agent, cell, event, files, identity, output, record, signals};

/// Longest kernel file, bytes.
const KERNEL_MAX: u64 = 256 << 20;
/// Name of a root image while it is made, inside the draft: it is the bundle's from the start.
const ROOT: &str = "root";

/// Bakes.
///
/// # Errors
/// What was asked for is wrong, the host cannot, or the guest did not get to its warm point; nothing is left.
pub fn bake(args: BakeArgs) -> Result<u8, Failure> {
    let (target, force, format, show, json) =
        (args.bundle.clone(), args.force, args.format, args.console, args.json);
    let no_record = args.no_record;
    let config = args.config.as_deref().map(Asked::read).transpose()?.unwrap_or_default();
    let asked = Bake::new(asked(args).over(config))?;
    if !FormatVersion::readable().contains(&format) {
        return Err(Failure::new(Kind::Usage, &EncodeError::Version { version: format }));
    }
    let draft = Draft::create(&target, force)?;
    // From here on there is something to clean up, which a signal must not prevent.
    signals::clean_up_on_signal(draft.directory())?;
    if !json {
        eprintln!("{}", cell::BAKE);
    }
    let mut baker = Baker {
        asked,
        draft,
        progress: Progress::new(json),
        console: Console::new(show, None),
        format,
        no_record,
    };
    let parts = baker.gather()?;
    let baked = baker.boot_and_freeze(&parts)?;
    let report = baker.finish(&parts, &baked)?;
    output::bake_report(&report, json)?;
    Ok(0)
}

/// What a bake has come to.
pub struct BakeReport {
    /// Where and which files.
    pub finished: Finished,
    /// Guest memory on disk.
    pub memory: MemoryReport,
    /// Guest memory as the guest saw it.
    pub used: MemoryUse,
    /// Phases and their times.
    pub phases: Vec<(&'static str, Duration)>,
}

struct Baker {
    asked: Bake,
    draft: Draft,
    progress: Progress,
    console: Console,
    format: FormatVersion,
    no_record: bool,
}

/// Everything that is in the bundle before the guest runs.
struct Parts {
    image: Image,
    contract: FunctionContract,
    command_line: String,
    drives: Vec<ManifestDrive>,
}

/// What the frozen guest leaves.
struct Frozen {
    used: MemoryUse,
    memory: MemoryReport,
    cpu: CpuRequirements,
    agent: AgentFacts,
}

/// What the agent's greeting said.
struct AgentFacts {
    protocol: u16,
    stale_rng: bool,
}

impl Baker {
    fn gather(&mut self) -> Result<Parts, Failure> {
        let defaults = self.root_image()?;
        let contract = self.asked.contract(&defaults)?;
        self.progress.phase("Reading the kernel");
        let image = self.image()?;
        let command_line = match image {
            Image::Linux { .. } => join(&boot::default_command_line(), &self.asked.kernel_args),
            Image::Small(_) => self.asked.kernel_args.clone(),
        };
        let drives = self.drives()?;
        Ok(Parts { image, contract, command_line, drives })
    }

    /// Builds the root image inside the draft; gives what its source says about the function.
    fn root_image(&mut self) -> Result<ImageDefaults, Failure> {
        let Some(root) = &self.asked.root else { return Ok(ImageDefaults::default()) };
        self.progress.phase("Building the root image");
        let source = Source::detect(&root.path)?.named(root.reference.clone());
        let built = rootfs::build(&source, &self.draft.directory().join(names::ROOT), None, &mut |_| {})?;
        self.draft.adopt(names::ROOT)?;
        Ok(built
            .config
            .map(|config| ImageDefaults {
                command: config.command,
                env: config.env,
                workdir: config.workdir,
                user: config.user,
            })
            .unwrap_or_default())
    }

    fn image(&mut self) -> Result<Image, Failure> {
        let bytes = files::read(&self.asked.kernel, KERNEL_MAX)?;
        if self.asked.interface() == Interface::Port {
            let guest = SmallGuest::from_bytes(bytes)?;
            self.draft.add_bytes(names::KERNEL, guest.bytes())?;
            return Ok(Image::Small(guest));
        }
        let kernel = Kernel::from_bytes(bytes)?;
        let release = kernel.release().map(str::to_owned).ok_or_else(|| no_release(&self.asked.kernel))?;
        let kernel = kernel.unpack()?;
        let agent = agent::read(self.asked.agent.as_deref())?;
        let modules = self.modules(&release)?;
        let initramfs = initramfs::build(&agent, &modules, &release)?;
        self.draft.add_bytes(names::KERNEL, kernel.bytes())?;
        self.draft.add_bytes(names::INITRAMFS, &initramfs)?;
        Ok(Image::Linux { kernel, initramfs })
    }

    /// The folder that was named, or the first usual place that exists.
    fn modules(&self, release: &str) -> Result<PathBuf, Failure> {
        if let Some(named) = &self.asked.modules {
            return Ok(named.clone());
        }
        let folder = self.asked.kernel.parent().unwrap_or(Path::new("."));
        let places = [
            folder.join("../lib/modules").join(release),
            folder.join("lib/modules").join(release),
            Path::new("/lib/modules").join(release),
        ];
        places.into_iter().find(|path| path.is_dir()).ok_or_else(|| {
            let text = format!(
                "No modules of kernel {release} were found beside it; name their folder with --modules"
            );
            Failure::text(Kind::Usage, text)
        })
    }

    fn drives(&mut self) -> Result<Vec<ManifestDrive>, Failure> {
        let mut drives = Vec::new();
        if self.asked.root.is_some() {
            drives.push(ManifestDrive { id: ROOT.to_owned(), file: names::ROOT.to_owned(), read_only: true });
        }
        for drive in &self.asked.drives {
            let file = format!("drive-{}.img", drive.id);
            drives.push(ManifestDrive {
                id: drive.id.clone(),
                file: file.clone(),
                read_only: drive.read_only,
            });
            match (drive.read_only, drive.path.is_dir()) {
                (true, false) => self.draft.add_file(&file, &drive.path, Sharing::Copy)?,
                (true, true) => {
                    let source = Source::Directory(drive.path.clone());
                    rootfs::build(&source, &self.draft.directory().join(&file), None, &mut |_| {})?;
                    self.draft.adopt(&file)?;
                }
                (false, false) => {}
                (false, true) => return Err(writable_directory(drive)),
            }
        }
        Ok(drives)
    }

    fn shape(&self) -> Shape {
        Shape { memory_bytes: self.asked.memory_bytes, vcpus: self.asked.vcpus }
    }

    fn boot_and_freeze(&mut self, parts: &Parts) -> Result<Frozen, Failure> {
        let console = self.console.clone();
        self.run_guest(parts).map_err(|failure| failure.with_detail(console.tail()))
    }

    fn run_guest(&mut self, parts: &Parts) -> Result<Frozen, Failure> {
        let events = self.warm_up_events()?;
        let mut machine = self.machine(parts)?;
        let frozen = self.warm_and_freeze(&mut machine, parts, &events);
        machine.leave();
        frozen
    }

    fn warm_and_freeze(
        &mut self,
        machine: &mut Machine,
        parts: &Parts,
        events: &[crate::function::Event],
    ) -> Result<Frozen, Failure> {
        let mut conversation = Conversation::cold(&parts.contract)?;
        let mut drive = Drive::new(machine, &mut conversation);
        let warm_up = WarmUp {
            events,
            ready_max: self.asked.boot_timeout + Duration::from_millis(parts.contract.ready_timeout_ms),
            event_max: Duration::from_millis(parts.contract.event_timeout_ms),
            allow_stale_rng: self.asked.allow_stale_rng,
        };
        let progress = &mut self.progress;
        let used = vm::to_warm_point(&mut drive, &warm_up, &mut LogSink, &mut |phase| progress.phase(phase))?;
        let agent = AgentFacts {
            protocol: conversation.protocol().unwrap_or_default(),
            stale_rng: conversation.has_generation_driver() == Some(false),
        };
        self.freeze(machine, parts, used, agent)
    }

    fn warm_up_events(&self) -> Result<Vec<crate::function::Event>, Failure> {
        let from = |text| event::from_text(text, self.asked.interface(), self.asked.event_timeout());
        self.asked.warm_up.iter().map(from).collect()
    }

    fn machine(&mut self, parts: &Parts) -> Result<Machine, Failure> {
        let setups =
            parts.drives.iter().map(|drive| self.drive_setup(drive)).collect::<Result<Vec<_>, _>>()?;
        let start = ColdStart {
            host: vm::Host::open(Some(List::SavedVcpu))?,
            shape: self.shape(),
            image: &parts.image,
            command_line: parts.command_line.clone(),
            generation: identity::random()?,
            drives: setups,
            console: cell::console_sink(&self.console),
        };
        Ok(vm::boot(start, &mut Timeline::start())?)
    }

    fn drive_setup(&self, drive: &ManifestDrive) -> Result<DriveSetup, Failure> {
        let from_user = self.asked.drives.iter().find(|asked| asked.id == drive.id && !asked.read_only);
        let path =
            from_user.map_or_else(|| self.draft.directory().join(&drive.file), |asked| asked.path.clone());
        let base = files::open(&path)?;
        let backing = if drive.read_only {
            DriveBacking::ReadOnly(base)
        } else {
            let delta = vm::private_file().map_err(|e| Failure::new(Kind::HostCannot, &e))?;
            DriveBacking::CopyOnWrite { base, delta }
        };
        Ok(DriveSetup { id: drive.id.clone(), backing })
    }

    fn freeze(
        &mut self,
        machine: &mut Machine,
        parts: &Parts,
        used: MemoryUse,
        agent: AgentFacts,
    ) -> Result<Frozen, Failure> {
        self.progress.phase("Writing state and memory");
        let mut frozen = machine.freeze()?;
        self.draft.add_bytes(names::STATE, &frozen.capture(self.format)?)?;
        let memory =
            self.draft.write_memory(frozen.memory(), &[], self.asked.memory_bytes, frozen.tsc_khz())?;
        for drive in parts.drives.iter().filter(|drive| !drive.read_only) {
            frozen.write_drive(&drive.id, &self.draft.new_file(&drive.file)?)?;
        }
        let cpu = CpuRequirements {
            arch: "x86_64".to_owned(),
            vendor: vm::cpu_vendor(),
            tsc_khz: frozen.tsc_khz(),
        };
        // Nobody wants this guest to run on.
        frozen.keep();
        Ok(Frozen { used, memory, cpu, agent })
    }

    fn finish(mut self, parts: &Parts, frozen: &Frozen) -> Result<BakeReport, Failure> {
        let manifest = self.manifest(parts, frozen);
        self.record(&manifest)?;
        self.progress.phase("Syncing the bundle");
        let finished = self.draft.finish(manifest)?;
        signals::nothing_to_clean_up();
        Ok(BakeReport { finished, memory: frozen.memory, used: frozen.used, phases: self.progress.finish() })
    }

    /// Records what the warm-up events need. It is a hint: a host that does not let this user record, or an event that cannot be
    /// repeated, costs the working set and not the bundle.
    fn record(&mut self, manifest: &Manifest) -> Result<(), Failure> {
        let events = self.warm_up_events()?;
        if events.is_empty() || self.no_record {
            return Ok(());
        }
        self.progress.phase("Recording the working set");
        let bundle = self.draft.trial(manifest)?;
        match record::recorded(&bundle, &events, self.asked.event_timeout()) {
            Ok(set) => record::add(&mut self.draft, &bundle, &set),
            Err(failure) => {
                eprintln!("ember: the bundle gets no working set: {failure}");
                Ok(())
            }
        }
    }

    fn manifest(&self, parts: &Parts, frozen: &Frozen) -> Manifest {
        Manifest {
            format: self.format.to_string(),
            creator: format!("ember {}", env!("CARGO_PKG_VERSION")),
            created_unix_ms: unix_ms(),
            machine: MachineShape {
                memory_bytes: self.asked.memory_bytes,
                vcpus: self.asked.vcpus,
                kernel_cmdline: parts.command_line.clone(),
                stale_rng: frozen.agent.stale_rng,
                advance_clock: self.asked.advance_clock,
            },
            function: parts.contract.clone(),
            agent_protocol: frozen.agent.protocol,
            cpu: frozen.cpu.clone(),
            drives: parts.drives.clone(),
            parent: None,
            files: std::collections::BTreeMap::new(),
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0)
}

fn join(words: &str, more: &str) -> String {
    format!("{words} {more}").trim().to_owned()
}

fn no_release(path: &Path) -> Failure {
    Failure::text(
        Kind::Usage,
        format!("{} does not say which kernel release it is, so its modules cannot be found", path.display()),
    )
}

fn writable_directory(drive: &DriveFile) -> Failure {
    let (id, path) = (&drive.id, drive.path.display());
    Failure::text(
        Kind::Usage,
        format!("The drive {id} is the directory {path}: set read_only = true for it, or name an ext4 image"),
    )
}

/// The flags in the shape of an `ember.toml`.
fn asked(args: BakeArgs) -> Asked {
    let interface = args.interface.map(|interface| match interface {
        InterfaceArg::Exec => Interface::Exec,
        InterfaceArg::Http => Interface::Http,
        InterfaceArg::Lambda => Interface::Lambda,
        InterfaceArg::Port => Interface::Port,
    });
    let http = (args.port.is_some() || args.ready_path.is_some())
        .then_some(AskedHttp { port: args.port, ready_path: args.ready_path });
    let lambda = args.handler.map(|handler| AskedLambda { handler: Some(handler), ..Default::default() });
    let warm_up = args.warm_up.into_iter().map(|text| EventText { text: Some(text), ..Default::default() });
    let drives =
        args.drive.into_iter().map(|(id, path)| (id, AskedDrive { path: path.into(), read_only: false }));
    Asked {
        kernel: args.kernel,
        modules: args.modules,
        kernel_args: args.kernel_args,
        agent: args.agent,
        root: AskedRoot { path: args.root, reference: args.reference },
        machine: AskedMachine {
            memory: args.memory,
            vcpus: args.vcpus,
            allow_stale_rng: args.allow_stale_rng.then_some(true),
            advance_clock: args.advance_clock.then_some(true),
        },
        function: AskedFunction {
            interface,
            command: args.command,
            env: args.env.into_iter().collect(),
            workdir: args.workdir,
            user: args.user,
            resident: args.resident.then_some(true),
            http,
            lambda,
        },
        warm_up: warm_up.collect(),
        drives: drives.collect(),
        timeouts: Timeouts { boot: args.boot_timeout, ready: args.ready_timeout, event: args.event_timeout },
    }
}
