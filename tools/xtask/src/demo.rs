//! `cargo xtask demo`: every example baked, run, and measured cold against warm.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::build::{self, Profile};
use crate::environment::{self, Environment};
use crate::host::Kvm;
use crate::process;
use crate::progress::{say, step};
use crate::rig::{Contents, Job, RigHost, pass_on};
use crate::setup;
use crate::workspace::{Workspace, make_empty_dir};

/// One example for each interface to a Linux function.
const EXAMPLES: [&str; 3] = ["exec", "http", "lambda"];

const SCRIPT: &str = include_str!("../rig/demo");

/// Options of the demo.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Pairs of one cold and one warm start; natively 30, in the emulated host 3.
    #[arg(long)]
    pairs: Option<u32>,
    /// In the emulated host even where this machine could run Linux guests.
    #[arg(long)]
    rig: bool,
}

/// Sets up, builds, and shows it.
pub fn run(workspace: &Workspace, arguments: &DemoArguments) -> Result<ExitCode> {
    let guest = setup::prepare(workspace)?;
    let contents = Contents {
        product: build::product(workspace, Profile::Rig)?,
        small_guests: build::small_guests(workspace)?,
        tests: Vec::new(),
        guest,
    };
    let kvm = Kvm::of_this_machine();
    if kvm.runs_linux() && !arguments.rig {
        step("Running the examples on this machine", || natively(workspace, &contents, arguments))?;
    } else {
        say(&format!("MicroVMs run in an emulated host, because {}", kvm.reason()));
        step("Running the examples in the emulated host", || in_rig(workspace, &contents, arguments))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn natively(workspace: &Workspace, contents: &Contents, arguments: &DemoArguments) -> Result<()> {
    let bundles = workspace.target("demo");
    make_empty_dir(&bundles)?;
    let mut environment = environment::native(workspace, contents, &bundles);
    environment.extend(variables(&bundles.to_string_lossy(), arguments.pairs.unwrap_or(30)));
    process::run(Command::new("sh").args(["-c", &script()]).envs(environment))
}

fn in_rig(workspace: &Workspace, contents: &Contents, arguments: &DemoArguments) -> Result<()> {
    let job = Job {
        name: "demo".to_owned(),
        script: script(),
        // In memory: what is measured there must not touch a disk.
        environment: variables("/tmp/demo", arguments.pairs.unwrap_or(3)),
        limit: Duration::from_secs(1800),
        ..Job::default()
    };
    let code = RigHost::prepare(workspace, contents)?.run(&job, &mut pass_on)?;
    anyhow::ensure!(code == 0, "An example ended with {code}");
    Ok(())
}

fn variables(bundles: &str, pairs: u32) -> Environment {
    vec![("DEMO_DIR", bundles.to_owned()), ("DEMO_PAIRS", pairs.to_string())]
}

/// All examples in one script: the first failure ends it.
fn script() -> String {
    let calls: String = EXAMPLES.iter().map(|name| format!("example {name} || exit 1\n")).collect();
    format!("example() (\n{SCRIPT})\nmkdir -p \"$DEMO_DIR\"\n{calls}")
}
