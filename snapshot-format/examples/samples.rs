//! Makes the files that tests read: `samples write` the fuzz corpus and the state-only goldens that are not there yet,
//! `samples pack BUNDLE GOLDEN` a golden of a bundle.

use std::io;
use std::path::Path;

use snapshot_format::index::Granule;
use snapshot_format::state::FormatVersion;

#[path = "../tests/support/golden.rs"]
mod golden;
#[path = "../tests/support/mod.rs"]
mod support;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["write"] => write_all(),
        ["pack", bundle, golden] => golden::pack(Path::new(bundle), Path::new(golden)),
        _ => Err(io::Error::other("usage: samples write | samples pack BUNDLE GOLDEN")),
    }
}

fn write_all() -> io::Result<()> {
    let corpus = support::repository().join("fuzz/corpus");
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    for version in FormatVersion::readable() {
        let state = support::state(*version);
        write_new(&goldens.join(version.to_string()).join("state-only/state"), &state)?;
        write_new(&corpus.join("state").join(version.to_string()), &state)?;
        let manifest = support::manifest(*version).to_json().map_err(io::Error::other)?;
        write_new(&corpus.join("manifest").join(version.to_string()), &manifest)?;
    }
    write_new(&corpus.join("index/small-chunks"), &support::index(Granule::MIN))?;
    write_new(&corpus.join("index/large-chunks"), &support::index(Granule::MAX))?;
    write_new(&corpus.join("index/layered"), &support::layered_index())?;
    let working_set = support::working_set().encode().map_err(io::Error::other)?;
    write_new(&corpus.join("working_set/small"), &working_set)
}

/// Never replaces a file: what a release wrote stays as it was.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::File::create_new(path) {
        Ok(mut file) => io::Write::write_all(&mut file, bytes),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}
