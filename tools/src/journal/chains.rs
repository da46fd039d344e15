//! Records put into chains: which follow one another without a gap, and what they seal.

use blkback_proto::ids::{GroupUuid, LineageId, Place, SessionId, VolumeUuid};
use blkback_proto::record::RecordKind;
use blkback_proto::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};

use super::gather::{Gathered, Record};

/// Where a chain breaks and what is known of the rest.
#[derive(Clone, Debug)]
pub(super) struct Break {
    pub(super) place: Place,
    pub(super) why: String,
    /// Records of the chain that stand behind.
    pub(super) behind: u64,
    /// A seal is among what is damaged or behind it, or may be.
    pub(super) seal_behind: bool,
}

/// Records of one session, or of one promoted side.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) group: GroupUuid,
    pub(super) volume: VolumeUuid,
    pub(super) session: SessionId,
    pub(super) lineage: LineageId,
    pub(super) first: Place,
    pub(super) first_seq: u64,
    pub(super) first_prev_crc: u32,
    /// Records in front of the break.
    pub(super) records: u64,
    /// Sealed epochs in front of the break, with the time of their cut.
    pub(super) sealed: Vec<(u64, u64)>,
    /// Epoch of records that no seal follows.
    pub(super) open: Option<u64>,
    /// Highest epoch any record says was acknowledged, behind the break as well.
    pub(super) watermark: u64,
    pub(super) end: Place,
    /// Checksum of the last record in front of the break.
    pub(super) end_crc: u32,
    pub(super) broken: Option<Break>,
}

impl Chain {
    /// Written by a promoted side itself: its session is made of its lineage.
    pub(super) fn is_own(&self) -> bool {
        self.lineage.0[..8] == self.session.0.to_le_bytes()
    }

    /// Number of the last record in front of the break.
    pub(super) fn last_record(&self) -> u64 {
        (self.first_seq + self.records).saturating_sub(1)
    }

    pub(super) fn last_sealed(&self) -> Option<u64> {
        self.sealed.last().map(|(epoch, _)| *epoch)
    }
}

/// What is known of the epoch that is being walked through.
struct Walk {
    chain: Chain,
    previous: Option<Record>,
    /// Writes and bytes of the open epoch; `None` where its beginning is not in the journal.
    counted: Option<(u64, u64)>,
}

/// Puts the records of a journal into chains, in the order of their first record.
pub(super) fn link(gathered: &Gathered) -> Vec<Chain> {
    let mut walks: Vec<Walk> = Vec::new();
    for record in &gathered.records {
        let of = |walk: &&mut Walk| {
            let chain = &walk.chain;
            chain.session == record.session
                && chain.lineage == record.lineage
                && chain.volume == record.volume
                && chain.group == record.group
        };
        match walks.iter_mut().rev().find(of) {
            Some(walk) if !record.chain_start => walk.take(record),
            _ => walks.push(Walk::begin(record)),
        }
    }
    let mut chains: Vec<Chain> = walks.into_iter().map(|walk| walk.chain).collect();
    for chain in &mut chains {
        note_lost_head(chain, gathered);
        note_trace(chain, gathered);
        note_lost_segment(chain, gathered);
    }
    chains
}

impl Walk {
    fn begin(record: &Record) -> Self {
        let chain = Chain {
            group: record.group,
            volume: record.volume,
            session: record.session,
            lineage: record.lineage,
            first: record.place,
            first_seq: record.seq,
            first_prev_crc: record.prev_crc,
            records: 0,
            sealed: Vec::new(),
            open: None,
            watermark: 0,
            end: record.place,
            end_crc: record.prev_crc,
            broken: None,
        };
        let counted = record.chain_start.then_some((0, 0));
        let mut walk = Self {
            chain,
            previous: None,
            counted,
        };
        walk.take(record);
        walk
    }

    fn take(&mut self, record: &Record) {
        self.chain.watermark = self.chain.watermark.max(record.watermark());
        let seal_behind = record.kind == RecordKind::Seal || self.changes_epoch(record);
        if let Some(broken) = &mut self.chain.broken {
            broken.behind += 1;
            broken.seal_behind |= seal_behind;
            return;
        }
        if let Err((place, why)) = self.fits(record) {
            self.chain.broken = Some(Break {
                place,
                why,
                behind: 1,
                seal_behind,
            });
            return;
        }
        self.chain.records += 1;
        self.chain.end = record.end();
        self.chain.end_crc = record.crc;
        self.count(record);
        self.previous = Some(record.clone());
    }

    /// Behind a break: a record of another epoch than the open one, so the seal between is lost.
    fn changes_epoch(&self, record: &Record) -> bool {
        record.kind != RecordKind::Commit && self.chain.open.is_some_and(|e| e != record.epoch)
    }

    /// The rules that hold between a record and the one before it.
    fn fits(&self, record: &Record) -> Result<(), (Place, String)> {
        let bad = |why: String| Err((record.place, why));
        if let Some(previous) = &self.previous {
            if record.seq != previous.seq + 1 {
                let place = previous.end();
                let why = format!(
                    "record {} is missing, {} follows",
                    previous.seq + 1,
                    record.seq
                );
                return Err((place, why));
            }
            if record.prev_crc != previous.crc {
                return bad(format!(
                    "record {} does not follow record {}",
                    record.seq, previous.seq
                ));
            }
            let next_segment = record.place.serial == previous.place.serial + 1;
            if record.place != previous.end() && !next_segment {
                return bad(format!(
                    "record {} is not where the chain goes on",
                    record.seq
                ));
            }
        }
        if let Some(why) = &record.payload_error {
            return bad(format!("record {}: {why}", record.seq));
        }
        if record.kind == RecordKind::Resync {
            return bad(format!(
                "record {}: a copied chunk has no place in a journal",
                record.seq
            ));
        }
        if record.kind == RecordKind::Commit {
            return Ok(());
        }
        if self.chain.open.is_some_and(|open| open != record.epoch) {
            return bad(format!(
                "record {}: epoch {} without a seal",
                record.seq,
                record.epoch - 1
            ));
        }
        if self
            .chain
            .last_sealed()
            .is_some_and(|sealed| record.epoch <= sealed)
        {
            return bad(format!(
                "record {}: epoch {} is sealed",
                record.seq, record.epoch
            ));
        }
        self.seal_fits(record)
            .map_err(|why| (record.place, format!("record {}: {why}", record.seq)))
    }

    /// A seal says how much its epoch holds and which seal stands before it.
    fn seal_fits(&self, record: &Record) -> Result<(), String> {
        if record.kind != RecordKind::Seal {
            return match self.chain.last_sealed() {
                Some(sealed) if record.base_epoch != sealed => Err(format!(
                    "stands behind the seal of {}, not of {sealed}",
                    record.base_epoch
                )),
                _ => Ok(()),
            };
        }
        if let Some(sealed) = self.chain.last_sealed()
            && record.base_epoch != sealed
        {
            return Err(format!(
                "follows the seal of {}, not of {sealed}",
                record.base_epoch
            ));
        }
        if let Some((writes, bytes)) = self.counted
            && !self.chain.is_own()
        {
            let there = (writes + record.writes, bytes + record.payload_bytes);
            let said = (record.epoch_writes, record.epoch_bytes);
            if there != said {
                return Err(format!(
                    "epoch {} has {} writes of {} bytes, its seal says {} of {}",
                    record.epoch, there.0, there.1, said.0, said.1
                ));
            }
        }
        Ok(())
    }

    fn count(&mut self, record: &Record) {
        match record.kind {
            RecordKind::Seal => {
                self.chain.sealed.push((record.epoch, record.cut_unix_ns));
                self.chain.open = None;
                self.counted = Some((0, 0));
            }
            RecordKind::Writes => {
                self.chain.open = Some(record.epoch);
                if let Some((writes, bytes)) = &mut self.counted {
                    *writes += record.writes;
                    *bytes += record.payload_bytes;
                }
            }
            RecordKind::Commit | RecordKind::Resync => {}
        }
    }
}

/// Chains begin with a segment, whose header says with which record; without it nothing counts.
fn note_lost_head(chain: &mut Chain, gathered: &Gathered) {
    let header = headers(gathered).find(|h| {
        h.serial == chain.first.serial && h.lineage == chain.lineage && h.volume == chain.volume
    });
    let Some(header) = header else { return };
    let whole = (header.first_record_seq, header.first_prev_crc)
        == (chain.first_seq, chain.first_prev_crc)
        && chain.first.offset == SEGMENT_HEADER_BYTES as u64;
    if whole {
        return;
    }
    let behind = chain.broken.as_ref();
    let place = Place {
        offset: SEGMENT_HEADER_BYTES as u64,
        ..chain.first
    };
    chain.broken = Some(Break {
        place,
        why: format!("record {} is missing", header.first_record_seq),
        behind: chain.records + behind.map_or(0, |broken| broken.behind),
        seal_behind: !chain.sealed.is_empty() || behind.is_some_and(|broken| broken.seal_behind),
    });
    (chain.first, chain.end) = (place, place);
    (chain.first_seq, chain.end_crc) = (header.first_record_seq, header.first_prev_crc);
    (chain.records, chain.open) = (0, None);
    chain.sealed.clear();
}

/// A damaged page right where the chain would go on.
fn note_trace(chain: &mut Chain, gathered: &Gathered) {
    let place = match &chain.broken {
        Some(broken) => broken.place,
        None => next_place(chain, gathered),
    };
    let next_seq = chain.first_seq + chain.records;
    let of_chain = |seq, session| seq == next_seq && session == chain.session;
    let trace = gathered
        .traces
        .iter()
        .find(|t| t.place == place && (t.placed || of_chain(t.seq, t.session)));
    let Some(trace) = trace else { return };
    match &mut chain.broken {
        Some(broken) => {
            broken.why = format!("{} ({})", trace.why, broken.why);
            broken.seal_behind |= trace.maybe_seal;
        }
        None => {
            chain.broken = Some(Break {
                place,
                why: trace.why.clone(),
                behind: 0,
                seal_behind: trace.maybe_seal,
            });
        }
    }
}

/// Where the record behind the last one stands, or would.
fn next_place(chain: &Chain, gathered: &Gathered) -> Place {
    let next_seq = chain.first_seq + chain.records;
    let goes_on = headers(gathered).any(|header| {
        header.serial == chain.end.serial + 1
            && header.first_record_seq == next_seq
            && header.first_prev_crc == chain.end_crc
            && header.lineage == chain.lineage
    });
    if goes_on {
        Place {
            serial: chain.end.serial + 1,
            offset: SEGMENT_HEADER_BYTES as u64,
        }
    } else {
        chain.end
    }
}

fn headers(gathered: &Gathered) -> impl Iterator<Item = &SegmentHeader> {
    gathered
        .segments
        .iter()
        .filter_map(|segment| segment.header.as_ref()?.as_ref().ok())
}

/// A segment header that goes on with the chain further than its records reach.
fn note_lost_segment(chain: &mut Chain, gathered: &Gathered) {
    let next_seq = chain.first_seq + chain.records;
    let beyond = headers(gathered).find(|header| {
        header.serial > chain.end.serial
            && header.lineage == chain.lineage
            && header.volume == chain.volume
            && header.first_record_seq > next_seq
    });
    if let (None, Some(header)) = (&chain.broken, beyond) {
        chain.broken = Some(Break {
            place: chain.end,
            why: format!(
                "record {next_seq} is missing, segment {} begins with {}",
                header.serial, header.first_record_seq
            ),
            behind: 0,
            seal_behind: true,
        });
    }
}
