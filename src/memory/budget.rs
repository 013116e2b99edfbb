//! How much memory a limit leaves to this process's control group.

use std::path::{Path, PathBuf};

/// Of what a limit leaves, the part that may be filled ahead of need: the rest is for what the clone does next.
const SHARE: u64 = 2;

/// Bytes that may be filled ahead of need where a limit leaves `left`.
pub fn fillable(left: u64) -> u64 {
    left / SHARE
}

/// Bytes that may be filled ahead of need; `None` without a limit. To be asked while /proc is there.
///
/// The limits of every group above this process's hold for it too.
pub fn free_bytes() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let below = groups.lines().filter_map(|line| Hierarchy::of(line).and_then(|all| all.left()));
    below.min().map(fillable)
}

/// The groups with limits of memory that a process is in, by a line of /proc/self/cgroup (cgroups(7)).
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    root: &'static Path,
    group: PathBuf,
    /// Names of the files that hold limit and use.
    files: [&'static str; 2],
}

impl Hierarchy {
    fn of(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (root, files) = match controllers {
            "" => ("/sys/fs/cgroup", ["memory.max", "memory.current"]),
            list if list.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.usage_in_bytes"])
            }
            _ => return None,
        };
        let root = Path::new(root);
        Some(Hierarchy { root, group: root.join(path.trim_start_matches('/')), files })
    }

    /// What the narrowest of the groups leaves, bytes. Groups that are not seen here (a container's host has them) are passed over.
    fn left(&self) -> Option<u64> {
        let groups = self.group.ancestors().take_while(|group| group.starts_with(self.root));
        let left = groups.filter_map(|group| {
            let [limit, used] = self.files.map(|file| number(&group.join(file)));
            Some(limit?.saturating_sub(used?))
        });
        left.min()
    }
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
        let two = Hierarchy::of("0::/a/b").unwrap();
        assert_eq!((two.group.as_path(), two.files[0]), (Path::new("/sys/fs/cgroup/a/b"), "memory.max"));
        let one = Hierarchy::of("5:cpu,memory:/a").unwrap();
        assert_eq!(one.group, Path::new("/sys/fs/cgroup/memory/a"));
        assert_eq!(one.files[1], "memory.usage_in_bytes");
        assert_eq!(Hierarchy::of("4:cpu:/a"), None);
        assert_eq!(Hierarchy::of("nonsense"), None);
    }

    #[test]
    fn the_narrowest_group_above_says_what_is_left() {
        let place = tempfile::tempdir().unwrap();
        let root: &'static Path = Box::leak(place.path().to_owned().into_boxed_path());
        let group = root.join("slice/pod/own");
        std::fs::create_dir_all(&group).unwrap();
        let files = ["max", "current"];
        let own = Hierarchy { root, group: group.clone(), files };
        assert_eq!(own.left(), None);
        for (group, limit, used) in
            [("slice", "100000", "60000"), ("slice/pod", "max", "50000"), ("slice/pod/own", "90000", "10000")]
        {
            std::fs::write(root.join(group).join("max"), limit).unwrap();
            std::fs::write(root.join(group).join("current"), used).unwrap();
        }
        assert_eq!(own.left(), Some(40000));
        // In a container the path is one of the host's.
        let hidden = Hierarchy { group: root.join("slice/elsewhere/own"), ..own };
        assert_eq!(hidden.left(), Some(40000));
    }
}
