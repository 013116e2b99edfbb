//! (room devices)
