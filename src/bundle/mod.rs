//! (room bundle)
