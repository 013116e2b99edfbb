//! Rule `unsafe`: only in the rooms that are contracts with the kernel, one operation a block, each with its reason.

use super::Finding;
use super::facts::{Facts, Unsafe};
use super::source::Source;

const RULE: &str = "unsafe";

/// Rooms in which `unsafe` may stand. Small guests are not host code.
const ALLOWED: [&str; 6] = [
    "src/kvm/",
    "src/memory/",
    "src/jail/",
    "tools/guest-agent/src/sys.rs",
    "tools/small-guests/",
    // An allocator that counts, to hold decoders to their bound on memory.
    "fuzz/counting.rs",
];

/// Checks a file.
pub fn check(source: &Source, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |line: usize, message: &str| {
        let message = message.to_owned();
        findings.push(Finding { path: source.path.clone(), line, rule: RULE, message });
    };
    let allowed = ALLOWED.iter().any(|room| source.path.starts_with(room));
    for item in &facts.unsafes {
        if !allowed {
            found(item.line, "unsafe belongs in src/kvm, src/memory, src/jail or the agent's sys.rs");
        } else if item.needs_reason && !has_reason(source, item) {
            found(item.line, "a // SAFETY: comment above must say why this is sound");
        } else if item.statements.is_some_and(|count| count != 1) {
            found(item.line, "an unsafe block holds one operation");
        }
    }
    findings
}

/// Looks upwards for the comment, past attributes and the beginning of the same statement.
fn has_reason(source: &Source, item: &Unsafe) -> bool {
    let above = source.lines.iter().take(item.line.saturating_sub(1)).rev();
    for line in above.map(|line| line.trim()) {
        if line.starts_with("//") {
            if line.contains("SAFETY:") {
                return true;
            }
        } else if !line.starts_with("#[") && (line.is_empty() || line.ends_with([';', '{', '}'])) {
            return false;
        }
    }
    false
}
