//! Rules `panics` and `length`: what a reader and a user should not meet.

use super::Finding;
use super::facts::Facts;
use super::source::Source;

/// Lines that a function's body may have.
const LONGEST_FUNCTION: usize = 100;

/// Checks a file.
pub fn check(source: &Source, facts: &Facts) -> Vec<Finding> {
    let panics = facts.panics.iter().map(|at| {
        let message = match at.what.as_str() {
            "let _ =" => {
                "a result is ignored: handle it, or say with drop() or ok() why it does not matter".to_owned()
            }
            what => format!("{what} may end the process: return an error"),
        };
        (at.line, "panics", message)
    });
    let length = facts.functions.iter().filter(|at| at.what.1 > LONGEST_FUNCTION).map(|at| {
        let (name, lines) = &at.what;
        (at.line, "length", format!("{name} has {lines} lines, {LONGEST_FUNCTION} at most"))
    });
    let finding = |(line, rule, message)| Finding { path: source.path.clone(), line, rule, message };
    panics.chain(length).map(finding).collect()
}
