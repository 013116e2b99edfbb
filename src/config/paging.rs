//! How a clone's memory comes into being, and what is checked of it.

use std::fmt;

/// What serves the pages that a clone touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Paging {
    /// [`Backend::Mmap`], unless what is to be verified needs [`Backend::Uffd`].
    #[default]
    Auto,
    /// [`Backend::Mmap`].
    Mmap,
    /// [`Backend::Uffd`].
    Uffd,
}

/// What is checked of a bundle before a clone sees it. Manifest, state and index are in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// No content of memory and drives.
    #[default]
    State,
    /// Each chunk of memory when it is first brought in. Where the kernel brings pages in by itself (`mmap`) those are not
    /// checked.
    Touched,
    /// Every file, before the start.
    All,
}

/// The choice that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A private mapping of the bundle's `memory` file: the kernel reads pages, clones share what they do not write.
    Mmap,
    /// userfaultfd: a thread of the clone's process reads chunks and copies them into memory of its own.
    Uffd,
}

impl Paging {
    /// What serves pages of a bundle on a local disk. It does not ask whether the host can: what was asked for is not
    /// replaced by less.
    pub fn backend(self, verify: Verify) -> Backend {
        match (self, verify) {
            (Paging::Mmap, _) | (Paging::Auto, Verify::State | Verify::All) => Backend::Mmap,
            (Paging::Uffd, _) | (Paging::Auto, Verify::Touched) => Backend::Uffd,
        }
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Paging::Auto => "auto",
            Paging::Mmap => "mmap",
            Paging::Uffd => "uffd",
        }
    }
}

impl Verify {
    /// Whether each chunk that passes through our hands is checked.
    pub fn checks_chunks(self) -> bool {
        self != Verify::State
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Verify::State => "state",
            Verify::Touched => "touched",
            Verify::All => "all",
        }
    }
}

impl Backend {
    /// As `--timing` and `--json` tell it.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Mmap => "mmap",
            Backend::Uffd => "uffd",
        }
    }
}

impl fmt::Display for Paging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_verification_of_what_is_touched_changes_the_automatic_choice() {
        assert_eq!(Paging::Auto.backend(Verify::State), Backend::Mmap);
        assert_eq!(Paging::Auto.backend(Verify::All), Backend::Mmap);
        assert_eq!(Paging::Auto.backend(Verify::Touched), Backend::Uffd);
    }

    #[test]
    fn what_is_asked_for_is_never_replaced() {
        for verify in [Verify::State, Verify::Touched, Verify::All] {
            assert_eq!(Paging::Mmap.backend(verify), Backend::Mmap);
            assert_eq!(Paging::Uffd.backend(verify), Backend::Uffd);
        }
    }
}
