//! Compiles the small guests into a directory: `build-small-guests OUT_DIR`.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(out_dir), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: build-small-guests OUT_DIR");
        return ExitCode::from(2);
    };
    match small_guests::build(Path::new(&out_dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
            eprintln!("build-small-guests: {error}{cause}");
            ExitCode::FAILURE
        }
    }
}
