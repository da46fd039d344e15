//! Epochs and copies into frames. Pure.
//!
//! A page that is zero, or as it was sent last, costs its entry only. One whose last version is known goes as
//! the difference where few words differ, else as it is; what goes in is packed as one blob a frame, so that
//! the packer sees what pages have in common. What was sent is remembered up to
//! [`EncoderSettings::cache_bytes_max`], and forgotten with the session and on [`Encoder::forget`].

use super::PAGE;
use super::digest::Digest;
use super::pack::Packer;
use super::pages::{SentPages, differing_words, is_zero, xor_into};
use blkback_proto::ids::{Epoch, LineageId, SessionId};
use blkback_proto::memory::{
    BATCH_PAGES_MAX, Begin, Blob, Codec, Encoding, Entry, Frame, STATE_BYTES_MAX, StateKind,
};

/// Differing words up to which the difference is smaller than the page packed by itself: they hardly pack,
/// and a page packs to less than half. By figures, in CHECKPOINTER.md.
const DELTA_WORDS_MAX: usize = 320;

/// What the encoder may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderSettings {
    /// For the pages that were sent last.
    pub cache_bytes_max: usize,
}

impl Default for EncoderSettings {
    fn default() -> Self {
        Self {
            cache_bytes_max: 128 << 20,
        }
    }
}

/// An epoch as it was staged.
#[derive(Debug, Clone, Copy)]
pub struct Cut<'a> {
    pub epoch: Epoch,
    /// The disks' history.
    pub lineage: LineageId,
    /// Numbers, none twice.
    pub pages: &'a [u64],
    /// The pages, in the same order.
    pub bytes: &'a [u8],
    pub state: &'a [u8],
    pub kind: StateKind,
}

/// What became of an epoch's pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub zero: u64,
    pub same: u64,
    pub full: u64,
    pub delta: u64,
    /// Of all frames.
    pub wire_bytes: u64,
    /// Of those frames that have pages.
    pub page_wire_bytes: u64,
    /// What went into the packer.
    pub plain_bytes: u64,
    /// What came out.
    pub packed_bytes: u64,
}

impl Counts {
    /// Bytes on the wire for each byte of pages that are not zero; 0 without any.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn ratio(&self) -> f64 {
        let raw = (self.same + self.full + self.delta) * PAGE as u64;
        if raw == 0 {
            return 0.0;
        }
        self.page_wire_bytes as f64 / raw as f64
    }
}

/// See the module.
#[derive(Debug)]
pub struct Encoder {
    session: SessionId,
    generation: u64,
    sent: SentPages,
    last_state: Vec<u8>,
    packer: Packer,
    plain: Vec<u8>,
    out: Vec<u8>,
    zero_crc: u32,
    /// Whether blobs are packed; see [`super::gain`].
    pub packs: bool,
}

impl Encoder {
    #[must_use]
    pub fn new(settings: EncoderSettings) -> Self {
        Self {
            session: SessionId(0),
            generation: 0,
            sent: SentPages::new(settings.cache_bytes_max),
            last_state: Vec::new(),
            packer: Packer::new(),
            plain: Vec::with_capacity(BATCH_PAGES_MAX * PAGE),
            out: Vec::new(),
            zero_crc: crc32fast::hash(&[0; PAGE]),
            packs: true,
        }
    }

    /// A session begins, on a copy; nothing that was sent before counts.
    pub fn begin_session(&mut self, session: SessionId, generation: u64) {
        self.session = session;
        self.generation = generation;
        self.last_state.clear();
        self.forget();
    }

    /// Nothing that was sent is a base any more: it was taken back, or another copy begins.
    pub fn forget(&mut self) {
        self.sent.clear();
    }

    /// The frames of a new copy's begin.
    pub fn copy_start(&mut self, generation: u64) -> &[u8] {
        self.generation = generation;
        self.last_state.clear();
        self.forget();
        self.frame(&Frame::CopyStart { generation })
    }

    fn frame(&mut self, frame: &Frame<'_>) -> &[u8] {
        self.out.clear();
        frame.encode(self.session, &mut self.out);
        &self.out
    }

    /// Pages behind one another, of no epoch.
    ///
    /// # Errors
    /// Of the sink, which gets every frame.
    ///
    /// # Panics
    /// Where `bytes` is not whole pages.
    pub fn copy<E>(
        &mut self,
        first: u64,
        bytes: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        assert_eq!(bytes.len() % PAGE, 0, "whole pages");
        let mut first = u32::try_from(first).expect("page numbers are 32 bits");
        let mut left = bytes;
        while !left.is_empty() {
            let zero = is_zero(&left[..PAGE]);
            let alike = left.chunks_exact(PAGE).take(BATCH_PAGES_MAX);
            let count = alike.take_while(|page| is_zero(page) == zero).count();
            let (run, rest) = left.split_at(count * PAGE);
            let blob = if zero {
                Blob {
                    codec: Codec::Zero,
                    count,
                    bytes: &[],
                }
            } else {
                self.packer.pack(run, self.packs)
            };
            let crc = crc32fast::hash(run);
            self.out.clear();
            Frame::Copy { first, crc, blob }.encode(self.session, &mut self.out);
            sink(&self.out)?;
            first += u32::try_from(count).expect("a batch");
            left = rest;
        }
        Ok(())
    }

    /// An epoch, whole.
    ///
    /// # Errors
    /// Of the sink, which gets every frame; the session is over then.
    ///
    /// # Panics
    /// Where pages and bytes do not match, or the state is larger than [`STATE_BYTES_MAX`].
    pub fn epoch<E>(
        &mut self,
        cut: &Cut<'_>,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Counts, E> {
        assert_eq!(cut.pages.len() * PAGE, cut.bytes.len(), "a page for each");
        assert!(cut.state.len() as u64 <= STATE_BYTES_MAX, "device state");
        let mut counts = Counts::default();
        let mut digest = Digest::begin(self.generation, cut.epoch, cut.lineage);
        let begin = Begin {
            epoch: cut.epoch,
            lineage: cut.lineage,
            page_count: cut.pages.len() as u64,
            state_bytes: cut.state.len() as u64,
            state_kind: cut.kind,
        };
        self.out.clear();
        Frame::Begin(begin).encode(self.session, &mut self.out);
        let pages = cut.pages.chunks(BATCH_PAGES_MAX);
        for (pages, bytes) in pages.zip(cut.bytes.chunks(BATCH_PAGES_MAX * PAGE)) {
            let before = self.out.len();
            self.batch(pages, bytes, &mut digest, &mut counts);
            counts.page_wire_bytes += (self.out.len() - before) as u64;
            counts.wire_bytes += self.out.len() as u64;
            sink(&self.out)?;
            self.out.clear();
        }
        self.state(cut.state);
        let end = Frame::End {
            epoch: cut.epoch,
            page_count: cut.pages.len() as u64,
            digest: digest.end(cut.kind, cut.state),
        };
        end.encode(self.session, &mut self.out);
        counts.wire_bytes += self.out.len() as u64;
        sink(&self.out)?;
        Ok(counts)
    }

    /// One PAGES frame behind what is in `out`.
    fn batch(&mut self, pages: &[u64], bytes: &[u8], digest: &mut Digest, counts: &mut Counts) {
        let mut entries = Vec::with_capacity(pages.len());
        self.plain.clear();
        for (page, bytes) in pages.iter().zip(bytes.chunks_exact(PAGE)) {
            let page = u32::try_from(*page).expect("page numbers are 32 bits");
            let encoding = self.put_page(page, bytes);
            let crc = match encoding {
                Encoding::Zero => self.zero_crc,
                _ => crc32fast::hash(bytes),
            };
            digest.page(page, crc);
            *match encoding {
                Encoding::Zero => &mut counts.zero,
                Encoding::Same => &mut counts.same,
                Encoding::Full => &mut counts.full,
                Encoding::Delta => &mut counts.delta,
            } += 1;
            entries.push(Entry {
                page,
                crc,
                encoding,
            });
        }
        let blob = self.packer.pack(&self.plain, self.packs);
        counts.plain_bytes += self.plain.len() as u64;
        counts.packed_bytes += blob.bytes.len() as u64;
        Frame::Pages { entries, blob }.encode(self.session, &mut self.out);
    }

    /// Chooses how a page goes, and puts it into the blob if it has to be there.
    fn put_page(&mut self, page: u32, bytes: &[u8]) -> Encoding {
        let encoding = match self.sent.get(page) {
            _ if is_zero(bytes) => Encoding::Zero,
            None => {
                self.plain.extend_from_slice(bytes);
                Encoding::Full
            }
            Some(base) => match differing_words(bytes, base) {
                0 => return Encoding::Same,
                words if words <= DELTA_WORDS_MAX => {
                    let at = self.plain.len();
                    self.plain.extend_from_slice(bytes);
                    xor_into(&mut self.plain[at..], base);
                    Encoding::Delta
                }
                _ => {
                    self.plain.extend_from_slice(bytes);
                    Encoding::Full
                }
            },
        };
        self.sent.put(page, bytes);
        encoding
    }

    /// STATE frames behind what is in `out`: what differs from the last state.
    fn state(&mut self, state: &[u8]) {
        self.last_state.resize(state.len(), 0);
        let mut indexes = Vec::new();
        self.plain.clear();
        let pieces = state.chunks(PAGE).zip(self.last_state.chunks(PAGE));
        for (index, (piece, last)) in (0u32..).zip(pieces) {
            if piece == last {
                continue;
            }
            indexes.push(index);
            self.plain.extend_from_slice(piece);
            self.plain.resize(indexes.len() * PAGE, 0);
            if indexes.len() == BATCH_PAGES_MAX {
                let indexes = std::mem::take(&mut indexes);
                let blob = self.packer.pack(&self.plain, self.packs);
                Frame::State { indexes, blob }.encode(self.session, &mut self.out);
                self.plain.clear();
            }
        }
        if !indexes.is_empty() {
            let blob = self.packer.pack(&self.plain, self.packs);
            Frame::State { indexes, blob }.encode(self.session, &mut self.out);
        }
        self.last_state.copy_from_slice(state);
    }
}
