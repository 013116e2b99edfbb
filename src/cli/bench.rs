//! `ember bench`: cold boot against warm restore, each as a whole process, to the first byte of its answer.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::args::{BenchArgs, EventArgs, PagingArgs};
use super::failure::{Failure, Kind};
use super::progress::Progress;
use super::report::us;
use super::statistics::Distribution;
use super::{identity, output, signals};

/// Longest pause before a sample: without one, samples fall into step with the scheduler's ticks.
const PAUSE_MAX_US: u64 = 8000;

/// What is kept of a start's standard error, bytes.
const ERRORS_KEPT: usize = 16 << 10;

/// Measures pairs in turn, so that a drift of the host's speed meets both alike.
///
/// # Errors
/// A start failed, or its function did.
pub fn bench(args: &BenchArgs) -> Result<u8, Failure> {
    if args.event.event.as_deref() == Some(Path::new("-")) {
        return Err(Failure::text(
            Kind::Usage,
            "Every start is given the same event, which standard input has once: name a file",
        ));
    }
    let program = std::env::current_exe().map_err(|e| Failure::new(Kind::Internal, &e))?;
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    let mut progress = Progress::new(args.json);
    signals::watch()?;
    progress.phase("Measuring");
    for _ in 0..args.pairs {
        cold.push(sample(&command(&program, args, true))?);
        warm.push(sample(&command(&program, args, false))?);
    }
    progress.finish();
    let rows = [("cold boot", cold), ("warm restore", warm)]
        .into_iter()
        .filter_map(|(name, samples)| Some((name, Distribution::new(samples)?)))
        .collect::<Vec<_>>();
    print(args, &rows)
}

fn print(args: &BenchArgs, rows: &[super::run::Row]) -> Result<u8, Failure> {
    let [(_, cold), (_, warm)] = rows else {
        return Err(Failure::text(Kind::Internal, "No samples were taken"));
    };
    let ratio = cold.middle() / warm.middle();
    if args.json {
        let host = host();
        output::json(&json!({ "cold_us": cold, "warm_us": warm, "cold_over_warm": ratio, "host": host }))?;
    } else {
        output::line(&output::distribution_table(rows).to_string())?;
        output::line(&format!(
            "warm is {ratio:.1} times as fast as cold, {} pairs, to the first answer byte",
            args.pairs
        ))?;
    }
    Ok(0)
}

fn host() -> serde_json::Value {
    let uname = rustix::system::uname();
    json!({
        "kernel": uname.release().to_string_lossy(),
        "cpu": cpu_model(),
        "cpus": std::thread::available_parallelism().map_or(1, usize::from),
    })
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("unknown", |rest| rest.trim_start_matches([':', ' ', '\t'])).to_owned()
}

/// A start to be measured.
struct Start {
    program: PathBuf,
    args: Vec<String>,
}

fn command(program: &std::path::Path, args: &BenchArgs, cold: bool) -> Start {
    let mut words = vec!["run".to_owned(), args.bundle.display().to_string()];
    if cold {
        words.push("--cold".to_owned());
    } else {
        words.extend(paging_words(&args.paging));
    }
    if let Some(timeout) = args.timeout {
        words.extend(["--timeout".to_owned(), format!("{}ms", timeout.milliseconds())]);
    }
    words.extend(event_words(&args.event));
    Start { program: program.to_owned(), args: words }
}

/// How the clone's memory comes into being, to be given on. A descriptor is inherited.
fn paging_words(paging: &PagingArgs) -> Vec<String> {
    let mut words = vec![
        format!("--paging={}", paging.paging),
        format!("--verify={}", paging.verify),
        format!("--prefetch={}", paging.prefetch),
    ];
    words.extend(paging.userfaultfd.map(|fd| format!("--userfaultfd={fd}")));
    words
}

/// The flags of an event, to be given on.
fn event_words(event: &EventArgs) -> Vec<String> {
    let file = event.event.as_ref().map(|path| path.display().to_string());
    let single = [
        ("--event", &file),
        ("--event-json", &event.event_json),
        ("--event-text", &event.event_text),
        ("--method", &event.method),
        ("--path", &event.path),
    ];
    let words = single.into_iter().filter_map(|(flag, value)| Some(format!("{flag}={}", value.as_ref()?)));
    words.chain(event.header.iter().map(|header| format!("--header={header}"))).collect()
}

/// Microseconds from just before the process is spawned to the first byte of its standard output.
fn sample(start: &Start) -> Result<f64, Failure> {
    std::thread::sleep(identity::random_duration(Duration::from_micros(PAUSE_MAX_US))?);
    let failed = |e: io::Error| Failure::new(Kind::Internal, &e);
    let begin = Instant::now();
    let mut command = Command::new(&start.program);
    command.args(&start.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = signals::spawn(&mut command).map_err(failed)?;
    // Beside the answer, or a function that says much would wait for ever.
    let errors = child.stderr.take().map(|pipe| std::thread::spawn(move || last_of(pipe)));
    let mut first = [0];
    let mut stdout = child.stdout.take();
    let count = stdout.as_mut().map_or(Ok(0), |pipe| pipe.read(&mut first)).map_err(failed)?;
    let took = begin.elapsed();
    stdout.map_or(Ok(0), |mut pipe| io::copy(&mut pipe, &mut io::sink())).map_err(failed)?;
    let status = child.wait().map_err(failed)?;
    signals::nothing_to_clean_up();
    if count == 0 || !status.success() {
        let errors = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
        return Err(failure(status, &String::from_utf8_lossy(&errors), count));
    }
    Ok(us(took))
}

/// The last [`ERRORS_KEPT`] bytes. One that cannot be read to its end has told what it could.
fn last_of(mut from: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        kept.extend_from_slice(piece.get(..count).unwrap_or_default());
        kept.drain(..kept.len().saturating_sub(ERRORS_KEPT));
    }
    kept
}

fn failure(status: ExitStatus, errors: &str, count: usize) -> Failure {
    let text = errors.trim();
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    match code.and_then(Kind::from_code) {
        Some(kind) => Failure::text(kind, text.trim_start_matches("ember: ").to_owned()),
        None if count == 0 => {
            Failure::text(Kind::GuestFailed, format!("The function answered nothing ({}) {text}", status))
        }
        None => Failure::text(Kind::GuestFailed, format!("The function failed ({}) {text}", status)),
    }
}
