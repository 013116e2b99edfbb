//! The memory of this program itself, brought in ahead of need.
//!
//! A forked process has its parent's pages, but of a mapped file it finds each one anew by a fault, and copies each one that it
//! writes. Who waits for work takes those faults before it comes.

use std::io;
use std::ops::Range;

/// Stack brought in below where a process stands, bytes.
const STACK: usize = 128 << 10;
/// Heap brought in, bytes: what restoring a clone allocates.
const HEAP: usize = 512 << 10;

/// Where code and data of the running program lie. It outlives being locked out of /proc, for whoever is forked later.
#[derive(Debug, Clone, Default)]
pub struct Program {
    read: Vec<Range<usize>>,
    written: Vec<Range<usize>>,
}

impl Program {
    /// Looks it up (proc_pid_maps(5)).
    ///
    /// # Errors
    /// There is no /proc.
    pub fn find() -> io::Result<Self> {
        let own = std::fs::read_link("/proc/self/exe")?;
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        Ok(Self::parse(&maps, &own.to_string_lossy()))
    }

    fn parse(maps: &str, own: &str) -> Self {
        let mut program = Program::default();
        for line in maps.lines() {
            let Some((range, writable, path)) = mapping(line) else { continue };
            if path != own && path != "[heap]" {
                continue;
            }
            if writable { program.written.push(range) } else { program.read.push(range) }
        }
        program
    }

    /// Brings it in, with some stack and heap. What is refused is only slower later.
    pub fn bring_in(&self) {
        for range in &self.read {
            populate(range, libc::MADV_POPULATE_READ);
        }
        for range in &self.written {
            populate(range, libc::MADV_POPULATE_WRITE);
        }
        touch_stack();
        // The allocator keeps what is given back.
        drop(std::hint::black_box(vec![1u8; HEAP]));
    }
}

/// Range, whether it may be written, and what is mapped, of a line that can be read at all.
fn mapping(line: &str) -> Option<(Range<usize>, bool, &str)> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    let rights = fields.next().filter(|rights| rights.starts_with('r'))?;
    Some((range, rights.as_bytes().get(1) == Some(&b'w'), fields.nth(3)?))
}

fn populate(range: &Range<usize>, advice: i32) {
    // SAFETY: populating changes no content; where nothing is mapped any more the kernel says so.
    unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), advice) };
}

#[inline(never)]
fn touch_stack() {
    std::hint::black_box([1u8; STACK]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_data_of_the_program_are_told_from_the_rest() {
        let maps = "1000-2000 r-xp 00000000 08:01 12 /bin/x\n2000-3000 rw-p 00001000 08:01 12 /bin/x\n\
                    3000-4000 ---p 00000000 08:01 12 /bin/x\n4000-5000 rw-p 00000000 00:00 0 [heap]\n\
                    5000-6000 r-xp 00000000 08:01 13 /lib/y\nnonsense\n";
        let program = Program::parse(maps, "/bin/x");
        assert_eq!(program.read, std::iter::once(0x1000..0x2000).collect::<Vec<_>>());
        assert_eq!(program.written, [0x2000..0x3000, 0x4000..0x5000]);
    }

    #[test]
    fn a_program_finds_itself() {
        let program = Program::find().unwrap();
        assert!(!program.read.is_empty() && !program.written.is_empty());
        program.bring_in();
    }
}
