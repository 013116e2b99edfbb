//! `cargo xtask bench`: measures, and writes target/bench/report.json.
//!
//! A group is a script under `benches/`. It finds the product through the same variables as the tests, and leaves in the
//! directory `$OUT` a `figures.json` (see [`report::Measured`]) and, beside it, whatever raw samples it took. Figures of
//! groups that were not run this time stay in the report; raw files are kept under `benches/runs/DATE-HOST/GROUP`.

mod groups;
mod report;
mod targets;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::build::{self, Profile};
use crate::environment;
use crate::host::{self, Kvm};
use crate::process;
use crate::progress::{say, step};
use crate::rig::{Contents, Job, RigHost, pass_on};
use crate::setup;
use crate::workspace::{Workspace, make_dir, make_empty_dir};
use groups::{GROUPS, Group, Place};
use report::{Origin, Report};

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// Fail when a figure misses its target or is not in the report.
    #[arg(long)]
    check: bool,
    /// Only these groups.
    #[arg(value_name = "GROUP")]
    groups: Vec<String>,
}

/// Measures, merges, prints, and checks if asked.
pub fn run(workspace: &Workspace, arguments: &BenchArguments) -> Result<ExitCode> {
    let groups = chosen(&arguments.groups)?;
    let path = workspace.target("bench/report.json");
    let mut report = Report::load(&path)?;
    let contents = Contents {
        guest: setup::prepare(workspace)?,
        product: build::product(workspace, Profile::Release)?,
        small_guests: build::small_guests(workspace)?,
        tests: Vec::new(),
    };
    for group in groups {
        let Some(origin) = origin_of(group, &contents) else {
            say(&format!("bench {} needs a /dev/kvm that this user may open, and there is none", group.name));
            continue;
        };
        let out = step(&format!("Measuring {}", group.name), || measure(workspace, group, &contents))?;
        report.merge(&out.join("figures.json"), &origin)?;
        keep_raw(workspace, group, &out)?;
        report.save(&path)?;
    }
    print!("{report}");
    let missed = targets::missed(&report);
    missed.iter().for_each(|line| println!("missed: {line}"));
    Ok(if arguments.check && !missed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn chosen(names: &[String]) -> Result<Vec<&'static Group>> {
    if let Some(unknown) = names.iter().find(|name| GROUPS.iter().all(|group| group.name != **name)) {
        let known: Vec<&str> = GROUPS.iter().map(|group| group.name).collect();
        bail!("There is no bench group {unknown}, only: {}", known.join(", "));
    }
    Ok(GROUPS
        .iter()
        .filter(|group| names.is_empty() || names.iter().any(|name| name == group.name))
        .collect())
}

/// Where the figures of a group come from; none where it cannot be measured.
fn origin_of(group: &Group, contents: &Contents) -> Option<Origin> {
    match group.place {
        Place::ExactRig => Some(Origin {
            host: "emulated AMD host, QEMU TCG, 1 ns per instruction".to_owned(),
            kernel: contents.guest.release.clone(),
        }),
        Place::Native => Kvm::of_this_machine()
            .runs_small_guests()
            .then(|| Origin { host: host::processor(), kernel: host::kernel_release() }),
    }
}

/// Runs the script, and returns the directory that it has filled.
fn measure(workspace: &Workspace, group: &Group, contents: &Contents) -> Result<PathBuf> {
    let out = workspace.target("bench").join(group.name);
    make_empty_dir(&out)?;
    match group.place {
        Place::ExactRig => in_rig(workspace, group, contents, &out)?,
        Place::Native => natively(workspace, group, contents, &out)?,
    }
    Ok(out)
}

fn in_rig(workspace: &Workspace, group: &Group, contents: &Contents, out: &Path) -> Result<()> {
    let job = Job {
        name: format!("bench-{}", group.name),
        script: format!("exec sh \"$EMBER_BENCHES/{}\"\n", group.script),
        environment: vec![("OUT", "/out".to_owned())],
        out: Some(out.to_owned()),
        icount: true,
        memory_mib: group.memory_mib,
        limit: Duration::from_secs(group.limit),
        ..Job::default()
    };
    let code = RigHost::prepare(workspace, contents)?.run(&job, &mut pass_on)?;
    ensure!(code == 0, "benches/{} ended with {code} in the emulated host", group.script);
    Ok(())
}

fn natively(workspace: &Workspace, group: &Group, contents: &Contents, out: &Path) -> Result<()> {
    let script = workspace.path("benches").join(group.script);
    let bundles = workspace.target("bench/bundles");
    make_dir(&bundles)?;
    process::run(
        Command::new("sh")
            .arg(script)
            .envs(environment::native(workspace, contents, &bundles))
            .env("OUT", out)
            .current_dir(out),
    )
}

/// Copies everything a run has left into the checkout, so that a figure can be traced back to its samples.
fn keep_raw(workspace: &Workspace, group: &Group, out: &Path) -> Result<()> {
    let date = process::read(process::command("date").arg("+%Y-%m-%d"))?;
    let runs = workspace.path("benches/runs").join(format!("{}-{}", date.trim(), host::file_name()));
    make_dir(&runs)?;
    let kept = runs.join(group.name);
    make_empty_dir(&kept)?;
    process::quiet(process::command("cp").arg("-rT").arg(out).arg(&kept))
        .with_context(|| format!("Cannot keep the raw samples in {}", kept.display()))
}
