//! Static binaries: the product, the small guests and the black-box tests.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process;
use crate::progress::step;
use crate::tree;
use crate::workspace::{Workspace, make_empty_dir, write};

/// An explicit target keeps the static C library away from build scripts and procedural macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

const STATIC: &str = r#"target.x86_64-unknown-linux-gnu.rustflags=["-C", "target-feature=+crt-static"]"#;

/// Test binaries travel into the emulated host: debug information would be most of them.
const WITHOUT_DEBUG_INFORMATION: &str = r#"profile.dev.debug="none""#;

/// How much time the compiler may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Optimised without link-time optimisation, incremental: for tests.
    Rig,
    /// What is shipped: for figures and tarballs.
    Release,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Rig => "rig",
            Self::Release => "release",
        }
    }
}

/// The product's programs.
#[derive(Debug, Clone)]
pub struct Product {
    pub ember: PathBuf,
    pub agent: PathBuf,
    /// `ember` with the feature `faults`, where it was asked for.
    pub faulty: Option<PathBuf>,
}

/// One file of `tests/`, compiled; or the tests beside the code of `ember`.
#[derive(Debug, Clone)]
pub struct TestBinary {
    pub name: String,
    pub path: PathBuf,
    /// How the names of those of its tests begin that are cases.
    pub prefixes: &'static [&'static str],
}

/// Tests beside the code that need a KVM which runs small guests.
pub const NEED_KVM: &str = "vm::";
/// Tests beside the code that need a userfaultfd.
pub const NEED_USERFAULTFD: &str = "memory::uffd::";

/// Name of the binary with the tests beside the code, and of those tests in it that need what not every machine has.
const BESIDE: (&str, &[&str]) = ("beside", &[NEED_KVM, NEED_USERFAULTFD]);

/// What cargo shows of its progress is for a terminal: in a log it would be a line for each crate.
fn without_progress() -> &'static [&'static str] {
    if std::io::stderr().is_terminal() { &[] } else { &["--quiet"] }
}

/// Builds the program and the guest agent.
pub fn product(workspace: &Workspace, profile: Profile) -> Result<Product> {
    step(&format!("Building static ember and ember-agent ({})", profile.name()), || {
        process::run(
            cargo(workspace)
                .args(["build", "--profile", profile.name(), "--target", TARGET])
                .args(without_progress())
                .args(["--package", "ember", "--package", "guest-agent", "--bins"]),
        )
    })?;
    let dir = workspace.target(TARGET).join(profile.name());
    Ok(Product { ember: dir.join("ember"), agent: dir.join("ember-agent"), faulty: None })
}

/// Builds the program and the guest agent, and the program once more with the faults that tests inject.
pub fn product_with_faults(workspace: &Workspace, profile: Profile) -> Result<Product> {
    // First: cargo leaves either where the other was.
    let faulty = faulty(workspace, profile)?;
    Ok(Product { faulty: Some(faulty), ..product(workspace, profile)? })
}

fn faulty(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    let name = profile.name();
    step(&format!("Building static ember with faults ({name})"), || {
        // Debug assertions for this package alone, without which it refuses the feature: what it depends on stays as it is.
        let assertions = format!("profile.{name}.package.ember.debug-assertions=true");
        process::run(
            cargo(workspace)
                // Before the subcommand, like the others: behind it, it would replace them.
                .args(["--config", &assertions])
                .args(["build", "--profile", name, "--target", TARGET, "--package", "ember"])
                .args(without_progress())
                .args(["--bins", "--features", "faults"]),
        )
    })?;
    let dir = workspace.target(TARGET).join(name);
    let faulty = dir.join("ember-with-faults");
    std::fs::copy(dir.join("ember"), &faulty)
        .with_context(|| format!("Cannot copy the program to {}", faulty.display()))?;
    Ok(faulty)
}

/// Compiles the small guests into a directory of their own.
pub fn small_guests(workspace: &Workspace) -> Result<PathBuf> {
    let (dir, stamp) = (workspace.target("small-guests"), workspace.target("small-guests.stamp"));
    let of = |sources: &str| tree::state(&workspace.path(sources), Path::new(""));
    let sources = of("tools/small-guests")? + &of("examples/port")?;
    if dir.exists() && std::fs::read_to_string(&stamp).is_ok_and(|old| old == sources) {
        return Ok(dir);
    }
    make_empty_dir(&dir)?;
    step("Building the small guests", || {
        let mut run = cargo(workspace);
        run.args(["run", "--target", TARGET, "--package", "small-guests", "--bin", "build-small-guests"]);
        run.args(without_progress());
        process::run(run.arg("--").arg(&dir))
    })?;
    write(&stamp, sources)?;
    Ok(dir)
}

/// Compiles the black-box tests, every file of `tests/`, and those beside the code that need what not every machine has.
pub fn test_binaries(workspace: &Workspace) -> Result<Vec<TestBinary>> {
    if !has_rust_files(&workspace.path("tests")) {
        return Ok(Vec::new());
    }
    step("Building the black-box tests", || {
        let mut cargo = cargo(workspace);
        cargo
            .args(["test", "--no-run", "--message-format=json-render-diagnostics", "--target", TARGET])
            .args(without_progress())
            .args(["--package", "ember", "--lib", "--test", "*"])
            .stderr(Stdio::inherit());
        let output = cargo.output().context("Cannot start cargo")?;
        if !output.status.success() {
            bail!("The black-box tests do not compile");
        }
        Ok(test_artifacts(&String::from_utf8_lossy(&output.stdout)))
    })
}

/// `cargo test` with the settings that all tests share, so that dependencies are compiled once.
pub fn cargo_test(workspace: &Workspace, arguments: &[&str]) -> Command {
    let mut cargo = cargo(workspace);
    cargo.args(["test", "--no-fail-fast", "--target", TARGET]).args(arguments);
    cargo
}

/// cargo of the running toolchain, set up for static binaries.
pub fn cargo(workspace: &Workspace) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace.root())
        // Options and not variables: a test that calls cargo itself must not inherit them.
        .args(["--config", STATIC, "--config", WITHOUT_DEBUG_INFORMATION])
        // Either of these would take precedence over the flags above.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo
}

fn has_rust_files(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|e| e == "rs"))
}

fn test_artifacts(messages: &str) -> Vec<TestBinary> {
    let artifacts = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    artifacts.filter_map(|message| test_artifact(&message)).collect()
}

fn test_artifact(message: &Value) -> Option<TestBinary> {
    let kinds = message.pointer("/target/kind")?.as_array()?;
    let is = |wanted: &str| kinds.iter().any(|kind| kind == wanted);
    let path = message.get("executable")?.as_str()?;
    let name = message.pointer("/target/name")?.as_str()?;
    let (name, prefixes): (_, &[_]) = match (is("test"), is("lib")) {
        (true, _) => (name, &[""]),
        (_, true) => BESIDE,
        _ => return None,
    };
    Some(TestBinary { name: name.to_owned(), path: path.into(), prefixes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_executables_are_taken_from_cargo() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"ember"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"ember"},"executable":"/t/ember"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"boot"},"executable":"/t/boot-1f"}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"ember"},"executable":"/t/ember-2e"}
not json"#;
        let found = test_artifacts(messages);
        let found: Vec<_> = found.iter().map(|b| (b.name.as_str(), b.path.as_path(), b.prefixes)).collect();
        let expected =
            [("boot", Path::new("/t/boot-1f"), &[""][..]), ("beside", Path::new("/t/ember-2e"), BESIDE.1)];
        assert_eq!(found, expected);
    }
}
