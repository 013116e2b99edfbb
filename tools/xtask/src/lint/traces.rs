//! Rule `traces`: what is left of the workplace a change was written at does not belong in the repository.

use super::Finding;
use super::source::Text;

/// Paths of one person's machine, and what assistants leave in text. The names are split so that this list is not found.
const TRACES: [&str; 12] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/."),
    concat!("/ho", "me/"),
    concat!("co-autho", "red-by"),
    concat!("genera", "ted with"),
    concat!("as an a", "i "),
    concat!("language mo", "del"),
    concat!("chat", "gpt"),
    concat!("open", "ai"),
    concat!("cla", "ude"),
    concat!("anthro", "pic"),
    concat!("copi", "lot"),
];

/// Checks a text file.
pub fn check(text: &Text) -> Vec<Finding> {
    let numbered = text.content.lines().enumerate();
    let hits = numbered.filter_map(|(number, line)| {
        let lower = line.to_lowercase();
        let trace = TRACES.iter().find(|trace| lower.contains(**trace))?;
        Some(Finding {
            path: text.path.clone(),
            line: number + 1,
            rule: "traces",
            message: format!("\"{trace}\" has no meaning outside the place where this was written"),
        })
    });
    hits.collect()
}
