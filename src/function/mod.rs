//! (room function)
