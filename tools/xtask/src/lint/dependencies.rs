//! Rule `dependencies`: what cargo's metadata says about who depends on what.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;
use crate::build;
use crate::process;
use crate::workspace::Workspace;

const RULE: &str = "dependencies";

/// The frozen codec lives behind one crate, so that it can be replaced there.
const CODEC: [&str; 5] = ["versionize", "versionize_derive", "bincode", "crc64", "crc-fast"];

/// These would make `cargo xtask setup` need what it is there to install.
const NOT_FOR_XTASK: [&str; 2] = ["ember", "userfaultfd"];

/// What cargo knows of the members of the workspace.
pub fn metadata(workspace: &Workspace) -> Result<Value> {
    let text =
        process::read(build::cargo(workspace).args(["metadata", "--no-deps", "--format-version", "1"]))?;
    serde_json::from_str(&text).context("Cannot parse cargo's metadata")
}

/// Checks the dependencies of every member.
pub fn check(metadata: &Value) -> Vec<Finding> {
    let packages = metadata.get("packages").and_then(Value::as_array).into_iter().flatten();
    packages.flat_map(check_package).collect()
}

fn check_package(package: &Value) -> Vec<Finding> {
    let name = text(package, "name");
    let dependencies = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
    let forbidden = dependencies.map(|dependency| text(dependency, "name")).filter(|dependency| {
        (CODEC.contains(dependency) && name != "snapshot-format")
            || (NOT_FOR_XTASK.contains(dependency) && name == "xtask")
    });
    let finding = |dependency| Finding {
        path: format!("package {name}"),
        line: 0,
        rule: RULE,
        message: format!("{name} may not depend on {dependency}"),
    };
    forbidden.map(finding).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codec_dependency_outside_snapshot_format_is_found() {
        let text = include_str!("../../fixtures/dependencies/metadata.json");
        let found: Vec<String> =
            check(&serde_json::from_str(text).unwrap()).iter().map(Finding::to_string).collect();
        assert_eq!(
            found,
            [
                "package ember:0: dependencies: ember may not depend on bincode",
                "package ember:0: dependencies: ember may not depend on versionize",
                "package xtask:0: dependencies: xtask may not depend on userfaultfd",
            ]
        );
    }
}
