//! Collects a message that arrives in pieces.

use std::mem;

/// Bytes of a message that is not complete yet. Holds at most what the caller asks for, so its
/// bound is the caller's.
#[derive(Debug, Default)]
pub(super) struct Partial {
    bytes: Vec<u8>,
}

impl Partial {
    /// Takes `N` bytes off `rest`; `None` when more are needed, with `rest` used up.
    pub(super) fn array<const N: usize>(&mut self, rest: &mut &[u8]) -> Option<[u8; N]> {
        if self.bytes.is_empty()
            && let Some((whole, after)) = rest.split_first_chunk::<N>()
        {
            *rest = after;
            return Some(*whole);
        }
        self.fill(N, rest);
        let whole = <[u8; N]>::try_from(self.bytes.as_slice()).ok()?;
        self.bytes.clear();
        Some(whole)
    }

    /// Takes `length` bytes off `rest`; `None` when more are needed, with `rest` used up.
    pub(super) fn block(&mut self, length: usize, rest: &mut &[u8]) -> Option<Vec<u8>> {
        self.fill(length, rest);
        (self.bytes.len() == length).then(|| mem::take(&mut self.bytes))
    }

    /// Bytes of memory held.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    fn fill(&mut self, length: usize, rest: &mut &[u8]) {
        let missing = length.saturating_sub(self.bytes.len());
        let (now, after) = rest.split_at(missing.min(rest.len()));
        self.bytes.reserve_exact(missing);
        self.bytes.extend_from_slice(now);
        *rest = after;
    }
}

/// Drops up to `left` bytes from `rest` and counts `left` down.
pub(super) fn skip(left: &mut u32, rest: &mut &[u8]) {
    let now = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
    *rest = &rest[now..];
    *left -= u32::try_from(now).expect("now is at most left, which is a u32");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header cut anywhere by the network would be misread.
    #[test]
    fn pieces_of_any_size_give_the_same_bytes() {
        let message: Vec<u8> = (0..28).collect();
        for cut in 0..=28 {
            let mut partial = Partial::default();
            let (mut first, mut second) = (&message[..cut], &message[cut..]);
            let whole = partial
                .array::<28>(&mut first)
                .or_else(|| partial.array::<28>(&mut second))
                .expect("all 28 bytes were given");
            assert_eq!(whole.as_slice(), message);
            assert!(first.is_empty() && second.is_empty());
        }
    }

    /// Bytes of the next message would be eaten with the one before.
    #[test]
    fn takes_no_byte_beyond_the_message() {
        let mut partial = Partial::default();
        let mut rest: &[u8] = &[1, 2, 3, 4, 5, 6, 7];
        assert_eq!(partial.block(3, &mut rest).as_deref(), Some(&[1, 2, 3][..]));
        assert_eq!(partial.array::<2>(&mut rest), Some([4, 5]));
        let mut left = 1;
        skip(&mut left, &mut rest);
        assert_eq!((left, rest), (0, &[7][..]));
    }
}
