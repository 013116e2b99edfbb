//! A busy guest that is frozen, baked and restored over and over computes as if nothing had happened.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy takes helpers of tests for the product"
)]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Ended, Place, ember, end_within, finish, start};
use linux::{bake, with_root};

/// Restore, work, bake again from the running clone.
const CYCLES: usize = 10;
/// Longest time of one cycle for each GiB of memory and each vCPU: in the emulated host all of them share one processor, and 256 MiB
/// with one take some 20 seconds. Free memory is made zero in the midst of the work.
const CYCLE_LIMIT: Duration = Duration::from_secs(240);

/// Every kind of work at once, which checks its own results. Timers expire 1000 times a second: at stress-ng's own million an emulated
/// host does little else, and the guest's kernel says so whenever that host had to wait for a processor. It ends when it is told to. The
/// kernel looks for lockups meanwhile, which its command line says not to. The event ends when all kinds are at work.
const START: &str = "echo 1 >/proc/sys/kernel/watchdog || exit 1
dmesg >/tmp/log
(stress-ng --verify --cpu 1 --vm 1 --vm-bytes 24M --timer 1 --timer-freq 1000 --fork 1 --futex 1 --cache 1 --timeout 0 --temp-path /tmp \
    --log-file /tmp/stress.log; echo $? >/tmp/status) </dev/null >/tmp/out 2>&1 &
n=0; for work in cpu vm timer fork futex cache; do
    until ps | grep -q \"[s]tress-ng-$work\" || [ $n -ge 180 ]; do n=$((n+1)); sleep 1; done
done";

/// Prints what must not be: new messages of the kernel but for the one that each restore brings, an end, a failure.
const CHECK_BEGIN: &str = "sleep 1
dmesg | tail -n +$(($(wc -l </tmp/log)+1)) | grep -v 'crng reseeded due to virtual machine fork'";
const CHECK_END: &str = "
[ ! -e /tmp/status ] || echo ended with $(cat /tmp/status)
grep -iE 'fail|error|abort' /tmp/stress.log /tmp/out
for work in cpu vm timer fork futex cache; do ps | grep -q \"[s]tress-ng-$work\" || echo nobody works at $work; done
exit 0";

const STOP: &str = "killall -INT stress-ng
n=0; while [ ! -e /tmp/status ] && [ $n -lt 180 ]; do n=$((n+1)); sleep 1; done
echo status $(cat /tmp/status); grep -o 'successful run completed' /tmp/stress.log; exit 0";

fn stress_root() -> PathBuf {
    std::env::var_os("EMBER_ROOT_STRESS")
        .expect("EMBER_ROOT_STRESS is not set: run this by `cargo xtask test`")
        .into()
}

/// What more a kernel may say: vCPUs that all work share the one processor of the emulated host, and whichever waits for it within
/// its timer interrupt notices.
fn tolerated(vcpus: u32) -> &'static str {
    if vcpus > 1 { " | grep -v 'hrtimer: interrupt took'" } else { "" }
}

/// A run of the bundle, whose clone is baked again.
#[track_caller]
fn run(bundle: &Path, script: &str, to: Option<&Path>, limit: Duration) -> Ended {
    let mut command = ember(["run", "--event-text", script]);
    command.arg(bundle);
    if let Some(to) = to {
        command.arg("--bake-to").arg(to);
    }
    end_within(start(&mut command), limit)
}

/// Bakes a guest, sets it to work, takes it through `cycles`, and lets it say how it was.
fn cycles(place: &Path, vcpus: u32, memory_mib: u32, cycles: usize) {
    let memory = format!("{memory_mib}MiB");
    let limit = CYCLE_LIMIT * memory_mib.div_ceil(1024) * vcpus;
    let check = format!("{CHECK_BEGIN}{}{CHECK_END}", tolerated(vcpus));
    let at = |number: usize| place.join(format!("cycle-{number}"));
    // Within it the guest answers and gets ready for the freeze.
    let event = format!("{}s", limit.as_secs() - 40);
    let arguments =
        ["--vcpus", &vcpus.to_string(), "--memory", &memory, "--event-timeout", &event, "--", "/bin/sh"];
    bake(&at(0), with_root(&stress_root(), &arguments)).succeeds();
    run(&at(0), START, Some(&at(1)), limit).succeeds();
    for cycle in 1..=cycles {
        let begin = Instant::now();
        let ended = run(&at(cycle), &check, Some(&at(cycle + 1)), limit);
        assert_eq!(ended.succeeds().text(), "", "in cycle {cycle}: {ended:?}");
        println!(
            "{vcpus} vCPUs, {memory}: cycle {cycle} of {cycles} ok, {:.0} s",
            begin.elapsed().as_secs_f64()
        );
        fs::remove_dir_all(at(cycle - 1)).unwrap();
    }
    finish(ember(["verify"]).arg(at(cycles + 1))).succeeds();
    let ended = run(&at(cycles + 1), STOP, None, limit);
    ended.answers("status 0\nsuccessful run completed\n");
}

#[test]
fn one_vcpu_goes_through_two_cycles_under_load() {
    cycles(Place::new().path(), 1, 256, 2);
}

mod full {
    use super::*;
    use linux::kept;

    #[test]
    fn one_vcpu_goes_through_ten_cycles_under_load() {
        cycles(Place::new().path(), 1, 256, CYCLES);
    }

    #[test]
    fn two_vcpus_go_through_ten_cycles_under_load() {
        cycles(Place::new().path(), 2, 256, CYCLES);
    }

    #[test]
    fn four_vcpus_go_through_a_cycle_under_load() {
        cycles(Place::new().path(), 4, 512, 1);
    }

    #[test]
    fn eight_gib_go_through_a_cycle_under_load() {
        // Not on a tmpfs: there a page that is touched in a hole takes room twice, as the file's and as the clone's.
        cycles(tempfile::tempdir_in(kept()).unwrap().path(), 1, 8192, 1);
    }
}
