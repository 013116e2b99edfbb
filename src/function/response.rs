//! HTTP/1.x responses, read as they arrive (RFC 9112).

use guest_protocol::{Chunked, ChunkedError};

/// Longest head of a response, bytes.
const HEAD_MAX: usize = 64 << 10;

/// Why a response cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// The status line is none.
    #[error("It does not begin with the status line of HTTP/1.0 or HTTP/1.1")]
    StatusLine,
    /// A header line is none.
    #[error("A line of its head is not a header")]
    Header,
    /// The head is too long.
    #[error("Its head is longer than {HEAD_MAX} bytes")]
    HeadTooLong,
    /// The length is not a number, or two lengths differ.
    #[error("Its length cannot be told")]
    Length,
    /// The body is not chunked as it says.
    #[error("Its body is not chunked as it says")]
    Chunked(#[from] ChunkedError),
    /// The connection ended early.
    #[error("It was cut off: the function closed the connection within it")]
    CutOff,
}

/// What a response consists of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Head { status: u16, headers: Vec<(String, String)> },
    Body(Vec<u8>),
}

#[derive(Debug)]
enum State {
    Head(Vec<u8>),
    Length(u64),
    Chunked(Chunked),
    UntilEnd,
    Complete,
}

/// Reads one response.
#[derive(Debug)]
pub(super) struct Response {
    state: State,
    answers_head: bool,
    status: u16,
}

impl Response {
    /// The response to a request with `method`.
    pub(super) fn to(method: &str) -> Self {
        Response { state: State::Head(Vec::new()), answers_head: method == "HEAD", status: 0 }
    }

    /// Takes the next bytes. What comes behind the response's end is ignored.
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        take: &mut impl FnMut(Piece),
    ) -> Result<(), ResponseError> {
        while !bytes.is_empty() && !self.is_complete() {
            match &mut self.state {
                State::Head(head) => {
                    let Some(end) = fill_head(head, &mut bytes)? else { return Ok(()) };
                    let head = std::mem::take(head);
                    self.head(head.get(..end).unwrap_or_default(), take)?;
                }
                State::Length(left) => {
                    let len = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    let (body, rest) = bytes.split_at(len);
                    bytes = rest;
                    *left -= u64::try_from(len).unwrap_or(*left);
                    take(Piece::Body(body.to_vec()));
                    if *left == 0 {
                        self.state = State::Complete;
                    }
                }
                State::Chunked(chunked) => {
                    while let Some(body) = chunked.next(&mut bytes)? {
                        take(Piece::Body(body.to_vec()));
                    }
                    if chunked.is_complete() {
                        self.state = State::Complete;
                    }
                }
                State::UntilEnd => take(Piece::Body(std::mem::take(&mut bytes).to_vec())),
                State::Complete => {}
            }
        }
        Ok(())
    }

    /// Notes that the function has closed the connection.
    pub(super) fn end(&mut self) -> Result<(), ResponseError> {
        match self.state {
            State::Complete | State::UntilEnd => {
                self.state = State::Complete;
                Ok(())
            }
            State::Head(_) | State::Length(_) | State::Chunked(_) => Err(ResponseError::CutOff),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        matches!(self.state, State::Complete)
    }

    /// 0 before the head.
    pub(super) fn status(&self) -> u16 {
        self.status
    }

    fn head(&mut self, head: &[u8], take: &mut impl FnMut(Piece)) -> Result<(), ResponseError> {
        let Head { status, headers } = Head::parse(head)?;
        // An interim response (RFC 9110, section 15.2): the final one follows.
        if (100..200).contains(&status) && status != 101 {
            self.state = State::Head(Vec::new());
            return Ok(());
        }
        self.status = status;
        self.state = body_of(status, &headers, self.answers_head)?;
        take(Piece::Head { status, headers });
        Ok(())
    }
}

/// Moves bytes until the head is whole, and returns where it ends. Whatever follows stays in `bytes`.
fn fill_head(head: &mut Vec<u8>, bytes: &mut &[u8]) -> Result<Option<usize>, ResponseError> {
    for (index, byte) in bytes.iter().enumerate() {
        head.push(*byte);
        if head.ends_with(b"\r\n\r\n") || head.ends_with(b"\n\n") {
            *bytes = bytes.get(index + 1..).unwrap_or_default();
            return Ok(Some(head.len()));
        }
        if head.len() > HEAD_MAX {
            return Err(ResponseError::HeadTooLong);
        }
    }
    *bytes = &[];
    Ok(None)
}

struct Head {
    status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    fn parse(head: &[u8]) -> Result<Self, ResponseError> {
        let mut lines =
            head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let status = status(lines.next().unwrap_or_default()).ok_or(ResponseError::StatusLine)?;
        let headers = lines
            .filter(|line| !line.is_empty())
            .map(header)
            .collect::<Option<_>>()
            .ok_or(ResponseError::Header)?;
        Ok(Head { status, headers })
    }
}

fn status(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line).ok()?;
    let rest = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "))?;
    let code = rest.get(..3)?;
    let ends = rest.get(3..).is_some_and(|reason| reason.is_empty() || reason.starts_with(' '));
    let digits = code.bytes().all(|byte| byte.is_ascii_digit());
    code.parse().ok().filter(|code| ends && digits && (100..1000).contains(code))
}

fn header(line: &[u8]) -> Option<(String, String)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at_checked(colon)?;
    let name =
        std::str::from_utf8(name).ok().filter(|name| !name.is_empty() && !name.contains([' ', '\t']))?;
    let value = String::from_utf8_lossy(value.get(1..)?);
    Some((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}

/// How long the body is (RFC 9112, section 6.3).
fn body_of(status: u16, headers: &[(String, String)], answers_head: bool) -> Result<State, ResponseError> {
    if answers_head || matches!(status, 204 | 304) {
        return Ok(State::Complete);
    }
    let values = |wanted: &'static str| {
        headers
            .iter()
            .filter(move |(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.as_str())
    };
    if let Some(coding) = values("transfer-encoding").next_back() {
        let last = coding.rsplit(',').next().unwrap_or_default().trim();
        let chunked = last.eq_ignore_ascii_case("chunked");
        return Ok(if chunked { State::Chunked(Chunked::default()) } else { State::UntilEnd });
    }
    let mut lengths =
        values("content-length").map(|value| value.parse::<u64>().map_err(|_| ResponseError::Length));
    let Some(first) = lengths.next().transpose()? else { return Ok(State::UntilEnd) };
    for other in lengths {
        if other? != first {
            return Err(ResponseError::Length);
        }
    }
    Ok(if first == 0 { State::Complete } else { State::Length(first) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Status, headers, body, and whether the end is known without the connection's.
    fn read(response: &[u8], step: usize) -> Result<(u16, usize, Vec<u8>, bool), ResponseError> {
        let mut parser = Response::to("GET");
        let (mut count, mut content) = (0, Vec::new());
        for piece in response.chunks(step) {
            parser.push(piece, &mut |piece| match piece {
                Piece::Head { headers, .. } => count = headers.len(),
                Piece::Body(bytes) => content.extend(bytes),
            })?;
        }
        let complete = parser.is_complete();
        parser.end()?;
        Ok((parser.status(), count, content, complete))
    }

    #[test]
    fn a_body_ends_where_its_head_says() {
        for (response, content, known) in [
            (&b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc"[..], &b"abc"[..], true),
            (b"HTTP/1.1 200\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc", true),
            (b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nabc", b"abc", false),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na", b"a", true),
            (b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", b"", true),
            (b"HTTP/1.1 200 OK\nContent-Length: 1\n\nabc", b"a", true),
        ] {
            for step in 1..response.len() + 1 {
                let (_, _, body, complete) = read(response, step).unwrap();
                assert_eq!((&body[..], complete), (content, known), "{}", response.escape_ascii());
            }
        }
    }

    #[test]
    fn what_is_no_response_is_refused() {
        for (response, error) in [
            (&b"hello\r\n\r\n"[..], ResponseError::StatusLine),
            (b"HTTP/2 200 OK\r\n\r\n", ResponseError::StatusLine),
            (b"HTTP/1.1 2000\r\n\r\n", ResponseError::StatusLine),
            (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", ResponseError::Header),
            (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ResponseError::Length),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", ResponseError::Length),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", ResponseError::CutOff),
            (b"HTTP/1.1 200 OK\r\n", ResponseError::CutOff),
        ] {
            assert_eq!(read(response, 7).err(), Some(error), "{}", response.escape_ascii());
        }
        let endless = [b"HTTP/1.1 200 OK\r\n".to_vec(), vec![b'a'; HEAD_MAX]].concat();
        assert_eq!(read(&endless, 1000).err(), Some(ResponseError::HeadTooLong));
    }

    #[test]
    fn the_answer_to_a_head_request_has_no_body() {
        let mut parser = Response::to("HEAD");
        parser.push(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &mut |_| {}).unwrap();
        assert!(parser.is_complete());
    }

    proptest! {
        #[test]
        fn random_bytes_do_no_harm(
            head in "(HTTP/1[.]1 200 OK\r\n)?(Content-Length: [0-9]{1,25}\r\n|Transfer-Encoding: chunked\r\n)?\r\n",
            rest in proptest::collection::vec(any::<u8>(), 0..500), step in 1usize..50,
        ) {
            let bytes = [head.into_bytes(), rest].concat();
            if let Ok((status, _, content, _)) = read(&bytes, step) {
                prop_assert!(status >= 100 && content.len() <= bytes.len());
            }
        }
    }
}
