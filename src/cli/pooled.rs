//! `ember run --pool`: the same event and the same answer as of `ember run`, served by a daemon.

use std::path::Path;

use crate::function::Notice;
use crate::serve::{Client, Frame};
use crate::vm::{AnswerSink, InvokeError, Timeline};

use super::args::RunArgs;
use super::event;
use super::failure::{Failure, Kind};
use super::report::Report;
use super::run::conclude;
use super::sink::Sink;

/// Has the daemon at `socket` serve the event; gives the function's exit code.
///
/// # Errors
/// The daemon's failures, or that there is none.
pub fn run(args: &RunArgs, socket: &Path, mut timeline: Timeline) -> Result<u8, Failure> {
    let name =
        args.bundle.to_str().ok_or_else(|| Failure::text(Kind::Usage, "The function's name is no text"))?;
    let mut client = Client::connect(socket)?;
    timeline.mark("connect");
    // What an event is when nothing is said depends on the interface.
    let interface = if event::is_said(&args.event) { None } else { Some(client.interface(name)?) };
    let body = event::content(&args.event, interface)?;
    timeline.mark("read event");
    let mut answer = client.invoke(name, &headers(args)?, &body)?;
    let mut sink = Sink::new(args.json, args.include, answer.interface(), &args.limits);
    loop {
        match answer.next()? {
            Frame::Piece(piece) => take(&mut sink, piece)?,
            Frame::Done(done) => {
                let report = Report::pooled(&done, &timeline, sink.into_collected());
                return conclude(args, &report);
            }
            Frame::Failed(failure) => return Err(failure),
            Frame::Ready(_) => {}
        }
    }
}

fn take(sink: &mut Sink, piece: Notice) -> Result<(), Failure> {
    Ok(sink.take(piece).map(drop).map_err(InvokeError::Sink)?)
}

/// What is asked beside the event, as headers of the API.
fn headers(args: &RunArgs) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut headers = Vec::new();
    let event = &args.event;
    headers.extend(event.method.iter().map(|method| ("Ember-Method", method.clone())));
    headers.extend(event.path.iter().map(|path| ("Ember-Path", path.clone())));
    headers.extend(event.header.iter().map(|line| ("Ember-Header", line.clone())));
    headers.extend(args.env.iter().map(|(name, value)| ("Ember-Env", format!("{name}={value}"))));
    headers.extend(args.hostname.iter().map(|name| ("Ember-Hostname", name.clone())));
    let id = args.machine_id.map(|id| format!("{:032x}", u128::from_be_bytes(id)));
    headers.extend(id.map(|id| ("Ember-Machine-Id", id)));
    headers.extend(args.timeout.map(|span| ("Ember-Timeout-Ms", span.0.as_millis().to_string())));
    match headers.iter().find(|(_, value)| value.contains(|c: char| c.is_control())) {
        Some((name, _)) => {
            let text = format!("{name} has control characters, which a daemon cannot be told");
            Err(Failure::text(Kind::Usage, text))
        }
        None => Ok(headers),
    }
}
