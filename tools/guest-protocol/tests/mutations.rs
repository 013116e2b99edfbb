//! The corpus of the fuzz targets and 100 000 mutations of it through each decoder, on stable and in every test run: no panic, no more
//! memory than the input justifies, and what is accepted encodes to itself again.

#[path = "../../../fuzz/counting.rs"]
mod counting;
#[path = "../../../fuzz/guest_protocol.rs"]
mod entry;
#[path = "../../../fuzz/mutate.rs"]
mod mutate;

use std::path::Path;

/// What a decoder may hold at once: what has arrived, a frame of it encoded again, and the trailers of a chunked body.
const fn allowed(input: usize) -> usize {
    (16 << 10) + 8 * input
}

fn run_all(name: &str, entry: fn(&[u8]) -> Option<bool>) {
    counting::run_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."), name, allowed, entry);
}

#[test]
fn no_mutation_of_what_an_agent_says_breaks_its_decoder() {
    run_all("to_host", entry::to_host);
}

#[test]
fn no_mutation_of_what_a_host_says_breaks_its_decoder() {
    run_all("to_guest", entry::to_guest);
}

#[test]
fn no_mutation_of_a_chunked_body_breaks_its_decoder() {
    run_all("chunked", entry::chunked);
}
