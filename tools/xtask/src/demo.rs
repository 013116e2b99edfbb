//! `cargo xtask demo`: every example baked, run, and measured cold against warm.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use crate::build::{self, Profile};
use crate::environment::{self, Environment};
use crate::host::Kvm;
use crate::process;
use crate::progress::{say, step};
use crate::rig::{Contents, Job, RigHost, pass_on};
use crate::setup;
use crate::workspace::{Workspace, make_empty_dir};

const SCRIPT: &str = include_str!("../rig/demo");

/// The whole script may take this long; the emulated host needs some minutes.
const LIMIT: Duration = Duration::from_secs(1800);

/// Options of the demo.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Pairs of one cold and one warm start; natively 30, in the emulated host 3.
    #[arg(long)]
    pairs: Option<u32>,
    /// In the emulated host even where this machine could run Linux guests.
    #[arg(long)]
    rig: bool,
    /// In the emulated host with its exact clock: figures are counts of instructions, and it may have to begin anew.
    #[arg(long)]
    exact: bool,
}

/// Sets up, builds, and shows it.
pub fn run(workspace: &Workspace, arguments: &DemoArguments) -> Result<ExitCode> {
    let begin = Instant::now();
    let guest = setup::prepare(workspace)?;
    let contents = Contents {
        product: build::product(workspace, Profile::Rig)?,
        small_guests: build::small_guests(workspace)?,
        tests: Vec::new(),
        guest,
    };
    let kvm = Kvm::of_this_machine();
    if kvm.runs_linux() && !arguments.rig && !arguments.exact {
        step("Running the examples on this machine", || natively(workspace, &contents, arguments))?;
    } else {
        let why = if arguments.rig || arguments.exact { "that was asked for" } else { kvm.reason() };
        let clock = if arguments.exact {
            "Its clock counts instructions: 1 us is 1000 of them."
        } else {
            "Times are the emulator's, many times those of a real host."
        };
        say(&format!("MicroVMs run in an emulated host, because {why}. {clock}"));
        step("Running the examples in the emulated host", || in_rig(workspace, &contents, arguments))?;
    }
    say(&format!("The demo took {:.0} s in all.", begin.elapsed().as_secs_f64()));
    Ok(ExitCode::SUCCESS)
}

fn natively(workspace: &Workspace, contents: &Contents, arguments: &DemoArguments) -> Result<()> {
    let bundles = workspace.target("demo");
    make_empty_dir(&bundles)?;
    let programs = contents.product.ember.parent().map(|dir| dir.to_string_lossy().into_owned());
    let path = format!("{}:{}", programs.unwrap_or_default(), std::env::var("PATH").unwrap_or_default());
    process::run(
        process::guarded("sh", LIMIT)
            .args(["-c", SCRIPT])
            .envs(environment::native(workspace, contents, &bundles))
            .envs(variables(&bundles.to_string_lossy(), arguments.pairs.unwrap_or(30)))
            .env("PATH", path),
    )
}

fn in_rig(workspace: &Workspace, contents: &Contents, arguments: &DemoArguments) -> Result<()> {
    let job = Job {
        name: "demo".to_owned(),
        script: SCRIPT.to_owned(),
        // In memory: what is measured there must not touch a disk.
        environment: variables("/tmp/demo", arguments.pairs.unwrap_or(3)),
        icount: arguments.exact,
        limit: LIMIT,
        ..Job::default()
    };
    let code = RigHost::prepare(workspace, contents)?.run_again(&job, &mut pass_on)?;
    ensure!(code == 0, "An example ended with {code}");
    Ok(())
}

fn variables(bundles: &str, pairs: u32) -> Environment {
    vec![("DEMO_DIR", bundles.to_owned()), ("DEMO_PAIRS", pairs.to_string())]
}
