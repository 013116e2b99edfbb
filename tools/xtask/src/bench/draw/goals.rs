//! Targets: each figure against its limit, what is missed marked by word, sign and colour.

use super::super::report::Report;
use super::super::targets::{Limit, State, Verdict};
use super::scale::{Scale, quantity};
use super::svg::{Anchor, Svg};

const LEFT: f64 = 360.0;
const RIGHT: f64 = 640.0;
const ROW: f64 = 28.0;
/// What takes longer than so many times its limit is cut off here.
const WIDEST: f64 = 2.0;

/// A row a target.
pub fn draw(verdicts: &[Verdict], report: &Report) -> Svg {
    let mut svg = Svg::new("Targets: measured over limit");
    let scale = Scale::from_zero(WIDEST, LEFT, RIGHT);
    let bottom = verdicts.iter().fold(34.0, |y, _| y + ROW);
    for (share, word) in [(0.0, "0"), (1.0, "limit"), (2.0, "twice")] {
        svg.text((scale.at(share), 16.0), Anchor::Middle, "quiet", word);
        svg.line((scale.at(share), 22.0), (scale.at(share), bottom), "");
    }
    let mut y = 34.0;
    for verdict in verdicts {
        svg.text((0.0, y + 13.0), Anchor::Start, "label", verdict.name);
        let unit = report.figure(verdict.name).map_or("", |figure| figure.unit.as_str());
        draw_state(&mut svg, &verdict.state, unit, &scale, y);
        y += ROW;
    }
    svg.line((scale.at(1.0), 22.0), (scale.at(1.0), bottom), "mark");
    svg
}

fn draw_state(svg: &mut Svg, state: &State, unit: &str, scale: &Scale, y: f64) {
    let (class, word, measured) = match state {
        State::Met(value, limit) => ("met", "\u{2713} met", Some((*value, *limit))),
        State::Missed(value, limit) => ("missed", "\u{2717} missed", Some((*value, *limit))),
        State::Unknown(_) => ("quiet", "\u{2013} not measured", None),
        State::LeftOut => ("quiet", "\u{2013} left out (no --peer)", None),
    };
    svg.text((RIGHT + 20.0, y + 13.0), Anchor::Start, class, word);
    if let Some((value, limit)) = measured {
        let share = share(value, limit);
        svg.bar(
            (scale.at(0.0), y),
            (scale.len(share), 16.0),
            class,
            format!("{share:.2} of what is allowed"),
        );
        let limit = match limit {
            Limit::AtMost(limit) => format!("at most {}", quantity(limit, unit)),
            Limit::AtLeast(limit) => format!("at least {}", quantity(limit, unit)),
        };
        let numbers = format!("{}, {limit}", quantity(value, unit));
        svg.text((Svg::WIDTH, y + 13.0), Anchor::End, "label", numbers);
    }
}

/// How much of what is allowed was taken; above one is a miss, whichever way the limit goes.
fn share(value: f64, limit: Limit) -> f64 {
    let (taken, allowed) = match limit {
        Limit::AtMost(limit) => (value, limit),
        Limit::AtLeast(limit) => (limit, value),
    };
    if taken <= 0.0 { 0.0 } else { (taken / allowed.max(0.0)).min(WIDEST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_above_one_is_a_miss_whichever_way_the_limit_goes() {
        for (value, limit, expected) in [
            (5.0, Limit::AtMost(10.0), 0.5),
            (15.0, Limit::AtMost(10.0), 1.5),
            (0.0, Limit::AtMost(0.0), 0.0),
            (3.0, Limit::AtMost(0.0), WIDEST),
            (20.0, Limit::AtLeast(20.0), 1.0),
            (0.0, Limit::AtLeast(20.0), WIDEST),
        ] {
            assert_eq!(share(value, limit), expected, "{value} {limit:?}");
        }
    }
}
