//! Steps that are done once for each set of inputs.

use std::path::Path;

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::progress::step;
use crate::workspace::{Workspace, make_dir, write};

/// Does a step unless its product is there and was made from the same inputs.
///
/// The stamp is written last: a step that was interrupted is done again.
pub fn once(
    workspace: &Workspace,
    name: &str,
    inputs: &str,
    product: &Path,
    what: &str,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let stamp = workspace.guest("stamps").join(name);
    let key = digest(inputs);
    if product.exists() && std::fs::read_to_string(&stamp).is_ok_and(|old| old == key) {
        return Ok(());
    }
    step(what, work)?;
    make_dir(&workspace.guest("stamps"))?;
    write(&stamp, key)
}

/// A short name for any text.
pub fn digest(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
