//! Gathers stamped writes into records.
//!
//! A record is filled until it is full, until the cut, or until it is [`FILL_NS_MAX`] old.

use super::{Nanos, Outgoing};
use crate::io::Memory;
use blkback_proto::ids::Place;
use blkback_proto::record::{
    DESCRIPTOR_CHARGE_BYTES, DESCRIPTORS_MAX, Descriptor, DescriptorKind, HEADER_BYTES, Header,
    PAYLOAD_BYTES_MAX, set_placement, total_bytes,
};

/// Oldest a record may get before it is sent, in nanoseconds.
pub const FILL_NS_MAX: Nanos = 2_000_000;

/// Writes of one epoch that are not sent yet.
pub struct Builder<M: Memory> {
    descriptors: Vec<Descriptor>,
    payloads: Vec<M::Buf>,
    payload_bytes: u64,
    charge: u64,
    first_write_seq: u64,
    begun: Nanos,
}

impl<M: Memory> std::fmt::Debug for Builder<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "builder with {} writes", self.descriptors.len())
    }
}

impl<M: Memory> Default for Builder<M> {
    fn default() -> Self {
        Self {
            descriptors: Vec::with_capacity(DESCRIPTORS_MAX),
            payloads: Vec::with_capacity(DESCRIPTORS_MAX + 2),
            payload_bytes: 0,
            charge: HEADER_BYTES as u64,
            first_write_seq: 0,
            begun: 0,
        }
    }
}

/// Journal charge of one write besides the record header, in bytes: an upper bound.
#[must_use]
pub fn charge_of(payload_bytes: u64) -> u64 {
    payload_bytes
        .next_multiple_of(HEADER_BYTES as u64)
        .max(DESCRIPTOR_CHARGE_BYTES)
}

impl<M: Memory> Builder<M> {
    /// Nothing gathered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.descriptors.is_empty()
    }

    /// One more write with that payload would not fit.
    #[must_use]
    pub fn is_full_for(&self, payload_bytes: u64) -> bool {
        self.descriptors.len() == DESCRIPTORS_MAX
            || self.payload_bytes + payload_bytes > PAYLOAD_BYTES_MAX
    }

    /// Old enough to be sent.
    #[must_use]
    pub fn is_due(&self, now: Nanos) -> bool {
        !self.is_empty() && now.saturating_sub(self.begun) >= FILL_NS_MAX
    }

    /// When it will be old enough.
    #[must_use]
    pub fn due_at(&self) -> Option<Nanos> {
        (!self.is_empty()).then(|| self.begun + FILL_NS_MAX)
    }

    /// Adds a write.
    pub fn push(
        &mut self,
        now: Nanos,
        write_seq: u64,
        kind: DescriptorKind,
        offset_bytes: u64,
        length_bytes: u64,
        payload: Option<M::Buf>,
    ) {
        if self.is_empty() {
            self.begun = now;
            self.first_write_seq = write_seq;
        }
        let payload_crc = payload.as_ref().map_or(0, |p| crc32fast::hash(p.as_ref()));
        self.descriptors.push(Descriptor {
            kind,
            offset_bytes,
            length_bytes: u32::try_from(length_bytes).expect("front ends bound requests"),
            payload_crc,
        });
        self.charge += charge_of(if payload.is_some() { length_bytes } else { 0 });
        if let Some(payload) = payload {
            self.payload_bytes += length_bytes;
            self.payloads.push(payload);
        }
    }

    /// Size of the record in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        total_bytes(self.payload_bytes)
    }

    /// Charge of the record at most, in bytes: what was set aside for it.
    #[must_use]
    pub fn charge_estimate(&self) -> u64 {
        self.charge
    }

    /// Makes the record out of what was gathered; `template` has everything but the writes.
    ///
    /// With a `place` the record is one that is stored here. Gives the header, its checksum, and
    /// what to send. `None`, with nothing changed, when there
    /// is no memory for the header.
    pub fn finish(
        &mut self,
        mem: &mut M,
        padding: &M::Buf,
        place: Option<Place>,
        template: &Header,
    ) -> Option<(Header, u32, Outgoing<M>)> {
        let mut bytes = mem.alloc(HEADER_BYTES)?;
        let mut header = template.clone();
        header.descriptors = std::mem::take(&mut self.descriptors);
        header.first_write_seq = self.first_write_seq;
        let crc = header.encode(bytes.as_mut());
        if let Some(place) = place {
            set_placement(bytes.as_mut(), place);
        }
        let mut bufs = std::mem::take(&mut self.payloads);
        bufs.insert(0, mem.freeze(bytes));
        let pad = header.total_bytes() - HEADER_BYTES as u64 - header.payload_bytes();
        if pad > 0 {
            let pad = usize::try_from(pad).expect("less than a page");
            bufs.push(mem.slice(padding, 0, pad));
        }
        self.payload_bytes = 0;
        self.charge = HEADER_BYTES as u64;
        Some((header, crc, Outgoing::Record(bufs)))
    }
}
