//! `cargo xtask dist`: the release as one tarball with static programs.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::build::{self, Product, Profile};
use crate::process::{self, command};
use crate::progress::{say, step};
use crate::setup;
use crate::workspace::{Workspace, make_dir, make_empty_dir, write};

/// Documents and examples that come along where they exist.
const FROM_CHECKOUT: [&str; 5] = ["README.md", "LICENSE", "CHANGELOG.md", "docs", "examples"];

/// Completions as `ember completions SHELL` prints them, and their usual file names.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "ember.bash"), ("zsh", "_ember"), ("fish", "ember.fish")];

/// Makes target/dist/ember-VERSION-x86_64-linux.tar.gz.
pub fn run(workspace: &Workspace) -> Result<()> {
    // libclang is needed to compile.
    setup::prepare(workspace)?;
    let product = build::product(workspace, Profile::Release)?;
    let name = format!("ember-{}-x86_64-linux", env!("CARGO_PKG_VERSION"));
    let dist = workspace.target("dist");
    let tree = dist.join(&name);
    let tarball = dist.join(format!("{name}.tar.gz"));
    step("Packing the tarball", || {
        make_empty_dir(&tree)?;
        fill(workspace, &product, &tree)?;
        pack(&dist, &name, &tarball)
    })?;
    say(&format!("Made {}", tarball.display()));
    Ok(())
}

fn fill(workspace: &Workspace, product: &Product, tree: &Path) -> Result<()> {
    for program in [&product.ember, &product.agent] {
        let name = program.file_name().context("A program has no name")?;
        std::fs::copy(program, tree.join(name))
            .with_context(|| format!("Cannot copy {}", program.display()))?;
    }
    for item in FROM_CHECKOUT.iter().map(|item| workspace.path(item)).filter(|item| item.exists()) {
        process::quiet(command("cp").arg("-a").arg(&item).arg(tree))?;
    }
    write_completions(&product.ember, &tree.join("completions"))?;
    let manuals = tree.join("man");
    make_dir(&manuals)?;
    process::quiet(Command::new(&product.ember).arg("man").arg(&manuals))
}

fn write_completions(ember: &Path, into: &Path) -> Result<()> {
    make_dir(into)?;
    for (shell, file) in COMPLETIONS {
        let script = process::read(Command::new(ember).args(["completions", shell]))?;
        write(&into.join(file), script)?;
    }
    Ok(())
}

/// The same files give the same tarball, whoever packs it and when.
fn pack(dist: &Path, name: &str, tarball: &Path) -> Result<()> {
    let file =
        std::fs::File::create(tarball).with_context(|| format!("Cannot create {}", tarball.display()))?;
    let mut tar = command("tar");
    tar.current_dir(dist).args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"]);
    let mut tar = tar.args(["--create", name]).stdout(Stdio::piped()).spawn().context("Cannot start tar")?;
    let archive = tar.stdout.take().context("tar has no output")?;
    process::run(command("gzip").args(["-9", "--no-name"]).stdin(archive).stdout(file))?;
    anyhow::ensure!(tar.wait()?.success(), "tar failed in {}", dist.display());
    Ok(())
}
