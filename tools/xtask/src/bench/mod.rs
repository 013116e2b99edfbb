//! `cargo xtask bench`: measures, and writes target/bench/report.json.
//!
//! A group has parts, each a script under `benches/` and a function in `figures.rs`. The script finds the product through the
//! same variables as the tests and the C programs of `benches/` in `$BENCH_TOOLS`; it leaves samples in the directory `$OUT`, of
//! which the function makes figures. Figures of groups that were not run this time stay in the report; samples are kept under
//! `benches/runs/DATE-HOST/PART`. `draw` makes pictures of both, at the end or with `--draw` alone.

mod clones;
mod draw;
mod figures;
mod groups;
mod paging;
mod peer;
mod pool;
mod report;
mod samples;
mod targets;
mod tools;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
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
use crate::workspace::{Workspace, make_dir, make_empty_dir, read, write};
use groups::{GROUPS, Group, Part, Place};
use peer::Peer;
use report::{Origin, Report};

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// Fail when a figure misses its target or is not in the report; with GROUP, of those that are measured now.
    #[arg(long)]
    check: bool,
    /// A monitor to run beside Ember: firecracker=PATH, the path of a static build.
    #[arg(long, value_name = "NAME=PATH")]
    peer: Option<Peer>,
    /// Measure nothing, draw target/bench/report.html of what is there.
    #[arg(long, conflicts_with_all = ["groups", "check", "peer"])]
    draw: bool,
    /// Only these groups, or parts of groups.
    #[arg(value_name = "GROUP")]
    groups: Vec<String>,
}

/// Measures, merges, prints, and checks if asked.
pub fn run(workspace: &Workspace, arguments: &BenchArguments) -> Result<ExitCode> {
    let (parts, with_faults) = chosen(&arguments.groups)?;
    let path = workspace.target("bench/report.json");
    let mut report = Report::load(&path)?;
    if arguments.draw {
        return draw::draw(workspace, &report).map(|()| ExitCode::SUCCESS);
    }
    let product = if with_faults { build::product_with_faults } else { build::product };
    let contents = Contents {
        guest: setup::prepare(workspace)?,
        product: product(workspace, Profile::Release)?,
        small_guests: build::small_guests(workspace)?,
        tests: Vec::new(),
    };
    let bench = Bench { workspace, tools: tools::build(workspace)?, contents, peer: arguments.peer.as_ref() };
    let (mut fresh, mut left_out) = (BTreeSet::new(), Vec::new());
    for part in parts {
        match bench.part(part, &mut report)? {
            Some(names) => fresh.extend(names),
            None => left_out.push(format!("bench {} could not run here", part.name)),
        }
        report.save(&path)?;
    }
    print!("{report}");
    let missed = targets::missed(&report, |name| arguments.groups.is_empty() || fresh.contains(name));
    let missed = [left_out, missed].concat();
    missed.iter().for_each(|line| println!("missed: {line}"));
    draw::draw(workspace, &report)?;
    Ok(if arguments.check && !missed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The parts that are named, on their own or by their group; whether one of them needs a program that takes faults.
fn chosen(names: &[String]) -> Result<(Vec<&'static Part>, bool)> {
    let named = |group: &Group, part: &Part| names.iter().any(|name| name == group.name || name == part.name);
    let all = || GROUPS.iter().flat_map(|group| group.parts.iter().map(move |part| (group, part)));
    let unknown = |name: &&String| all().all(|(group, part)| group.name != **name && part.name != **name);
    if let Some(unknown) = names.iter().find(unknown) {
        let known: Vec<&str> = GROUPS.iter().map(|group| group.name).collect();
        bail!("There is no bench group {unknown}, only: {}", known.join(", "));
    }
    let chosen: Vec<_> = all().filter(|(group, part)| names.is_empty() || named(group, part)).collect();
    let faults = chosen.iter().any(|(group, _)| group.faults);
    Ok((chosen.into_iter().map(|(_, part)| part).collect(), faults))
}

/// What all parts share.
struct Bench<'a> {
    workspace: &'a Workspace,
    contents: Contents,
    tools: Vec<PathBuf>,
    peer: Option<&'a Peer>,
}

impl Bench<'_> {
    /// Measures a part, where that is possible, and adds its figures to the report. Returns their names:
    /// of a peer that nobody brought none, and `None` where this machine cannot measure it.
    fn part(&self, part: &Part, report: &mut Report) -> Result<Option<Vec<String>>> {
        if part.place == Place::ExactRigWithPeer && self.peer.is_none() {
            say(peer::LEFT_OUT);
            return Ok(Some(Vec::new()));
        }
        let Some(origin) = self.origin_of(part) else {
            say(&format!("bench {} needs a /dev/kvm that this user may open, and there is none", part.name));
            return Ok(None);
        };
        let out = step(&format!("Measuring {}", part.name), || self.measure(part))?;
        let measured = (part.figures)(&out)?;
        write(&out.join("phases"), measured.phase_table())?;
        print!("{}", measured.phase_table());
        let names = report.merge(measured, &origin);
        self.keep_raw(part, &out)?;
        Ok(Some(names))
    }

    /// Where the figures of a part come from; none where it cannot be measured.
    fn origin_of(&self, part: &Part) -> Option<Origin> {
        match part.place {
            Place::ExactRig | Place::ExactRigWithPeer => Some(self.rig(", 1 ns per instruction")),
            Place::Rig => Some(self.rig("")),
            Place::Native => Kvm::of_this_machine()
                .runs_small_guests()
                .then(|| Origin { host: host::processor(), kernel: host::kernel_release() }),
        }
    }

    fn rig(&self, clock: &str) -> Origin {
        let version = &self.contents.guest.emulator.version;
        let host = format!("emulated AMD host, QEMU {version} TCG{clock}");
        Origin { host, kernel: self.contents.guest.release.clone() }
    }

    /// Runs the script, and returns the directory that it has filled.
    fn measure(&self, part: &Part) -> Result<PathBuf> {
        let out = self.workspace.target("bench").join(part.name);
        make_empty_dir(&out)?;
        for number in 0..part.runs {
            let run = if part.runs == 1 { out.clone() } else { out.join(format!("run-{number}")) };
            make_dir(&run)?;
            match part.place {
                Place::ExactRig | Place::ExactRigWithPeer | Place::Rig => self.in_rig(part, &run)?,
                Place::Native => self.natively(part, &run)?,
            }
            if part.runs > 1 {
                append_samples(&run, &out)?;
            }
        }
        Ok(out)
    }

    fn in_rig(&self, part: &Part, out: &Path) -> Result<()> {
        let mut inputs = self.tools.clone();
        let mut environment = vec![
            ("OUT", "/out".to_owned()),
            ("BENCH_TOOLS", "/in".to_owned()),
            ("RUNS", part.runs.to_string()),
        ];
        if let Some(peer) = self.peer.filter(|_| part.place == Place::ExactRigWithPeer) {
            inputs.push(peer.program.clone());
            environment.push(("PEER", peer.in_job()?));
        }
        let job = Job {
            name: format!("bench-{}", part.name),
            script: format!("exec sh \"$EMBER_BENCHES/{}\" {}\n", part.script, part.argument),
            inputs,
            environment,
            out: Some(out.to_owned()),
            icount: part.place != Place::Rig,
            memory_mib: part.memory_mib,
            limit: Duration::from_secs(part.limit),
            ..Job::default()
        };
        let host = RigHost::prepare(self.workspace, &self.contents)?;
        let code = host.run_again(&job, &mut pass_on)?;
        ensure!(code == 0, "benches/{} ended with {code} in the emulated host", part.script);
        Ok(())
    }

    fn natively(&self, part: &Part, out: &Path) -> Result<()> {
        let bundles = self.workspace.target("bench/bundles");
        make_dir(&bundles)?;
        process::run(
            process::guarded("sh", Duration::from_secs(part.limit))
                .arg(self.workspace.path("benches").join(part.script))
                .envs(environment::native(self.workspace, &self.contents, &bundles))
                .env("OUT", out)
                .env("BENCH_TOOLS", self.workspace.target("bench/tools"))
                .current_dir(out),
        )
    }

    /// Copies what a run has left into the checkout, so that a figure can be traced back to its samples.
    fn keep_raw(&self, part: &Part, out: &Path) -> Result<()> {
        let date = process::read(process::command("date").arg("+%Y-%m-%d"))?;
        let runs = self.workspace.path("benches/runs").join(format!("{}-{}", date.trim(), host::file_name()));
        make_dir(&runs)?;
        let kept = runs.join(part.name);
        make_empty_dir(&kept)?;
        process::quiet(process::command("cp").arg("-rT").arg(out).arg(&kept))
            .with_context(|| format!("Cannot keep the raw samples in {}", kept.display()))
    }
}

/// Adds the samples of one run to those of the whole part.
fn append_samples(run: &Path, whole: &Path) -> Result<()> {
    for entry in std::fs::read_dir(run).with_context(|| format!("Cannot read {}", run.display()))? {
        let path = entry?.path();
        if let (Some("jsonl"), Some(name)) = (path.extension().and_then(OsStr::to_str), path.file_name()) {
            let samples = read(&path)?;
            let file = File::options().create(true).append(true).open(whole.join(name));
            file.and_then(|mut file| file.write_all(samples.as_bytes()))
                .with_context(|| format!("Cannot keep the samples of {}", path.display()))?;
        }
    }
    Ok(())
}
