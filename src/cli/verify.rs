//! `ember verify`: every checksum of a bundle.

use crate::bundle::Bundle;
use crate::config::Size;

use super::args::BundleArgs;
use super::failure::{Failure, Kind};
use super::output;
use super::progress::Progress;

/// Verifies a bundle.
///
/// # Errors
/// The first thing that is not as it was baked.
pub fn verify(args: &BundleArgs) -> Result<u8, Failure> {
    let bundle = Bundle::open(&args.bundle)?;
    let mut progress = Progress::new(args.json);
    progress.phase("Verifying");
    let report = bundle.verify(&mut |_, _| {})?;
    progress.finish();
    if args.json {
        let value = serde_json::to_value(&report).map_err(|e| Failure::new(Kind::Internal, &e))?;
        output::json(&value)?;
    } else {
        let text = format!(
            "{}: {} files, {}, all as baked",
            args.bundle.display(),
            report.files,
            Size(report.bytes)
        );
        output::line(&text)?;
    }
    Ok(0)
}
