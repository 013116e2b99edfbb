//! A control group of a machine's own, which bounds its memory, processor time and threads (cgroups(7)).
//!
//! With version 1 it lies below the caller's group, whose limits then hold for both. Version 2 allows no group below one that
//! has processes, except the root: there it lies beside the caller's.
//!
//! Whoever waits for the end of a machine removes its group then. Of most nobody does: each start removes the groups of those that
//! have ended.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};

/// The folder of the groups of all machines.
const ALL: &str = "ember";
/// Beginning of the name of a machine's group.
const PREFIX: &str = "vm-";
/// Length of a period of `cpu.max`, microseconds: the kernel's own choice.
const PERIOD_US: u64 = 100_000;
/// Threads of a machine's process.
const THREADS_MAX: u64 = 64;
/// A group that is made but still empty may be taken for one of a machine that has ended.
const TRIES: usize = 8;

/// What a machine may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of memory, the guest's among them, none of it swapped out; the kernel ends a machine that needs more.
    pub memory_max: Option<u64>,
    /// Bytes of memory beyond which the machine is slowed down and its memory is taken back where that is possible. With version 1
    /// nobody is slowed down, and memory is taken back while the host is short of it only.
    pub memory_high: Option<u64>,
    /// Processor time in percent of one processor.
    pub cpu_percent: Option<u32>,
    /// Share of the processors where there are too few, 1 to 10 000; everybody has 100.
    pub cpu_weight: Option<u32>,
}

/// Why a machine cannot be bounded.
#[derive(Debug, thiserror::Error)]
pub enum BoundError {
    /// The host has no control groups for it.
    #[error("This host has no control groups for {controller}: mount them at /sys/fs/cgroup")]
    NoController {
        /// Which controller.
        controller: &'static str,
    },
    /// The control group has processes of its own, as the first one of a container has.
    #[error(
        "Cannot bound the machine: {} has processes of its own, and control groups of version 2 give controllers to groups below \
         one only where it has none; move them into a group below it",
        group.display()
    )]
    Busy {
        /// The group.
        group: PathBuf,
    },
    /// The system refused a step.
    #[error("Cannot bound the machine by {}; only root, or who has been given the control group, may", path.display())]
    Refused {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How much memory a group uses: version 2, version 1.
const USED_FILES: [&str; 2] = ["memory.current", "memory.usage_in_bytes"];
/// How much it may use.
const LIMIT_FILES: [&str; 2] = ["memory.max", "memory.limit_in_bytes"];
/// Where a group's swap is bounded, in either version. A kernel that counts no swap has neither.
const SWAP_FILES: [&str; 2] = ["memory.swap.max", "memory.memsw.limit_in_bytes"];

/// A file of a group and what is written to it.
type Setting = (&'static str, String);

impl Bounds {
    /// Whether anything is bounded.
    pub fn is_none(&self) -> bool {
        *self == Bounds::default()
    }

    fn of_version_2(&self) -> Vec<Setting> {
        // Without the second the kernel would swap a machine out at its limit and slow the whole host down, instead of ending it.
        let no_swap = self.memory_max.map(|_| 0);
        let memory = [
            ("memory.max", self.memory_max),
            ("memory.swap.max", no_swap),
            ("memory.high", self.memory_high),
        ];
        let quota = self.cpu_percent.map(|percent| format!("{} {PERIOD_US}", quota(percent)));
        let weight = self.cpu_weight.map(|weight| weight.to_string());
        let memory = memory.into_iter().filter_map(|(file, bytes)| Some((file, bytes?.to_string())));
        let cpu = [("cpu.max", quota), ("cpu.weight", weight)];
        let cpu = cpu.into_iter().filter_map(|(file, value)| Some((file, value?)));
        memory.chain(cpu).chain([("pids.max", THREADS_MAX.to_string())]).collect()
    }

    fn of_version_1(&self, controller: &str) -> Vec<Setting> {
        let all = match controller {
            "memory" => vec![
                ("memory.limit_in_bytes", self.memory_max.map(|bytes| bytes.to_string())),
                // Of memory and swap together. It may not be below the first, and so comes after it.
                ("memory.memsw.limit_in_bytes", self.memory_max.map(|bytes| bytes.to_string())),
                ("memory.soft_limit_in_bytes", self.memory_high.map(|bytes| bytes.to_string())),
            ],
            "cpu" => vec![
                ("cpu.cfs_quota_us", self.cpu_percent.map(|percent| quota(percent).to_string())),
                // Everybody has 1024 of them.
                (
                    "cpu.shares",
                    self.cpu_weight.map(|weight| (u64::from(weight) * 1024 / 100).max(2).to_string()),
                ),
            ],
            _ => vec![("pids.max", Some(THREADS_MAX.to_string()))],
        };
        all.into_iter().filter_map(|(file, value)| Some((file, value?))).collect()
    }
}

/// Microseconds of each period.
fn quota(percent: u32) -> u64 {
    (u64::from(percent) * PERIOD_US / 100).max(1000)
}

const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// A mounted hierarchy of control groups, and this process's place in it.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// Its controllers; none with version 2.
    controllers: Vec<String>,
    own: PathBuf,
}

impl Hierarchy {
    /// What the narrowest of the own group and those above leaves of memory, bytes; `None` without a limit.
    fn memory_left(&self) -> Option<u64> {
        let version = usize::from(!self.controllers.is_empty());
        let (limit, used) = (LIMIT_FILES.get(version)?, USED_FILES.get(version)?);
        let groups = self.own.ancestors().take_while(|group| group.starts_with(&self.mount));
        let left = groups
            .filter_map(|group| Some(number(&group.join(limit))?.saturating_sub(number(&group.join(used))?)));
        left.min()
    }
}

/// `max`, a file that is not there and anything else that is no number are no limit.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// What limits of memory leave to this process, bytes; `None` without any. Those of the groups above its own hold for it too. To be asked
/// while /proc is there.
pub fn memory_left() -> Option<u64> {
    let hierarchies = hierarchies(&read("/proc/self/mountinfo").ok()?, &read("/proc/self/cgroup").ok()?);
    hierarchies.iter().filter_map(Hierarchy::memory_left).min()
}

/// Moves the calling process into a new group with these bounds.
///
/// # Errors
/// See [`BoundError`]; the process may be in some of its groups then, and must end.
pub fn bound(bounds: &Bounds) -> Result<(), BoundError> {
    Groups::open(bounds)?.enter(Group::new()?)
}

/// Removes the groups of machines that have ended, where earlier starts with bounds have left some. What cannot be looked at stays.
pub fn remove_ended() {
    let (Ok(mounts), Ok(groups)) = (read("/proc/self/mountinfo"), read("/proc/self/cgroup")) else { return };
    for one in hierarchies(&mounts, &groups) {
        let above = if one.controllers.is_empty() { beside(&one) } else { one.own };
        if let Ok(folder) = folder(&above.join(ALL)) {
            remove_ended_in(&folder).unwrap_or_default();
        }
    }
}

fn folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Where groups with the same bounds are made. It is open, so that they can be made by who has no file system any more.
#[derive(Debug)]
pub struct Groups {
    /// One, or with version 1 one for each controller.
    places: Vec<Place>,
    memory_max: Option<u64>,
}

/// The name of a machine's group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group(u64);

impl Group {
    /// One that nobody has.
    ///
    /// # Errors
    /// The kernel has no random numbers.
    pub fn new() -> Result<Self, BoundError> {
        let mut bytes = [0; 8];
        let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        filled.map_err(|e| refused(Path::new(ALL), e.into()))?;
        Ok(Group(u64::from_le_bytes(bytes)))
    }

    fn file(self, name: &str) -> PathBuf {
        Path::new(&format!("{PREFIX}{:016x}", self.0)).join(name)
    }
}

impl Groups {
    /// Opens the folders of all machines' groups, makes them where there are none, and removes the groups of those that have ended.
    ///
    /// # Errors
    /// See [`BoundError`].
    pub fn open(bounds: &Bounds) -> Result<Self, BoundError> {
        let hierarchies = hierarchies(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        let has_all = |one: &&Hierarchy| one.controllers.is_empty() && has_controllers(&one.mount);
        let places = match hierarchies.iter().find(has_all) {
            Some(unified) => vec![of_version_2(unified, bounds)?],
            None => of_version_1(&hierarchies, bounds)?,
        };
        Ok(Groups { places, memory_max: bounds.memory_max })
    }

    /// Makes a group and moves the calling process into it.
    ///
    /// # Errors
    /// See [`BoundError`]; the process may be in some of its groups then, and must end.
    pub fn enter(&self, group: Group) -> Result<(), BoundError> {
        self.places.iter().try_for_each(|place| place.enter(group))
    }

    /// Bytes that the bound leaves to the machines of a group; `None` where their memory is not bounded.
    pub fn memory_left(&self, group: Group) -> Option<u64> {
        let max = self.memory_max?;
        let files = USED_FILES.map(|file| group.file(file));
        let used = self.read_first(&files)?.trim().parse().ok()?;
        Some(max.saturating_sub(used))
    }

    /// Whether the kernel has ended a process of this group because the bound left it no memory; `None` where nobody knows, because
    /// another start has taken the group away.
    pub fn is_out_of_memory(&self, group: Group) -> Option<bool> {
        if self.memory_max.is_none() {
            return Some(false);
        }
        let text = self.read_first(&[group.file("memory.events"), group.file("memory.oom_control")])?;
        Some(is_killed_at_its_limit(&text))
    }

    /// Removes the group of a machine that has ended. One that cannot be removed is left to the next start.
    pub fn remove(&self, group: Group) {
        for place in &self.places {
            rustix::fs::unlinkat(&place.folder, group.file(""), AtFlags::REMOVEDIR).ok();
        }
    }

    fn read_first(&self, files: &[PathBuf]) -> Option<String> {
        let mut all = self.places.iter().flat_map(|place| files.iter().map(|file| place.read(file)));
        all.find_map(Result::ok)
    }
}

/// From `memory.events` or version 1's `memory.oom_control`. Both count kills whoever was out of memory; the first also tells how often
/// the group itself was.
fn is_killed_at_its_limit(text: &str) -> bool {
    let count = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    count("oom_kill ").is_some_and(|count| count != "0") && count("oom ") != Some("0")
}

fn of_version_2(unified: &Hierarchy, bounds: &Bounds) -> Result<Place, BoundError> {
    let base = beside(unified);
    let all = base.join(ALL);
    make(&all)?;
    for group in [&base, &all] {
        write(&group.join("cgroup.subtree_control"), "+memory +cpu +pids").map_err(|e| busy(group, e))?;
    }
    Place::open(all, bounds.of_version_2())
}

/// What the kernel says to a group that has processes is what it says of much else.
fn busy(group: &Path, error: BoundError) -> BoundError {
    match error {
        BoundError::Refused { source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
            BoundError::Busy { group: group.to_owned() }
        }
        other => other,
    }
}

fn of_version_1(hierarchies: &[Hierarchy], bounds: &Bounds) -> Result<Vec<Place>, BoundError> {
    let bounded = CONTROLLERS.into_iter().map(|controller| (controller, bounds.of_version_1(controller)));
    let place = |(controller, settings): (&'static str, Vec<Setting>)| {
        let has = |one: &&Hierarchy| one.controllers.iter().any(|name| name == controller);
        let hierarchy = hierarchies.iter().find(has).ok_or(BoundError::NoController { controller })?;
        let all = hierarchy.own.join(ALL);
        make(&all)?;
        Place::open(all, settings)
    };
    // Only what is needed: whoever enters a group waits until the kernel has seen every processor, and all forks with him.
    bounded.filter(|(_, settings)| !settings.is_empty()).map(place).collect()
}

/// Where version 2 allows a group with bounds.
fn beside(unified: &Hierarchy) -> PathBuf {
    let parent = unified.own.parent().filter(|_| unified.own != unified.mount);
    parent.unwrap_or(&unified.mount).to_owned()
}

fn has_controllers(mount: &Path) -> bool {
    let offered = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    CONTROLLERS.iter().all(|name| offered.split_whitespace().any(|one| one == *name))
}

/// The folder of all machines' groups in one hierarchy.
#[derive(Debug)]
struct Place {
    /// Where it was when it was opened.
    path: PathBuf,
    folder: OwnedFd,
    settings: Vec<Setting>,
}

impl Place {
    fn open(path: PathBuf, settings: Vec<Setting>) -> Result<Self, BoundError> {
        let folder = folder(&path).map_err(|e| refused(&path, e))?;
        remove_ended_in(&folder).map_err(|e| refused(&path, e))?;
        Ok(Place { path, folder, settings })
    }

    fn enter(&self, group: Group) -> Result<(), BoundError> {
        let mut outcome = Ok(());
        for _ in 0..TRIES {
            outcome = self.enter_once(group);
            match &outcome {
                Err(BoundError::Refused { source, .. }) if is_gone(source) => {}
                _ => break,
            }
        }
        outcome
    }

    fn enter_once(&self, group: Group) -> Result<(), BoundError> {
        let name = group.file("");
        match rustix::fs::mkdirat(&self.folder, &name, Mode::from_raw_mode(0o755)) {
            // Made before, for another controller of the same hierarchy.
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(refused(&self.path.join(name), e.into())),
        }
        let settings = self.settings.iter().map(|(file, value)| (*file, value.as_str()));
        settings.chain([("cgroup.procs", "0")]).try_for_each(|(file, value)| {
            match self.write(&group.file(file), value) {
                // Where the whole group is gone, what is written next says so.
                Err(BoundError::Refused { source, .. }) if SWAP_FILES.contains(&file) && is_gone(&source) => {
                    Ok(())
                }
                written => written,
            }
        })
    }

    fn write(&self, file: &Path, value: &str) -> Result<(), BoundError> {
        let written = self.file(file, OFlags::WRONLY).and_then(|mut file| file.write_all(value.as_bytes()));
        written.map_err(|e| refused(&self.path.join(file), e))
    }

    fn read(&self, file: &Path) -> io::Result<String> {
        let mut text = String::new();
        self.file(file, OFlags::RDONLY)?.read_to_string(&mut text)?;
        Ok(text)
    }

    fn file(&self, file: &Path, flags: OFlags) -> io::Result<File> {
        Ok(rustix::fs::openat(&self.folder, file, flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }
}

/// Whether another start has taken the group away.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Groups that have processes cannot be removed.
fn remove_ended_in(all: &OwnedFd) -> io::Result<()> {
    for entry in Dir::read_from(all)?.flatten() {
        if entry.file_name().to_bytes().starts_with(PREFIX.as_bytes()) {
            rustix::fs::unlinkat(all, entry.file_name(), AtFlags::REMOVEDIR).ok();
        }
    }
    Ok(())
}

fn refused(path: &Path, source: io::Error) -> BoundError {
    BoundError::Refused { path: path.to_owned(), source }
}

fn make(path: &Path) -> Result<(), BoundError> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(refused(path, e)),
        _ => Ok(()),
    }
}

fn write(path: &Path, value: &str) -> Result<(), BoundError> {
    let opened = File::options().write(true).open(path);
    opened.and_then(|mut file| file.write_all(value.as_bytes())).map_err(|e| refused(path, e))
}

fn read(path: &str) -> Result<String, BoundError> {
    fs::read_to_string(path).map_err(|e| refused(Path::new(path), e))
}

/// From `/proc/self/mountinfo` (proc_pid_mountinfo(5)) and `/proc/self/cgroup` (cgroups(7)).
fn hierarchies(mounts: &str, groups: &str) -> Vec<Hierarchy> {
    mounts.lines().filter_map(|line| hierarchy(line, groups)).collect()
}

fn hierarchy(line: &str, groups: &str) -> Option<Hierarchy> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, mount) = (before.next()?, PathBuf::from(before.next()?));
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    let controllers: Vec<String> = match kind {
        "cgroup2" => Vec::new(),
        "cgroup" => options.split(',').filter(|name| *name != "rw").map(str::to_owned).collect(),
        _ => return None,
    };
    let own = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, path) = (parts.next()?, parts.next()?);
        let same = if controllers.is_empty() {
            names.is_empty()
        } else {
            names.split(',').any(|name| controllers.iter().any(|one| one == name))
        };
        same.then_some(path)
    })?;
    // A container sees the part of the hierarchy that was mounted for it.
    let own = Path::new(own).strip_prefix(root).unwrap_or(Path::new(""));
    Some(Hierarchy { own: mount.join(own), mount, controllers })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/a /sys/fs/cgroup/memory rw,relatime shared:3 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const GROUPS: &str = "4:memory:/docker/a/b\n1:cpu,cpuacct:/\n0::/user.slice/x\n";

    #[test]
    fn hierarchies_and_the_own_place_in_them_are_found() {
        let found = hierarchies(MOUNTS, GROUPS);
        let own: Vec<&Path> = found.iter().map(|one| one.own.as_path()).collect();
        let cgroup = Path::new("/sys/fs/cgroup");
        assert_eq!(own, [cgroup.join("cpu"), cgroup.join("memory/b"), cgroup.join("unified/user.slice/x")]);
        assert_eq!(found[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(beside(&found[2]), cgroup.join("unified/user.slice"));
        let root =
            Hierarchy { own: found[2].mount.clone(), mount: found[2].mount.clone(), controllers: vec![] };
        assert_eq!(beside(&root), root.mount);
    }

    #[test]
    fn the_narrowest_group_above_says_what_is_left() {
        let place = tempfile::tempdir().unwrap();
        for (controllers, version) in [(vec![], 0), (vec!["memory".to_owned()], 1)] {
            let mount = place.path().join(version.to_string());
            let own = mount.join("slice/pod/own");
            fs::create_dir_all(&own).unwrap();
            let here = Hierarchy { mount: mount.clone(), controllers, own };
            assert_eq!(here.memory_left(), None);
            for (group, limit, used) in [
                ("slice", "100000", "60000"),
                ("slice/pod", "max", "50000"),
                ("slice/pod/own", "90000", "10000"),
            ] {
                fs::write(mount.join(group).join(LIMIT_FILES[version]), limit).unwrap();
                fs::write(mount.join(group).join(USED_FILES[version]), used).unwrap();
            }
            assert_eq!(here.memory_left(), Some(40000));
            // Groups that are not seen from here.
            let hidden = Hierarchy { own: mount.join("slice/elsewhere/own"), ..here };
            assert_eq!(hidden.memory_left(), Some(40000));
        }
    }

    #[test]
    fn a_group_that_has_processes_is_told_from_one_that_may_not_be_changed() {
        let (group, file) = (Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup/cgroup.subtree_control"));
        let told = |errno| busy(group, refused(file, io::Error::from_raw_os_error(errno))).to_string();
        assert!(told(libc::EBUSY).contains("/sys/fs/cgroup has processes of its own"));
        assert!(told(libc::EACCES).contains("only root"));
    }

    #[test]
    fn a_kill_is_the_limit_s_only_where_the_group_was_out_of_memory() {
        assert!(is_killed_at_its_limit("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"));
        assert!(is_killed_at_its_limit("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"));
        assert!(!is_killed_at_its_limit("max 0\noom 0\noom_kill 1\n"), "the host was");
        assert!(!is_killed_at_its_limit("max 3\noom 1\noom_kill 0\n"));
        assert!(!is_killed_at_its_limit("oom_kill_disable 0\nunder_oom 0\n"));
    }

    #[test]
    fn bounds_are_written_as_each_version_wants_them() {
        let bounds = Bounds {
            memory_max: Some(1 << 20),
            memory_high: None,
            cpu_percent: Some(50),
            cpu_weight: Some(200),
        };
        let text = |settings: Vec<Setting>| {
            settings.into_iter().map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            text(bounds.of_version_2()),
            "memory.max=1048576 memory.swap.max=0 cpu.max=50000 100000 cpu.weight=200 pids.max=64"
        );
        let limits = "memory.limit_in_bytes=1048576 memory.memsw.limit_in_bytes=1048576";
        assert_eq!(text(bounds.of_version_1("memory")), limits);
        let softly = Bounds { memory_high: Some(1 << 20), ..Bounds::default() };
        assert_eq!(text(softly.of_version_2()), "memory.high=1048576 pids.max=64", "it may be swapped out");
        assert_eq!(text(bounds.of_version_1("cpu")), "cpu.cfs_quota_us=50000 cpu.shares=2048");
        assert_eq!(text(bounds.of_version_1("pids")), "pids.max=64");
        assert!(Bounds::default().is_none() && !bounds.is_none());
    }
}
