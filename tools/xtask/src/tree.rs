//! Telling whether a directory has changed without reading its files.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Names, lengths and times of a file or of everything in a directory, as text to compare.
pub fn state(path: &Path, name: &Path) -> Result<String> {
    let mut text = String::new();
    describe(path, name, &mut text)?;
    Ok(text)
}

fn describe(path: &Path, name: &Path, text: &mut String) -> Result<()> {
    let metadata = path.metadata().with_context(|| format!("Cannot read {}", path.display()))?;
    if metadata.is_dir() {
        let mut entries: Vec<_> = path.read_dir()?.collect::<std::io::Result<_>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        return entries
            .iter()
            .try_for_each(|entry| describe(&entry.path(), &name.join(entry.file_name()), text));
    }
    let time = (metadata.mtime(), metadata.mtime_nsec());
    writeln!(text, "{} {} {}.{:09}", name.display(), metadata.len(), time.0, time.1)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_length_changes_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let state = || state(dir.path(), Path::new("x")).unwrap();
        std::fs::write(dir.path().join("file"), "one").unwrap();
        let before = state();
        std::fs::write(dir.path().join("file"), "three").unwrap();
        assert_ne!(before, state());
    }
}
