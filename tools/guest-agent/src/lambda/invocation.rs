//! The answer to `GET invocation/next`, put together without formatting machinery in a buffer that is there before the freeze.

use guest_protocol::EventHead;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The invocations of one function.
#[derive(Debug)]
pub struct Invocation {
    /// Status line and the headers that are the same every time.
    constant: Vec<u8>,
    buffer: Vec<u8>,
}

impl Invocation {
    /// For the function of this name.
    pub fn of(region: &str, function: &str) -> Self {
        let constant = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Runtime-Invoked-Function-Arn: \
             arn:aws:lambda:{region}:000000000000:function:{function}:1\r\n"
        );
        let buffer = Vec::with_capacity(constant.len() + 512);
        Invocation { constant: constant.into_bytes(), buffer }
    }

    /// The head for an event.
    pub fn head(&mut self, event: &EventHead) -> &[u8] {
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.extend_from_slice(&self.constant);
        buffer.extend_from_slice(b"Lambda-Runtime-Aws-Request-Id: ");
        push_uuid(buffer, &event.request_id);
        buffer.extend_from_slice(b"\r\nLambda-Runtime-Deadline-Ms: ");
        push_decimal(buffer, event.deadline_unix_ms);
        buffer.extend_from_slice(b"\r\nLambda-Runtime-Trace-Id: Root=1-");
        let (time, rest) = event.request_id.split_at(4);
        push_hex(buffer, time);
        buffer.push(b'-');
        push_hex(buffer, rest);
        buffer.extend_from_slice(b";Parent=");
        push_hex(buffer, rest.get(..8).unwrap_or_default());
        buffer.extend_from_slice(b";Sampled=0\r\nContent-Length: ");
        push_decimal(buffer, event.total);
        buffer.extend_from_slice(b"\r\n\r\n");
        buffer
    }
}

fn push_hex(to: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            to.extend(HEX.get(usize::from(digit)));
        }
    }
}

fn push_decimal(to: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    to.extend_from_slice(digits.get(digits.len() - used..).unwrap_or_default());
}

fn push_uuid(to: &mut Vec<u8>, id: &[u8; 16]) {
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            to.push(b'-');
        }
        push_hex(to, &[*byte]);
    }
}

/// A request id as [`Invocation::head`] writes it.
pub fn parse_id(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let mut id = [0; 16];
    if text.len() != 36 || digits.len() != 2 * id.len() {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
        let pair =
            std::str::from_utf8(pair).ok().filter(|pair| pair.bytes().all(|c| c.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255];

    #[test]
    fn the_head_names_request_deadline_function_and_trace() {
        let mut invocation = Invocation::of("eu-west-1", "hello");
        let head = EventHead { total: 12, deadline_unix_ms: 1_700_000_000_123, request_id: ID };
        let expected = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
            Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:eu-west-1:000000000000:function:hello:1\r\n\
            Lambda-Runtime-Aws-Request-Id: 00010203-0405-0607-0809-0a0b0c0d0eff\r\n\
            Lambda-Runtime-Deadline-Ms: 1700000000123\r\n\
            Lambda-Runtime-Trace-Id: Root=1-00010203-0405060708090a0b0c0d0eff;Parent=0405060708090a0b;Sampled=0\r\n\
            Content-Length: 12\r\n\r\n";
        for _ in 0..2 {
            assert_eq!(String::from_utf8_lossy(invocation.head(&head)), expected);
        }
    }

    #[test]
    fn numbers_are_written_whole() {
        for number in [0, 9, 10, u64::MAX] {
            let mut text = Vec::new();
            push_decimal(&mut text, number);
            assert_eq!(text, number.to_string().into_bytes());
        }
    }

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let mut text = Vec::new();
        push_uuid(&mut text, &ID);
        let text = String::from_utf8(text).unwrap();
        assert_eq!(parse_id(&text), Some(ID));
        assert_eq!(parse_id(&text.to_uppercase()), Some(ID));
        for bad in ["", &text[1..], &text.replace('a', "+"), &text.replace('-', "")] {
            assert_eq!(parse_id(bad), None, "{bad}");
        }
    }
}
