//! How samples are distributed: a dot each, in the order in which they were taken from top to bottom, so that a drift is seen too.

use super::raw::Run;
use super::scale::{Scale, time};
use super::svg::{Anchor, Svg};

const LEFT: f64 = 310.0;
const RIGHT: f64 = 790.0;
const HEIGHT: f64 = 34.0;
const ROW: f64 = 58.0;
/// An axis is at least so wide, as a part of the median: what differs by less shall look alike.
const LEAST_WIDTH: f64 = 0.02;

/// A picture of all runs, each on an axis of its own; nothing if there are none.
pub fn draw(runs: &[Run]) -> Option<Svg> {
    let mut svg = Svg::new("Distribution of the samples");
    let mut y = 4.0;
    for run in runs.iter().filter(|run| run.first_byte_us.len() > 1) {
        draw_run(&mut svg, run, y);
        y += ROW;
    }
    (y > 4.0).then_some(svg)
}

fn draw_run(svg: &mut Svg, run: &Run, top: f64) {
    let found = run.distribution();
    let widen = ((found.median * LEAST_WIDTH - (found.max - found.min)) / 2.0).max(0.0);
    let scale = Scale::between(found.min - widen, found.max + widen, LEFT, RIGHT);
    let bottom = top + HEIGHT;
    svg.text((0.0, top + 14.0), Anchor::Start, "strong", &run.name);
    let of = format!("{} samples, median {}", found.count, time(found.median));
    svg.text((0.0, top + 31.0), Anchor::Start, "quiet", of);
    svg.line((LEFT, bottom), (RIGHT, bottom), "");
    let step = HEIGHT / found.count as f64;
    let mut y = top + step / 2.0;
    for us in &run.first_byte_us {
        svg.dot((scale.at(*us), y), run.class(), format!("{us:.0} us"));
        y += step;
    }
    svg.line((scale.at(found.median), top), (scale.at(found.median), bottom + 4.0), "mark");
    svg.text((LEFT - 8.0, bottom + 4.0), Anchor::End, "quiet", time(found.min - widen));
    svg.text((RIGHT + 8.0, bottom + 4.0), Anchor::Start, "quiet", time(found.max + widen));
    svg.text((Svg::WIDTH, top + 14.0), Anchor::End, "quiet", format!("p99 {}", time(found.p99)));
}
