//! Events as a user gives them: text, a file, or the parts of a request.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use serde::Deserialize;

/// Longest event, bytes.
pub const EVENT_MAX: u64 = 32 << 20;

/// Why an event could not be read.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The source could not be read.
    #[error("Cannot read the event from {from}")]
    Read {
        /// The file, or standard input.
        from: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More than any event may have.
    #[error("The event from {from} is longer than the {EVENT_MAX} bytes an event may have")]
    TooLong {
        /// The file, or standard input.
        from: String,
    },
    /// Several sources at once.
    #[error("An event has one content: give one of text, file and json")]
    Several,
}

/// Where an event's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum EventSource {
    /// No bytes at all.
    #[default]
    Empty,
    /// Given in place.
    Text(String),
    /// A file.
    File(PathBuf),
    /// Standard input, to its end.
    Stdin,
}

impl EventSource {
    /// The bytes, at most [`EVENT_MAX`] of them.
    ///
    /// # Errors
    /// The source cannot be read or is too long.
    pub fn read(&self) -> Result<Vec<u8>, EventError> {
        match self {
            EventSource::Empty => Ok(Vec::new()),
            EventSource::Text(text) if text.len() as u64 > EVENT_MAX => {
                Err(EventError::TooLong { from: "the command line".to_owned() })
            }
            EventSource::Text(text) => Ok(text.clone().into_bytes()),
            EventSource::Stdin => bounded(io::stdin().lock(), "standard input"),
            EventSource::File(path) => {
                let from = path.display().to_string();
                let file =
                    File::open(path).map_err(|source| EventError::Read { from: from.clone(), source })?;
                bounded(file, &from)
            }
        }
    }
}

fn bounded(from: impl Read, name: &str) -> Result<Vec<u8>, EventError> {
    let mut bytes = Vec::new();
    from.take(EVENT_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| EventError::Read { from: name.to_owned(), source })?;
    if bytes.len() as u64 > EVENT_MAX {
        return Err(EventError::TooLong { from: name.to_owned() });
    }
    Ok(bytes)
}

/// An event as `[[warm_up]]` or flags give it. Only an `http` event uses method, path and headers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventText {
    /// Content in place.
    pub text: Option<String>,
    /// Content in place, by another name: it must be JSON.
    pub json: Option<String>,
    /// Content from a file.
    pub file: Option<PathBuf>,
    /// http: GET unless there is content, then POST.
    pub method: Option<String>,
    /// http: `/` when absent.
    pub path: Option<String>,
    /// http.
    pub headers: BTreeMap<String, String>,
}

impl EventText {
    /// The one source of its content.
    ///
    /// # Errors
    /// More than one is named.
    pub fn source(&self) -> Result<EventSource, EventError> {
        let text = self.text.clone().map(EventSource::Text);
        let json = self.json.clone().map(EventSource::Text);
        let file = self.file.clone().map(EventSource::File);
        let mut named = [text, json, file].into_iter().flatten();
        match (named.next(), named.next()) {
            (_, Some(_)) => Err(EventError::Several),
            (source, None) => Ok(source.unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn an_event_has_one_content() {
        let text = EventText { text: Some("a".into()), ..Default::default() };
        assert_eq!(text.source().unwrap().read().unwrap(), b"a");
        let both = EventText { json: Some("{}".into()), ..text };
        assert!(matches!(both.source(), Err(EventError::Several)));
        assert_eq!(EventText::default().source().unwrap(), EventSource::Empty);
    }

    #[test]
    fn a_file_longer_than_an_event_may_be_is_refused_without_reading_all_of_it() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"x").unwrap();
        file.as_file().set_len(1 << 40).unwrap();
        let source = EventSource::File(file.path().to_owned());
        assert!(matches!(source.read(), Err(EventError::TooLong { .. })));
    }
}
