//! What the figures must show.

use super::report::Report;

/// A bound from above, but for the last.
enum Bound {
    Value(f64),
    /// A multiple of another figure.
    Times(f64, &'static str),
    /// Another figure and something on top.
    Plus(&'static str, f64),
    /// From below.
    AtLeast(f64),
}

const TARGETS: [(&str, Bound); 16] = [
    // The same on Firecracker, over vsock: 11 300 and 2 047 000.
    ("main.echo_restore_to_answer_us", Bound::Value(12_000.0)),
    ("main.echo_cold_to_answer_us", Bound::Value(2_050_000.0)),
    ("main.restore_to_answer_us", Bound::Value(25_000.0)),
    ("main.restore_to_answer_us", Bound::Times(0.01, "main.cold_to_answer_us")),
    ("main.python_import_us", Bound::Value(150_000.0)),
    ("main.restore_to_first_instruction_us", Bound::Value(2_200.0)),
    ("main.run_spawn_to_exit_us", Bound::Plus("main.echo_restore_to_answer_us", 500.0)),
    ("main.restored_over_cold", Bound::Value(1.02)),
    ("main.timing_gap_percent", Bound::Value(5.0)),
    ("native.small_restore_p50_us", Bound::Value(2_000.0)),
    ("native.small_restore_p50_us", Bound::Times(1.4, "native.floor_p50_us")),
    ("clones.unique_cost_us", Bound::Value(1_000.0)),
    ("clones.wall_clock_error_ms", Bound::Value(10.0)),
    ("clones.duplicates_in_1000", Bound::Value(0.0)),
    ("clones.events_before_acknowledgement", Bound::Value(0.0)),
    ("clones.cycles_under_load_ok", Bound::AtLeast(20.0)),
];

/// A line for every target that is missed, or whose figures have not been measured.
pub fn missed(report: &Report) -> Vec<String> {
    TARGETS.iter().filter_map(|(name, bound)| miss(report, name, bound)).collect()
}

fn miss(report: &Report, name: &str, bound: &Bound) -> Option<String> {
    let other = |name: &str| report.value(name).ok_or_else(|| format!("{name} has not been measured"));
    let limit = match bound {
        Bound::Value(value) | Bound::AtLeast(value) => Ok(*value),
        Bound::Times(factor, of) => other(of).map(|value| factor * value),
        Bound::Plus(of, more) => other(of).map(|value| value + more),
    };
    match (other(name), limit) {
        (Ok(value), Ok(limit)) if matches!(bound, Bound::AtLeast(_)) => {
            (value < limit).then(|| format!("{name} is {value:.2}, at least {limit:.2}"))
        }
        (Ok(value), Ok(limit)) if value <= limit => None,
        (Ok(value), Ok(limit)) => Some(format!("{name} is {value:.2}, at most {limit:.2}")),
        (Err(unknown), _) | (_, Err(unknown)) => Some(unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(figures: &[(&str, f64)]) -> Report {
        let figure = |(name, value): &(&str, f64)| {
            format!(r#""{name}":{{"value":{value},"unit":"","method":"","host":"","kernel":""}}"#)
        };
        let figures: Vec<String> = figures.iter().map(figure).collect();
        serde_json::from_str(&format!(r#"{{"figures":{{{}}}}}"#, figures.join(","))).unwrap()
    }

    #[test]
    fn a_bound_may_lean_on_another_figure() {
        let bound = Bound::Plus("b", 500.0);
        assert_eq!(miss(&report(&[("a", 10.0), ("b", 1.0)]), "a", &bound), None);
        assert_eq!(
            miss(&report(&[("a", 502.0), ("b", 1.0)]), "a", &bound).unwrap(),
            "a is 502.00, at most 501.00"
        );
    }

    #[test]
    fn a_bound_may_be_from_below() {
        let bound = Bound::AtLeast(20.0);
        assert_eq!(miss(&report(&[("a", 20.0)]), "a", &bound), None);
        assert_eq!(miss(&report(&[("a", 19.0)]), "a", &bound).unwrap(), "a is 19.00, at least 20.00");
    }

    #[test]
    fn what_was_not_measured_is_missed() {
        assert!(miss(&report(&[]), "a", &Bound::Value(1.0)).is_some());
        assert!(miss(&report(&[("a", 1.0)]), "a", &Bound::Times(2.0, "b")).is_some());
    }
}
