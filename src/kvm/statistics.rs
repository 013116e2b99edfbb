//! KVM's own count of a vCPU's page faults (Documentation/virt/kvm/api.rst, 4.133 KVM_GET_STATS_FD).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::{kvm_stats_desc, kvm_stats_header};

use super::run::KvmVcpu;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// The statistic: page faults that KVM handled for the vCPU, nested ones among them.
const FAULTS: &[u8] = b"pf_taken";
/// Most of the descriptors that are looked at, bytes.
const DESCRIPTORS_MAX: usize = 64 << 10;

/// Where one vCPU's page faults are counted. It can be read while the vCPU runs.
#[derive(Debug)]
pub struct FaultCount {
    file: File,
    offset: u64,
}

impl FaultCount {
    /// Page faults so far.
    ///
    /// # Errors
    /// The kernel refused the read.
    pub fn read(&self) -> io::Result<u64> {
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, self.offset)?;
        Ok(u64::from_ne_bytes(value))
    }
}

impl KvmVcpu {
    /// The count of this vCPU's page faults; to be asked for before its thread starts, because a vCPU that runs answers no
    /// ioctl. `None` where KVM does not count them (before Linux 5.14).
    pub fn fault_count(&self) -> Option<FaultCount> {
        // SAFETY: the ioctl takes no argument, and touches no memory of ours.
        let fd = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_GET_STATS_FD) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the kernel has just made this descriptor, and nobody else has it.
        let file = unsafe { File::from_raw_fd(fd) };
        let offset = offset_of(&file, FAULTS)?;
        Some(FaultCount { file, offset })
    }
}

/// Where the value of a statistic lies in the file.
fn offset_of(file: &File, name: &[u8]) -> Option<u64> {
    let mut header = [0; size_of::<kvm_stats_header>()];
    file.read_exact_at(&mut header, 0).ok()?;
    // `struct kvm_stats_header`: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
    let [_, name_size, count, _, descriptors, data] = numbers(&header)?;
    let entry = size_of::<kvm_stats_desc>().checked_add(usize::try_from(name_size).ok()?)?;
    let len = entry.checked_mul(usize::try_from(count).ok()?).filter(|len| *len <= DESCRIPTORS_MAX)?;
    let mut table = vec![0; len];
    file.read_exact_at(&mut table, u64::from(descriptors)).ok()?;
    let is_it =
        |entry: &&[u8]| entry.get(size_of::<kvm_stats_desc>()..).is_some_and(|text| is_name(text, name));
    let found = table.chunks_exact(entry).find(is_it)?;
    // `struct kvm_stats_desc`: flags, exponent and size of 16 bits each, offset, bucket_size.
    let [_, _, offset, _] = numbers(found)?;
    Some(u64::from(data) + u64::from(offset))
}

/// Whether the text up to its zero byte is `name`.
fn is_name(text: &[u8], name: &[u8]) -> bool {
    text.split(|byte| *byte == 0).next() == Some(name)
}

/// The first numbers of 32 bits.
fn numbers<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let (words, _) = bytes.as_chunks::<4>();
    let mut numbers = [0; N];
    numbers.iter_mut().zip(words.get(..N)?).for_each(|(to, word)| *to = u32::from_ne_bytes(*word));
    Some(numbers)
}
