//! What is brought in of a clone's memory before it asks.

use std::fmt;

/// Which of the pages that a recorded answer needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefetch {
    /// None.
    None,
    /// What is not in the page cache is read from the disk in few requests; nothing is copied.
    Read,
    /// That, and the pages that the answer wrote are copied into the clone's own memory.
    #[default]
    All,
}

impl Prefetch {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Prefetch::None => "none",
            Prefetch::Read => "read",
            Prefetch::All => "all",
        }
    }
}

impl fmt::Display for Prefetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
