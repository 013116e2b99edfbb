//! As much of HTTP/1.1 (RFC 9112) as the daemon and its client speak: requests with a length, answers with one or in chunks.

use std::io::{self, BufRead, Read, Write};

/// Longest head of a message, bytes.
const HEAD_MAX: usize = 64 << 10;
/// Most headers of a message.
const HEADERS_MAX: usize = 128;

/// Why there is no request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The connection failed.
    #[error("The connection broke off")]
    Io(#[from] io::Error),
    /// It is not HTTP/1.1 as spoken here.
    #[error("The request is not understood: {why}")]
    Bad {
        /// Why.
        why: String,
        /// The status that says so.
        status: u16,
    },
}

fn bad(status: u16, why: impl ToString) -> RequestError {
    RequestError::Bad { why: why.to_string(), status }
}

/// A request's or a response's first lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The method, of a request.
    pub method: String,
    /// The path and query, of a request.
    pub path: String,
    /// The status, of a response.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The first header of this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Every header of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Reads a request's; `None` when the connection ended before it.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn request(from: &mut impl BufRead) -> Result<Option<Head>, RequestError> {
        let Some(bytes) = lines(from)? else { return Ok(None) };
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        is_whole(request.parse(&bytes), bytes.len())?;
        // Of an older version's rules, as that its connections end and that it knows no chunks, none is kept here.
        if request.version != Some(1) {
            return Err(bad(400, "its version is not HTTP/1.1"));
        }
        let method = request.method.unwrap_or_default().to_owned();
        let path = request.path.unwrap_or_default().to_owned();
        Ok(Some(Head { method, path, status: 0, headers: owned(request.headers)? }))
    }

    /// Reads a response's.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn response(from: &mut impl BufRead) -> Result<Head, RequestError> {
        let bytes = lines(from)?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        is_whole(response.parse(&bytes), bytes.len())?;
        let status = response.code.unwrap_or_default();
        Ok(Head { method: String::new(), path: String::new(), status, headers: owned(response.headers)? })
    }

    /// How long a body the message announces, bytes.
    ///
    /// # Errors
    /// It is longer than `max`, or its length is not told or no number.
    pub fn body_length(&self, max: u64) -> Result<u64, RequestError> {
        if self.header("transfer-encoding").is_some() {
            return Err(bad(411, "a body needs a Content-Length"));
        }
        let mut lengths = self.all("content-length");
        let Some(length) = lengths.next() else { return Ok(0) };
        // A sign, which Rust would read, is a length to us only.
        let digits = Some(length).filter(|length| length.bytes().all(|byte| byte.is_ascii_digit()));
        let length: Option<u64> = digits.and_then(|digits| digits.parse().ok());
        let length = length.ok_or_else(|| bad(400, "Content-Length is no number"))?;
        if lengths.next().is_some() {
            return Err(bad(400, "there are two Content-Lengths"));
        }
        if length > max {
            return Err(bad(413, format!("the body has {length} bytes, more than the limit of {max}")));
        }
        Ok(length)
    }

    /// Reads the body that the message announces.
    ///
    /// # Errors
    /// See [`body_length`](Self::body_length), or the connection failed.
    pub fn body(&self, from: &mut impl Read, max: u64) -> Result<Vec<u8>, RequestError> {
        let length = self.body_length(max)?;
        let mut body = vec![0; usize::try_from(length).map_err(|_| bad(413, "the body is too long"))?];
        from.read_exact(&mut body)?;
        Ok(body)
    }

    /// Whether the other side wants another message on this connection.
    pub fn keeps_alive(&self) -> bool {
        let mut options = self.all("connection").flat_map(|value| value.split(','));
        !options.any(|option| option.trim().eq_ignore_ascii_case("close"))
    }
}

/// The parser ends a head where [`lines`] did. Did it not, what is behind the head would be part of it here, and a request of
/// somebody else's to a proxy that sends us several callers' over one connection.
fn is_whole(parsed: httparse::Result<usize>, length: usize) -> Result<(), RequestError> {
    match parsed {
        Ok(httparse::Status::Complete(end)) if end == length => Ok(()),
        Ok(httparse::Status::Complete(_)) => Err(bad(400, "its head has no clear end")),
        Ok(httparse::Status::Partial) => Err(bad(400, "it ends within its head")),
        Err(e) => Err(bad(400, e)),
    }
}

/// The lines of a head with the empty one behind them; `None` at the end of the stream. Each has to end with CR LF: about what a
/// lone LF is, recipients do not agree.
fn lines(from: &mut impl BufRead) -> Result<Option<Vec<u8>>, RequestError> {
    let mut bytes = Vec::new();
    loop {
        let start = bytes.len();
        let left = u64::try_from(HEAD_MAX.saturating_sub(start)).unwrap_or(0);
        match from.by_ref().take(left).read_until(b'\n', &mut bytes)? {
            0 if bytes.is_empty() => return Ok(None),
            0 if bytes.len() >= HEAD_MAX => return Err(bad(431, "its head is too long")),
            0 => return Err(bad(400, "it ends within its head")),
            _ => {}
        }
        match bytes.get(start..).unwrap_or_default() {
            // Before its first line an empty one may stand (RFC 9112, 2.2).
            b"\r\n" if start > 0 => return Ok(Some(bytes)),
            line if line.ends_with(b"\n") && !line.ends_with(b"\r\n") => {
                return Err(bad(400, "a line of its head does not end with CR LF"));
            }
            _ => {}
        }
    }
}

fn owned(headers: &[httparse::Header<'_>]) -> Result<Vec<(String, String)>, RequestError> {
    let owned = headers.iter().map(|header| {
        let value = std::str::from_utf8(header.value).map_err(|_| bad(400, "a header is not UTF-8"))?;
        Ok((header.name.to_ascii_lowercase(), value.trim().to_owned()))
    });
    owned.collect()
}

/// Bodies up to this many bytes are copied, to be written together with their head.
const SHORT: usize = 16 << 10;

/// Writes a response with a body of known length.
///
/// # Errors
/// Nobody reads it.
pub fn respond(
    to: &mut impl Write,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
    keep_alive: bool,
) -> io::Result<()> {
    let mut bytes = head(status, headers, keep_alive);
    // Where there is no content, no length of it may be told (RFC 9110, 8.6).
    if status != 204 {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    if body.len() > SHORT {
        to.write_all(&bytes)?;
        return to.write_all(body);
    }
    bytes.extend_from_slice(body);
    to.write_all(&bytes)
}

/// Begins a response in chunks.
///
/// # Errors
/// Nobody reads it.
pub fn begin_chunks(
    to: &mut impl Write,
    status: u16,
    headers: &[(&str, String)],
    keep_alive: bool,
) -> io::Result<()> {
    let mut bytes = head(status, headers, keep_alive);
    bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
    to.write_all(&bytes)
}

/// Writes a chunk; an empty one is none.
///
/// # Errors
/// Nobody reads it.
pub fn chunk(to: &mut impl Write, content: &[u8]) -> io::Result<()> {
    if content.is_empty() {
        return Ok(());
    }
    let bytes = [format!("{:x}\r\n", content.len()).as_bytes(), content, b"\r\n"].concat();
    to.write_all(&bytes)
}

/// Ends a response in chunks.
///
/// # Errors
/// Nobody reads it.
pub fn end_chunks(to: &mut impl Write) -> io::Result<()> {
    to.write_all(b"0\r\n\r\n")
}

fn head(status: u16, headers: &[(&str, String)], keep_alive: bool) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    for (name, value) in headers {
        // What could end a header early is not passed on.
        let value: String = value.chars().filter(|c| !c.is_control()).collect();
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !keep_alive {
        text.push_str("Connection: close\r\n");
    }
    text.into_bytes()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        411 => "Length Required",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "",
    }
}

/// A body in chunks, as it is read.
#[derive(Debug)]
pub struct Chunks<R> {
    from: R,
    /// Bytes left of the chunk that is read.
    left: u64,
    ended: bool,
}

impl<R: BufRead> Chunks<R> {
    /// The body behind a head that was read from `from`.
    pub fn new(from: R) -> Self {
        Chunks { from, left: 0, ended: false }
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let mut line = Vec::new();
        self.from.by_ref().take(32).read_until(b'\n', &mut line)?;
        let text = std::str::from_utf8(&line).unwrap_or_default().trim();
        let length = u64::from_str_radix(text, 16);
        self.left = length.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "no length of a chunk"))?;
        self.ended = self.left == 0;
        Ok(())
    }
}

impl<R: BufRead> Read for Chunks<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.ended || into.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            self.next_chunk()?;
            if self.ended {
                return Ok(0);
            }
        }
        let got = self.from.by_ref().take(self.left).read(into)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= got as u64;
        if self.left == 0 {
            let mut end = [0; 2];
            self.from.read_exact(&mut end)?;
        }
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    fn request(text: &str) -> Result<Option<Head>, RequestError> {
        Head::request(&mut text.as_bytes())
    }

    fn status_of(error: &RequestError) -> u16 {
        match error {
            RequestError::Bad { status, .. } => *status,
            RequestError::Io(_) => 0,
        }
    }

    #[test]
    fn a_request_is_read_with_its_body() {
        let text = "POST /functions/a/invoke HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello, next";
        let mut from = text.as_bytes();
        let head = Head::request(&mut from).unwrap().unwrap();
        assert_eq!((head.method.as_str(), head.path.as_str()), ("POST", "/functions/a/invoke"));
        assert_eq!(head.body(&mut from, 10).unwrap(), b"hello");
        assert!(head.keeps_alive());
        assert_eq!(status_of(&head.body(&mut from, 4).unwrap_err()), 413);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert!(request("").unwrap().is_none());
        for bad in ["GET", "\r\n\r\n\r\n\r\n", "GET / HTTP/3\r\n\r\n", "GET / HTTP/1.1\r\na b: c\r\n\r\n"] {
            assert_eq!(status_of(&request(bad).unwrap_err()), 400, "{bad:?}");
        }
        let long = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(HEAD_MAX));
        assert_eq!(status_of(&request(&long).unwrap_err()), 431);
        let twice =
            request("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n").unwrap().unwrap();
        assert_eq!(status_of(&twice.body(&mut &b"ab"[..], 9).unwrap_err()), 400);
        let chunked = request("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap().unwrap();
        assert_eq!(status_of(&chunked.body(&mut &b""[..], 9).unwrap_err()), 411);
    }

    #[test]
    fn a_head_ends_where_everybody_sees_it_end() {
        let next = "GET /next HTTP/1.1\r\n\r\n";
        for head in [
            "GET / HTTP/1.1\r\nA: b\n\r\n",
            "GET / HTTP/1.1\r\nA: b\n\n",
            "GET / HTTP/1.1\r\nA: b\r\n\n",
            "GET / HTTP/1.1\nA: b\r\n\r\n",
            "GET / HTTP/1.1\n\r\n",
            "\nGET / HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(status_of(&request(&format!("{head}{next}")).unwrap_err()), 400, "{head:?}");
        }
        let mut from = &b"\r\nGET / HTTP/1.1\r\nA: b\r\n\r\nGET /next HTTP/1.1\r\n\r\n"[..];
        assert_eq!(Head::request(&mut from).unwrap().unwrap().header("a"), Some("b"));
        assert_eq!(from, next.as_bytes());
    }

    #[test]
    fn only_digits_are_a_length() {
        for length in ["+5", "-5", "5 5", "0x5", "5,5", "", "18446744073709551616"] {
            let head =
                request(&format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n")).unwrap().unwrap();
            assert_eq!(status_of(&head.body(&mut &b"hello"[..], 9).unwrap_err()), 400, "{length:?}");
        }
    }

    #[test]
    fn a_connection_ends_where_one_of_its_options_says_so() {
        for (options, keeps) in
            [("close", false), ("Close", false), ("x, close", false), ("close ,x", false), ("closed", true)]
        {
            let head = request(&format!("GET / HTTP/1.1\r\nConnection: {options}\r\n\r\n")).unwrap().unwrap();
            assert_eq!(head.keeps_alive(), keeps, "{options:?}");
        }
        let twice = "GET / HTTP/1.1\r\nConnection: x\r\nConnection: close\r\n\r\n";
        assert!(!request(twice).unwrap().unwrap().keeps_alive());
    }

    #[test]
    fn an_older_version_is_refused() {
        let old = request("GET / HTTP/1.0\r\n\r\n").unwrap_err();
        assert_eq!(status_of(&old), 400);
        assert!(old.to_string().contains("not HTTP/1.1"), "{old}");
    }

    #[test]
    fn no_content_has_no_length() {
        let mut bytes = Vec::new();
        respond(&mut bytes, 204, &[], &[], true).unwrap();
        assert_eq!(bytes, b"HTTP/1.1 204 No Content\r\n\r\n");
    }

    #[test]
    fn a_header_cannot_begin_another() {
        let mut bytes = Vec::new();
        respond(&mut bytes, 200, &[("A", "b\r\nC: d".to_owned())], b"x", false).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text, "HTTP/1.1 200 OK\r\nA: bC: d\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx");
    }

    #[test]
    fn chunks_come_back_as_they_went() {
        let mut bytes = Vec::new();
        begin_chunks(&mut bytes, 200, &[], true).unwrap();
        chunk(&mut bytes, b"one").unwrap();
        chunk(&mut bytes, &[7; 300]).unwrap();
        end_chunks(&mut bytes).unwrap();
        let mut from = BufReader::new(&bytes[..]);
        assert_eq!(Head::response(&mut from).unwrap().status, 200);
        let mut body = Vec::new();
        Chunks::new(from).read_to_end(&mut body).unwrap();
        assert_eq!(body, [&b"one"[..], &[7; 300]].concat());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some(head)) = Head::request(&mut &bytes[..]) {
                head.body(&mut &bytes[..], 100).ok();
            }
            Head::response(&mut &bytes[..]).ok();
            std::io::copy(&mut Chunks::new(BufReader::new(&bytes[..])), &mut std::io::sink()).ok();
        }
    }
}
