//! What the figures must show.

use super::peer;
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

const TARGETS: [(&str, Bound); 49] = [
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
    ("main.python_timing_gap_percent", Bound::Value(5.0)),
    ("native.timing_gap_percent", Bound::Value(5.0)),
    ("native.small_restore_p50_us", Bound::Value(2_000.0)),
    ("native.small_restore_p50_us", Bound::Times(1.4, "native.floor_p50_us")),
    // 1 000 without a recorded working set.
    ("clones.unique_cost_us", Bound::Value(300.0)),
    ("clones.wall_clock_error_ms", Bound::Value(10.0)),
    ("clones.duplicates_in_1000", Bound::Value(0.0)),
    ("clones.events_before_acknowledgement", Bound::Value(0.0)),
    ("clones.cycles_under_load_ok", Bound::AtLeast(20.0)),
    ("jail.extra_p50_us", Bound::Value(1_500.0)),
    ("pool.activate_p50_us", Bound::Value(300.0)),
    ("pool.activate_p99_us", Bound::Value(1_500.0)),
    ("pool.activate_100_p50_us", Bound::Value(300.0)),
    ("pool.activate_100_p99_us", Bound::Value(1_000.0)),
    ("pool.run_ratio", Bound::Value(0.5)),
    ("burst.64.spread", Bound::Value(3.0)),
    ("burst.restores_per_s", Bound::AtLeast(300.0)),
    ("pool.leaks_after_cycles", Bound::Value(0.0)),
    // Of 10 000 events; what is kept of the last ends, and what the allocator keeps, are filled in the first.
    ("pool.memory_after_cycles_kib", Bound::Value(40.0)),
    ("pool.rig_restore_to_answer_us", Bound::Times(1.0, "pool.rig_run_alone_us")),
    ("pool.rig_restore_to_answer_us", Bound::Times(1.0, "paging.restore_to_answer_us")),
    ("density.idle_clone_kib", Bound::Value(2_048.0)),
    ("density.linux_idle_clone_kib", Bound::Value(4_096.0)),
    ("paging.echo_restore_to_answer_us", Bound::Value(5_500.0)),
    ("paging.restore_to_first_instruction_us", Bound::Value(1_800.0)),
    ("paging.cold_boot_ratio", Bound::Value(1.0 / 250.0)),
    ("paging.echo_faults_ratio", Bound::Value(0.03)),
    ("paging.faults_ratio", Bound::Value(0.03)),
    ("paging.echo_prefetched_over_working_set", Bound::Value(1.3)),
    ("paging.prefetched_over_working_set", Bound::Value(1.3)),
    ("paging.echo_uffd_verified_ratio", Bound::Value(1.5)),
    ("paging.uffd_verified_ratio", Bound::Value(1.5)),
    ("paging.drift_ratio", Bound::Value(1.05)),
    ("paging.cold_cache_ratio", Bound::Value(1.0 / 3.0)),
    ("paging.native_prefetch_ratio", Bound::Value(0.75)),
    ("paging.native_prefetch_scattered_ratio", Bound::Value(1.05)),
    ("paging.bake_ratio", Bound::Value(1.5)),
    ("paging.bake_pages_ratio", Bound::Value(6.0)),
    ("paging.flat_in_guest_size", Bound::Value(1.2)),
    ("paging.restore_to_answer_us", Bound::Times(0.5, "paging.firecracker_restore_to_answer_us")),
];

/// What became of a target.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub name: &'static str,
    pub state: State,
}

/// How far a figure may go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

/// Of a target: measured against its limit, or why not.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    Met(f64, Limit),
    Missed(f64, Limit),
    /// This figure has not been measured.
    Unknown(&'static str),
    /// It leans on a peer that nobody brought.
    LeftOut,
}

/// What became of every target.
pub fn verdicts(report: &Report) -> Vec<Verdict> {
    TARGETS.iter().map(|(name, bound)| Verdict { name, state: judge(report, name, bound) }).collect()
}

/// A line for every target of the figures asked for that is missed, or that leans on one that has not been measured.
pub fn missed(report: &Report, asked: impl Fn(&str) -> bool) -> Vec<String> {
    verdicts(report).iter().filter(|verdict| asked(verdict.name)).filter_map(miss).collect()
}

fn judge(report: &Report, name: &'static str, bound: &Bound) -> State {
    let known = |name: &'static str| report.value(name).ok_or(name);
    let limit = match bound {
        Bound::Value(value) => Ok(Limit::AtMost(*value)),
        Bound::Times(factor, of) => known(of).map(|value| Limit::AtMost(factor * value)),
        Bound::Plus(of, more) => known(of).map(|value| Limit::AtMost(value + more)),
        Bound::AtLeast(value) => Ok(Limit::AtLeast(*value)),
    };
    match (limit, known(name)) {
        (Err(unknown), _) | (_, Err(unknown)) if peer::is_of_peer(unknown) => State::LeftOut,
        (_, Err(unknown)) | (Err(unknown), _) => State::Unknown(unknown),
        (Ok(limit), Ok(value)) if limit.allows(value) => State::Met(value, limit),
        (Ok(limit), Ok(value)) => State::Missed(value, limit),
    }
}

impl Limit {
    fn allows(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

fn miss(verdict: &Verdict) -> Option<String> {
    match verdict.state {
        State::Met(..) | State::LeftOut => None,
        State::Missed(value, Limit::AtMost(limit)) => {
            Some(format!("{} is {value:.2}, at most {limit:.2}", verdict.name))
        }
        State::Missed(value, Limit::AtLeast(limit)) => {
            Some(format!("{} is {value:.2}, at least {limit:.2}", verdict.name))
        }
        State::Unknown(name) => Some(format!("{name} has not been measured")),
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
        let state = |a: f64| judge(&report(&[("a", a), ("b", 1.0)]), "a", &bound);
        assert_eq!(state(10.0), State::Met(10.0, Limit::AtMost(501.0)));
        let missed = Verdict { name: "a", state: state(502.0) };
        assert_eq!(miss(&missed).unwrap(), "a is 502.00, at most 501.00");
    }

    #[test]
    fn a_bound_may_be_from_below() {
        let state = |a: f64| judge(&report(&[("a", a)]), "a", &Bound::AtLeast(20.0));
        assert_eq!(state(20.0), State::Met(20.0, Limit::AtLeast(20.0)));
        let missed = Verdict { name: "a", state: state(19.0) };
        assert_eq!(miss(&missed).unwrap(), "a is 19.00, at least 20.00");
    }

    #[test]
    fn what_was_not_measured_is_missed() {
        let unknown = judge(&report(&[]), "a", &Bound::Value(1.0));
        assert_eq!(unknown, State::Unknown("a"));
        assert!(miss(&Verdict { name: "a", state: unknown }).is_some());
        assert_eq!(judge(&report(&[("a", 1.0)]), "a", &Bound::Times(2.0, "b")), State::Unknown("b"));
    }

    #[test]
    fn only_what_was_asked_for_is_missed() {
        let report = report(&[("clones.duplicates_in_1000", 1.0), ("main.restored_over_cold", 2.0)]);
        let missed = missed(&report, |name| name == "clones.duplicates_in_1000");
        assert_eq!(missed, ["clones.duplicates_in_1000 is 1.00, at most 0.00"]);
    }

    #[test]
    fn a_peer_that_nobody_brought_is_no_miss() {
        let bound = Bound::Times(0.5, "paging.firecracker_restore_to_answer_us");
        let state = judge(&report(&[("a", 1.0)]), "a", &bound);
        assert_eq!(state, State::LeftOut);
        assert_eq!(miss(&Verdict { name: "a", state }), None);
    }
}
