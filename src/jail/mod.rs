//! (room jail)
