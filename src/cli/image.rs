//! `ember image`: a root image of its own, to be shared by many bakes.

use crate::rootfs::{self, Source};

use super::args::ImageArgs;
use super::failure::Failure;
use super::output;
use super::progress::Progress;

/// Builds the image.
///
/// # Errors
/// The source cannot be read, is damaged, or the image cannot be written.
pub fn image(args: &ImageArgs) -> Result<u8, Failure> {
    let mut progress = Progress::new(false);
    progress.phase("Building the root image");
    let source = Source::detect(&args.source)?.named(args.reference.clone());
    let built = rootfs::build(&source, &args.image, args.size.map(|size| size.0), &mut |_| {})?;
    progress.finish();
    output::line(&format!("{}: {}", args.image.display(), crate::config::Size(built.bytes)))?;
    Ok(0)
}
