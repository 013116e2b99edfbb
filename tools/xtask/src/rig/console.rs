//! What the emulated host's console says about its health.

/// Beginnings of messages after which nothing the host computed can be trusted.
const TROUBLE: [&str; 12] = [
    "Kernel panic",
    "Oops",
    "BUG: ",
    "kernel BUG at",
    "general protection fault",
    "soft lockup",
    "hard LOCKUP",
    "hung_task",
    "blocked for more than",
    "stall on CPU",
    "detected stalls on CPUs",
    "Out of memory: Killed",
];

/// The first line of a console that tells of an oops, a panic, a lockup or an exhausted memory.
pub fn trouble(console: &str) -> Option<&str> {
    console.lines().find(|line| is_trouble(line))
}

/// The lines around the trouble, or else the last ones, without the terminal's control characters.
pub fn excerpt(console: &str, count: usize) -> String {
    let lines: Vec<&str> = console.lines().collect();
    let trouble = lines.iter().position(|line| is_trouble(line));
    let start = trouble.map_or(lines.len().saturating_sub(count), |at| at.saturating_sub(count / 6));
    lines.iter().skip(start).take(count).map(|line| format!("    | {}\n", printable(line))).collect()
}

fn is_trouble(line: &str) -> bool {
    TROUBLE.iter().any(|sign| line.contains(sign))
}

fn printable(line: &str) -> String {
    line.chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

/// QEMU's own messages without those on processor features that its emulation lacks, which are harmless.
pub fn without_feature_warnings(messages: &str) -> String {
    let kept = messages.lines().filter(|line| !line.contains("TCG doesn't support requested feature"));
    kept.map(|line| format!("    qemu: {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oops_a_panic_and_a_lockup_are_trouble() {
        for line in [
            "[   12.1] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI",
            "[   12.1] Kernel panic - not syncing: Fatal exception",
            "[   70.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [ember:77]",
            "[   70.0] BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "[   70.0] rcu: INFO: rcu_preempt self-detected stall on CPU",
        ] {
            assert_eq!(trouble(&format!("fine\n{line}\nfine")), Some(line));
        }
    }

    #[test]
    fn an_ordinary_console_is_no_trouble() {
        assert_eq!(trouble("[    2.4] kvm_amd: Nested Paging enabled\n[    3.3] reboot: Power down\n"), None);
    }

    #[test]
    fn the_excerpt_shows_the_trouble_and_not_the_end() {
        let console = format!("{}Oops: here\n{}", "before\n".repeat(100), "after\n".repeat(100));
        let excerpt = excerpt(&console, 12);
        assert!(excerpt.contains("Oops: here") && excerpt.lines().count() == 12, "{excerpt}");
    }

    #[test]
    fn warnings_about_processor_features_are_dropped() {
        let text = "q: warning: TCG doesn't support requested feature: CPUID.07H\nq: cannot open disk\n";
        assert_eq!(without_feature_warnings(text), "    qemu: q: cannot open disk\n");
    }
}
