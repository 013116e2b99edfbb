//! (room kvm)
