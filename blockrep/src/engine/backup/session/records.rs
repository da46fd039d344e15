//! What comes over the link in a session: frames, records, seals.

use super::*;

impl<M: Memory> BackupVolume<M> {
    pub(super) fn take_frame(
        &mut self,
        mem: &mut M,
        frame: Frame,
        fx: &mut Vec<Effect<M>>,
    ) -> Result<(), Stop<M>> {
        match frame {
            Frame::SyncStart => self.start_sync(fx),
            Frame::SyncCheck { index, hash } => self.start_check(mem, index, hash, fx),
            Frame::SyncEnd { epoch } => {
                if self.session.sync != Sync::Comparing {
                    return Err(Stop::Violation(
                        "end of a sync that did not begin".to_owned(),
                    ));
                }
                if epoch <= self.session.last_sealed {
                    return Err(Stop::Violation(format!(
                        "end of a sync in old epoch {epoch}"
                    )));
                }
                self.session.sync = Sync::Ending(epoch, EndStep::Copies);
                self.end_sync(fx);
                Ok(())
            }
            Frame::EmptySeal {
                epoch, cut_unix_ns, ..
            } => self.empty_seal(epoch, cut_unix_ns, fx),
            _ => Err(Stop::Violation(
                "a frame that only a backup sends".to_owned(),
            )),
        }
    }

    pub(super) fn empty_seal(
        &mut self,
        epoch: Epoch,
        cut_unix_ns: u64,
        fx: &mut Vec<Effect<M>>,
    ) -> Result<(), Stop<M>> {
        if epoch <= self.session.last_sealed || self.pending.back().is_some_and(|p| !p.sealed) {
            return Err(Stop::Violation(format!(
                "empty seal of epoch {epoch} out of turn"
            )));
        }
        self.session.last_sealed = epoch;
        let Some(end) = self.expect else {
            // Nothing was written in this session yet: there is nothing to wait for either.
            if !self.session.holds_seals() {
                self.durable = self.durable.max(epoch);
                self.note_cut(epoch, cut_unix_ns);
                fx.push(Effect::Group(ToGroup::Sealed(epoch)));
            }
            return Ok(());
        };
        self.pending.push_back(Pending {
            epoch,
            extents: Vec::new(),
            last_append: self.session.last_seal_append,
            sealed: true,
            journaled: false,
            durable: false,
            cut_unix_ns,
            end,
        });
        self.mark_durable(fx);
        Ok(())
    }

    pub(super) fn take_record(
        &mut self,
        mem: &mut M,
        mut record: M::BufMut,
        fx: &mut Vec<Effect<M>>,
    ) -> Result<(), Stop<M>> {
        let violation = |text: String| Stop::Violation(text);
        let (header, crc) =
            Header::decode(record.as_ref()).map_err(|error| violation(error.to_string()))?;
        if header.total_bytes() != record.as_ref().len() as u64 {
            return Err(violation(
                "a record of another length than it says".to_owned(),
            ));
        }
        self.check_record(&header).map_err(violation)?;
        header
            .check_payloads(record.as_ref())
            .and_then(|()| header.check_ranges(self.size_bytes))
            .map_err(|error| violation(error.to_string()))?;
        self.counters.records += 1;
        self.counters.record_bytes += header.total_bytes();
        if header.flags & FLAG_DIRECT != 0 {
            return self.take_direct(mem, &header, record, fx);
        }
        let charge = header.charge_bytes();
        if self.session.charge_received + charge > self.session.credit_told {
            return Err(violation(
                "more than the window that was granted".to_owned(),
            ));
        }
        // A segment header may be needed, too: without memory for it nothing is taken.
        let Some(spare) = mem.alloc(SEGMENT_HEADER_BYTES) else {
            return Err(Stop::Later(Incoming::Record(record)));
        };
        drop(spare);
        let slot = self.ring.take(header.total_bytes());
        let slot = slot.ok_or_else(|| violation("no room in the journal".to_owned()))?;
        set_placement(&mut record.as_mut()[..HEADER_BYTES], slot.place);
        let record = mem.freeze(record);
        let nothing_waits =
            self.overlay.is_empty() && self.pending.iter().all(|p| p.extents.is_empty());
        self.apply.keep(slot.place, &record, nothing_waits);
        let bufs = Bufs::One(record);
        let number = self
            .append(mem, &header, crc, slot.place, slot.new_segment, bufs, fx)
            .expect("memory was there just now");
        self.session.charge_received += charge;
        self.note_record(&header, slot.place, number, fx);
        Ok(())
    }

    pub(super) fn check_record(&self, header: &Header) -> Result<(), String> {
        let hello = self
            .session
            .hello
            .as_ref()
            .expect("records come in a session");
        if header.session != hello.session
            || header.group != hello.group
            || header.volume != hello.volume
            || Some(header.lineage) != self.session.lineage
        {
            return Err("a record of another session, volume or history".to_owned());
        }
        if header.durable > self.durable || header.committed > self.committed {
            return Err("a record that knows of epochs this side never sealed".to_owned());
        }
        if header.flags & FLAG_DIRECT != 0 {
            if self.session.sync == Sync::Comparing {
                return Ok(());
            }
            return Err("a copied chunk outside of a sync".to_owned());
        }
        let (seq, crc) = self.expect.map_or((1, 0), |e| (e.record_seq, e.prev_crc));
        if header.record_seq != seq || header.prev_crc != crc {
            return Err(format!(
                "record {} where {seq} was expected",
                header.record_seq
            ));
        }
        if header.kind == RecordKind::Resync {
            return Err("a journalled resync, which this version does not know".to_owned());
        }
        let open = self.pending.back().filter(|p| !p.sealed).map(|p| p.epoch);
        if header.kind != RecordKind::Seal && header.base_epoch > self.session.last_sealed {
            return Err("a record that names a seal this side never got".to_owned());
        }
        if header.epoch <= self.session.last_sealed
            || (header.kind != RecordKind::Commit && open.is_some_and(|open| open != header.epoch))
        {
            return Err(format!("a record of epoch {} out of turn", header.epoch));
        }
        Ok(())
    }

    pub(super) fn note_record(
        &mut self,
        header: &Header,
        place: Place,
        number: u64,
        fx: &mut Vec<Effect<M>>,
    ) {
        let end = self.expect.expect("a record was just appended");
        if header.kind == RecordKind::Commit {
            self.appends.want_sync(number);
            return;
        }
        if self.pending.back().is_none_or(|p| p.sealed) {
            self.pending.push_back(Pending {
                epoch: header.epoch,
                extents: Vec::new(),
                last_append: number,
                sealed: false,
                journaled: true,
                durable: false,
                cut_unix_ns: 0,
                end,
            });
        }
        let pending = self.pending.back_mut().expect("there is one now");
        extents_of(header, place, &mut pending.extents);
        pending.last_append = number;
        pending.end = end;
        if header.kind == RecordKind::Seal {
            pending.sealed = true;
            pending.cut_unix_ns = header.cut_unix_ns;
            self.session.last_sealed = header.epoch;
            self.session.last_seal_append = number;
        }
        self.mark_durable(fx);
    }
}
