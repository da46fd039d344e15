//! What stands behind the end of a chain: proof that more than a torn tail is missing.

use super::{End, Scanner};
use crate::io::IoError;
use blkback_proto::ids::{Epoch, Place};
use blkback_proto::record::{HEADER_BYTES, Header, RECORD_MAGIC, RecordKind, placement, witness};
use blkback_proto::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};

impl Scanner<'_> {
    /// Looks for anything of the chain behind its end, in this segment and all later ones.
    pub(super) fn look_behind(&mut self) -> Result<(), IoError> {
        let end = self.scan.end_place;
        let expected_seq = self.expect.record_seq;
        self.look_for_traces(end, expected_seq)?;
        for index in 0..self.geometry.segment_count {
            let base = Place {
                serial: u64::from(index),
                offset: 0,
            };
            self.read(base, SEGMENT_HEADER_BYTES)?;
            let first = SEGMENT_HEADER_BYTES as u64;
            match SegmentHeader::decode(&self.record) {
                Ok(segment) => {
                    self.scan.serial_max = self.scan.serial_max.max(segment.serial);
                    if segment.serial > end.serial {
                        self.look_through(index, first, expected_seq)?;
                        self.note_newer(segment.serial)?;
                    }
                }
                // Never used, unless a record follows.
                Err(_) if self.record.iter().all(|b| *b == 0) && self.is_zero(index, first)? => {}
                // A damaged header must not hide what stands behind it.
                Err(_) => self.look_through(index, first, expected_seq)?,
            }
        }
        self.scan.serial_max = self.scan.serial_max.max(end.serial);
        self.look_through(self.geometry.file_of(end.serial), end.offset, expected_seq)?;
        if self.scan.found_behind > 0 {
            self.scan.end = End::Torn;
        }
        Ok(())
    }

    /// Whether the page at that offset of a segment file reads as zeros.
    fn is_zero(&mut self, file: u32, offset: u64) -> Result<bool, IoError> {
        let serial = u64::from(file);
        self.read(Place { serial, offset }, HEADER_BYTES)?;
        Ok(self.record.iter().all(|b| *b == 0))
    }

    /// Notes a segment begun after the chain's end whose first record is of another session.
    fn note_newer(&mut self, serial: u64) -> Result<(), IoError> {
        let place = Place {
            serial,
            offset: SEGMENT_HEADER_BYTES as u64,
        };
        self.read(place, HEADER_BYTES)?;
        let Ok((header, _)) = Header::decode(&self.record) else {
            return Ok(());
        };
        let of_volume = placement(&self.record) == Ok(place)
            && header.group == self.expect.group
            && header.volume == self.expect.volume;
        if of_volume && header.session != self.expect.session {
            self.scan.newer.push((header.session, place));
        }
        Ok(())
    }

    /// A damaged header that still shows, at either end, that it was the next record of this chain.
    fn look_for_traces(&mut self, end: Place, expected_seq: u64) -> Result<(), IoError> {
        if end.offset + HEADER_BYTES as u64 > self.geometry.segment_bytes {
            return Ok(());
        }
        self.read(end, HEADER_BYTES)?;
        let bytes = &self.record;
        let word = |at: usize| {
            u64::from_le_bytes(
                bytes[at..at + 8]
                    .try_into()
                    .expect("eight bytes of a header"),
            )
        };
        let next_of_chain = bytes[..8] == RECORD_MAGIC
            && word(40) == expected_seq
            && word(48) == self.expect.session.0;
        if next_of_chain {
            self.scan.end = End::Torn;
            if bytes[10] == RecordKind::Seal as u8 {
                self.scan.seal_behind = self.scan.seal_behind.max(Epoch(word(32)));
            }
        }
        if let Some(witness) = witness(bytes)
            && witness.place == end
            && witness.session == self.expect.session
            && witness.record_seq == expected_seq
        {
            self.scan.end = End::Torn;
            if witness.kind == Some(RecordKind::Seal) {
                self.scan.seal_behind = self.scan.seal_behind.max(witness.epoch);
            }
        }
        Ok(())
    }

    /// Notes every later header of our chain from `offset` to the end of that segment file.
    fn look_through(
        &mut self,
        file: u32,
        mut offset: u64,
        expected_seq: u64,
    ) -> Result<(), IoError> {
        while offset + HEADER_BYTES as u64 <= self.geometry.segment_bytes {
            self.read(
                Place {
                    serial: u64::from(file),
                    offset,
                },
                HEADER_BYTES,
            )?;
            let mut step = HEADER_BYTES as u64;
            if let Ok((header, _)) = Header::decode(&self.record)
                && let Ok(place) = placement(&self.record)
                && place.offset == offset
                && self.geometry.file_of(place.serial) == file
                && self.is_ours(&header, place)
                && header.record_seq >= expected_seq
            {
                self.scan.found_behind += 1;
                self.note_watermarks(&header);
                // A record names the last seal before it, which may be the one that is missing.
                let sealed = match header.kind {
                    RecordKind::Seal => header.epoch,
                    _ => header.base_epoch,
                };
                self.scan.seal_behind = self.scan.seal_behind.max(sealed);
                step = header.total_bytes();
            }
            offset += step;
        }
        Ok(())
    }
}
