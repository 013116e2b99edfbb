//! `cargo xtask test`: unit tests, then black-box tests where their virtual machines can run.

mod cases;
mod groups;
mod native;
mod queue;
mod report;
mod rigged;
mod tally;
mod unit;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::build::{self, Profile};
use crate::host::{self, Kvm};
use crate::progress::say;
use crate::rig::{Contents, RigHost, content_key};
use crate::setup;
use crate::workspace::Workspace;
use cases::Case;
use groups::{GROUPS, Group, Place};
use native::Native;
use queue::Work;
use report::Report;
use rigged::{Caches, GroupRun};

/// The name of the tests beside the code on the command line.
const UNIT: &str = "unit";
/// Files of `tests/` that need a userfaultfd. Where this user gets none they run in the rig alone, like all of theirs.
const PAGED: [&str; 2] = ["small_paging", "small_working_set"];

/// Which tests to run.
#[derive(Debug, Args)]
pub struct TestArguments {
    /// Also the cases that are too long or too large for every run.
    #[arg(long)]
    full: bool,
    /// Linux guests in the rig even where this machine could run them.
    #[arg(long)]
    rig: bool,
    /// Only these: `unit`, or groups of tools/xtask/src/test/groups.rs.
    #[arg(value_name = "GROUP")]
    groups: Vec<String>,
}

impl TestArguments {
    fn wants(&self, name: &str) -> bool {
        self.groups.is_empty() || self.groups.iter().any(|group| group == name)
    }

    fn check(&self) -> Result<()> {
        let known: Vec<&str> = std::iter::once(UNIT).chain(GROUPS.iter().map(|group| group.name)).collect();
        match self.groups.iter().find(|name| !known.contains(&name.as_str())) {
            Some(name) => bail!("There is no test group {name}, only: {}", known.join(", ")),
            None => Ok(()),
        }
    }
}

/// Runs them and prints the counts.
pub fn run(workspace: &Workspace, arguments: &TestArguments) -> Result<ExitCode> {
    arguments.check()?;
    let guest = setup::prepare(workspace)?;
    let report = Report::new(say);
    if arguments.wants(UNIT) {
        unit::run(workspace, &mut report.tally())?;
    }
    if GROUPS.iter().any(|group| arguments.wants(group.name)) {
        run_black_box(workspace, arguments, guest, &report)?;
    }
    let tally = report.tally();
    println!("{tally}");
    let ci = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
    Ok(if tally.is_success(ci) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_black_box(
    workspace: &Workspace,
    arguments: &TestArguments,
    guest: setup::Guest,
    report: &Report,
) -> Result<()> {
    let needs_faults = GROUPS.iter().any(|group| group.faults && arguments.wants(group.name));
    let product = if needs_faults { build::product_with_faults } else { build::product };
    let contents = Contents {
        product: product(workspace, Profile::Rig)?,
        small_guests: build::small_guests(workspace)?,
        tests: build::test_binaries(workspace)?,
        guest,
    };
    let cases = list_cases(&contents, arguments, report)?;
    let kvm = if arguments.rig { Kvm::Unusable } else { Kvm::of_this_machine() };
    let key = content_key(workspace, &contents)?;
    let native = Native::prepare(workspace, &contents, &key)?;
    let lazy_paging = host::lazy_paging();
    let runs_here = |case: &&Case| {
        runs_natively(case.group, kvm) && (lazy_paging || !PAGED.contains(&case.binary.name.as_str()))
    };
    let natives: Vec<Case> = cases.iter().filter(runs_here).cloned().collect();
    let run_natives = || native.run(&natives, arguments.full, report);
    if !cases.iter().any(|case| runs_in_rig(case.group, kvm)) {
        return run_natives();
    }
    if !kvm.runs_linux() {
        say(&format!("Linux guests run in an emulated host, because {}", kvm.reason()));
    }
    let host = RigHost::prepare(workspace, &contents)?;
    let caches = Caches::open(workspace.target("rig/bundles"), &key)?;
    let run_of = |group: &'static Group| {
        let cases = cases.iter().filter(|case| case.group.name == group.name).cloned().collect();
        GroupRun { group, cases, host: &host, caches: &caches, full: arguments.full }
    };
    let has_cases = |group: &Group| cases.iter().any(|case| case.group.name == group.name);
    let groups = GROUPS.iter().filter(|group| runs_in_rig(group, kvm) && has_cases(group));
    // Those are one after the other, and would leave a processor idle for minutes (with --full for more than an hour).
    let mut work: Vec<Work> = vec![Box::new(run_natives)];
    work.extend(groups.map(run_of).map(|run| Box::new(move || run.run(report)) as Work));
    queue::work_off(work, workers())
}

/// The cases that were asked for; those that are not run are reported.
fn list_cases(contents: &Contents, arguments: &TestArguments, report: &Report) -> Result<Vec<Case>> {
    let mut binaries = contents.tests.clone();
    for binary in &contents.tests {
        if !arguments.wants(groups::of_binary(&binary.name)?.name) {
            binaries.retain(|other| other.name != binary.name);
        }
    }
    let listing = cases::list(&binaries, arguments.full)?;
    listing.skips.into_iter().for_each(|skip| report.tally().skip(skip));
    if listing.waiting > 0 {
        say(&format!("{} cases wait for --full", listing.waiting));
    }
    Ok(listing.cases)
}

fn runs_natively(group: &Group, kvm: Kvm) -> bool {
    match group.place {
        Place::Linux => kvm.runs_linux(),
        Place::LinuxAsRoot => kvm.runs_linux() && setup::is_root(),
        Place::Small => kvm.runs_small_guests(),
        Place::Rig => false,
        Place::Anywhere => true,
    }
}

fn runs_in_rig(group: &Group, kvm: Kvm) -> bool {
    match group.place {
        Place::Linux | Place::LinuxAsRoot => !runs_natively(group, kvm),
        Place::Small | Place::Rig => true,
        Place::Anywhere => false,
    }
}

/// Two emulated hosts at once where processors and memory are there for both.
fn workers() -> usize {
    const TWO_HOSTS_MIB: u64 = 10 * 1024;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    if processors >= 2 && host::available_memory_mib() >= TWO_HOSTS_MIB { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_guests_always_run_in_the_rig_and_natively_where_they_can() {
        let small = groups::of_binary("small").unwrap();
        for kvm in [Kvm::Hardware, Kvm::Software, Kvm::Unusable] {
            assert!(runs_in_rig(small, kvm));
            assert_eq!(runs_natively(small, kvm), kvm != Kvm::Unusable);
        }
    }

    #[test]
    fn tests_beside_the_code_run_natively_with_the_others_and_in_the_rig() {
        let beside = groups::of_binary("beside").unwrap();
        for kvm in [Kvm::Hardware, Kvm::Software, Kvm::Unusable] {
            assert!(runs_in_rig(beside, kvm) && !runs_natively(beside, kvm));
        }
    }

    #[test]
    fn linux_guests_run_in_exactly_one_place() {
        let linux = groups::of_binary("linux_exec").unwrap();
        for kvm in [Kvm::Hardware, Kvm::Software, Kvm::Unusable] {
            assert_ne!(runs_natively(linux, kvm), runs_in_rig(linux, kvm));
        }
    }
}
