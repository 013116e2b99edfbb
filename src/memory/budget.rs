//! How much memory a limit leaves to this process's control group.

use std::path::{Path, PathBuf};

/// Of what a limit leaves, the part that may be filled ahead of need: the rest is for what the clone does next.
const SHARE: u64 = 2;

/// Bytes that may be filled ahead of need where a limit leaves `left`.
pub fn fillable(left: u64) -> u64 {
    left / SHARE
}

/// Bytes that may be filled ahead of need; `None` without a limit. To be asked while /proc is there.
pub fn free_bytes() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let files = groups.lines().filter_map(files);
    files.filter_map(|(limit, used)| Some(fillable(number(&limit)?.saturating_sub(number(&used)?)))).min()
}

/// The files of a line of /proc/self/cgroup (cgroups(7)) that hold limit and use.
fn files(line: &str) -> Option<(PathBuf, PathBuf)> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let path = path.trim_start_matches('/');
    if controllers.is_empty() {
        let group = Path::new("/sys/fs/cgroup").join(path);
        return Some((group.join("memory.max"), group.join("memory.current")));
    }
    if controllers.split(',').any(|name| name == "memory") {
        let group = Path::new("/sys/fs/cgroup/memory").join(path);
        return Some((group.join("memory.limit_in_bytes"), group.join("memory.usage_in_bytes")));
    }
    None
}

/// `max`, a file that is not there and anything else that is no number are no limit.
fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups_are_found() {
        let (limit, used) = files("0::/a/b").unwrap();
        assert_eq!(limit, Path::new("/sys/fs/cgroup/a/b/memory.max"));
        assert_eq!(used, Path::new("/sys/fs/cgroup/a/b/memory.current"));
        let (limit, _) = files("5:cpu,memory:/a").unwrap();
        assert_eq!(limit, Path::new("/sys/fs/cgroup/memory/a/memory.limit_in_bytes"));
        assert_eq!(files("4:cpu:/a"), None);
        assert_eq!(files("nonsense"), None);
    }
}
