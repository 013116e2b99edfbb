//! Packages of Debian 12: installed where they are tools of the host, only unpacked where they belong to the guest or are newer
//! than the host's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{self, command};
use crate::progress::{say, step};
use crate::workspace::{make_dir, make_empty_dir, write};

/// How to see that a package's use is there already, installed by whatever means.
enum Probe {
    Program(&'static str),
    Libclang,
    Pip,
}

/// Host packages: the name in Debian 12 and the sign that it is not needed any more.
const PACKAGES: [(&str, Probe); 10] = [
    ("libclang-dev", Probe::Libclang),
    ("qemu-system-x86", Probe::Program("qemu-system-x86_64")),
    ("cpio", Probe::Program("cpio")),
    ("e2fsprogs", Probe::Program("mke2fs")),
    ("kmod", Probe::Program("depmod")),
    ("xz-utils", Probe::Program("xz")),
    ("umoci", Probe::Program("umoci")),
    ("skopeo", Probe::Program("skopeo")),
    ("curl", Probe::Program("curl")),
    ("python3-pip", Probe::Pip),
];

/// Refuses other distributions in one sentence.
pub fn check_release() -> Result<()> {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(|v| v.trim_matches('"'));
    if field("ID=") == Some("debian") && field("VERSION_ID=") == Some("12") {
        return Ok(());
    }
    bail!(
        "The set-up takes tools, guest kernel and guest userland from Debian 12 and this is {}: \
         run it in a Debian 12 container or chroot (debian:12) with rustup and a C compiler",
        field("PRETTY_NAME=").unwrap_or("another system")
    )
}

/// Installs the host packages that are missing, or says how to.
pub fn install_missing() -> Result<()> {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(_, probe)| !present(probe)).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !is_root() {
        bail!(
            "Packages are missing, install them with: \
             sudo apt-get update && sudo apt-get install -y --no-install-recommends {names}"
        );
    }
    step(&format!("Installing {names}"), || Apt::of_host().install(&missing))
}

fn present(probe: &Probe) -> bool {
    match probe {
        Probe::Program(name) => process::find(name).is_some(),
        Probe::Libclang => std::env::var_os("LIBCLANG_PATH").is_some() || is_installed("libclang-dev"),
        Probe::Pip => python_with_pip().is_ok(),
    }
}

fn is_installed(package: &str) -> bool {
    let status = process::read(command("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]));
    status.is_ok_and(|status| status == "installed")
}

/// A python of the host that has pip: the one in PATH, or Debian's.
pub fn python_with_pip() -> Result<&'static str> {
    ["python3", "/usr/bin/python3"]
        .into_iter()
        .find(|python| process::succeeds(command(python).args(["-m", "pip", "--version"])))
        .context("No python3 with pip is installed")
}

/// apt, and where it looks for packages.
pub struct Apt {
    options: Vec<String>,
    lists: PathBuf,
    /// Whether this process may fetch the lists.
    owned: bool,
}

impl Apt {
    /// With the sources that this machine has.
    pub fn of_host() -> Self {
        Self { options: Vec::new(), lists: "/var/lib/apt/lists".into(), owned: is_root() }
    }

    /// With Debian 12's backports alone, from the mirror that Debian 12 itself comes from; lists and all lie in `dir`.
    pub fn of_backports(dir: &Path) -> Result<Self> {
        let targets =
            ["indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Identifier: Packages"];
        let targets = process::read(Self::of_host().get().args(targets))?;
        let mirror = targets.lines().find_map(|line| line.strip_prefix("bookworm main "));
        let mirror = mirror.context("apt has no source for Debian 12 itself")?;
        let lists = dir.join("lists");
        make_dir(&lists.join("partial"))?;
        let sources = dir.join("sources.list");
        write(
            &sources,
            format!(
                "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} bookworm-backports main\n"
            ),
        )?;
        let options = [
            ("Dir::Etc::SourceList", sources.as_path()),
            ("Dir::Etc::SourceParts", Path::new("/dev/null")),
            ("Dir::State::Lists", &lists),
            ("Dir::Cache", dir),
            ("APT::Default-Release", Path::new("bookworm-backports")),
        ];
        let options = options.map(|(name, value)| format!("{name}={}", value.display()));
        Ok(Self { options: options.to_vec(), lists, owned: true })
    }

    fn install(&self, names: &[&str]) -> Result<()> {
        if !self.has_lists() {
            self.refresh_lists()?;
        }
        let install =
            || process::quiet(self.get().args(["install", "-y", "--no-install-recommends"]).args(names));
        process::retry("apt-get install", || {
            install().or_else(|first| {
                // Lists older than the archive name packages that are gone.
                say(&format!("    refreshing the package lists: {}", last_line(&first.to_string())));
                self.refresh_lists()?;
                install()
            })
        })
    }

    /// Downloads packages without installing them, into an empty directory.
    pub fn download(&self, names: &[String], into: &Path) -> Result<Vec<PathBuf>> {
        let download = || process::quiet(self.get().current_dir(into).arg("download").args(names));
        process::retry("apt-get download", || {
            make_empty_dir(into)?;
            download().or_else(|error| {
                if !self.owned {
                    return Err(error.context("If the package lists are old: sudo apt-get update"));
                }
                self.refresh_lists()?;
                download()
            })
        })?;
        debs_in(into)
    }

    /// The files apt would download now for these packages: their versions and hashes.
    pub fn available(&self, names: &[String]) -> Result<String> {
        let uris = self
            .ask(|| process::read(self.get().args(["download", "--print-uris"]).args(names)))
            .context("apt does not know every package that is needed: sudo apt-get update")?;
        // The first field is the mirror's address, which does not change what is in the file.
        let files = uris.lines().filter_map(|line| line.split_once(' ')).map(|(_, file)| file);
        Ok(files.collect::<Vec<_>>().join("\n"))
    }

    /// The package that a meta package names.
    pub fn real_package(&self, meta: &str) -> Result<String> {
        self.ask(|| {
            let depends = process::read(command("apt-cache").args(["depends", "--no-recommends", meta]))?;
            first_dependency(&depends).with_context(|| format!("apt names no package behind {meta}"))
        })
        .with_context(|| {
            format!("apt does not know {meta}: it needs bookworm-security among the package sources, then sudo apt-get update")
        })
    }

    /// Asks apt. Who may, asks again with fresh package lists: a source may have been added since the last.
    fn ask<T>(&self, question: impl Fn() -> Result<T>) -> Result<T> {
        let refresh = || step("Fetching the package lists", || self.refresh_lists());
        if !self.owned {
            return question();
        }
        if !self.has_lists() {
            refresh()?;
        }
        question().or_else(|_| {
            refresh()?;
            question()
        })
    }

    fn refresh_lists(&self) -> Result<()> {
        let update = || process::quiet(self.get().arg("update"));
        // A mirror may lack backports, and there is something else in their place: nobody waits for them.
        if self.options.is_empty() { process::retry("apt-get update", update) } else { update() }
    }

    fn has_lists(&self) -> bool {
        let names = std::fs::read_dir(&self.lists).into_iter().flatten().flatten();
        names.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().contains("_Packages"))
    }

    fn get(&self) -> Command {
        let mut apt = command("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive")
            // Another apt may be at work; and root's download directory is closed to apt's own user.
            .args(["-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "APT::Sandbox::User=root"])
            .args(["-o", "Acquire::Retries=3"]);
        for option in &self.options {
            apt.args(["-o", option]);
        }
        apt
    }
}

/// Unpacks downloaded packages into a directory, without their scripts.
pub fn unpack(debs: &[PathBuf], into: &Path) -> Result<()> {
    for deb in debs {
        process::quiet(command("dpkg-deb").arg("-x").arg(deb).arg(into))?;
    }
    Ok(())
}

fn first_dependency(depends: &str) -> Option<String> {
    depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned)
}

fn debs_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("Cannot read {}", dir.display()))?;
    let mut debs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    debs.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    debs.sort();
    Ok(debs)
}

/// Whether this process may install packages, or give files away.
pub fn is_root() -> bool {
    process::read(command("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().last().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_meta_package_leads_to_the_real_one() {
        let text = "linux-image-6.12-cloud-amd64\n  Depends: linux-image-6.12.117+deb12-cloud-amd64\n";
        assert_eq!(super::first_dependency(text).unwrap(), "linux-image-6.12.117+deb12-cloud-amd64");
    }
}
