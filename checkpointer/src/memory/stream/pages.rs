//! Pages of which the newest version that was sent is known, and what differs.

use super::PAGE;

pub(super) fn is_zero(page: &[u8]) -> bool {
    let any = |bytes: &[u8; 64]| bytes.iter().fold(0, |any, byte| any | byte);
    let (chunks, rest) = page.as_chunks::<64>();
    chunks.iter().all(|chunk| any(chunk) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// `page` xor `base` into `page`.
pub(super) fn xor_into(page: &mut [u8], base: &[u8]) {
    for (page, base) in page.iter_mut().zip(base) {
        *page ^= base;
    }
}

/// Words of 8 bytes in which they differ.
pub(super) fn differing_words(one: &[u8], other: &[u8]) -> usize {
    let (one, other) = (one.as_chunks::<8>().0, other.as_chunks::<8>().0);
    let pairs = one.iter().zip(other);
    pairs.map(|(one, other)| usize::from(one != other)).sum()
}

/// The last version that was sent of some pages: a page has one place, where it drives out another.
#[derive(Debug)]
pub(super) struct SentPages {
    /// Page in each place.
    places: Vec<Option<u32>>,
    bytes: Vec<u8>,
}

impl SentPages {
    /// Takes `bytes_max` at most, all at once; untouched places cost nothing.
    pub(super) fn new(bytes_max: usize) -> Self {
        let count = bytes_max / (PAGE + size_of::<Option<u32>>());
        Self {
            places: vec![None; count],
            bytes: vec![0; count * PAGE],
        }
    }

    pub(super) fn clear(&mut self) {
        self.places.fill(None);
    }

    fn place(&self, page: u32) -> Option<usize> {
        let page = usize::try_from(page).expect("32 bits");
        page.checked_rem(self.places.len())
    }

    pub(super) fn get(&self, page: u32) -> Option<&[u8]> {
        let place = self.place(page)?;
        (self.places[place] == Some(page)).then(|| &self.bytes[place * PAGE..][..PAGE])
    }

    pub(super) fn put(&mut self, page: u32, bytes: &[u8]) {
        if let Some(place) = self.place(page) {
            self.places[place] = Some(page);
            self.bytes[place * PAGE..][..PAGE].copy_from_slice(bytes);
        }
    }
}
