//! `cargo xtask dist`: the release as one tarball with static programs.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::build::{self, Product, Profile};
use crate::host::Kvm;
use crate::process::{self, command};
use crate::progress::{say, step};
use crate::setup;
use crate::workspace::{Workspace, make_dir, make_empty_dir, write};

/// Documents and examples that come along where they exist.
const FROM_CHECKOUT: [&str; 5] = ["README.md", "LICENSE", "CHANGELOG.md", "docs", "examples"];

/// Completions as `ember completions SHELL` prints them, and their usual file names.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "ember.bash"), ("zsh", "_ember"), ("fish", "ember.fish")];

/// Only a program with the feature `faults` knows this variable.
const FAULT_VARIABLE: &[u8] = b"EMBER_FAULT";

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
    let guest = build::small_guests(workspace)?.join("echo.elf");
    step("Trying what is in it", || verify(&dist, &name, &tarball, &guest))?;
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

/// Unpacks the tarball where nothing else is, and uses it as somebody would who has nothing but it.
fn verify(dist: &Path, name: &str, tarball: &Path, guest: &Path) -> Result<()> {
    let place = dist.join("check");
    make_empty_dir(&place)?;
    process::quiet(command("tar").arg("-xzf").arg(tarball).arg("-C").arg(&place))?;
    let unpacked = place.join(name);
    for program in ["ember", "ember-agent"] {
        let headers = process::read(command("readelf").arg("-lW").arg(unpacked.join(program)))?;
        ensure!(!headers.contains("INTERP"), "{program} is not static: it asks for a loader");
        let code = std::fs::read(unpacked.join(program)).with_context(|| format!("Cannot read {program}"))?;
        let has_faults = code.windows(FAULT_VARIABLE.len()).any(|bytes| bytes == FAULT_VARIABLE);
        ensure!(!has_faults, "{program} was built with the feature `faults`, which is for tests");
    }
    let ember = || {
        let mut ember = Command::new(unpacked.join("ember"));
        ember.env_clear().current_dir(&place);
        ember
    };
    let version = process::read(ember().arg("--version"))?;
    ensure!(version.contains(env!("CARGO_PKG_VERSION")), "The program in the tarball is {version}");
    if Kvm::of_this_machine().runs_small_guests() {
        process::quiet(ember().args(["bake", "bundle", "--interface", "port", "--kernel"]).arg(guest))?;
        let answer = process::read(ember().args(["run", "bundle", "--event-text", "from the tarball"]))?;
        ensure!(
            answer == "from the tarball",
            "A guest run by the program in the tarball answered {answer:?}"
        );
    } else {
        say("    no guest was run: there is no /dev/kvm that this user may open");
    }
    std::fs::remove_dir_all(&place).with_context(|| format!("Cannot remove {}", place.display()))
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
    ensure!(tar.wait()?.success(), "tar failed in {}", dist.display());
    Ok(())
}
