//! Where the time goes: the phases of a start one below the other, each from where the last one ended.

use super::raw::Run;
use super::scale::{Scale, ticks, time};
use super::svg::{Anchor, Svg};

const LEFT: f64 = 270.0;
const RIGHT: f64 = 850.0;
const ROW: f64 = 20.0;

/// A picture of the run's median phases; nothing if it has none.
pub fn draw(run: &Run) -> Option<Svg> {
    let total: f64 = run.phases.iter().map(|(_, took)| took).sum();
    if run.phases.len() < 2 || !total.is_finite() {
        return None;
    }
    let scale = Scale::from_zero(total, LEFT, RIGHT);
    let mut svg = Svg::new(&format!("Where the time goes: {}", run.name));
    let bottom = run.phases.iter().fold(36.0, |y, _| y + ROW);
    svg.text((0.0, 18.0), Anchor::Start, "head", &run.name);
    let samples = format!("{}, median of {} samples", time(total), run.first_byte_us.len());
    svg.text((Svg::WIDTH, 18.0), Anchor::End, "quiet", samples);
    for tick in ticks(total) {
        svg.line((scale.at(tick), 30.0), (scale.at(tick), bottom), "");
        svg.text((scale.at(tick), bottom + 14.0), Anchor::Middle, "quiet", time(tick));
    }
    let (mut begin, mut y) = (0.0, 36.0);
    for (name, took) in &run.phases {
        svg.text((LEFT - 12.0, y + 11.0), Anchor::End, "label", name);
        let hint = format!("{name}: {}, {:.1} % of all", time(*took), 100.0 * took / total);
        svg.bar((scale.at(begin), y), (scale.len(*took), 14.0), run.class(), hint);
        begin += took;
        svg.text((scale.at(begin) + 7.0, y + 11.0), Anchor::Start, "quiet", time(*took));
        y += ROW;
    }
    Some(svg)
}
