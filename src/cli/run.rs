//! `ember run`: a thin parent, and a machine as its child.
//!
//! The parent exits as soon as the child has reported that the answer is complete. The child's end, which takes
//! milliseconds because a VM that has run is closed with it, is nobody's latency; it is tied to the parent's, so that
//! nothing stays behind.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::bundle::Bundle;
use crate::function::{Conversation, Event};
use crate::jail::{Forked, fork_machine};
use crate::vm::{self, Drive, Machine, Timeline};

use super::args::RunArgs;
use super::console::Console;
use super::failure::{Failure, Kind};
use super::identity;
use super::rebake::{Rebake, Rebaked};
use super::report::{Report, ToldTimes};
use super::sink::Sink;
use super::statistics::Distribution;
use super::{event, output, signals};

/// Runs the command; gives the function's exit code.
///
/// # Errors
/// Ember's own failures.
pub fn run(args: &RunArgs, mut timeline: Timeline) -> Result<u8, Failure> {
    let bundle = Bundle::open(&args.bundle)?;
    timeline.mark("open bundle");
    let function = &bundle.manifest().function;
    let event = event::from_args(&args.event, function.interface, limit(args, &bundle))?;
    timeline.mark("read event");
    match args.count {
        None => conclude(args, &once(args, &bundle, &event, Rebake::begin(args)?, timeline)?),
        Some(count) => repeated(args, &bundle, &event, count),
    }
}

/// One clone in a process of its own.
fn once(
    args: &RunArgs,
    bundle: &Bundle,
    event: &Event,
    rebake: Option<Rebake>,
    timeline: Timeline,
) -> Result<Report, Failure> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| Failure::new(Kind::HostCannot, &std::io::Error::from(e)))?;
    match fork_machine()? {
        Forked::Machine => {
            drop(reader);
            machine_process(args, bundle, event, rebake, timeline, writer)
        }
        Forked::Parent(machine) => {
            drop(writer);
            // Kept until the report is there: a machine that dies leaves its unfinished bundle to this process.
            if let Some(rebake) = &rebake {
                signals::clean_up_on_signal(rebake.directory())?;
            }
            let report = Report::receive(File::from(reader))?;
            if args.count.is_some() {
                // The next clone's time must not hold this one's teardown.
                machine.wait().map_err(|e| Failure::new(Kind::Internal, &e))?;
            }
            report.map_or_else(|| Err(died(&machine)), Ok)
        }
    }
}

fn died(machine: &crate::jail::MachineProcess) -> Failure {
    let end = match machine.wait() {
        Ok(code) if code < 0 => format!("it was killed by signal {}", -code),
        Ok(code) => format!("it exited with {code}"),
        Err(error) => error.to_string(),
    };
    Failure::text(Kind::Internal, format!("The machine's process ended without a report: {end}"))
}

/// The child's whole life.
fn machine_process(
    args: &RunArgs,
    bundle: &Bundle,
    event: &Event,
    rebake: Option<Rebake>,
    mut timeline: Timeline,
    writer: OwnedFd,
) -> ! {
    timeline.mark("fork");
    let mut sink = Sink::new(args.json, args.include, bundle.manifest().function.interface);
    let outcome = live(args, bundle, event, rebake, &mut timeline, &mut sink);
    // Whoever reads our answer through a pipe waits for its last writer: not for this process's slow end.
    sink.close();
    let report = Report::new(outcome, &timeline, sink.into_collected());
    // A parent that is gone needs no report, and nobody is left to tell.
    report.send(File::from(writer)).ok();
    std::process::exit(0)
}

/// What a life came to.
#[derive(Debug)]
pub struct Lived {
    /// The function's exit code for the last event.
    pub exit_code: i32,
    /// Time of each event from sending it to the end of its answer, when there are several.
    pub events: Vec<Duration>,
    /// Block requests from the start to the last answer.
    pub block_requests: u64,
    /// The bundle that it became.
    pub rebaked: Option<Rebaked>,
}

fn live(
    args: &RunArgs,
    bundle: &Bundle,
    event: &Event,
    rebake: Option<Rebake>,
    timeline: &mut Timeline,
    sink: &mut Sink,
) -> Result<Lived, Failure> {
    let console = Console::new(args.console);
    let outcome = if args.cold {
        live_cold(args, bundle, event, &console, timeline, sink)
    } else {
        live_warm(args, bundle, event, rebake, &console, timeline, sink)
    };
    outcome.map_err(|failure| failure.with_detail(console.tail()))
}

fn live_warm(
    args: &RunArgs,
    bundle: &Bundle,
    event: &Event,
    rebake: Option<Rebake>,
    console: &Console,
    timeline: &mut Timeline,
    sink: &mut Sink,
) -> Result<Lived, Failure> {
    let manifest = bundle.manifest();
    let mut machine = vm::restore(bundle, console.writer(), timeline)?;
    let mut conversation = Conversation::restored(&manifest.function, manifest.agent_protocol)?;
    let mut drive = Drive::new(&mut machine, &mut conversation);
    vm::wake(&mut drive, &identity::restore_message(&args.env)?, timeline)?;
    let mut lived = events(args, bundle, event, &mut drive, timeline, sink)?;
    // As in a bake, an event that fails makes no warm point.
    if let Some(rebake) = rebake.filter(|_| lived.exit_code == 0) {
        lived.rebaked = Some(rebake.bake(bundle, &mut drive, limit(args, bundle), sink, timeline)?);
    }
    Ok(lived)
}

fn live_cold(
    args: &RunArgs,
    bundle: &Bundle,
    event: &Event,
    console: &Console,
    timeline: &mut Timeline,
    sink: &mut Sink,
) -> Result<Lived, Failure> {
    let contract = &bundle.manifest().function;
    let mut machine: Machine = vm::boot_again(bundle, console.writer(), timeline)?;
    let mut conversation = Conversation::cold(contract)?;
    let mut drive = Drive::new(&mut machine, &mut conversation);
    timeline.mark(vm::FIRST_INSTRUCTION);
    let limit =
        args.timeout.map_or(vm::BOOT_MAX + Duration::from_millis(contract.ready_timeout_ms), |span| span.0);
    vm::boot_to_ready(&mut drive, Some(Instant::now() + limit), sink)?;
    timeline.mark("boot to ready");
    events(args, bundle, event, &mut drive, timeline, sink)
}

fn events(
    args: &RunArgs,
    bundle: &Bundle,
    event: &Event,
    drive: &mut Drive<'_>,
    timeline: &mut Timeline,
    sink: &mut Sink,
) -> Result<Lived, Failure> {
    let limit = limit(args, bundle);
    let mut lived = Lived { exit_code: 0, events: Vec::new(), block_requests: 0, rebaked: None };
    for number in 0..args.repeat {
        let begin = Instant::now();
        if number > 0 {
            vm::next_turn(drive, Some(begin + limit))?;
        }
        lived.exit_code = vm::invoke(drive, event, Some(begin + limit), sink, timeline)?;
        lived.events.push(begin.elapsed());
    }
    lived.block_requests = drive.machine().devices().block_requests();
    Ok(lived)
}

/// Longest time of one event.
fn limit(args: &RunArgs, bundle: &Bundle) -> Duration {
    let contract = Duration::from_millis(bundle.manifest().function.event_timeout_ms);
    args.timeout.map_or(contract, |span| span.0)
}

/// Prints what the user asked for; gives the function's exit code.
fn conclude(args: &RunArgs, report: &Report) -> Result<u8, Failure> {
    let exit_code = report.outcome()?;
    if args.json {
        output::json(&report.to_json(args.timing))?;
    } else if args.timing {
        output::timing(report);
    }
    if args.bake_to.is_some() && !args.json {
        output::rebaked(report);
    }
    Ok(exit_code)
}

/// `--count`: fresh clones one after the other, and the distribution of their times.
fn repeated(args: &RunArgs, bundle: &Bundle, event: &Event, count: u32) -> Result<u8, Failure> {
    let mut times = ToldTimes::default();
    let mut last = 0;
    for _ in 0..count {
        let report = once(args, bundle, event, None, Timeline::start())?;
        last = report.outcome()?;
        times.add(&report);
    }
    output::distributions(args.json, &times.into_rows(), count)?;
    Ok(last)
}

/// A named row of a table of times.
pub type Row = (&'static str, Distribution);
