//! One entry point per decoder, for the fuzz targets (`fuzz/`) and for the mutation tests below.

use std::io::{BufReader, Read};

pub use snapshot_format::fuzz_entry::{Target, Verdict};

use super::frame::Frame;
use super::http::{Chunks, Head};
use super::job;

/// Longest body that is read, bytes: an input is shorter.
const BODY_MAX: u64 = 64 << 10;

/// Every decoder.
pub const TARGETS: &[Target] =
    &[("frames", frames), ("job", job), ("request", request), ("response", response)];

/// What a shell says, to its end: as the daemon reads it and as a client does.
pub fn frames(bytes: &[u8]) -> Verdict {
    let (mut rest, mut stream) = (bytes, bytes);
    loop {
        let (parsed, read) = (Frame::parse(rest), Frame::read(&mut stream));
        let Ok(Some((frame, len))) = parsed else {
            // The one waits for more where the other misses it.
            return if rest.is_empty() { Verdict::Accepted } else { Verdict::Refused };
        };
        rest = rest.get(len..).unwrap_or_default();
        let same = read.is_ok_and(|read| read.is_some_and(|read| said(&read) == said(&frame)));
        // Nothing at all of an empty piece; of a long one the first is enough.
        let again = frame.to_bytes();
        let is_told =
            Frame::parse(&again).is_ok_and(|again| again.is_none_or(|(again, _)| is_like(&again, &frame)));
        if !same || !is_told {
            return Verdict::Broken;
        }
    }
}

fn said(frame: &Frame) -> String {
    format!("{frame:?}")
}

/// Times in JSON may lose their last bit on each way.
fn is_like(one: &Frame, other: &Frame) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// What the daemon sends a shell.
pub fn job(bytes: &[u8]) -> Verdict {
    match job::parts(&mut &bytes[..], Vec::new()) {
        Ok(received) => {
            let again = serde_json::to_vec(&received.job).ok();
            let again = again.and_then(|text| serde_json::from_slice(&text).ok());
            if again == Some(received.job) { Verdict::Accepted } else { Verdict::Broken }
        }
        Err(_) => Verdict::Refused,
    }
}

/// What a caller asks, with its body. A head ends at its first empty line: what it took beyond that would be another's request.
pub fn request(bytes: &[u8]) -> Verdict {
    let mut from = bytes;
    let Ok(Some(head)) = Head::request(&mut from) else { return Verdict::Refused };
    let read = bytes.get(..bytes.len() - from.len()).unwrap_or_default();
    if !ends_at_its_first_empty_line(read) {
        return Verdict::Broken;
    }
    match head.body(&mut from, BODY_MAX) {
        // Longer than announced is the next request.
        Ok(body) if body.len() <= bytes.len() => Verdict::Accepted,
        Ok(_) => Verdict::Broken,
        Err(_) => Verdict::Refused,
    }
}

fn ends_at_its_first_empty_line(head: &[u8]) -> bool {
    let lines = head.strip_prefix(b"\r\n").unwrap_or(head);
    let is_empty = |line: &[u8]| line == b"\n" || line == b"\r\n";
    let mut lines = lines.split_inclusive(|byte| *byte == b'\n').skip_while(|line| !is_empty(line));
    lines.next() == Some(b"\r\n") && lines.next().is_none()
}

/// What the daemon answers a client, in chunks.
pub fn response(bytes: &[u8]) -> Verdict {
    let mut from = BufReader::new(bytes);
    if Head::response(&mut from).is_err() {
        return Verdict::Refused;
    }
    let mut body = Vec::new();
    match Chunks::new(from).read_to_end(&mut body) {
        Ok(_) if body.len() <= bytes.len() => Verdict::Accepted,
        Ok(_) => Verdict::Broken,
        Err(_) => Verdict::Refused,
    }
}

#[cfg(test)]
#[path = "../../fuzz/counting.rs"]
mod counting;
#[cfg(test)]
#[path = "../../fuzz/mutate.rs"]
mod mutate;

/// The corpus of the fuzz targets and mutations of it through each decoder, on stable and in every test run: no panic, no more memory
/// than the input justifies, and what is accepted is told again.
#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// What a decoder may allocate at once: buffers of streams, the first 64 KiB of what is announced, its own copies, JSON as values
    /// and as text.
    const fn allowed(input: usize) -> usize {
        (96 << 10) + 32 * input
    }

    fn run_all(name: &str) {
        let (_, entry) = TARGETS.iter().find(|target| target.0 == name).unwrap();
        super::counting::run_all(Path::new(env!("CARGO_MANIFEST_DIR")), name, allowed, |input| {
            match entry(input) {
                Verdict::Broken => None,
                verdict => Some(verdict == Verdict::Accepted),
            }
        });
    }

    #[test]
    fn no_mutation_of_frames_breaks_their_decoder() {
        run_all("frames");
    }

    #[test]
    fn no_mutation_of_a_job_breaks_its_decoder() {
        run_all("job");
    }

    #[test]
    fn no_mutation_of_a_request_breaks_its_decoder() {
        run_all("request");
    }

    #[test]
    fn no_mutation_of_a_response_breaks_its_decoder() {
        run_all("response");
    }

    #[test]
    fn every_decoder_is_mutated() {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.0).collect();
        assert_eq!(names, ["frames", "job", "request", "response"]);
    }
}
