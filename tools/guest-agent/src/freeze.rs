//! What the guest's memory looks like when it is frozen: caches with what events need, and zeroes wherever nothing is.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{WaitOptions, setpriority_process, waitpid};
use rustix::system::sysinfo;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::quiet;
use crate::runner::MemoryCount;
use crate::sys;

const MIB: u64 = 1 << 20;
/// Memory is taken in pieces of at most this much, bytes.
const PIECE: u64 = 64 * MIB;
/// ... and of what there is at most this part: nobody else takes the rest in the time that it lasts.
const PART: u64 = 8;
/// What is taken at once in any case where it is no more than half, bytes.
const SMALL: u64 = MIB;
/// The least that is worth taking, bytes.
const LEAST: u64 = 64 << 10;
/// What stays free besides the kernel's own reserve, bytes.
const MARGIN: u64 = 512 << 10;
/// The nice value that leaves the processor to nobody else (sched(7)).
const FIRST: i32 = -20;
/// How long the guest may take to come to rest, at most: a function with a busy loop never does.
const REST: Duration = Duration::from_secs(1);

/// Reserves that keep free memory out of reach, and values that let it be had while the guest stands at its warm point.
const RESERVES: [(&str, &str); 4] = [
    // Whoever takes the last memory takes it from blocks of another kind, at which the kernel drops caches in the background to have
    // blocks left (admin-guide/sysctl/vm.rst, watermark_boost_factor): what the last warm-up has read would be gone.
    ("/proc/sys/vm/watermark_boost_factor", "0"),
    ("/proc/sys/vm/watermark_scale_factor", "1"),
    ("/proc/sys/vm/min_free_kbytes", "256"),
    // Without it the lowest zones cannot be emptied at all.
    ("/proc/sys/vm/lowmem_reserve_ratio", "1000000 1000000 1000000 1000000 1000000"),
];

/// Memory as the kernel counts it.
pub fn memory() -> MemoryCount {
    let info = sysinfo();
    let unit = u64::from(info.mem_unit);
    MemoryCount { total: info.totalram * unit, free: info.freeram * unit }
}

/// Writes dirty pages back and drops clean ones, with the caches of names and inodes.
///
/// # Errors
/// The kernel refuses.
pub fn drop_caches() -> io::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")
}

/// Makes free memory zero, by taking nearly all of it: the kernel zeroes what it hands out and does not touch what it
/// gets back. A child does it, so that a wrong guess ends the child and not the function.
///
/// # Errors
/// The kernel's settings cannot be changed, or there is no child.
pub fn zero_free_memory() -> io::Result<()> {
    quiet::wait_for_idle(REST);
    rustix::fs::sync();
    let reserves = Reserves::lower()?;
    let taken =
        sys::in_child(take_free_memory).and_then(|child| Ok(waitpid(Some(child), WaitOptions::empty())?));
    reserves.put_back()?;
    taken.map(drop)
}

/// The kernel's reserves as they were.
struct Reserves(Vec<(&'static str, String)>);

impl Reserves {
    fn lower() -> io::Result<Self> {
        let mut before = Vec::new();
        for (setting, value) in RESERVES {
            // Linux before 5.0 has not all of them.
            if Path::new(setting).exists() {
                before.push((setting, fs::read_to_string(setting)?));
                fs::write(setting, value)?;
            }
        }
        Ok(Reserves(before))
    }

    fn put_back(self) -> io::Result<()> {
        self.0.into_iter().rev().try_for_each(|(setting, value)| fs::write(setting, value.trim()))
    }
}

/// Takes memory on each processor in turn, whose lists of free pages nobody else can take from, until little is left.
fn take_free_memory() {
    // The first to go if the guess about the reserve is wrong.
    if fs::write("/proc/self/oom_score_adj", "1000").is_err() {
        return;
    }
    // Beside a busy function its fair share would make minutes of seconds; without this it is only slower.
    setpriority_process(None, FIRST).ok();
    let allowed = sched_getaffinity(None).unwrap_or_default();
    let reserve = low_watermarks(&fs::read_to_string("/proc/zoneinfo").unwrap_or_default()) + MARGIN;
    for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)) {
        let mut one = CpuSet::new();
        one.set(cpu);
        if sched_setaffinity(None, &one).is_err() {
            continue;
        }
        // The lists of the other processors are emptied first, so something must be left for the last one.
        while let Some(len) = next_piece(memory().free, reserve) {
            if usize::try_from(len).map_err(io::Error::other).and_then(sys::take_zeroed).is_err() {
                return;
            }
        }
    }
}

/// How much to take next, if anything. Every step shows what the one before it really left, and what a busy function has taken or
/// given back meanwhile: where both want the last of it the kernel kills this child, and says so in the guest's log.
fn next_piece(free: u64, reserve: u64) -> Option<u64> {
    let there = free.saturating_sub(reserve);
    let len = (there / PART).clamp(SMALL, PIECE).min(there / 2) / 4096 * 4096;
    (len >= LEAST).then_some(len)
}

/// Sum of the zones' low watermarks in /proc/zoneinfo (proc(5)), bytes: below, the kernel begins to reclaim the caches.
fn low_watermarks(zoneinfo: &str) -> u64 {
    let pages = zoneinfo.lines().filter_map(|line| line.trim_start().strip_prefix("low "));
    pages.filter_map(|pages| pages.trim().parse::<u64>().ok()).sum::<u64>() * 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_in_parts_down_to_the_reserve() {
        assert_eq!(next_piece(2000 * MIB, MIB), Some(PIECE));
        assert_eq!(next_piece(201 * MIB, MIB), Some(25 * MIB));
        assert_eq!(next_piece(5 * MIB, MIB), Some(SMALL));
        assert_eq!(next_piece(2 * MIB, MIB), Some(MIB / 2));
        assert_eq!(next_piece(MIB + LEAST, MIB), None);
        assert_eq!(next_piece(0, MIB), None);
        let mut free = 8 << 30;
        let mut steps = 0;
        while let Some(len) = next_piece(free, MIB) {
            free -= len;
            steps += 1;
        }
        assert!(free - MIB < 2 * LEAST + 4096 && steps < 200, "{free} {steps}");
    }

    #[test]
    fn the_low_watermarks_of_all_zones_count() {
        let text = "Node 0, zone      DMA\n  pages free     3\n        min      60\n        low      75\n        high     90\n\
                    Node 0, zone    DMA32\n        min      1000\n        low      1250\n";
        assert_eq!(low_watermarks(text), 1325 * 4096);
    }
}
