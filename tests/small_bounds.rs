//! A clone's memory and processor time are bounded by a control group of its own, where that is asked for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;

use common::groups::{groups_of, setting};
use common::processes::{machine_of, wait_until_gone};
use common::{Place, end_of, finish, is_root, run_command, start};
use rustix::process::Signal;

/// Writes this many pages of a guest.
fn write_pages(pages: usize) -> String {
    format!("write 0 {pages} 1")
}

#[test]
fn a_clone_that_needs_more_memory_than_it_may_have_ends_and_its_neighbour_does_not() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let toucher = place.bake_in("64MiB", "toucher", &[]);
    let bounded = ["--memory-max", "24MiB"];
    let mut neighbour = run_command(&toucher, &write_pages(1000));
    let neighbour = start(neighbour.args(bounded).args(["--repeat", "300"]));
    for more in [&[][..], &["--no-jail"]] {
        let ended = finish(run_command(&toucher, &write_pages(15_000)).args(bounded).args(more));
        assert_eq!((ended.code(), ended.text()), (126, ""), "{ended:?}");
        assert!(ended.errors.contains("killed by signal 9, as by a limit of its memory"), "{ended:?}");
    }
    finish(run_command(&toucher, &write_pages(15_000)).args(["--memory-max", "256MiB"])).answers("0x0");
    end_of(neighbour).succeeds();
}

#[test]
fn bounds_are_those_that_were_asked_for_and_told() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let faulty = place.bake("faulty");
    let mut command = run_command(&faulty, "spin");
    command.args(["--timeout", "10m", "--memory-max", "64MiB", "--cpu-max", "50", "--cpu-weight", "50"]);
    let run = start(&mut command);
    let own = groups_of(machine_of(&run));
    assert_eq!(setting(&own, ["memory.max", "memory.limit_in_bytes"]), (64 << 20).to_string());
    let swap = ["memory.swap.max", "memory.memsw.limit_in_bytes"];
    // Version 1 bounds it together with memory; a kernel without swap has no such file.
    if own.iter().any(|group| swap.iter().any(|file| group.join(file).exists())) {
        assert!(["0", "67108864"].contains(&setting(&own, swap).as_str()));
    }
    assert!(["50000 100000", "50000"].contains(&setting(&own, ["cpu.max", "cpu.cfs_quota_us"]).as_str()));
    assert!(["50", "512"].contains(&setting(&own, ["cpu.weight", "cpu.shares"]).as_str()));
    assert_eq!(setting(&own, ["pids.max", "pids.max"]), "64");
    common::processes::signal(i32::try_from(run.id()).unwrap(), Signal::KILL);
    wait_until_gone(run.id());
    end_of(run);

    let echo = place.bake("echo");
    let told = finish(run_command(&echo, "x").args(["--json", "--memory-max", "64MiB"])).succeeds().json();
    let standing = told["jail"]["standing"].as_array().unwrap();
    assert!(standing.iter().any(|wall| wall == "cgroup"), "{told}");
    let told = finish(run_command(&echo, "x").arg("--json")).succeeds().json();
    assert!(!told["jail"]["standing"].to_string().contains("cgroup"), "{told}");
}

#[test]
fn the_groups_of_clones_that_have_ended_are_gone_with_the_next_start() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let bounded = ["--timeout", "10m", "--memory-max", "64MiB"];
    let run = start(run_command(&place.bake("faulty"), "spin").args(bounded));
    let machine = machine_of(&run);
    // Only its own: below another place of the host, groups stay until something starts there again.
    let groups = groups_of(machine);
    assert!(!groups.is_empty());
    common::processes::signal(machine, Signal::KILL);
    wait_until_gone(u32::try_from(machine).unwrap());
    end_of(run);

    let echo = place.bake("echo");
    common::wait_until("groups of the clone that has ended are gone", || {
        finish(run_command(&echo, "x").args(["--memory-max", "64MiB"])).answers("x");
        !groups.iter().any(|group| group.exists())
    });
}
