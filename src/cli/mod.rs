//! One file per command: the only room that knows argv.

mod agent;
mod apart;
mod args;
mod bake;
mod bench;
mod cell;
mod doctor;
mod event;
mod files;
mod image;
mod inspect;
mod limits;
mod output;
mod paging;
mod plain;
mod pooled;
mod progress;
mod rebake;
mod record;
mod report;
mod run;
mod serve;
mod shell;
mod signals;
mod sink;
mod statistics;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::failure::{self, console};
use crate::vm::{Timeline, identity};

use apart::Way;
use args::{Cli, Command};
use cell::Cell;
use failure::{Failure, Kind};

/// Parses the command line, runs the command, prints a failure once, and gives the exit code.
pub fn main() -> ExitCode {
    let mut timeline = Timeline::of_process();
    let as_json = || has_word("--json");
    let code = if is_apart() {
        apart::in_child(!has_word("--no-jail"), |way, cell| {
            timeline.mark("fork");
            command(timeline, way, cell)
        })
        .unwrap_or_else(|failure| report(&failure, as_json()))
    } else {
        command(timeline, Way::User { as_json: as_json() }, Cell::none())
    };
    ExitCode::from(code)
}

/// Whether the command is a `run` of one clone, whose end nobody should wait for. One that makes a bundle stays in this process,
/// which cleans up when a signal ends it, as does one that only asks a daemon; of several clones each gets a process of its own.
fn is_apart() -> bool {
    let mut words = std::env::args_os().skip(1);
    let stays = |word: OsString| {
        let word = word.as_encoded_bytes();
        [&b"--bake-to"[..], b"--count", b"--pool"].iter().any(|flag| word.starts_with(flag))
    };
    words.next().is_some_and(|word| word == "run") && !words.any(stays)
}

/// Whether the user has typed this flag: what comes before the command line is parsed has to know.
fn has_word(flag: &str) -> bool {
    std::env::args_os().any(|word| word == flag)
}

/// `way` is whom a clone tells that it must end at once, `cell` where it is jailed.
fn command(mut timeline: Timeline, way: Way, cell: Cell<'_>) -> u8 {
    let cli = match Cli::from_words(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, has_word("--json")),
    };
    timeline.mark("arguments");
    let as_json = wants_json(&cli.command);
    run(cli.command, timeline, way, cell).unwrap_or_else(|failure| report(&failure, as_json))
}

fn run(command: Command, timeline: Timeline, way: Way, cell: Cell<'_>) -> Result<u8, Failure> {
    match command {
        Command::Bake(args) => bake::bake(*args),
        Command::Run(args) => match &args.pool {
            Some(socket) => pooled::run(&args, socket, timeline),
            None => run::run(&args, timeline, way, cell),
        },
        Command::Serve(args) => serve::serve(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Record(args) => record::record(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Image(args) => image::image(&args),
        Command::Completions { shell } => shell::completions(shell),
        Command::Man { directory } => shell::manual(&directory),
    }
}

/// Help and version are no failures; anything else is a wrong command line.
fn refuse(error: &clap::Error, as_json: bool) -> u8 {
    match error.kind() {
        // Nothing was asked for: the help is the answer.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => shown(error, Kind::Usage.code()),
        _ if error.use_stderr() => report(&Failure::text(Kind::Usage, args::sentence(error)), as_json),
        _ => shown(error, 0),
    }
}

/// Prints what the parser has for a person; gives `code`.
fn shown(text: &clap::Error, code: u8) -> u8 {
    // Where the stream is closed nobody can be told.
    text.print().ok();
    code
}

fn wants_json(command: &Command) -> bool {
    match command {
        Command::Bake(args) => args.json,
        Command::Run(args) => args.json,
        Command::Bench(args) => args.json,
        Command::Inspect(args) | Command::Verify(args) => args.json,
        Command::Doctor(args) => args.json,
        Command::Record(args) => args.json,
        Command::Serve(_) | Command::Image(_) | Command::Completions { .. } | Command::Man { .. } => false,
    }
}

/// Prints it; gives its exit code.
fn report(failure: &Failure, as_json: bool) -> u8 {
    if as_json {
        // Where standard output is closed, the exit code still tells.
        output::json(&failure.to_json()).ok();
    }
    eprintln!("ember: {failure}");
    failure.kind().code()
}
