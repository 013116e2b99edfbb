//! `cargo xtask rig`: a command inside an emulated host with a real kvm-amd.
//!
//! QEMU's software emulation knows SVM with nested paging, so Debian's kernel loads its real kvm-amd there and Ember boots
//! unmodified Linux guests in it, on any x86-64 machine and without rights. docs/rig.md tells the whole story.

mod console;
mod host;
mod initramfs;
mod payload;
mod qemu;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::build::{self, Profile};
use crate::process::quote;
use crate::setup;
use crate::workspace::Workspace;

pub use host::{Cache, Job, RigHost, TRIES};
pub use payload::{Contents, content_key};
pub use qemu::{DEFAULT_CPU, Stream};

/// Memory of the emulated host unless asked otherwise.
pub const DEFAULT_MEMORY_MIB: u32 = 4096;

/// What to run and how.
#[derive(Debug, Args)]
pub struct RigArguments {
    /// Count exactly: the clock advances 1 ns per executed instruction.
    #[arg(long)]
    icount: bool,
    /// A file or directory to find under /in.
    #[arg(long = "in", value_name = "FILE")]
    inputs: Vec<PathBuf>,
    /// Unpack what the command leaves in /out into this directory.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seconds that the command may take.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Memory of the emulated host in MiB.
    #[arg(long, default_value_t = DEFAULT_MEMORY_MIB)]
    memory: u32,
    /// The emulated processor, as QEMU's -cpu names it; it needs svm and npt.
    #[arg(long, default_value = DEFAULT_CPU)]
    cpu: String,
    /// A writable ext4 file system of so many GiB under /scratch.
    #[arg(long, value_name = "GIB")]
    scratch: Option<u64>,
    /// Binaries as they are shipped, with link-time optimisation.
    #[arg(long)]
    release: bool,
    /// Also the program with the faults that tests inject, as EMBER_FAULTY_BIN.
    #[arg(long)]
    faults: bool,
    /// The command, with its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs the command; its exit code is the result.
pub fn run(workspace: &Workspace, arguments: &RigArguments) -> Result<ExitCode> {
    let guest = setup::prepare(workspace)?;
    let profile = if arguments.release { Profile::Release } else { Profile::Rig };
    let product = if arguments.faults { build::product_with_faults } else { build::product };
    let contents = Contents {
        product: product(workspace, profile)?,
        small_guests: build::small_guests(workspace)?,
        tests: Vec::new(),
        guest,
    };
    let host = RigHost::prepare(workspace, &contents)?;
    let job = job_of(arguments);
    let code = host.run(&job, &mut pass_on)?;
    host.forget(&job)?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

fn job_of(arguments: &RigArguments) -> Job {
    let words: Vec<String> = arguments.command.iter().map(|word| quote(word)).collect();
    Job {
        // Two rigs may run in one checkout.
        name: format!("rig-{}", std::process::id()),
        script: format!("exec {}\n", words.join(" ")),
        inputs: arguments.inputs.clone(),
        out: arguments.out.clone(),
        icount: arguments.icount,
        memory_mib: arguments.memory,
        cpu: arguments.cpu.clone(),
        scratch_gib: arguments.scratch,
        limit: Duration::from_secs(arguments.timeout),
        ..Job::default()
    }
}

/// What the command prints goes where xtask prints.
pub fn pass_on(stream: Stream, bytes: &[u8]) -> Result<()> {
    match stream {
        Stream::Output => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()?;
        }
        Stream::Errors => std::io::stderr().lock().write_all(bytes)?,
    }
    Ok(())
}
