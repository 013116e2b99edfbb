//! (room vcpu)
