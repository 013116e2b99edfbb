//! Cold against warm, and peers beside Ember: a bar a figure, from zero.

use super::super::report::Report;
use super::scale::{Scale, ticks, time};
use super::svg::{Anchor, Svg};

const LEFT: f64 = 170.0;
const RIGHT: f64 = 860.0;
const ROW: f64 = 26.0;

/// A bar that may be there: the first of its figures that was measured.
pub struct Row {
    label: &'static str,
    class: &'static str,
    figures: &'static [&'static str],
}

/// Bars on one axis.
pub struct Panel {
    title: &'static str,
    rows: &'static [Row],
}

const fn ember(label: &'static str, figures: &'static [&'static str]) -> Row {
    Row { label, class: "ember", figures }
}

const fn peer(label: &'static str, figures: &'static [&'static str]) -> Row {
    Row { label, class: "peer", figures }
}

const ECHO_COLD: &[&str] =
    &["main.echo_cold_to_answer_us", "paging.echo_cold_to_answer_beside_firecracker_us"];
const ECHO_WARM: &[&str] = &[
    "paging.echo_restore_to_answer_us",
    "main.echo_restore_to_answer_us",
    "paging.echo_restore_to_answer_beside_firecracker_us",
];
const PYTHON_COLD: &[&str] = &["main.cold_to_answer_us", "paging.cold_to_answer_beside_firecracker_us"];
const PYTHON_WARM: &[&str] = &[
    "paging.restore_to_answer_us",
    "main.restore_to_answer_us",
    "paging.restore_to_answer_beside_firecracker_us",
];

/// A boot and a restore of the same function.
pub const COLD_AND_WARM: &[Panel] = &[
    Panel { title: "Echo (/bin/cat)", rows: &[ember("cold boot", ECHO_COLD), ember("restored", ECHO_WARM)] },
    Panel {
        title: "Python function",
        rows: &[ember("cold boot", PYTHON_COLD), ember("restored", PYTHON_WARM)],
    },
];

/// Both monitors in one run.
pub const BESIDE: &[Panel] = &[
    Panel {
        title: "Echo (/bin/cat), restored",
        rows: &[
            ember("Ember", &["paging.echo_restore_to_answer_beside_firecracker_us"]),
            peer("Firecracker", &["paging.firecracker_echo_restore_to_answer_us"]),
        ],
    },
    Panel {
        title: "Python function, restored",
        rows: &[
            ember("Ember", &["paging.restore_to_answer_beside_firecracker_us"]),
            peer("Firecracker", &["paging.firecracker_restore_to_answer_us"]),
        ],
    },
    Panel {
        title: "Echo (/bin/cat), cold boot",
        rows: &[
            ember("Ember", &["paging.echo_cold_to_answer_beside_firecracker_us"]),
            peer("Firecracker", &["paging.firecracker_echo_cold_to_answer_us"]),
        ],
    },
    Panel {
        title: "Python function, cold boot",
        rows: &[
            ember("Ember", &["paging.cold_to_answer_beside_firecracker_us"]),
            peer("Firecracker", &["paging.firecracker_cold_to_answer_us"]),
        ],
    },
];

/// Draws the panels of which every bar was measured; nothing if there is none.
pub fn draw(title: &str, panels: &[Panel], report: &Report) -> Option<Svg> {
    let mut svg = Svg::new(title);
    let mut y = 0.0;
    for panel in panels {
        let bars: Option<Vec<Bar<'_>>> = panel.rows.iter().map(|row| bar(row, report)).collect();
        if let Some(bars) = bars {
            y = draw_panel(&mut svg, panel.title, &bars, y) + 18.0;
        }
    }
    (y > 0.0).then_some(svg)
}

/// A measured row.
struct Bar<'a> {
    row: &'a Row,
    figure: &'static str,
    us: f64,
    method: &'a str,
}

fn bar<'a>(row: &'a Row, report: &'a Report) -> Option<Bar<'a>> {
    row.figures.iter().find_map(|name| {
        let figure = report.figure(name)?;
        Some(Bar { row, figure: name, us: figure.value, method: &figure.method })
    })
}

/// Returns where it ends.
fn draw_panel(svg: &mut Svg, title: &str, bars: &[Bar<'_>], top: f64) -> f64 {
    let max = bars.iter().map(|bar| bar.us).fold(0.0, f64::max);
    let scale = Scale::from_zero(max, LEFT, RIGHT);
    let first = top + 34.0;
    let bottom = bars.iter().fold(first, |y, _| y + ROW);
    svg.text((0.0, top + 18.0), Anchor::Start, "head", title);
    if let [one, other] = bars {
        svg.text((Svg::WIDTH, top + 18.0), Anchor::End, "quiet", ratio(one, other));
    }
    for tick in ticks(max) {
        svg.line((scale.at(tick), first - 6.0), (scale.at(tick), bottom), "");
        svg.text((scale.at(tick), bottom + 14.0), Anchor::Middle, "quiet", time(tick));
    }
    let mut y = first;
    for bar in bars {
        svg.text((LEFT - 12.0, y + 14.0), Anchor::End, "label", bar.row.label);
        let hint = format!("{}: {}", bar.figure, bar.method);
        svg.bar((LEFT, y), (scale.len(bar.us), 18.0), bar.row.class, hint);
        svg.text((scale.at(bar.us) + 8.0, y + 14.0), Anchor::Start, "strong", time(bar.us));
        y += ROW;
    }
    bottom + 20.0
}

fn ratio(one: &Bar<'_>, other: &Bar<'_>) -> String {
    let times = one.us / other.us;
    let digits = if times >= 10.0 { 0 } else { 2 };
    format!("{} takes {times:.digits$} times as long as {}", one.row.label, other.row.label)
}
