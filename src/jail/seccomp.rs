//! From a compiled list of system calls to a filter of the calling thread.

use seccompiler::sock_filter;

use super::list::{List, PROCESS, THREAD};

// `fn compiled(list: List) -> &'static [sock_filter]`, by build.rs.
include!(concat!(env!("OUT_DIR"), "/filters.rs"));

/// Why a thread could not be confined to its list.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The kernel refused it.
    #[error("The kernel refuses a seccomp filter")]
    Apply(#[from] seccompiler::Error),
}

/// Confines the calling thread, and those it starts, to `list`, for good: any other system call kills the process with
/// SIGSYS.
///
/// # Errors
/// The kernel has no seccomp filters.
pub fn confine(list: List) -> Result<(), SeccompError> {
    let process = rustix::process::getpid().as_raw_nonzero().get().cast_unsigned();
    let thread = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
    Ok(seccompiler::apply_filter(&program(list, process, thread))?)
}

/// The list's program, with the ids that its signals may go to.
fn program(list: List, process: u32, thread: u32) -> Vec<sock_filter> {
    let with_ids = |instruction: &sock_filter| {
        let k = match instruction.k {
            PROCESS => process,
            THREAD => thread,
            k => k,
        };
        sock_filter { k, ..instruction.clone() }
    };
    compiled(list).iter().map(with_ids).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::compile::{chain, compile};
    use super::*;

    /// What the kernel makes of a program: the verdict for a `struct seccomp_data`, in words of 32 bits.
    fn run(program: &[sock_filter], data: &[u32; 16]) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = &program[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { *jt } else { *jf });
            match code {
                0x20 => accumulator = data[*k as usize / 4],
                0x54 => accumulator &= k,
                0x05 => at += *k as usize,
                0x15 => at += jump(accumulator == *k),
                0x35 => at += jump(accumulator >= *k),
                0x06 => return *k,
                other => panic!("{other:#x}"),
            }
        }
    }

    /// Every number that a program names, and some beside it.
    fn values(program: &[sock_filter]) -> Vec<u32> {
        let near = |k: u32| [k, k.wrapping_add(1), !k];
        let values = program.iter().flat_map(|instruction| near(instruction.k)).chain([0, u32::MAX]);
        values.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn call(architecture: u32, number: u32, [a, b, c, d]: [u32; 4]) -> [u32; 16] {
        [number, architecture, 0, 0, a, 0, b, 0, c, 0, d, 0, 0, 0, 0, 0]
    }

    /// Calls of every number, and those that a program names with each number that it names as one argument, beside others that
    /// are allowed or not.
    fn calls(program: &[sock_filter]) -> Vec<[u32; 16]> {
        const X86_64: u32 = 0xc000_003e;
        let values = values(program);
        let numbers = (0..600).chain(values.iter().copied());
        let mut calls: Vec<_> =
            numbers.flat_map(|number| [X86_64, 0x4000_0003].map(|from| call(from, number, [7; 4]))).collect();
        for number in values.iter().filter(|number| **number < 600) {
            for rest in [0, libc::MAP_ANONYMOUS.cast_unsigned(), PROCESS, THREAD] {
                for value in &values {
                    calls.extend((0..4).map(|index| {
                        let mut arguments = [rest; 4];
                        arguments[index] = *value;
                        call(X86_64, *number, arguments)
                    }));
                }
            }
        }
        calls
    }

    #[test]
    fn a_compiled_list_decides_every_call_as_seccompiler_does() {
        for list in List::ALL {
            let (long, short) = (chain(list).unwrap(), compiled(list));
            for data in calls(&long) {
                assert_eq!(run(short, &data), run(&long, &data), "{list:?} {data:?}");
            }
        }
    }

    #[test]
    fn a_compiled_list_is_that_of_this_source_and_shorter() {
        for list in List::ALL {
            let (long, short) = (chain(list).unwrap(), compile(list).unwrap());
            assert_eq!(compiled(list), short, "{list:?}");
            assert!(short.len() > 10 && short.len() * 2 < long.len(), "{list:?} {}", short.len());
        }
    }

    #[test]
    fn signals_are_for_this_process_and_its_threads_own_for_the_thread() {
        for list in List::ALL {
            let program = program(list, 4711, 4712);
            let has = |id: u32| program.iter().any(|instruction| instruction.k == id);
            let own = !matches!(list, List::Main | List::Shell);
            assert!(has(4711) && has(4712) == own && !has(PROCESS) && !has(THREAD), "{list:?}");
        }
    }
}
