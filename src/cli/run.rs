//! `ember run`: a clone, an event, an answer.
//!
//! The command runs in a child of its own (`apart`), so that the end of a single clone, which takes milliseconds because a
//! VM that has run is closed with it, is nobody's latency. It is tied to the parent's end, so that nothing stays behind.
//! Of several clones each gets a process of its own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::bundle::Bundle;
use crate::config::Verify;
use crate::function::{Conversation, Event};
use crate::jail::{Forked, fork_machine};
use crate::vm::{self, Drive, Timeline};

use super::apart::{Way, died, pipe};
use super::args::{RunArgs, TimingFormat};
use super::cell::{self, Cell, Inside, Side, ToldJail};
use super::console::Console;
use super::failure::{Failure, Kind};
use super::identity;
use super::paging::{ToldPaging, restore_options};
use super::rebake::{self, Rebake, Rebaked};
use super::report::{Report, ToldTimes};
use super::sink::Sink;
use super::statistics::Distribution;
use super::{event, output, signals};

/// Runs the command; gives the function's exit code. `way` is whom a clone tells that it must end at once, `cell` where it is
/// jailed.
///
/// # Errors
/// Ember's own failures.
pub fn run(args: &RunArgs, mut timeline: Timeline, way: Way, cell: Cell<'_>) -> Result<u8, Failure> {
    if args.no_jail {
        eprintln!("ember: {}", cell::NO_JAIL);
    } else if args.bake_to.is_some() {
        eprintln!("{}", cell::BAKE);
    }
    let mut bundle = Bundle::open(&args.bundle)?;
    bundle.detach(args.paging.verify == Verify::All)?;
    timeline.mark("open bundle");
    if args.bake_to.is_some() {
        rebake::warn(bundle.manifest());
    }
    let limit = limit(args, &bundle);
    let event = event::from_args(&args.event, bundle.manifest().function.interface, limit)?;
    timeline.mark("read event");
    let run = Run { args, bundle: &bundle, event: &event, limit };
    match args.count {
        // Whether to fork a jail was decided before the command line was parsed.
        None if !cell.is_jail() && !args.no_jail && args.bake_to.is_none() => Err(Failure::text(
            Kind::Usage,
            "A clone must not run without a jail unasked: put the bundle's name first, then the flags",
        )),
        None => {
            let cell = match args.bake_to {
                Some(_) => cell.for_bake(!args.no_jail),
                None => cell.whole(args.require_jail),
            };
            conclude(args, &run.life(begin_rebake(args)?, timeline, way, cell))
        }
        Some(count) => run.repeated(count),
    }
}

/// Longest time of one event.
fn limit(args: &RunArgs, bundle: &Bundle) -> Duration {
    let contract = Duration::from_millis(bundle.manifest().function.event_timeout_ms);
    args.timeout.map_or(contract, |span| span.0)
}

/// The place for a bundle of the clone, when one is asked for.
fn begin_rebake(args: &RunArgs) -> Result<Option<Rebake>, Failure> {
    let rebake = Rebake::begin(args)?;
    if let Some(rebake) = &rebake {
        signals::clean_up_on_signal(rebake.directory())?;
    }
    Ok(rebake)
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
    /// How its memory came into being; not of a cold start.
    pub paging: Option<ToldPaging>,
    /// Which walls stood around it.
    pub jail: Option<ToldJail>,
    /// The bundle that the clone has become.
    pub rebaked: Option<Rebaked>,
}

/// What is run.
#[derive(Debug, Clone, Copy)]
struct Run<'a> {
    args: &'a RunArgs,
    bundle: &'a Bundle,
    event: &'a Event,
    /// Longest time of one event.
    limit: Duration,
}

impl Run<'_> {
    /// `--count`: fresh clones one after the other, and the distribution of their times.
    fn repeated(&self, count: u32) -> Result<u8, Failure> {
        let mut times = ToldTimes::default();
        let mut last = 0;
        for _ in 0..count {
            let report = self.apart()?;
            last = report.outcome()?;
            times.add(&report);
        }
        output::distributions(self.args.json, &times.into_rows(), count)?;
        Ok(last)
    }

    /// One clone in a process of its own, to whose end this one waits: the next clone's time must not hold it.
    fn apart(&self) -> Result<Report, Failure> {
        let (reader, writer) = pipe()?;
        // A process of its own moves into the room that its machine follows to: this one stays where files are.
        match fork_machine()? {
            Forked::Machine => self.keep(writer),
            Forked::Parent(keeper) => {
                drop(writer);
                let Some(report) = Report::receive(reader)? else { return Err(died(&keeper)) };
                keeper.wait().map_err(|e| Failure::new(Kind::Internal, &e))?;
                Ok(report)
            }
        }
    }

    /// What `ember run` of one clone does, for another process: whoever reads from `to` hears of the clone, and the calling
    /// process ends with it.
    fn keep(&self, to: File) -> ! {
        let way = Way::Reporter(to.as_raw_fd());
        let timeline = Timeline::start();
        let outcome = cell::open_null().and_then(|null| match cell::fork(!self.args.no_jail)? {
            Side::Machine(entry) => {
                let cell = Cell::new(entry, &null).whole(self.args.require_jail);
                Ok(Some(self.life(None, timeline, way, cell)))
            }
            Side::Parent(machine) => {
                // Only its report counts; a machine that said nothing is missed by whoever reads.
                machine.wait().ok();
                Ok(None)
            }
        });
        // A parent that is gone needs no report, and nobody is left to tell.
        if let Some(report) = outcome.unwrap_or_else(|failure| Some(Report::failed(failure))) {
            report.send(to).ok();
        }
        std::process::exit(0)
    }

    /// A clone's whole life in this process.
    fn life(&self, rebake: Option<Rebake>, mut timeline: Timeline, way: Way, cell: Cell<'_>) -> Report {
        let interface = self.bundle.manifest().function.interface;
        let mut sink = Sink::new(self.args.json, self.args.include, interface, &self.args.limits);
        let console = Console::new(self.args.console || self.args.verbose, self.args.limits.console_max);
        let outcome = if self.args.cold {
            self.cold(cell, &console, &mut timeline, &mut sink)
        } else {
            self.warm(rebake, way, cell, &console, &mut timeline, &mut sink)
        };
        let outcome = outcome.map_err(|failure| failure.with_detail(console.tail()));
        Report::new(outcome, &timeline, sink.into_collected())
    }

    fn warm(
        &self,
        rebake: Option<Rebake>,
        way: Way,
        cell: Cell<'_>,
        console: &Console,
        timeline: &mut Timeline,
        sink: &mut Sink,
    ) -> Result<Lived, Failure> {
        let message = identity::restore_message(identity::Asked {
            host_name: self.args.hostname.as_deref(),
            machine_id: self.args.machine_id,
            env: &self.args.env,
        })?;
        let manifest = self.bundle.manifest();
        let options = restore_options(&self.args.paging, self.args.timing.is_some(), way);
        let options = options.with_door_open()?;
        let opened = vm::Opened::new(self.bundle, cell.vcpus())?;
        // Before the process has a control group of its own: until Linux 6.13 KVM gives each VM a thread of the kernel and moves it
        // into the groups of whoever makes the VM, and a move into a fresh one waits for every processor.
        let opened = if cell.is_jail() { opened.with_vm()? } else { opened };
        let cell = cell.bounded(self.args.limits.bound()?);
        // Asks what the bounds have left of memory.
        let opened = opened.with_hints(self.bundle, &options);
        let inside = self.enter(cell, timeline)?;
        let generation = message.generation;
        let mut machine =
            vm::restore(self.bundle, opened, generation, options, cell::console_sink(console), timeline)?;
        self.args.limits.apply(&mut machine);
        inside.confine()?;
        timeline.mark("confine");
        let mut conversation = Conversation::restored(&manifest.function, manifest.agent_protocol)?;
        let mut drive = Drive::new(&mut machine, &mut conversation);
        let outcome = vm::wake(&mut drive, &message, sink, timeline)
            .map_err(Failure::from)
            .and_then(|()| self.events(&mut drive, timeline, sink))
            .and_then(|lived| self.bake_again(rebake, lived, &mut drive, timeline, sink))
            // Where the kernel finds that the memory file was cut short, before we do, the guest merely breaks.
            .map_err(|failure| self.bundle.check_lengths().err().map_or(failure, Failure::from))
            .map(|lived| Lived {
                paging: Some(ToldPaging::of(&machine, self.bundle, &self.args.paging)),
                jail: Some(inside.told()),
                ..lived
            });
        machine.leave();
        outcome
    }

    /// As in a bake, an event that fails makes no warm point.
    fn bake_again(
        &self,
        rebake: Option<Rebake>,
        mut lived: Lived,
        drive: &mut Drive<'_>,
        timeline: &mut Timeline,
        sink: &mut Sink,
    ) -> Result<Lived, Failure> {
        if let Some(rebake) = rebake.filter(|_| lived.exit_code == 0) {
            lived.rebaked = Some(rebake.bake(self.bundle, drive, self.limit, sink, timeline)?);
        }
        Ok(lived)
    }

    /// Everything that the machine needs is open. Tells the user which walls stand, where he asked or more than usual is lacking.
    fn enter(&self, cell: Cell<'_>, timeline: &mut Timeline) -> Result<Inside, Failure> {
        timeline.mark("open the rest");
        let inside = cell.enter(self.bundle.longest_written())?;
        let told = inside.told();
        if self.args.verbose || told.is_partial() {
            eprintln!("ember: {}", told.line());
        }
        timeline.mark("jail");
        Ok(inside)
    }

    fn cold(
        &self,
        cell: Cell<'_>,
        console: &Console,
        timeline: &mut Timeline,
        sink: &mut Sink,
    ) -> Result<Lived, Failure> {
        let contract = &self.bundle.manifest().function;
        let cell = cell.bounded(self.args.limits.bound()?);
        let opened = vm::Opened::new(self.bundle, cell.vcpus())?;
        let inside = self.enter(cell, timeline)?;
        let mut machine =
            vm::boot_again(self.bundle, opened, identity::random()?, cell::console_sink(console), timeline)?;
        self.args.limits.apply(&mut machine);
        inside.confine()?;
        let mut conversation = Conversation::cold(contract)?;
        let mut drive = Drive::new(&mut machine, &mut conversation);
        timeline.mark(vm::FIRST_INSTRUCTION);
        let ready_max = vm::BOOT_MAX + Duration::from_millis(contract.ready_timeout_ms);
        let ready_max = self.args.timeout.map_or(ready_max, |span| span.0);
        let ready = vm::boot_to_ready(&mut drive, Some(Instant::now() + ready_max), sink);
        timeline.mark("boot to ready");
        let outcome = ready.map_err(Failure::from).and_then(|()| self.events(&mut drive, timeline, sink));
        let outcome = outcome.map(|lived| Lived { jail: Some(inside.told()), ..lived });
        machine.leave();
        outcome
    }

    fn events(
        &self,
        drive: &mut Drive<'_>,
        timeline: &mut Timeline,
        sink: &mut Sink,
    ) -> Result<Lived, Failure> {
        let mut lived = Lived {
            exit_code: 0,
            events: Vec::new(),
            block_requests: 0,
            paging: None,
            jail: None,
            rebaked: None,
        };
        for number in 0..self.args.repeat {
            let begin = Instant::now();
            if number > 0 {
                vm::next_turn(drive, Some(begin + self.limit))?;
            }
            lived.exit_code = vm::invoke(drive, self.event, Some(begin + self.limit), sink, timeline)?;
            lived.events.push(begin.elapsed());
        }
        lived.block_requests = drive.machine().block_requests();
        Ok(lived)
    }
}

/// Prints what the user asked for; gives the function's exit code.
///
/// # Errors
/// The failure that the clone ended with, or standard output is closed.
pub fn conclude(args: &RunArgs, report: &Report) -> Result<u8, Failure> {
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
    if args.bake_to.is_some() && !args.json {
        output::rebaked(report);
    }
    Ok(exit_code)
}

/// A named row of a table of times.
pub type Row = (&'static str, Distribution);
