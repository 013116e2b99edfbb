//! Control groups of machines, as anybody sees them.

use std::fs;
use std::path::{Path, PathBuf};

/// Where control groups with this controller are mounted.
fn mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let groups = mounts.lines().filter(|line| line.contains(" cgroup"));
    groups.map(|line| line.split(' ').nth(1).unwrap().into()).collect()
}

/// Groups of machines anywhere below `folder`.
fn groups_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(groups_below(&path));
            let is_machine = path.parent().unwrap().ends_with("ember")
                && entry.file_name().to_str().unwrap().starts_with("vm-");
            found.extend(is_machine.then_some(path));
        }
    }
    found
}

fn groups() -> Vec<PathBuf> {
    mounts().iter().flat_map(|mount| groups_below(mount)).collect()
}

/// Those that a process is in.
pub fn groups_of(pid: i32) -> Vec<PathBuf> {
    let is_in = |group: &PathBuf| {
        let inside = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        inside.lines().any(|line| line == pid.to_string())
    };
    groups().into_iter().filter(is_in).collect()
}

/// What is written in a group, by the name that each version of control groups has for it.
#[track_caller]
pub fn setting(groups: &[PathBuf], names: [&str; 2]) -> String {
    let files = groups.iter().flat_map(|group| names.map(|name| group.join(name)));
    let text = files.filter_map(|file| fs::read_to_string(file).ok()).next();
    text.unwrap_or_else(|| panic!("{names:?} in {groups:?}")).trim().to_owned()
}
