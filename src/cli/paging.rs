//! How a clone's memory is asked for, and what is told of it.

use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::config::Paging;
use crate::memory::Door;
use crate::vm::{self, Machine, RestoreOptions};

use super::apart::Way;
use super::args::PagingArgs;
use super::failure::{Failure, Kind, ToFailure};
use super::signals;

/// What the flags mean, and how a clone ends, told by `way`, whose memory is lost.
pub fn restore_options(args: &PagingArgs, count_faults: bool, way: Way) -> RestoreOptions {
    let cut_short = Failure::text(Kind::BadBundle, vm::MEMORY_CUT_SHORT);
    RestoreOptions {
        paging: args.paging,
        verify: args.verify,
        prefetch: args.prefetch,
        door: args.userfaultfd.map_or(Door::Host, Door::Device),
        count_faults,
        on_pager_failure: Box::new(move |error| {
            signals::clean_up();
            way.last_words(&Failure::new(error.kind(), &error)).say()
        }),
        memory_cut_short: Some(way.last_words(&cut_short)),
    }
}

/// What is told of a clone's paging.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ToldPaging {
    /// `mmap` or `uffd`.
    backend: String,
    /// Whether that was Ember's choice.
    automatic: bool,
    verify: String,
    /// Page faults that KVM handled, of each vCPU; empty where they were not counted.
    kvm_faults: Vec<u64>,
    /// Those of them before the first answer began.
    kvm_faults_before_answer: Vec<u64>,
    /// Page faults that userfaultfd told of.
    uffd_faults: u64,
    /// Bytes that were copied from the bundle for them.
    copied_bytes: u64,
    zeroed_bytes: u64,
    prefetched_bytes: u64,
    /// Bytes that the kernel was asked to read from the disk ahead.
    read_ahead_bytes: u64,
    /// Pages that were mapped for the guest before it asked; a huge one counts once.
    mapped_pages: u64,
    /// Huge ones of 2 MiB among them.
    mapped_huge_pages: u64,
    /// Bytes that were checked before the start, by `--verify touched` with `mmap`.
    checked_bytes: u64,
    /// Of the pages copied before the start to be written, those that never were; `None` where it was not looked. Pages that are
    /// mapped to be read are not among them: nobody can tell whether they were.
    wasted_pages: Option<u64>,
    /// Whether a memory limit left something out of that.
    prefetch_cut_short: bool,
}

fn wasted(machine: &Machine, bundle: &Bundle) -> Option<u64> {
    // What a pager brought in is the clone's own whether it was written or only read.
    if machine.faults().is_empty() || machine.pager().is_some() {
        return None;
    }
    // It takes milliseconds, and whoever reads the answer may wait for this processor.
    std::thread::yield_now();
    machine.wasted_pages(bundle.memory().ok()?).ok()
}

impl ToldPaging {
    /// What the memory of a clone of `bundle` has come to so far. Only when faults were counted is it worth the time to find out
    /// what was copied for nothing.
    pub fn of(machine: &Machine, bundle: &Bundle, args: &PagingArgs) -> Self {
        let done = machine.pager().map(|pager| pager.statistics()).unwrap_or_default();
        let ahead = machine.prefetched();
        ToldPaging {
            backend: args.paging.backend(args.verify).name().to_owned(),
            automatic: args.paging == Paging::Auto,
            verify: args.verify.name().to_owned(),
            kvm_faults: machine.faults(),
            kvm_faults_before_answer: machine.faults_before_answer().to_vec(),
            uffd_faults: done.faults,
            copied_bytes: done.copied,
            zeroed_bytes: done.zeroed,
            prefetched_bytes: done.prefetched + ahead.copied,
            read_ahead_bytes: ahead.read_ahead,
            mapped_pages: ahead.mapped.pages,
            mapped_huge_pages: ahead.mapped.huge,
            checked_bytes: ahead.checked,
            wasted_pages: wasted(machine, bundle),
            prefetch_cut_short: ahead.cut_short,
        }
    }

    fn mapped(&self) -> String {
        let huge = match self.mapped_huge_pages {
            0 => String::new(),
            huge => format!(", {huge} of them of 2 MiB"),
        };
        format!("{} pages mapped{huge}", self.mapped_pages)
    }

    /// One line for a person.
    pub fn line(&self) -> String {
        let choice = if self.automatic { " (chosen)" } else { "" };
        let checked = match (self.verify.as_str(), self.backend.as_str()) {
            ("touched", "mmap") => {
                format!(
                    "touched ({} bytes), but not what the guest's own faults bring in",
                    self.checked_bytes
                )
            }
            (verify, _) => verify.to_owned(),
        };
        let mut line = format!("paging: {}{choice}, verified: {checked}", self.backend);
        let cut = if self.prefetch_cut_short { ", cut short by a memory limit" } else { "" };
        if self.backend == "uffd" {
            line += &format!(
                ", {} faults served, {} bytes copied, {} zeroed, {} ahead of faults, {}{cut}",
                self.uffd_faults,
                self.copied_bytes,
                self.zeroed_bytes,
                self.prefetched_bytes,
                self.mapped()
            );
        }
        if self.backend == "mmap" && self.prefetched_bytes + self.read_ahead_bytes > 0 {
            let wasted = self.wasted_pages.map_or(String::new(), |pages| format!(" ({pages} pages in vain)"));
            line += &format!(
                ", {} bytes copied ahead{wasted}, {} asked of the disk, {}{cut}",
                self.prefetched_bytes,
                self.read_ahead_bytes,
                self.mapped()
            );
        }
        if !self.kvm_faults.is_empty() {
            let list = |all: &[u64]| all.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
            let (all, before) = (list(&self.kvm_faults), list(&self.kvm_faults_before_answer));
            line += &format!("; page faults of each vCPU: {all}, {before} of them before the answer began");
        }
        line
    }
}
