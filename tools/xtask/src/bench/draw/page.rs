//! The page: every picture and every figure in one file that needs nothing from anywhere.

use std::collections::BTreeSet;

use super::super::report::{Figure, Report};
use super::super::targets::{State, Verdict};
use super::scale::quantity;
use super::svg::{STYLE, Svg, escape};

const STYLE_OF_PAGE: &str = include_str!("page.css");

/// Pictures under a heading.
pub struct Section {
    pub heading: &'static str,
    pub text: &'static str,
    /// Said where there is nothing to draw.
    pub without: &'static str,
    pub pictures: Vec<Svg>,
}

/// The whole page.
pub fn page(report: &Report, verdicts: &[Verdict], sections: &[Section]) -> String {
    let body: String = sections.iter().map(section).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Ember, measured</title>\n\
         <style>\n{STYLE}{STYLE_OF_PAGE}</style>\n</head>\n<body>\n<main>\n<h1>Ember, measured</h1>\n{}{}{body}{}</main>\n</body>\n</html>\n",
        origins(report),
        counts(verdicts),
        table(report),
    )
}

fn origins(report: &Report) -> String {
    let origin = |figure: &Figure| format!("{}; Linux {}", figure.host, figure.kernel);
    let all: BTreeSet<String> = report.figures().map(|(_, figure)| origin(figure)).collect();
    let lines = all.iter().map(|origin| format!("{}<br>", escape(origin))).collect::<String>();
    format!("<p class=\"quiet\">{lines}</p>\n")
}

fn counts(verdicts: &[Verdict]) -> String {
    let count = |wanted: fn(&State) -> bool| verdicts.iter().filter(|verdict| wanted(&verdict.state)).count();
    let met = count(|state| matches!(state, State::Met(..)));
    let missed = count(|state| matches!(state, State::Missed(..)));
    let rest = verdicts.len() - met - missed;
    format!(
        "<p class=\"counts\"><span class=\"met\"><b>{met}</b>targets met</span>\
         <span class=\"missed\"><b>{missed}</b>missed</span><span><b>{rest}</b>not measured</span></p>\n"
    )
}

fn section(section: &Section) -> String {
    let pictures: String = section.pictures.iter().map(Svg::inline).collect();
    let content =
        if pictures.is_empty() { format!("<p><em>{}</em></p>\n", section.without) } else { pictures };
    format!("<h2>{}</h2>\n<p class=\"quiet\">{}</p>\n{content}", section.heading, section.text)
}

fn table(report: &Report) -> String {
    let rows: String = report.figures().map(|(name, figure)| row(name, figure)).collect();
    format!(
        "<h2>All figures</h2>\n<div class=\"scroll\"><table>\n<tr><th>figure</th><th>value</th><th>how</th><th>where</th></tr>\n{rows}</table></div>\n"
    )
}

fn row(name: &str, figure: &Figure) -> String {
    format!(
        "<tr><td><code>{}</code></td><td class=\"number\">{}</td><td>{}</td><td>{}; Linux {}</td></tr>\n",
        escape(name),
        escape(&quantity(figure.value, &figure.unit)),
        escape(&figure.method),
        escape(&figure.host),
        escape(&figure.kernel),
    )
}
