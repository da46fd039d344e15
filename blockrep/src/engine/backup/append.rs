//! Appending records, syncing them, and what follows: sealed epochs.

use super::{BackupVolume, CUTS_KEPT, DirtyFiles, Io};
use crate::engine::{Effect, ToGroup};
use crate::io::{Bufs, Memory, Op, Target};
use crate::journal::scan::Expect;
use blkback_proto::ids::{Epoch, Place};
use blkback_proto::record::Header;
use blkback_proto::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use std::collections::VecDeque;

/// Appends in flight and what is known to be on stable storage.
#[derive(Debug, Default)]
pub(super) struct Appends {
    /// Number of the last append handed out; segment headers count, too.
    pub(super) last: u64,
    /// In flight or done out of order: number and whether it is done.
    window: VecDeque<(u64, bool)>,
    /// Everything up to this append is written.
    pub(super) written: u64,
    /// Everything up to this append is synced.
    pub(super) synced: u64,
    /// Appends that somebody wants synced, in order.
    wanted: VecDeque<u64>,
    dirty: DirtyFiles,
    /// Sync in flight: covers appends up to the number; files left.
    syncing: Option<(u64, usize)>,
    /// Committed watermarks carried by appends that are not synced yet.
    marks: VecDeque<(u64, Epoch)>,
}

impl Appends {
    /// Nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.window.is_empty() && self.syncing.is_none()
    }

    /// A sync up to this append is needed.
    pub(super) fn want_sync(&mut self, append: u64) {
        self.wanted.push_back(append);
    }
}

impl<M: Memory> BackupVolume<M> {
    #[allow(clippy::too_many_arguments, reason = "a record and where it goes")]
    /// Writes a record, placement already set, and a segment header before it if need be.
    ///
    /// Gives the number of the append.
    pub(super) fn append(
        &mut self,
        mem: &mut M,
        header: &Header,
        crc: u32,
        place: Place,
        new_segment: bool,
        bufs: Bufs<M::Buf>,
        fx: &mut Vec<Effect<M>>,
    ) -> Option<u64> {
        let target = Target::Segment(self.settings.geometry.file_of(place.serial));
        let Target::Segment(file) = target else {
            unreachable!("just made")
        };
        if new_segment {
            let mut bytes = mem.alloc(SEGMENT_HEADER_BYTES)?;
            let segment = SegmentHeader {
                serial: place.serial,
                segment_bytes: self.settings.geometry.segment_bytes,
                segment_count: self.settings.geometry.segment_count,
                group: header.group,
                volume: header.volume,
                lineage: header.lineage,
                first_record_seq: header.record_seq,
                first_prev_crc: header.prev_crc,
            };
            segment.encode(bytes.as_mut());
            let bytes = mem.freeze(bytes);
            self.start_append(target, 0, Bufs::One(bytes), fx);
        }
        let number = self.start_append(target, place.offset, bufs, fx);
        self.appends.dirty.insert(file);
        self.appends.marks.push_back((number, header.committed));
        self.expect = Some(Expect {
            group: header.group,
            volume: header.volume,
            session: header.session,
            lineage: header.lineage,
            place: Place {
                offset: place.offset + header.total_bytes(),
                ..place
            },
            record_seq: header.record_seq + 1,
            prev_crc: crc,
        });
        Some(number)
    }

    fn start_append(
        &mut self,
        target: Target,
        offset: u64,
        bufs: Bufs<M::Buf>,
        fx: &mut Vec<Effect<M>>,
    ) -> u64 {
        self.appends.last += 1;
        let number = self.appends.last;
        self.appends.window.push_back((number, false));
        self.io(
            Io::Append(number),
            Op::Write {
                target,
                offset,
                bufs,
            },
            fx,
        );
        number
    }

    pub(super) fn append_done(&mut self, number: u64, fx: &mut Vec<Effect<M>>) {
        let first = self.appends.window.front().expect("it is in flight").0;
        let index = usize::try_from(number - first).expect("the window is short");
        self.appends.window[index].1 = true;
        while let Some((number, true)) = self.appends.window.front().copied() {
            self.appends.written = number;
            self.appends.window.pop_front();
        }
        self.own_written(fx);
        if crate::mutant!("ack-before-sync") {
            self.mark_durable(fx);
        }
    }

    /// Syncs the journal when something written waits for it; one sync at a time.
    pub(super) fn start_journal_sync(&mut self, fx: &mut Vec<Effect<M>>) {
        let covers = self.appends.written;
        if self.appends.syncing.is_some() {
            return;
        }
        // Worth it only if it reaches a seal: the first one that waits.
        let reaches = self.first_wanted().is_some_and(|append| append <= covers);
        if !reaches {
            return;
        }
        let files = std::mem::take(&mut self.appends.dirty);
        self.appends.syncing = Some((covers, files.len()));
        self.counters.syncs += 1;
        for file in &files {
            self.io(
                Io::JournalSync,
                Op::Sync {
                    target: Target::Segment(*file),
                },
                fx,
            );
        }
        // Appends in flight beyond `covers` make their file dirty again.
        for (number, _) in &self.appends.window {
            debug_assert!(*number > covers);
        }
        if !self.appends.window.is_empty() {
            self.appends.dirty = files;
        }
        if self.appends.syncing == Some((covers, 0)) {
            self.finish_journal_sync(covers, fx);
        }
    }

    /// The first append that somebody wants synced and that is not.
    fn first_wanted(&self) -> Option<u64> {
        let seals = self
            .pending
            .iter()
            .filter(|p| p.sealed && !p.durable)
            .map(|p| p.last_append);
        let synced = self.appends.synced;
        seals
            .chain(self.appends.wanted.front().copied())
            .filter(|append| *append > synced)
            .min()
    }

    pub(super) fn journal_synced(&mut self, fx: &mut Vec<Effect<M>>) {
        let (covers, left) = self.appends.syncing.expect("a sync was in flight");
        self.appends.syncing = Some((covers, left - 1));
        if left == 1 {
            self.finish_journal_sync(covers, fx);
        }
    }

    fn finish_journal_sync(&mut self, covers: u64, fx: &mut Vec<Effect<M>>) {
        self.appends.syncing = None;
        self.appends.synced = covers;
        while self
            .appends
            .wanted
            .front()
            .is_some_and(|append| *append <= covers)
        {
            self.appends.wanted.pop_front();
        }
        while let Some((number, committed)) = self.appends.marks.front().copied() {
            if number > covers {
                break;
            }
            self.appends.marks.pop_front();
            // What the primary knew to be committed is durable with the record that says so.
            let carried = committed.min(self.committed);
            if carried > self.commit_durable {
                self.commit_durable = carried;
                self.pace.commit_waits_since = None;
            }
        }
        self.mark_durable(fx);
        self.own_synced(fx);
        self.tail_synced();
    }

    /// Tells the group of every epoch that is sealed and synced by now.
    pub(super) fn mark_durable(&mut self, fx: &mut Vec<Effect<M>>) {
        if self.session.holds_seals() {
            return;
        }
        let synced = self.appends.synced;
        let mut sealed = Epoch::NONE;
        for pending in &mut self.pending {
            if pending.durable {
                continue;
            }
            let synced = if crate::mutant!("ack-before-sync") {
                self.appends.written
            } else {
                synced
            };
            if !pending.sealed || pending.last_append > synced {
                break;
            }
            pending.durable = true;
            sealed = pending.epoch;
            self.cut_unix_ns.insert(pending.epoch, pending.cut_unix_ns);
        }
        if sealed > self.durable {
            self.durable = sealed;
            while self.cut_unix_ns.len() > CUTS_KEPT {
                self.cut_unix_ns.pop_first();
            }
            fx.push(Effect::Group(ToGroup::Sealed(sealed)));
        }
    }
}
