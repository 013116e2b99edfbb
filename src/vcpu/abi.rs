//! KVM structures as raw ABI bytes: how they travel in a snapshot.

use snapshot_format::sections::Blob;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A saved structure that cannot be one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "The saved {what} holds {found} bytes, which is not the length of this structure; the bundle is damaged"
)]
pub struct AbiError {
    what: &'static str,
    found: usize,
}

/// The bytes of one KVM structure.
pub fn blob<T: IntoBytes + Immutable>(value: &T) -> Blob {
    Blob(value.as_bytes().to_vec())
}

/// One KVM structure from its bytes.
///
/// # Errors
/// The length is not the structure's.
pub fn from_blob<T: FromBytes>(what: &'static str, blob: &Blob) -> Result<T, AbiError> {
    T::read_from_bytes(&blob.0).map_err(|_| AbiError { what, found: blob.0.len() })
}

/// The bytes of an array of KVM structures.
pub fn list_blob<T: IntoBytes + Immutable>(values: &[T]) -> Blob {
    Blob(values.as_bytes().to_vec())
}

/// An array of KVM structures from its bytes.
///
/// # Errors
/// The length is no multiple of the structure's.
pub fn list_from_blob<T: FromBytes>(what: &'static str, blob: &Blob) -> Result<Vec<T>, AbiError> {
    let error = AbiError { what, found: blob.0.len() };
    if !blob.0.len().is_multiple_of(size_of::<T>()) {
        return Err(error);
    }
    blob.0
        .chunks_exact(size_of::<T>())
        .map(|bytes| T::read_from_bytes(bytes).map_err(|_| error.clone_of()))
        .collect()
}

impl AbiError {
    fn clone_of(&self) -> Self {
        AbiError { what: self.what, found: self.found }
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{kvm_msr_entry, kvm_regs};

    use super::*;

    #[test]
    fn structures_come_back_as_they_went() {
        let regs = kvm_regs { rax: 1, rip: 0xfff0, ..Default::default() };
        assert_eq!(from_blob::<kvm_regs>("registers", &blob(&regs)).unwrap(), regs);
        let msrs = [kvm_msr_entry { index: 0x10, data: 5, ..Default::default() }; 3];
        assert_eq!(list_from_blob::<kvm_msr_entry>("MSRs", &list_blob(&msrs)).unwrap(), msrs);
    }

    #[test]
    fn a_wrong_length_is_refused() {
        assert!(from_blob::<kvm_regs>("registers", &Blob(vec![0; 3])).is_err());
        assert!(list_from_blob::<kvm_msr_entry>("MSRs", &Blob(vec![0; 17])).is_err());
    }
}
