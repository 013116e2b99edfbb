//! Events, and how each becomes bytes for the function.

use guest_protocol::EVENT_MAX;
use snapshot_format::manifest::{FunctionContract, Interface};

use super::error::SessionError;

/// What a function is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// For `exec`.
    Exec {
        /// The command's standard input.
        stdin: Vec<u8>,
    },
    /// For `http`.
    Http(HttpRequest),
    /// For `lambda`.
    Lambda(LambdaEvent),
    /// For `port`.
    Port {
        /// What the guest reads.
        bytes: Vec<u8>,
    },
}

/// An HTTP request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// `GET`, `POST`, ...
    pub method: String,
    /// Path and query, beginning with `/`.
    pub path: String,
    /// Headers, except those that tell of the connection and the body's length.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// An invocation of a Lambda function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LambdaEvent {
    /// JSON.
    pub payload: Vec<u8>,
    /// Unique to the invocation.
    pub request_id: [u8; 16],
    /// When the answer is due, milliseconds since the epoch by the host's clock.
    pub deadline_unix_ms: u64,
}

/// Headers that [`HttpRequest::to_bytes`] writes itself.
const OWN_HEADERS: [&str; 3] = ["connection", "content-length", "transfer-encoding"];

impl Event {
    fn interface(&self) -> Interface {
        match self {
            Event::Exec { .. } => Interface::Exec,
            Event::Http(_) => Interface::Http,
            Event::Lambda(_) => Interface::Lambda,
            Event::Port { .. } => Interface::Port,
        }
    }

    /// Refuses an event that is not for functions with `interface`, or too long.
    pub(super) fn check(&self, interface: Interface) -> Result<(), SessionError> {
        if self.interface() != interface {
            let (function, event) = (interface.name(), self.interface().name());
            return Err(SessionError::WrongInterface { function, event });
        }
        let len = match self {
            Event::Exec { stdin: bytes } | Event::Port { bytes } => bytes.len(),
            Event::Http(request) => request.body.len(),
            Event::Lambda(event) => event.payload.len(),
        };
        match u64::try_from(len) {
            Ok(0..=EVENT_MAX) => Ok(()),
            len => Err(SessionError::TooLarge { len: len.unwrap_or(u64::MAX), limit: EVENT_MAX }),
        }
    }
}

impl HttpRequest {
    /// The request in the form of RFC 9112, for one connection of its own.
    pub(super) fn to_bytes(&self, contract: &FunctionContract) -> Result<Vec<u8>, SessionError> {
        self.check()?;
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            let port = contract.http.as_ref().map_or(80, |http| http.port);
            head.push_str(&format!("Host: 127.0.0.1:{port}\r\n"));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() || !matches!(self.method.as_str(), "GET" | "HEAD") {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str("Connection: close\r\n\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        Ok(bytes)
    }

    fn check(&self) -> Result<(), SessionError> {
        let refuse = |what: &str, reason| Err(SessionError::Request { what: what.to_owned(), reason });
        if !is_token(&self.method) {
            return refuse("method", "it is not a word");
        }
        if !self.path.starts_with('/') || !self.path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse("path", "it does not begin with / or has characters that must be percent-encoded");
        }
        for (name, value) in &self.headers {
            if !is_token(name) {
                return refuse(&format!("header {name:?}"), "its name is not a word");
            }
            if OWN_HEADERS.iter().any(|own| name.eq_ignore_ascii_case(own)) {
                return refuse(&format!("header {name}"), "Ember sets it itself");
            }
            if value.bytes().any(|byte| matches!(byte, 0..=8 | 10..=31 | 127)) {
                return refuse(&format!("header {name}"), "its value has control characters");
            }
        }
        Ok(())
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    let special = |byte| b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || special(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract() -> FunctionContract {
        serde_json::from_str(r#"{"interface": "http", "http": {"port": 8000}}"#).unwrap()
    }

    fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> HttpRequest {
        HttpRequest {
            method: method.into(),
            path: path.into(),
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            body: body.to_vec(),
        }
    }

    #[test]
    fn a_request_is_written_for_one_connection() {
        let bytes = request("POST", "/a?b=c", &[("X-A", "1")], b"hi").to_bytes(&contract()).unwrap();
        let expected = "POST /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nX-A: 1\r\nContent-Length: 2\r\n\
                        Connection: close\r\n\r\nhi";
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
        let bytes = request("GET", "/", &[("host", "me")], b"").to_bytes(&contract()).unwrap();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "GET / HTTP/1.1\r\nhost: me\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn a_request_that_smuggles_is_refused() {
        for bad in [
            request("GET /x HTTP/1.1\r\n", "/", &[], b""),
            request("GET", "/a b", &[], b""),
            request("GET", "a", &[], b""),
            request("GET", "/\r\nX: y", &[], b""),
            request("GET", "/", &[("a\r\nb", "c")], b""),
            request("GET", "/", &[("a", "b\r\nc: d")], b""),
            request("GET", "/", &[("Content-length", "7")], b""),
        ] {
            assert!(bad.to_bytes(&contract()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_event_of_another_interface_or_too_long_is_refused() {
        let limit = usize::try_from(EVENT_MAX).unwrap();
        let event = Event::Exec { stdin: vec![0; limit] };
        assert!(event.check(Interface::Exec).is_ok());
        assert!(matches!(event.check(Interface::Port), Err(SessionError::WrongInterface { .. })));
        let event = Event::Exec { stdin: vec![0; limit + 1] };
        assert!(matches!(event.check(Interface::Exec), Err(SessionError::TooLarge { .. })));
    }
}
