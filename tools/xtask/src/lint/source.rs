//! The files that rules look at.

use std::path::Path;

use anyhow::{Context, Result};

/// A text file.
#[derive(Debug)]
pub struct Text {
    /// Path from the top of the checkout.
    pub path: String,
    pub content: String,
}

/// A parsed Rust file.
pub struct Source {
    /// Path from the top of the checkout.
    pub path: String,
    pub lines: Vec<String>,
    pub syntax: syn::File,
    /// The whole file is compiled for tests only.
    pub is_test: bool,
}

/// Everything in a checkout that somebody wrote.
#[derive(Default)]
pub struct Tree {
    pub texts: Vec<Text>,
    pub sources: Vec<Source>,
}

/// Directories that hold no sources of ours, or those that break rules on purpose.
const SKIPPED: [&str; 6] =
    ["target", ".git", "tools/xtask/fixtures", "benches/runs", "fuzz/target", "fuzz/corpus"];

/// Text files are small; goldens and images are neither.
const TEXT_MAX: u64 = 1 << 20;

/// Reads and parses a checkout.
pub fn read(root: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    read_dir(root, "", &mut tree.texts)?;
    for text in tree.texts.iter().filter(|text| text.path.ends_with(".rs")) {
        tree.sources.push(parse(text)?);
    }
    mark_test_modules(&mut tree.sources);
    Ok(tree)
}

fn read_dir(dir: &Path, name: &str, texts: &mut Vec<Text>) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("Cannot read {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let inner = format!(
            "{name}{}{}",
            if name.is_empty() { "" } else { "/" },
            entry.file_name().to_string_lossy()
        );
        let kind = entry.file_type()?;
        if SKIPPED.contains(&inner.as_str()) {
            continue;
        }
        if kind.is_dir() {
            read_dir(&entry.path(), &inner, texts)?;
        } else if kind.is_file() && entry.metadata()?.len() <= TEXT_MAX {
            // What is not UTF-8 is no text.
            texts.extend(
                std::fs::read_to_string(entry.path()).ok().map(|content| Text { path: inner, content }),
            );
        }
    }
    Ok(())
}

fn parse(text: &Text) -> Result<Source> {
    let syntax = syn::parse_file(&text.content).with_context(|| format!("Cannot parse {}", text.path))?;
    Ok(Source {
        path: text.path.clone(),
        lines: text.content.lines().map(str::to_owned).collect(),
        syntax,
        is_test: is_test_path(&text.path),
    })
}

fn is_test_path(path: &str) -> bool {
    path.split('/').any(|part| ["tests", "benches", "examples", "fuzz"].contains(&part))
}

/// `#[cfg(test)] mod testing;` makes tests of the files of that module.
fn mark_test_modules(sources: &mut [Source]) {
    let modules: Vec<String> = sources.iter().flat_map(test_modules).collect();
    for source in sources {
        let in_module = |module: &String| {
            source
                .path
                .strip_prefix(module.as_str())
                .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        source.is_test |= modules.iter().any(in_module);
    }
}

/// Paths without `.rs` of the modules that a file declares for tests only.
fn test_modules(source: &Source) -> Vec<String> {
    let dir = directory_of_modules(&source.path);
    let modules = source.syntax.items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) if module.content.is_none() && is_for_tests(&module.attrs) => {
            Some(&module.ident)
        }
        _ => None,
    });
    modules.map(|name| format!("{dir}/{name}")).collect()
}

/// Where the modules lie that a file declares: beside `mod.rs`, else in a directory with its name.
fn directory_of_modules(path: &str) -> &str {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    match stem.rsplit_once('/') {
        Some((dir, "mod" | "lib" | "main")) => dir,
        _ => stem,
    }
}

/// Whether attributes keep an item out of everything but tests.
pub fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let is_cfg_test = || {
            attribute.meta.require_list().is_ok_and(|list| {
                let text = list.tokens.to_string();
                let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
                words.contains(&"test") && !words.contains(&"not")
            })
        };
        attribute.path().is_ident("test") || (attribute.path().is_ident("cfg") && is_cfg_test())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_lie_beside_mod_rs_or_in_a_directory() {
        assert_eq!(directory_of_modules("src/devices/mod.rs"), "src/devices");
        assert_eq!(directory_of_modules("src/devices/table.rs"), "src/devices/table");
        assert_eq!(directory_of_modules("src/lib.rs"), "src");
    }

    #[test]
    fn only_cfg_test_and_test_functions_are_for_tests() {
        let item = |text: &str| -> bool { is_for_tests(&syn::parse_str::<syn::ItemFn>(text).unwrap().attrs) };
        assert!(
            item("#[test] fn f() {}")
                && item("#[cfg(test)] fn f() {}")
                && item("#[cfg(all(test, x))] fn f() {}")
        );
        assert!(!item("#[cfg(not(test))] fn f() {}") && !item("#[cfg(feature = \"testing\")] fn f() {}"));
    }
}
