//! From content and what is said about it to an event of the function's interface.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use snapshot_format::manifest::Interface;

use crate::function::{Event, HttpRequest, LambdaEvent};

use super::identity::{self, IdentityError};

/// Why there is no event.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// What only an http event has was given for another.
    #[error("Method, path and headers belong to the http interface; this function has another")]
    Foreign,
    /// The event could not be made one of a kind.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// The parts that only an http event has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// GET, or POST with content, when not given.
    pub method: Option<String>,
    /// `/` when not given.
    pub path: Option<String>,
    /// In their order.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// A header from its line, `NAME: VALUE`; `None` for another line.
    pub fn header(line: &str) -> Option<(String, String)> {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    }

    /// The event for a function with `interface`, to be answered within `limit`.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn event(
        self,
        interface: Interface,
        content: Vec<u8>,
        limit: Duration,
    ) -> Result<Event, RequestError> {
        let foreign = self.method.is_some() || self.path.is_some() || !self.headers.is_empty();
        match interface {
            Interface::Http => Ok(Event::Http(self.http(content))),
            _ if foreign => Err(RequestError::Foreign),
            Interface::Exec => Ok(Event::Exec { stdin: content }),
            Interface::Lambda => Ok(Event::Lambda(lambda(content, limit)?)),
            Interface::Port => Ok(Event::Port { bytes: content }),
        }
    }

    fn http(self, body: Vec<u8>) -> HttpRequest {
        let method = if body.is_empty() { "GET" } else { "POST" };
        HttpRequest {
            method: self.method.unwrap_or(method.to_owned()),
            path: self.path.unwrap_or("/".to_owned()),
            headers: self.headers,
            body,
        }
    }
}

/// The Runtime API promises its clients JSON: no content is an empty object.
fn lambda(content: Vec<u8>, limit: Duration) -> Result<LambdaEvent, IdentityError> {
    let payload = if content.is_empty() { b"{}".to_vec() } else { content };
    let due = identity::since_epoch()?.saturating_add(limit);
    let deadline_unix_ms = u64::try_from(due.as_millis()).unwrap_or(u64::MAX);
    Ok(LambdaEvent { payload, request_id: identity::random()?, deadline_unix_ms })
}
