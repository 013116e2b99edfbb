//! Numbers on axes: where they lie and how they are written.

/// From values to pixels, both from zero on.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    from: f64,
    per_unit: f64,
    left: f64,
}

impl Scale {
    /// Of values from zero to `max` on the pixels from `left` to `right`.
    pub fn from_zero(max: f64, left: f64, right: f64) -> Self {
        Self::between(0.0, max, left, right)
    }

    /// Of values from `min` to `max`; what has no width is drawn in the middle.
    pub fn between(min: f64, max: f64, left: f64, right: f64) -> Self {
        if max > min {
            Self { from: min, per_unit: (right - left) / (max - min), left }
        } else {
            Self { from: min, per_unit: 0.0, left: f64::midpoint(left, right) }
        }
    }

    /// Where a value lies.
    pub fn at(&self, value: f64) -> f64 {
        self.left + (value - self.from) * self.per_unit
    }

    /// How long a value is.
    pub fn len(&self, value: f64) -> f64 {
        value * self.per_unit
    }
}

/// Round values from zero up to `max`, some four of them.
pub fn ticks(max: f64) -> Vec<f64> {
    if !(max.is_finite() && max > 0.0) {
        return Vec::new();
    }
    let power = 10f64.powf((max / 4.0).log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|s| max / s <= 5.0);
    let step = step.unwrap_or(max);
    (0..=5u8).map(|n| f64::from(n) * step).filter(|tick| *tick <= max * 1.0001).collect()
}

/// Microseconds with three digits and the unit that suits them.
pub fn time(us: f64) -> String {
    match us.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1e6 => format!("{} s", digits(us / 1e6)),
        size if size >= 1e3 => format!("{} ms", digits(us / 1e3)),
        _ => format!("{} \u{b5}s", digits(us)),
    }
}

/// A value with its unit; microseconds in whatever suits them.
pub fn quantity(value: f64, unit: &str) -> String {
    match unit {
        "us" => time(value),
        "" => digits(value),
        unit => format!("{} {unit}", digits(value)),
    }
}

/// Three digits that count.
fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(11_000.0), [0.0, 2500.0, 5000.0, 7500.0, 10_000.0]);
        assert_eq!(ticks(1.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert!(ticks(0.0).is_empty() && ticks(f64::NAN).is_empty());
    }

    #[test]
    fn quantities_have_three_digits_and_a_unit() {
        for (us, text) in [
            (0.0, "0"),
            (906_500.0, "906 ms"),
            (11_291.4, "11.3 ms"),
            (1_234.0, "1.23 ms"),
            (42.0, "42.0 \u{b5}s"),
        ] {
            assert_eq!(time(us), text);
        }
        assert_eq!((quantity(0.5, ""), quantity(4.2, "%")), ("0.500".to_owned(), "4.20 %".to_owned()));
    }

    #[test]
    fn a_scale_without_width_draws_in_the_middle() {
        assert_eq!(Scale::between(5.0, 5.0, 0.0, 100.0).at(5.0), 50.0);
        assert_eq!(Scale::from_zero(10.0, 100.0, 200.0).at(5.0), 150.0);
    }
}
