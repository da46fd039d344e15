//! The first sync: chunks compared, copies taken, and the image an epoch again.

use super::*;

impl<M: Memory> BackupVolume<M> {
    pub(super) fn start_sync(&mut self, fx: &mut Vec<Effect<M>>) -> Result<(), Stop<M>> {
        if self.session.sync != Sync::None || self.expect.is_some() {
            return Err(Stop::Violation(
                "a sync in the middle of a session".to_owned(),
            ));
        }
        self.session.sync = Sync::Marking;
        self.meta.now.inconsistent = true;
        self.meta.write(Then::Compare);
        fx.push(Effect::Group(ToGroup::Inconsistent));
        Ok(())
    }

    pub(super) fn start_check(
        &mut self,
        mem: &mut M,
        index: u64,
        hash: [u8; 32],
        fx: &mut Vec<Effect<M>>,
    ) -> Result<(), Stop<M>> {
        let start = index
            .checked_mul(SYNC_CHUNK_BYTES)
            .filter(|start| *start < self.size_bytes);
        let Some(start) = start.filter(|_| self.session.sync == Sync::Comparing) else {
            return Err(Stop::Violation(format!("a check of chunk {index}")));
        };
        let later = Stop::Later(Incoming::Frame(Frame::SyncCheck { index, hash }));
        if self.session.checks >= SYNC_IOS_MAX {
            return Err(later);
        }
        let length = SYNC_CHUNK_BYTES.min(self.size_bytes - start);
        let Some(buf) = mem.alloc(usize::try_from(length).expect("a chunk")) else {
            return Err(later);
        };
        self.session.checks += 1;
        let op = Op::Read {
            target: Target::Image,
            offset: start,
            buf,
        };
        self.io(Io::CheckRead { index, hash }, op, fx);
        Ok(())
    }

    pub(in crate::engine::backup) fn check_read(
        &mut self,
        index: u64,
        hash: &[u8; 32],
        done: Done<M>,
        fx: &mut Vec<Effect<M>>,
    ) {
        self.session.checks -= 1;
        if self.session.sync != Sync::Comparing {
            return;
        }
        // What cannot be read is copied anew.
        let differs = done.result.is_err()
            || done
                .buf
                .is_none_or(|buf| blake3::hash(buf.as_ref()).as_bytes() != hash);
        fx.push(Effect::Send(Outgoing::Frame(Frame::SyncResult {
            index,
            differs,
        })));
    }

    /// Goes through the steps at the end of a sync.
    pub(super) fn end_sync(&mut self, fx: &mut Vec<Effect<M>>) {
        if let Sync::Ending(epoch, EndStep::Copies) = self.session.sync
            && self.session.direct_in_flight == 0
        {
            self.session.sync = Sync::Ending(epoch, EndStep::ImageSync);
            if crate::mutant!("consistent-before-sync") {
                self.direct_synced();
                return;
            }
            self.io(
                Io::DirectSync,
                Op::Sync {
                    target: Target::Image,
                },
                fx,
            );
        }
    }

    pub(in crate::engine::backup) fn direct_synced(&mut self) {
        if let Sync::Ending(epoch, EndStep::ImageSync) = self.session.sync {
            self.session.sync = Sync::Ending(epoch, EndStep::Metadata);
            self.meta.now.inconsistent = false;
            self.meta.now.consistent_from = epoch;
            self.meta.write(Then::Consistent);
        }
    }

    pub(super) fn take_direct(
        &mut self,
        mem: &mut M,
        header: &Header,
        record: M::BufMut,
        fx: &mut Vec<Effect<M>>,
    ) -> Result<(), Stop<M>> {
        if self.session.direct_in_flight >= SYNC_IOS_MAX {
            return Err(Stop::Later(Incoming::Record(record)));
        }
        let record = mem.freeze(record);
        for (descriptor, at) in header.descriptors.iter().zip(header.payload_offsets()) {
            if descriptor.payload_bytes() == 0 {
                return Err(Stop::Violation("a copied chunk without data".to_owned()));
            }
            let at = usize::try_from(at).expect("inside a record");
            let bufs = Bufs::One(mem.slice(&record, at, descriptor.length_bytes as usize));
            self.session.direct_in_flight += 1;
            let op = Op::Write {
                target: Target::Image,
                offset: descriptor.offset_bytes,
                bufs,
            };
            self.io(Io::Direct, op, fx);
        }
        Ok(())
    }
}
