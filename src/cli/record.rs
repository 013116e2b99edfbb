//! `ember record`: which pages an answer needs, written into a bundle.

use std::time::Duration;

use snapshot_format::manifest::{Manifest, names};
use snapshot_format::working_set::{PageRange, WorkingSet};

use crate::bundle::{Bundle, Draft};
use crate::function::Event;
use crate::memory;
use crate::vm::{self, Sample};

use super::args::{EventArgs, RecordArgs};
use super::failure::{Failure, Kind};
use super::sink::LogSink;
use super::{event, identity, output, signals};

/// Records again and replaces the bundle, in one step, by one that differs in its working set only.
///
/// # Errors
/// The bundle cannot be opened, restored or written beside itself, or an event got no answer.
pub fn record(args: &RecordArgs) -> Result<u8, Failure> {
    let bundle = Bundle::open(&args.bundle)?;
    let limit = Duration::from_millis(bundle.manifest().function.event_timeout_ms);
    let limit = args.timeout.map_or(limit, |span| span.0);
    let mut draft = Draft::create(&args.bundle, true)?;
    signals::clean_up_on_signal(draft.directory())?;
    let set = recorded(&bundle, events(args, &bundle, limit)?, limit)?;
    let mut others = bundle.manifest().files.keys().filter(|name| *name != names::WORKING_SET);
    others.try_for_each(|name| draft.share(&bundle, name))?;
    add(&mut draft, &bundle, &set)?;
    draft.finish(Manifest::clone(bundle.manifest()))?;
    signals::nothing_to_clean_up();
    output::line(&summary(&set))?;
    Ok(0)
}

/// What clones of `bundle` touch while they answer `events`.
///
/// # Errors
/// This user may have no userfaultfd, or an event got no answer.
pub fn recorded(bundle: &Bundle, events: Vec<Event>, limit: Duration) -> Result<WorkingSet, Failure> {
    let plain = identity::Asked { host_name: None, machine_id: None, env: &[] };
    let sample = |event| Ok(Sample { event, message: identity::restore_message(plain)? });
    let samples = events.into_iter().map(sample).collect::<Result<Vec<_>, Failure>>()?;
    Ok(vm::record(bundle, &samples, limit, &mut LogSink)?)
}

/// Adds a working set to a bundle that is being written, and has what is only read lie in huge pages where the file system of
/// `bundle`, which has the same memory, has them.
///
/// # Errors
/// The disk is full or fails.
pub fn add(draft: &mut Draft, bundle: &Bundle, set: &WorkingSet) -> Result<(), Failure> {
    let bytes = set.encode().map_err(|e| Failure::new(Kind::Internal, &e))?;
    let read = set.read.iter().chain(&set.late_read).map(PageRange::bytes);
    memory::make_huge(bundle.memory()?, set.memory_len, read);
    Ok(draft.add_bytes(names::WORKING_SET, &bytes)?)
}

/// One line for a person.
pub fn summary(set: &WorkingSet) -> String {
    format!("working set: {} pages read, {} written", set.read_pages(), set.written_pages())
}

fn events(args: &RecordArgs, bundle: &Bundle, limit: Duration) -> Result<Vec<Event>, Failure> {
    let file = |path: &std::path::PathBuf| EventArgs { event: Some(path.clone()), ..EventArgs::default() };
    let json = |text: &String| EventArgs { event_json: Some(text.clone()), ..EventArgs::default() };
    let text = |text: &String| EventArgs { event_text: Some(text.clone()), ..EventArgs::default() };
    let asked = args
        .event
        .iter()
        .map(file)
        .chain(args.event_json.iter().map(json))
        .chain(args.event_text.iter().map(text));
    let interface = bundle.manifest().function.interface;
    let events: Vec<Event> =
        asked.map(|one| event::from_args(&one, interface, limit)).collect::<Result<_, _>>()?;
    if events.is_empty() {
        return Err(Failure::text(
            Kind::Usage,
            "There is nothing to record: give an event with --event, --event-json or --event-text",
        ));
    }
    Ok(events)
}
