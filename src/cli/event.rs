//! From flags, or an entry of `[[warm_up]]`, to an event of the function's interface.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use snapshot_format::manifest::Interface;

use crate::config::{EventSource, EventText};
use crate::function::Event;
use crate::vm::Request;

use super::args::EventArgs;
use super::failure::{Failure, Kind};

/// The event that `args` describe, to be answered within `limit`. With nothing said it is what standard input holds, unless that is a terminal or the
/// function's interface is `http`, whose plain event is a GET.
///
/// # Errors
/// The content cannot be read, is too long, is no JSON where JSON was promised, or belongs to another interface.
pub fn from_args(args: &EventArgs, interface: Interface, limit: Duration) -> Result<Event, Failure> {
    let content = content(args, Some(interface))?;
    let headers = args.header.iter().map(|line| header(line)).collect::<Result<Vec<_>, _>>()?;
    let request = Request { method: args.method.clone(), path: args.path.clone(), headers };
    Ok(request.event(interface, content, limit)?)
}

/// Whether `args` say what the content is.
pub fn is_said(args: &EventArgs) -> bool {
    args.event.is_some() || args.event_json.is_some() || args.event_text.is_some()
}

/// The content that `args` describe, for a function whose interface may be unknown if [`is_said`].
///
/// # Errors
/// It cannot be read, or is no JSON where JSON was promised.
pub fn content(args: &EventArgs, interface: Option<Interface>) -> Result<Vec<u8>, Failure> {
    let content = source(args, interface).read()?;
    if args.event_json.is_some() {
        check_json(&content)?;
    }
    Ok(content)
}

fn source(args: &EventArgs, interface: Option<Interface>) -> EventSource {
    let text = args.event_json.as_ref().or(args.event_text.as_ref());
    match (&args.event, text) {
        (Some(path), _) if path == Path::new("-") => EventSource::Stdin,
        (Some(path), _) => EventSource::File(path.clone()),
        (None, Some(text)) => EventSource::Text(text.clone()),
        (None, None) if interface == Some(Interface::Http) || std::io::stdin().is_terminal() => {
            EventSource::Empty
        }
        (None, None) => EventSource::Stdin,
    }
}

/// The event that an entry of `[[warm_up]]` describes.
///
/// # Errors
/// As [`from_args`].
pub fn from_text(text: &EventText, interface: Interface, limit: Duration) -> Result<Event, Failure> {
    let content = text.source()?.read()?;
    if text.json.is_some() {
        check_json(&content)?;
    }
    let headers = text.headers.clone().into_iter().collect();
    let request = Request { method: text.method.clone(), path: text.path.clone(), headers };
    Ok(request.event(interface, content, limit)?)
}

fn check_json(content: &[u8]) -> Result<(), Failure> {
    match serde_json::from_slice::<serde::de::IgnoredAny>(content) {
        Ok(_) => Ok(()),
        Err(e) => Err(Failure::text(Kind::Usage, format!("The event is not valid JSON: {e}"))),
    }
}

fn header(line: &str) -> Result<(String, String), Failure> {
    let refuse = || Failure::text(Kind::Usage, format!("{line:?} is no header: write it as NAME: VALUE"));
    Request::header(line).ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn an_event_with_content_is_a_post() {
        let args = EventArgs { event_text: Some("x".into()), ..Default::default() };
        let Event::Http(request) = from_args(&args, Interface::Http, LIMIT).unwrap() else {
            panic!("no http event")
        };
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/"));
        let args = EventArgs { header: vec!["A: b:c".into()], path: Some("/p".into()), ..Default::default() };
        let Event::Http(request) = from_args(&args, Interface::Http, LIMIT).unwrap() else {
            panic!("no http event")
        };
        assert_eq!((request.method.as_str(), request.path.as_str()), ("GET", "/p"));
        assert_eq!(request.headers, [("A".to_owned(), "b:c".to_owned())]);
    }

    #[test]
    fn a_path_is_refused_where_it_means_nothing() {
        let args = EventArgs { path: Some("/p".into()), event_text: Some("x".into()), ..Default::default() };
        assert_eq!(from_args(&args, Interface::Exec, LIMIT).unwrap_err().kind(), Kind::Usage);
    }

    #[test]
    fn promised_json_is_checked() {
        let args = EventArgs { event_json: Some("{".into()), ..Default::default() };
        assert_eq!(from_args(&args, Interface::Lambda, LIMIT).unwrap_err().kind(), Kind::Usage);
    }
}
