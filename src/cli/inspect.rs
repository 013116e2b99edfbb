//! `ember inspect`: what is in a bundle, from manifest, header and index alone.

use snapshot_format::manifest::{Interface, Manifest};

use crate::bundle::{Bundle, Inspection};
use crate::config::Size;

use super::args::BundleArgs;
use super::failure::{Failure, Kind};
use super::output;

/// Shows a bundle.
///
/// # Errors
/// It cannot be opened, or standard output is closed.
pub fn inspect(args: &BundleArgs) -> Result<u8, Failure> {
    let inspection = Bundle::open(&args.bundle)?.inspect()?;
    if args.json {
        let value = serde_json::to_value(&inspection).map_err(|e| Failure::new(Kind::Internal, &e))?;
        output::json(&value)?;
        return Ok(0);
    }
    output::line(&facts(&inspection))?;
    let mut files = output::table(&["file", "bytes", "on disk"]);
    for (name, file) in &inspection.files {
        files.add_row([name.clone(), file.len.to_string(), Size(file.allocated).to_string()]);
    }
    output::line(&files.to_string())?;
    Ok(0)
}

fn facts(inspection: &Inspection) -> String {
    let Inspection { manifest, state, memory, .. } = inspection;
    let function = &manifest.function;
    let interface = serde_json::to_value(function.interface).unwrap_or_default();
    let sections: Vec<String> = state
        .sections
        .iter()
        .map(|section| format!("{}.{} {} B", section.name, section.instance, section.len))
        .collect();
    let content = memory.content_chunks * memory.granule;
    let working_set = inspection.working_set.as_ref().map_or("none".to_owned(), |set| {
        format!(
            "{} in {} ranges: {} pages read, {} written, {} of both only once the answer has begun; of 2 MiB {} only read, {} written in",
            Size(set.bytes),
            set.ranges,
            set.read_pages,
            set.written_pages,
            set.late_pages,
            set.read_only_regions,
            set.mixed_regions
        )
    });
    let rows = [
        ("format", format!("{} (written by {})", state.format, state.creator)),
        (
            "machine",
            format!("{}, {} vCPU, {} memory", state.arch, manifest.machine.vcpus, Size(memory.bytes)),
        ),
        (
            "memory",
            format!("{} in chunks of {} with content, the rest zero", Size(content), Size(memory.granule)),
        ),
        ("reseeding", format!("{}{}", reseeding(manifest), hooks(inspection.client_hooks))),
        ("clock", clock(manifest).to_owned()),
        ("cpu", format!("{}, TSC {} kHz", manifest.cpu.vendor, manifest.cpu.tsc_khz)),
        ("function", format!("{} {}", interface.as_str().unwrap_or_default(), function.command.join(" "))),
        ("parent", manifest.parent.as_ref().map_or("none", |parent| &parent.manifest_sha256).to_owned()),
        ("kernel", manifest.machine.kernel_cmdline.clone()),
        ("touched", working_set),
        ("state", sections.join(", ")),
    ];
    rows.iter().map(|(name, value)| format!("{name:<11}{value}")).collect::<Vec<_>>().join("\n")
}

/// Who gives a clone random numbers of its own.
fn reseeding(manifest: &Manifest) -> &'static str {
    match (manifest.function.interface, manifest.machine.stale_rng) {
        (Interface::Port, _) => "nobody: a small guest has no generator",
        (_, false) => "the kernel, when the VM Generation ID changes, and the agent",
        (_, true) => "the agent alone: the kernel has no VM Generation ID driver (allow_stale_rng)",
    }
}

/// What the client of a `lambda` function does itself for its clones to be unlike each other.
fn hooks(client: Option<bool>) -> &'static str {
    match client {
        None => "",
        Some(true) => ", then the client's own after-restore hooks",
        Some(false) => {
            "; no hook of the client's own runs in a clone, only those in /etc/ember/after-restore.d"
        }
    }
}

fn clock(manifest: &Manifest) -> &'static str {
    if manifest.machine.advance_clock {
        "monotonic time goes on by the time since the freeze (advance_clock)"
    } else {
        "monotonic time goes on from the freeze"
    }
}
