//! The drawn report: target/bench/report.html, and its pictures as files of their own beside it.
//!
//! It is made of target/bench/report.json and of the samples in the directories there, so it can be drawn again without measuring.

mod bars;
mod goals;
mod page;
mod phases;
mod raw;
mod scale;
mod spread;
mod svg;

use std::path::Path;

use anyhow::Result;

use super::report::Report;
use super::targets;
use crate::progress::say;
use crate::workspace::{Workspace, make_dir, make_empty_dir, write};
use page::Section;

/// Draws what there is.
pub fn draw(workspace: &Workspace, report: &Report) -> Result<()> {
    let dir = workspace.target("bench");
    make_dir(&dir)?;
    draw_in(&dir, report)?;
    say(&format!("drawn: {}", dir.join("report.html").display()));
    Ok(())
}

fn draw_in(dir: &Path, report: &Report) -> Result<()> {
    // The pictures lie in a directory too, which holds no samples.
    let runs = raw::runs(dir)?;
    let verdicts = targets::verdicts(report);
    let sections = [
        Section {
            heading: "Cold against warm",
            text: "From just before the process is started to the first byte of its answer. Medians; shorter is better.",
            without: "Not measured yet: cargo xtask bench main",
            pictures: bars::draw("Cold against warm", bars::COLD_AND_WARM, report).into_iter().collect(),
        },
        Section {
            heading: "Beside a peer",
            text: "The same kernel, modules, root image, function and event in the same run. The peer's function does less: \
                   no handshake that makes a clone unique, no Runtime API.",
            without: "Left out: cargo xtask bench paging --peer firecracker=PATH",
            pictures: bars::draw("Beside Firecracker", bars::BESIDE, report).into_iter().collect(),
        },
        Section {
            heading: "Targets",
            text: "The measured figure as a part of its limit.",
            without: "There are no targets",
            pictures: vec![goals::draw(&verdicts, report)],
        },
        Section {
            heading: "Where the time goes",
            text: "The median of each phase. A phase begins where the one above it ends.",
            without: "No samples with phases in target/bench",
            pictures: runs.iter().filter_map(phases::draw).collect(),
        },
        Section {
            heading: "Distribution",
            text: "A dot a start, from top to bottom in the order in which they were taken; the line is the median. Each row has its \
                   own axis, at least 2 % of its median wide.",
            without: "No samples in target/bench",
            pictures: spread::draw(&runs).into_iter().collect(),
        },
    ];
    let pictures = dir.join("pictures");
    make_empty_dir(&pictures)?;
    for picture in sections.iter().flat_map(|section| &section.pictures) {
        write(&pictures.join(file_name(picture.title())), picture.standalone())?;
    }
    write(&dir.join("report.html"), page::page(report, &verdicts, &sections))
}

/// "Where the time goes: peer-echo, cold" as where-the-time-goes-peer-echo-cold.svg.
fn file_name(title: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' };
    let words: String = title.chars().map(plain).collect();
    words.split_whitespace().collect::<Vec<_>>().join("-") + ".svg"
}

#[cfg(test)]
mod tests {
    use super::super::samples::tests::line;
    use super::*;
    use crate::workspace::read;

    fn report(figures: &[(&str, f64)]) -> Report {
        let figure = |(name, value): &(&str, f64)| {
            format!(r#""{name}":{{"value":{value},"unit":"us","method":"<m>","host":"h","kernel":"k"}}"#)
        };
        let figures: Vec<String> = figures.iter().map(figure).collect();
        serde_json::from_str(&format!(r#"{{"figures":{{{}}}}}"#, figures.join(","))).unwrap()
    }

    #[test]
    fn a_report_is_drawn_with_its_misses_and_needs_nothing_from_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        make_dir(&dir.path().join("echo")).unwrap();
        let phases = [("process start", 700.0), ("vCPU state", 190.0)];
        write(&dir.path().join("echo/echo.jsonl"), line("timed", 900.0, &phases, &[]).repeat(3)).unwrap();
        let figures = [("main.echo_cold_to_answer_us", 9e5), ("main.echo_restore_to_answer_us", 13e3)];
        draw_in(dir.path(), &report(&figures)).unwrap();
        let page = read(&dir.path().join("report.html")).unwrap();
        for expected in
            ["\u{2717} missed", "\u{2713} met", "not measured", "vCPU state", "69 times", "Left out"]
        {
            assert!(page.contains(expected), "{expected}");
        }
        for foreign in ["http:", "https:", "<m>", "NaN"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert!(dir.path().join("pictures/cold-against-warm.svg").exists());
        // Drawn again, its own pictures are no samples.
        draw_in(dir.path(), &report(&figures)).unwrap();
        assert_eq!(read(&dir.path().join("report.html")).unwrap(), page);
    }

    #[test]
    fn nothing_measured_is_a_page_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        draw_in(dir.path(), &report(&[])).unwrap();
        assert!(read(&dir.path().join("report.html")).unwrap().contains("Not measured yet"));
    }
}
