//! (room vm)
