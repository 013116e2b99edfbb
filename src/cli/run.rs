//! `ember run`: a clone, an event, an answer.
//!
//! The command runs in a child of its own (`apart`), so that the end of a single clone, which takes milliseconds because a
//! VM that has run is closed with it, is nobody's latency. It is tied to the parent's end, so that nothing stays behind.
//! Of several clones each gets a process of its own.

use std::time::{Duration, Instant};

use crate::bundle::Bundle;
use crate::function::{Conversation, Event};
use crate::jail::{Forked, fork_machine};
use crate::vm::{self, Drive, Timeline};

use super::apart::{died, pipe};
use super::args::{RunArgs, TimingFormat};
use super::console::Console;
use super::failure::{Failure, Kind};
use super::identity;
use super::report::{Report, ToldTimes};
use super::sink::Sink;
use super::statistics::Distribution;
use super::{event, output};

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
        None => conclude(args, &life(args, &bundle, &event, timeline)),
        Some(count) => repeated(args, &bundle, &event, count),
    }
}

/// One clone in a process of its own, to whose end this one waits: the next clone's time must not hold it.
fn apart(args: &RunArgs, bundle: &Bundle, event: &Event) -> Result<Report, Failure> {
    let (reader, writer) = pipe()?;
    let timeline = Timeline::start();
    match fork_machine()? {
        Forked::Machine => {
            drop(reader);
            // A parent that is gone needs no report, and nobody is left to tell.
            life(args, bundle, event, timeline).send(writer).ok();
            std::process::exit(0)
        }
        Forked::Parent(machine) => {
            drop(writer);
            let Some(report) = Report::receive(reader)? else { return Err(died(&machine)) };
            machine.wait().map_err(|e| Failure::new(Kind::Internal, &e))?;
            Ok(report)
        }
    }
}

/// A clone's whole life in this process.
fn life(args: &RunArgs, bundle: &Bundle, event: &Event, mut timeline: Timeline) -> Report {
    let mut sink = Sink::new(args.json, args.include, bundle.manifest().function.interface);
    let outcome = live(args, bundle, event, &mut timeline, &mut sink);
    Report::new(outcome, &timeline, sink.into_collected())
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
}

fn live(
    args: &RunArgs,
    bundle: &Bundle,
    event: &Event,
    timeline: &mut Timeline,
    sink: &mut Sink,
) -> Result<Lived, Failure> {
    let console = Console::new(args.console);
    let outcome = if args.cold {
        live_cold(args, bundle, event, &console, timeline, sink)
    } else {
        live_warm(args, bundle, event, &console, timeline, sink)
    };
    outcome.map_err(|failure| failure.with_detail(console.tail()))
}

fn live_warm(
    args: &RunArgs,
    bundle: &Bundle,
    event: &Event,
    console: &Console,
    timeline: &mut Timeline,
    sink: &mut Sink,
) -> Result<Lived, Failure> {
    let manifest = bundle.manifest();
    let message = identity::restore_message(identity::Asked {
        host_name: args.hostname.as_deref(),
        machine_id: args.machine_id,
        env: &args.env,
    })?;
    let mut machine = vm::restore(bundle, message.generation, console.writer(), timeline)?;
    let mut conversation = Conversation::restored(&manifest.function, manifest.agent_protocol)?;
    let mut drive = Drive::new(&mut machine, &mut conversation);
    let outcome = vm::wake(&mut drive, &message, sink, timeline)
        .map_err(Failure::from)
        .and_then(|()| events(args, bundle, event, &mut drive, timeline, sink));
    machine.leave();
    outcome
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
    let mut machine = vm::boot_again(bundle, identity::random()?, console.writer(), timeline)?;
    let mut conversation = Conversation::cold(contract)?;
    let mut drive = Drive::new(&mut machine, &mut conversation);
    timeline.mark(vm::FIRST_INSTRUCTION);
    let limit =
        args.timeout.map_or(vm::BOOT_MAX + Duration::from_millis(contract.ready_timeout_ms), |span| span.0);
    let ready = vm::boot_to_ready(&mut drive, Some(Instant::now() + limit), sink);
    timeline.mark("boot to ready");
    let outcome =
        ready.map_err(Failure::from).and_then(|()| events(args, bundle, event, &mut drive, timeline, sink));
    machine.leave();
    outcome
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
    let mut lived = Lived { exit_code: 0, events: Vec::new(), block_requests: 0 };
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
        output::json(&report.to_json(args.timing.is_some()))?;
        return Ok(exit_code);
    }
    match args.timing {
        Some(TimingFormat::Table) => output::timing(report),
        Some(TimingFormat::Json) => eprintln!("{}", report.timing_json()),
        None => {}
    }
    Ok(exit_code)
}

/// `--count`: fresh clones one after the other, and the distribution of their times.
fn repeated(args: &RunArgs, bundle: &Bundle, event: &Event, count: u32) -> Result<u8, Failure> {
    let mut times = ToldTimes::default();
    let mut last = 0;
    for _ in 0..count {
        let report = apart(args, bundle, event)?;
        last = report.outcome()?;
        times.add(&report);
    }
    output::distributions(args.json, &times.into_rows(), count)?;
    Ok(last)
}

/// A named row of a table of times.
pub type Row = (&'static str, Distribution);
