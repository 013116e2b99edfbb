//! Where the guest agent's binary is.

use std::path::{Path, PathBuf};

use super::failure::{Failure, Kind};

/// Name of the agent's file.
const NAME: &str = "ember-agent";
/// Longest agent, bytes.
const AGENT_MAX: u64 = 64 << 20;

/// The agent that was asked for, else the one beside this program or in its `../lib/ember`.
///
/// # Errors
/// There is none.
pub fn find(asked: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = asked {
        return Ok(path.to_owned());
    }
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().unwrap_or(Path::new("."));
    [folder.join(NAME), folder.join("../lib/ember").join(NAME)]
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| {
            let text = format!(
                "No guest agent: there is no {NAME} beside {}; name it with --agent",
                program.display()
            );
            Failure::text(Kind::Usage, text)
        })
}

/// Its bytes.
///
/// # Errors
/// The file cannot be read, or is no program.
pub fn read(asked: Option<&Path>) -> Result<Vec<u8>, Failure> {
    let path = find(asked)?;
    let bytes = super::files::read(&path, AGENT_MAX)?;
    if !bytes.starts_with(b"\x7fELF") {
        return Err(Failure::text(Kind::Usage, format!("{} is no ELF program", path.display())));
    }
    Ok(bytes)
}
