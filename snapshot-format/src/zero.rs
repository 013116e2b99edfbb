//! Which bytes are worth keeping.

/// Bytes of a page: the unit in which content is told from holes.
pub const PAGE: usize = 4096;

/// Whether every byte is zero. Looks at 64 bytes at a time and stops at the first block that is not.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().all(|block| folded(block) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// All of a block's bits, one over the other: a form that compilers turn into vector instructions.
fn folded(block: &[u8; 64]) -> u64 {
    block.as_chunks::<8>().0.iter().fold(0, |sum, word| sum | u64::from_ne_bytes(*word))
}

/// The runs of pages of `bytes` that hold something: (offset of the run, its bytes). `bytes` begins at a page boundary;
/// a last part of a page counts as a page.
pub fn content_runs(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let skipped = rest.chunks(PAGE).take_while(|page| is_zero(page)).map(<[u8]>::len).sum();
        let content = rest.get(skipped..)?;
        let len: usize = content.chunks(PAGE).take_while(|page| !is_zero(page)).map(<[u8]>::len).sum();
        let (run, behind) = content.split_at(len);
        let at = bytes.len() - content.len();
        rest = behind;
        (!run.is_empty()).then_some((at, run))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_bit_anywhere_is_seen() {
        for len in [1, 7, 63, 64, 65, 200] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1 << (at % 8);
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
        assert!(is_zero(&[]));
    }

    #[test]
    fn runs_of_pages_with_content_are_found_and_the_rest_is_zero() {
        let mut bytes = vec![0; 5 * PAGE + 10];
        bytes[PAGE] = 1;
        bytes[3 * PAGE - 1] = 2;
        bytes[5 * PAGE + 9] = 3;
        let runs: Vec<_> = content_runs(&bytes).map(|(at, run)| (at, run.len())).collect();
        assert_eq!(runs, [(PAGE, 2 * PAGE), (5 * PAGE, 10)]);
        assert_eq!(content_runs(&[0; 3 * PAGE]).count(), 0);
        assert_eq!(content_runs(&[]).count(), 0);
    }
}
