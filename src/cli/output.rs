//! Tables and JSON for people and programs.

use std::io::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use crate::config::Size;

use super::bake::BakeReport;
use super::cell::ToldJail;
use super::failure::{Failure, Kind};
use super::rebake::Rebaked;
use super::report::Report;
use super::run::Row;

/// Prints one JSON object and a line end on standard output.
///
/// # Errors
/// Standard output is closed.
pub fn json(value: &serde_json::Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}").and_then(|()| out.flush()).map_err(|e| Failure::new(Kind::Internal, &e))
}

/// Prints a line on standard output.
///
/// # Errors
/// Standard output is closed.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|e| Failure::new(Kind::Internal, &e))
}

/// A table without lines, its numbers to the right.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    // Asking a terminal is nothing that a jailed process may do.
    table.force_no_tty();
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The phases of one clone, on standard error: standard output is the function's.
pub fn timing(report: &Report) {
    let mut rows = table(&["phase", "us"]);
    for (name, took) in report.phases() {
        rows.add_row([name.clone(), format!("{took:.0}")]);
    }
    let sum: f64 = report.phases().iter().map(|(_, took)| took).sum();
    rows.add_row(["sum".to_owned(), format!("{sum:.0}")]);
    // The answer that stands before it on a terminal may have no line end.
    eprintln!("\n{rows}\nblock requests: {}", report.block_requests());
    if let Some(paging) = report.paging() {
        eprintln!("{}", paging.line());
    }
    let events = report.events_us();
    if events.len() > 1 {
        let all: Vec<String> = events.iter().map(|us| format!("{us:.0}")).collect();
        eprintln!("events (us): {}", all.join(" "));
    }
}

/// What became of `--bake-to`, on standard error: standard output is the function's.
pub fn rebaked(report: &Report) {
    match report.rebaked() {
        Some(Rebaked { bundle, content_bytes, leftover }) => {
            eprintln!("ember: baked {}, {} of memory", bundle.display(), Size(*content_bytes));
            if let Some(old) = leftover {
                eprintln!("ember: the replaced bundle could not be removed and lies at {}", old.display());
            }
        }
        None => eprintln!("ember: nothing was baked, because the function failed"),
    }
}

/// The distributions of `count` clones: as JSON on standard output, or as a table on standard error.
///
/// # Errors
/// Standard output is closed.
pub fn distributions(as_json: bool, rows: &[Row], count: u32) -> Result<(), Failure> {
    if as_json {
        let object = rows.iter().map(|(name, d)| ((*name).to_owned(), serde_json::json!(d))).collect();
        return json(&serde_json::json!({ "clones": count, "us": serde_json::Value::Object(object) }));
    }
    eprintln!("{}", distribution_table(rows));
    Ok(())
}

/// Milliseconds of each row's distribution.
pub fn distribution_table(rows: &[Row]) -> Table {
    let mut printed = table(&["ms", "min", "p50", "p99", "max"]);
    let ms = |us: f64| format!("{:.3}", us / 1000.0);
    let optional = |us: Option<f64>| us.map_or("-".to_owned(), ms);
    for (name, d) in rows {
        printed.add_row([(*name).to_owned(), ms(d.min), optional(d.p50), optional(d.p99), ms(d.max)]);
    }
    printed
}

/// Sizes and times of a bake.
///
/// # Errors
/// Standard output is closed.
pub fn bake_report(report: &BakeReport, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return json(&bake_json(report));
    }
    let mut files = table(&["file", "bytes", "on disk"]);
    for file in &report.finished.files {
        files.add_row([file.name.clone(), file.len.to_string(), Size(file.allocated).to_string()]);
    }
    line(&files.to_string())?;
    if report.used.total > 0 {
        let (used, total) = (report.used.total.saturating_sub(report.used.free), report.used.total);
        line(&format!("guest memory in use at the freeze: {} of {}", Size(used), Size(total)))?;
    }
    if let Some(old) = &report.finished.leftover {
        eprintln!("ember: the replaced bundle could not be removed and lies at {}", old.display());
    }
    line(&format!("baked {}", report.finished.path.display()))
}

fn bake_json(report: &BakeReport) -> serde_json::Value {
    let files: serde_json::Map<_, _> = report
        .finished
        .files
        .iter()
        .map(|file| {
            (file.name.clone(), serde_json::json!({ "bytes": file.len, "allocated": file.allocated }))
        })
        .collect();
    let phases: Vec<_> = report.phases.iter().map(|(name, took)| (name, took.as_secs_f64())).collect();
    serde_json::json!({
        "bundle": report.finished.path,
        "files": files,
        "memory": {
            "bytes": report.memory.len,
            "content_bytes": report.memory.content,
            "index_bytes": report.memory.index,
            "guest_total_bytes": report.used.total,
            "guest_free_bytes": report.used.free,
        },
        "phases_s": phases,
        "jail": ToldJail::vcpus_only(),
    })
}
