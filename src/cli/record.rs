//! `ember record`: which pages an answer needs, written into a bundle.

use std::time::Duration;

use snapshot_format::manifest::{Manifest, names};
use snapshot_format::working_set::{PageRange, WorkingSet};

use crate::bundle::{Bundle, Draft, Finished};
use crate::function::Event;
use crate::memory;
use crate::vm;

use super::args::{EventArgs, RecordArgs};
use super::cell::{self, ToldJail};
use super::failure::{Failure, Kind};
use super::sink::LogSink;
use super::{event, output, signals};

/// Records again and replaces the bundle, in one step, by one that differs in its working set only.
///
/// # Errors
/// The bundle cannot be opened, restored or written beside itself, or an event got no answer.
pub fn record(args: &RecordArgs) -> Result<u8, Failure> {
    let bundle = Bundle::open(&args.bundle)?;
    let limit = Duration::from_millis(bundle.manifest().function.event_timeout_ms);
    let limit = args.timeout.map_or(limit, |span| span.0);
    let events = events(args, &bundle, limit)?;
    let mut draft = Draft::create(&args.bundle, true)?;
    signals::clean_up_on_signal(draft.directory())?;
    if !args.json {
        eprintln!("{}", cell::RECORD);
    }
    let set = recorded(&bundle, &events, limit)?;
    let mut others = bundle.manifest().files.keys().filter(|name| *name != names::WORKING_SET);
    others.try_for_each(|name| draft.share(&bundle, name))?;
    add(&mut draft, &bundle, &set)?;
    let finished = draft.finish(Manifest::clone(bundle.manifest()))?;
    signals::nothing_to_clean_up();
    tell(args, &set, &finished)?;
    Ok(0)
}

fn tell(args: &RecordArgs, set: &WorkingSet, finished: &Finished) -> Result<(), Failure> {
    let leftover = finished.leftover.as_deref();
    if args.json {
        return output::json(&serde_json::json!({
            "bundle": finished.path,
            "working_set": {
                "read_pages": set.read_pages(),
                "written_pages": set.written_pages(),
                "late_pages": set.late_pages(),
            },
            "leftover": leftover,
            "jail": ToldJail::vcpus_only(),
        }));
    }
    if let Some(old) = leftover {
        eprintln!("ember: the bundle as it was is still at {}; remove it", old.display());
    }
    output::line(&summary(set))
}

/// What clones of `bundle` touch while they answer `events`.
///
/// # Errors
/// This user may have no userfaultfd, or an event got no answer.
pub fn recorded(bundle: &Bundle, events: &[Event], limit: Duration) -> Result<WorkingSet, Failure> {
    Ok(vm::record(bundle, events, limit, &mut LogSink)?)
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
    let interface = bundle.manifest().function.interface;
    asked(args)?.iter().map(|one| event::from_args(one, interface, limit)).collect()
}

/// Each event as `ember run` takes it.
fn asked(args: &RecordArgs) -> Result<Vec<EventArgs>, Failure> {
    let whole = |path: Option<&String>| EventArgs {
        method: args.method.clone(),
        path: path.cloned(),
        header: args.header.clone(),
        ..EventArgs::default()
    };
    let with = || whole(args.path.first());
    let files = args.event.iter().map(|path| EventArgs { event: Some(path.clone()), ..with() });
    let json = args.event_json.iter().map(|text| EventArgs { event_json: Some(text.clone()), ..with() });
    let texts = args.event_text.iter().map(|text| EventArgs { event_text: Some(text.clone()), ..with() });
    let contents: Vec<EventArgs> = files.chain(json).chain(texts).collect();
    match (contents.is_empty(), args.path.len()) {
        (true, 0) => Err(Failure::text(
            Kind::Usage,
            "There is nothing to record: give an event with --event, --event-json, --event-text or --path",
        )),
        (true, _) => Ok(args.path.iter().map(|path| whole(Some(path))).collect()),
        (false, 0 | 1) => Ok(contents),
        (false, _) => Err(Failure::text(
            Kind::Usage,
            "Events with content go to one path: record those with other paths without content",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(texts: &[&str], paths: &[&str]) -> RecordArgs {
        let owned = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
        RecordArgs {
            bundle: "b".into(),
            event: Vec::new(),
            event_json: Vec::new(),
            event_text: owned(texts),
            method: Some("PUT".to_owned()),
            path: owned(paths),
            header: Vec::new(),
            timeout: None,
            json: false,
        }
    }

    #[test]
    fn paths_are_events_of_their_own_or_the_one_place_where_content_goes() {
        let two = asked(&args(&[], &["/a", "/b"])).unwrap();
        assert_eq!(two.iter().filter_map(|one| one.path.as_deref()).collect::<Vec<_>>(), ["/a", "/b"]);
        let sent = asked(&args(&["x", "y"], &["/a"])).unwrap();
        assert!(sent.iter().all(|one| one.path.as_deref() == Some("/a") && one.method.is_some()));
        assert_eq!(sent.len(), 2);
        assert!(asked(&args(&["x"], &["/a", "/b"])).is_err());
        assert!(asked(&args(&[], &[])).is_err());
    }
}
