//! Requests to the Runtime API, as far as the API needs HTTP understood.

use guest_protocol::{Chunked, ChunkedError};

use super::invocation::parse_id;

/// Longest head of a request, bytes. Clients put the X-Ray cause of an error, up to 1 MiB, into a header.
pub const HEAD_MAX: usize = (1 << 20) + (64 << 10);
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// Where the API lives.
const PREFIX: &str = "/2018-06-01/runtime/";
/// Trailer of a streamed answer that turned into an error.
const ERROR_TRAILER: &str = "Lambda-Runtime-Function-Error-Type";

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// GET invocation/next
    Next,
    /// GET restore/next
    RestoreNext,
    /// POST invocation/ID/response
    Response([u8; 16]),
    /// POST invocation/ID/error
    Error([u8; 16]),
    /// POST init/error
    InitError,
    /// POST restore/error
    RestoreError,
    /// POST of an id that is none
    WrongId,
    /// Anything else
    Unknown,
}

/// A request without its body.
#[derive(Debug)]
pub struct Request {
    pub route: Route,
    pub body: Body,
    /// The client waits for an interim answer before it sends the body (RFC 9110, section 10.1.1).
    pub expects_continue: bool,
    /// The connection is of no use afterwards.
    pub close: bool,
}

/// What a head that cannot be served is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Malformed,
    TooLong,
}

impl Request {
    /// Reads a head from the beginning of `bytes`, with its length; `None` while it is not whole.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Refusal> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(len)) => Ok(Some((Self::of(&request)?, len))),
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Err(Refusal::TooLong),
            Err(_) => Err(Refusal::Malformed),
        }
    }

    fn of(request: &httparse::Request<'_, '_>) -> Result<Self, Refusal> {
        let header = |name: &str| {
            let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            found.map(|header| header.value.trim_ascii())
        };
        let is = |name, value: &[u8]| header(name).is_some_and(|found| found.eq_ignore_ascii_case(value));
        let body = match (header("transfer-encoding"), header("content-length")) {
            (Some(coding), _) if coding.eq_ignore_ascii_case(b"chunked") => Body::Chunked(Chunked::default()),
            (Some(_), _) => return Err(Refusal::Malformed),
            (None, None) => Body::Length(0),
            (None, Some(len)) => {
                let len = std::str::from_utf8(len).ok().and_then(|len| len.parse().ok());
                Body::Length(len.ok_or(Refusal::Malformed)?)
            }
        };
        let method = request.method.unwrap_or_default();
        Ok(Request {
            route: route(method, request.path.unwrap_or_default()),
            body,
            expects_continue: is("expect", b"100-continue"),
            close: is("connection", b"close")
                || (request.version == Some(0) && !is("connection", b"keep-alive")),
        })
    }
}

fn route(method: &str, path: &str) -> Route {
    let path = path.split('?').next().unwrap_or_default();
    match (method, path.strip_prefix(PREFIX)) {
        ("GET", Some("invocation/next")) => Route::Next,
        ("GET", Some("restore/next")) => Route::RestoreNext,
        ("POST", Some("init/error")) => Route::InitError,
        ("POST", Some("restore/error")) => Route::RestoreError,
        ("POST", Some(path)) => answer_route(path).unwrap_or(Route::Unknown),
        _ => Route::Unknown,
    }
}

fn answer_route(path: &str) -> Option<Route> {
    let (id, what) = path.strip_prefix("invocation/")?.split_once('/')?;
    let id = parse_id(id);
    match what {
        "response" => Some(id.map_or(Route::WrongId, Route::Response)),
        "error" => Some(id.map_or(Route::WrongId, Route::Error)),
        _ => None,
    }
}

/// What is left of a request's body.
#[derive(Debug)]
pub enum Body {
    Length(u64),
    Chunked(Chunked),
}

impl Body {
    /// The next piece, taken off `input`; `None` when that is used up or the body has ended.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, ChunkedError> {
        let left = match self {
            Body::Chunked(chunked) => return chunked.next(input),
            Body::Length(left) => left,
        };
        let len = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
        let (piece, rest) = input.split_at(len);
        *input = rest;
        *left = left.saturating_sub(u64::try_from(len).unwrap_or(u64::MAX));
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    pub fn is_complete(&self) -> bool {
        match self {
            Body::Length(left) => *left == 0,
            Body::Chunked(chunked) => chunked.is_complete(),
        }
    }

    /// Whether a trailer says that the answer turned into an error.
    pub fn ended_in_error(&self) -> bool {
        matches!(self, Body::Chunked(chunked) if chunked.has_trailer(ERROR_TRAILER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00000000-0000-0000-0000-000000000007";

    fn parse(head: &str) -> Request {
        Request::parse(head.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn every_route_is_told() {
        let mut id = [0; 16];
        id[15] = 7;
        for (line, expected) in [
            ("GET /2018-06-01/runtime/invocation/next", Route::Next),
            ("GET /2018-06-01/runtime/restore/next", Route::RestoreNext),
            (&format!("POST /2018-06-01/runtime/invocation/{ID}/response"), Route::Response(id)),
            (&format!("POST /2018-06-01/runtime/invocation/{ID}/error"), Route::Error(id)),
            ("POST /2018-06-01/runtime/invocation/7/error", Route::WrongId),
            ("POST /2018-06-01/runtime/init/error", Route::InitError),
            ("POST /2018-06-01/runtime/restore/error", Route::RestoreError),
            ("POST /2018-06-01/runtime/invocation/next", Route::Unknown),
            ("GET /2015-03-31/functions", Route::Unknown),
        ] {
            assert_eq!(parse(&format!("{line} HTTP/1.1\r\n\r\n")).route, expected, "{line}");
        }
    }

    #[test]
    fn the_body_is_as_long_as_the_head_says() {
        let request = parse("POST / HTTP/1.1\r\ncontent-length: 3\r\nExpect: 100-continue\r\n\r\n");
        assert!(request.expects_continue && !request.close && !request.body.is_complete());
        let mut body = request.body;
        let mut input: &[u8] = b"abcd";
        assert_eq!(body.next(&mut input), Ok(Some(&b"abc"[..])));
        assert!(body.is_complete() && input == b"d");
        let request = parse("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
        assert!(request.close && matches!(request.body, Body::Chunked(_)));
        assert!(parse("GET / HTTP/1.0\r\n\r\n").close);
    }

    #[test]
    fn a_trailer_makes_an_answer_an_error() {
        let mut body = Body::Chunked(Chunked::default());
        let mut input: &[u8] = b"1\r\nx\r\n0\r\nlambda-runtime-function-error-type: Oops\r\n\r\n";
        while body.next(&mut input).unwrap().is_some() {}
        assert!(body.is_complete() && body.ended_in_error());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for (head, refusal) in [
            ("nonsense\r\n\r\n", Refusal::Malformed),
            ("POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", Refusal::Malformed),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", Refusal::Malformed),
            (&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65)), Refusal::TooLong),
            (&format!("GET / HTTP/1.1\r\na: {}", "b".repeat(HEAD_MAX)), Refusal::TooLong),
        ] {
            assert_eq!(Request::parse(head.as_bytes()).err(), Some(refusal));
        }
        assert!(Request::parse(b"GET / HTTP/1.1\r\n").unwrap().is_none());
    }
}
