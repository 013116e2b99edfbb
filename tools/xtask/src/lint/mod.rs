//! `cargo xtask lint`: the rules of ARCHITECTURE.md, checked on parsed sources and on cargo's metadata.
//!
//! Every rule has a tree under `fixtures/` that breaks it; a unit test checks that each marked line is found and no other.

mod dependencies;
mod facts;
mod imports;
mod rooms;
mod source;
mod style;
mod traces;
mod unsafety;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::progress::say;
use crate::workspace::Workspace;

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Path from the top of the checkout.
    pub path: String,
    /// Line, from 1; 0 where the whole file is meant.
    pub line: usize,
    pub rule: &'static str,
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.message)
    }
}

/// Checks the checkout and prints what it finds.
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let mut findings = check_tree(workspace.root())?;
    findings.extend(dependencies::check(&dependencies::metadata(workspace)?));
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    say(&format!("lint: {} findings", findings.len()));
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The rules that look at files.
fn check_tree(root: &Path) -> Result<Vec<Finding>> {
    let tree = source::read(root)?;
    let mut findings = Vec::new();
    for source in &tree.sources {
        let facts = facts::collect(source);
        findings.extend(imports::check(source, &facts));
        findings.extend(unsafety::check(source, &facts));
        findings.extend(style::check(source, &facts));
    }
    findings.extend(tree.texts.iter().flat_map(traces::check));
    findings.sort();
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the marks `//~ RULE` at the ends of a fixture's lines ask for.
    fn marked(root: &Path) -> Vec<(String, usize, String)> {
        let mut marks = Vec::new();
        for text in source::read(root).unwrap().texts {
            for (number, line) in text.content.lines().enumerate() {
                if let Some((_, rule)) = line.split_once("//~ ") {
                    marks.push((text.path.clone(), number + 1, rule.trim().to_owned()));
                }
            }
        }
        marks.sort();
        marks
    }

    fn assert_fixture_fails(rule: &str) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(rule);
        let found = check_tree(&root).unwrap();
        let found: Vec<_> = found.into_iter().map(|f| (f.path, f.line, f.rule.to_owned())).collect();
        let marks = marked(&root);
        assert!(marks.iter().any(|(_, _, marked)| marked == rule), "no line of fixtures/{rule} is marked");
        assert_eq!(found, marks);
    }

    #[test]
    fn an_import_against_the_table_is_found() {
        assert_fixture_fails("imports");
    }

    #[test]
    fn unsafe_code_outside_its_rooms_or_without_a_reason_is_found() {
        assert_fixture_fails("unsafe");
    }

    #[test]
    fn code_that_panics_or_ignores_a_result_is_found() {
        assert_fixture_fails("panics");
    }

    #[test]
    fn a_function_too_long_to_read_is_found() {
        assert_fixture_fails("length");
    }

    #[test]
    fn traces_of_a_workplace_are_found() {
        assert_fixture_fails("traces");
    }
}
