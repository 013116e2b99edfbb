//! The chunked transfer coding (RFC 9112, section 7.1), which both sides read: the host in answers of `http` functions, the
//! agent in answers of `lambda` functions.

/// Longest trailer section that is kept, bytes; also the longest chunk extension that is skipped.
const TRAILERS_MAX: usize = 8192;

/// Why a body is not chunked as it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkedError {
    /// A chunk's size is not a hexadecimal number of at most 64 bits.
    #[error("A chunk does not begin with its size")]
    Size,
    /// A chunk or a line does not end in CR LF.
    #[error("A chunk does not end where its size says")]
    End,
    /// Extensions or trailers are too long.
    #[error("The extensions or trailers of a chunked body are longer than {TRAILERS_MAX} bytes")]
    TooLong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size { size: u64, digits: u8 },
    Extension { size: u64, len: usize },
    SizeEnd { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailers,
    End,
}

/// Takes a chunked body apart as it arrives.
#[derive(Debug)]
pub struct Chunked {
    state: State,
    trailers: Vec<u8>,
}

impl Default for Chunked {
    fn default() -> Self {
        Chunked { state: State::Size { size: 0, digits: 0 }, trailers: Vec::new() }
    }
}

impl Chunked {
    /// The next piece of content, taken off `input`; `None` when `input` is used up or the body has ended.
    ///
    /// # Errors
    /// See [`ChunkedError`].
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, ChunkedError> {
        loop {
            if let State::Data { left } = self.state
                && !input.is_empty()
            {
                return Ok(Some(self.data(left, input)));
            }
            if self.state == State::End {
                return Ok(None);
            }
            let Some((byte, rest)) = input.split_first() else { return Ok(None) };
            *input = rest;
            self.state = self.step(*byte)?;
        }
    }

    fn data<'a>(&mut self, left: u64, input: &mut &'a [u8]) -> &'a [u8] {
        let whole = *input;
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(whole.len());
        let (piece, rest) = whole.split_at(len);
        *input = rest;
        let left = left.saturating_sub(u64::try_from(len).unwrap_or(u64::MAX));
        self.state = if left == 0 { State::DataCr } else { State::Data { left } };
        piece
    }

    fn step(&mut self, byte: u8) -> Result<State, ChunkedError> {
        match (self.state, byte) {
            (State::Size { size, digits: 1.. }, b'\r') => Ok(State::SizeEnd { size }),
            (State::Size { size, digits: 1.. }, b';' | b' ' | b'\t') => Ok(State::Extension { size, len: 0 }),
            (State::Size { size, digits }, byte) => digit(size, digits, byte),
            (State::Extension { size, .. }, b'\r') => Ok(State::SizeEnd { size }),
            (State::Extension { size, len }, _) if len < TRAILERS_MAX => {
                Ok(State::Extension { size, len: len + 1 })
            }
            (State::Extension { .. }, _) => Err(ChunkedError::TooLong),
            (State::SizeEnd { size: 0 }, b'\n') => Ok(State::Trailers),
            (State::SizeEnd { size }, b'\n') => Ok(State::Data { left: size }),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { size: 0, digits: 0 }),
            (State::Trailers, byte) => self.trailer(byte),
            _ => Err(ChunkedError::End),
        }
    }

    fn trailer(&mut self, byte: u8) -> Result<State, ChunkedError> {
        if self.trailers.len() >= TRAILERS_MAX {
            return Err(ChunkedError::TooLong);
        }
        self.trailers.push(byte);
        let over = self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n");
        Ok(if over { State::End } else { State::Trailers })
    }

    /// Whether the body has ended.
    pub fn is_complete(&self) -> bool {
        self.state == State::End
    }

    /// Whether the body ended with a trailer of this name.
    pub fn has_trailer(&self, name: &str) -> bool {
        self.trailers.split(|byte| *byte == b'\n').any(|line| {
            line.split_at_checked(name.len()).is_some_and(|(head, rest)| {
                head.eq_ignore_ascii_case(name.as_bytes()) && rest.starts_with(b":")
            })
        })
    }
}

fn digit(size: u64, digits: u8, byte: u8) -> Result<State, ChunkedError> {
    let value = char::from(byte).to_digit(16).ok_or(ChunkedError::Size)?;
    if digits >= 16 {
        return Err(ChunkedError::Size);
    }
    Ok(State::Size { size: size << 4 | u64::from(value), digits: digits + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(body: &[u8], step: usize) -> Result<(Vec<u8>, Chunked), ChunkedError> {
        let mut chunked = Chunked::default();
        let mut content = Vec::new();
        for mut piece in body.chunks(step) {
            while let Some(bytes) = chunked.next(&mut piece)? {
                content.extend_from_slice(bytes);
            }
        }
        Ok((content, chunked))
    }

    #[test]
    fn chunks_extensions_and_trailers_are_taken_apart_however_they_arrive() {
        let body = b"4;name=value\r\nWiki\r\n00A\r\n0123456789\r\n0\r\nX-Sum: 7\r\nOther: 1\r\n\r\n";
        for step in 1..body.len() {
            let (content, chunked) = decode(body, step).unwrap();
            assert_eq!(content, b"Wiki0123456789");
            assert!(chunked.is_complete());
            assert!(
                chunked.has_trailer("x-sum") && chunked.has_trailer("Other") && !chunked.has_trailer("x")
            );
        }
    }

    #[test]
    fn what_follows_the_body_is_left_alone() {
        let mut input: &[u8] = b"1\r\na\r\n0\r\n\r\nnext";
        let mut chunked = Chunked::default();
        assert_eq!(chunked.next(&mut input), Ok(Some(&b"a"[..])));
        assert_eq!(chunked.next(&mut input), Ok(None));
        assert_eq!((chunked.is_complete(), input), (true, &b"next"[..]));
    }

    #[test]
    fn a_wrong_size_or_end_is_refused() {
        for (body, error) in [
            (&b"x\r\n"[..], ChunkedError::Size),
            (b"\r\n", ChunkedError::Size),
            (b"00000000000000001\r\n", ChunkedError::Size),
            (b"1\n", ChunkedError::Size),
            (b"1\r\nab\r\n", ChunkedError::End),
            (b"1\r\na\n", ChunkedError::End),
        ] {
            assert_eq!(decode(body, 3).err(), Some(error), "{}", body.escape_ascii());
        }
        let endless = [b"0\r\n".to_vec(), vec![b'a'; TRAILERS_MAX + 1]].concat();
        assert_eq!(decode(&endless, 100).err(), Some(ChunkedError::TooLong));
    }

    #[test]
    fn a_chunk_of_the_largest_size_takes_no_memory() {
        let (content, chunked) = decode(b"ffffffffffffffff\r\nabc", 100).unwrap();
        assert_eq!(content, b"abc");
        assert!(!chunked.is_complete());
    }
}
