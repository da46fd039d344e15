//! What a volume is after a crash: a table over facts (JOURNAL.md §6).
//!
//! The facts come from metadata and a scan. [`decide`] looks them up and changes nothing; the
//! engine acts on the decision afterwards. Every combination of facts matches exactly one row.

use super::scan::{End, Scan};
use blkback_proto::ids::Epoch;

/// What is known about a volume's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Metadata says the image is being compared and copied, or is mixed up to an epoch the
    /// journal does not reach.
    pub inconsistent: bool,
    /// An epoch that was acknowledged as durable is not whole, or an own record is not that the image
    /// may depend on.
    pub below_watermark: bool,
    /// Something of the chain stands damaged at the end, or whole behind it.
    pub torn: bool,
    /// A seal of an epoch that is not whole is among it.
    pub seal_behind: bool,
    /// The journal is this side's own: it was primary, its writes were not acknowledged to a peer.
    pub own: bool,
}

/// What the volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Exactly the last whole sealed epoch; nothing else was begun.
    Whole,
    /// Exactly the last whole sealed epoch; a tail that nobody was told about is dropped.
    DropTail,
    /// The last whole sealed epoch, but one above it may have been acknowledged and rotted:
    /// promotion takes the operator's word.
    Suspect,
    /// No epoch: it has to be compared and copied.
    Inconsistent,
    /// Acknowledged epochs are damaged: leave everything as it is.
    Refuse,
    /// Own writes: everything up to the end counts, sealed or not.
    KeepPrefix,
}

/// One row: facts that must hold (`Some`), a decision, and why.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Name in documents and tests.
    pub name: &'static str,
    inconsistent: Option<bool>,
    below_watermark: Option<bool>,
    torn: Option<bool>,
    seal_behind: Option<bool>,
    own: Option<bool>,
    /// What the volume is.
    pub decision: Decision,
    /// Why.
    pub why: &'static str,
}

/// The table. JOURNAL.md §6 has the same rows.
pub const TABLE: [Row; 9] = [
    Row {
        name: "R1-inconsistent",
        inconsistent: Some(true),
        below_watermark: None,
        torn: None,
        seal_behind: None,
        own: None,
        decision: Decision::Inconsistent,
        why: "a sync had not ended: the image is a mixture, whatever the journal says",
    },
    Row {
        name: "R2-acknowledged-damaged",
        inconsistent: Some(false),
        below_watermark: Some(true),
        torn: None,
        seal_behind: None,
        own: Some(false),
        decision: Decision::Refuse,
        why: "an epoch was acknowledged as durable and is not whole: output that depends on it left",
    },
    Row {
        name: "R3-clean",
        inconsistent: Some(false),
        below_watermark: Some(false),
        torn: Some(false),
        seal_behind: Some(false),
        own: Some(false),
        decision: Decision::Whole,
        why: "the chain ends where writing ended",
    },
    Row {
        name: "R4-torn-tail",
        inconsistent: Some(false),
        below_watermark: Some(false),
        torn: Some(true),
        seal_behind: Some(false),
        own: Some(false),
        decision: Decision::DropTail,
        why: "records of an epoch without a seal: it was never acknowledged",
    },
    Row {
        name: "R5-sealed-but-damaged",
        inconsistent: Some(false),
        below_watermark: Some(false),
        torn: Some(true),
        seal_behind: Some(true),
        own: Some(false),
        decision: Decision::Suspect,
        why: "its seal is there and a record of it is not: torn before the acknowledgement, or \
              rotted after it; nothing here can tell",
    },
    Row {
        name: "R6-own-damaged",
        inconsistent: Some(false),
        below_watermark: Some(true),
        torn: None,
        seal_behind: None,
        own: Some(true),
        decision: Decision::Refuse,
        why: "a write of this side is damaged that was flushed, or that the image depends on",
    },
    Row {
        name: "R7-own",
        inconsistent: Some(false),
        below_watermark: Some(false),
        torn: None,
        seal_behind: Some(false),
        own: Some(true),
        decision: Decision::KeepPrefix,
        why: "completed writes stand in order in front of anything torn",
    },
    Row {
        name: "R8-seal-without-trace",
        inconsistent: Some(false),
        below_watermark: Some(false),
        torn: Some(false),
        seal_behind: Some(true),
        own: None,
        decision: Decision::Refuse,
        why: "a seal cannot be behind a clean end: the scan contradicts itself",
    },
    Row {
        name: "R9-own-sealed-but-damaged",
        inconsistent: Some(false),
        below_watermark: Some(false),
        torn: Some(true),
        seal_behind: Some(true),
        own: Some(true),
        decision: Decision::KeepPrefix,
        why: "the end of an own epoch is there and a write of it is not: torn before a flush was \
              answered, or rotted after it; nothing here can tell",
    },
];

impl Row {
    /// What somebody was told of may be missing, and nobody is asked: it has to be said.
    #[must_use]
    pub fn loses_perhaps(&self) -> bool {
        self.decision == Decision::KeepPrefix && self.seal_behind == Some(true)
    }

    fn matches(&self, facts: Facts) -> bool {
        let is = |wanted: Option<bool>, fact: bool| wanted.is_none_or(|w| w == fact);
        is(self.inconsistent, facts.inconsistent)
            && is(self.below_watermark, facts.below_watermark)
            && is(self.torn, facts.torn)
            && is(self.seal_behind, facts.seal_behind)
            && is(self.own, facts.own)
    }
}

/// The row that these facts match.
#[must_use]
pub fn decide(facts: Facts) -> &'static Row {
    TABLE
        .iter()
        .find(|row| row.matches(facts))
        .expect("a test walks all combinations")
}

/// What metadata says of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Of this side's own chain: number of the last record known to be on stable storage.
    pub own_synced: Option<u64>,
    /// A sync has not ended.
    pub inconsistent: bool,
    /// Last epoch in the image.
    pub applied: Epoch,
    /// First epoch the volume can be.
    pub consistent_from: Epoch,
    /// Highest epoch that was acknowledged.
    pub durable: Epoch,
}

/// The facts of a scan, with what metadata says.
#[must_use]
pub fn facts(scan: &Scan, known: Known) -> Facts {
    // Watermarks on disk name epochs that have a seal in the journal, never empty ones, so one
    // above the last seal means that something acknowledged is missing.
    let sealed = last_sealed(scan).max(known.applied);
    let acknowledged = scan.watermark.max(known.durable);
    let own_missing = known.own_synced.is_some_and(|seq| last_record(scan) < seq);
    Facts {
        // An epoch acknowledged since the sync says that the sync had come to its end: then what
        // is missing is damage.
        inconsistent: known.inconsistent
            || (sealed < known.consistent_from && acknowledged < known.consistent_from),
        below_watermark: (acknowledged > sealed && !crate::mutant!("watermark-ignored"))
            || own_missing,
        torn: scan.end == End::Torn,
        seal_behind: scan.seal_behind > sealed,
        own: known.own_synced.is_some(),
    }
}

/// Number of the last whole record in front of the end.
#[must_use]
pub fn last_record(scan: &Scan) -> u64 {
    scan.expect.record_seq - 1
}

/// Highest epoch whose records are all there, seal included.
#[must_use]
pub fn last_sealed(scan: &Scan) -> Epoch {
    scan.epochs
        .iter()
        .rev()
        .find(|e| e.sealed)
        .map_or(Epoch::NONE, |e| e.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A combination nobody thought of must not be decided by the order of rows, or not at all.
    #[test]
    fn every_combination_matches_exactly_one_row() {
        let mut hit = [false; TABLE.len()];
        for bits in 0..32u32 {
            let facts = Facts {
                inconsistent: bits & 1 != 0,
                below_watermark: bits & 2 != 0,
                torn: bits & 4 != 0,
                seal_behind: bits & 8 != 0,
                own: bits & 16 != 0,
            };
            let rows: Vec<usize> = (0..TABLE.len())
                .filter(|i| TABLE[*i].matches(facts))
                .collect();
            assert_eq!(rows.len(), 1, "{facts:?} matches {rows:?}");
            hit[rows[0]] = true;
        }
        assert!(hit.iter().all(|h| *h), "every row is reachable");
    }
}
