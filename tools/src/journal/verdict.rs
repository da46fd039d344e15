//! What the chains of a journal and its metadata say together.

use std::collections::BTreeSet;

use blkback_proto::ids::Place;
use blkback_proto::meta::VolumeMeta;
use blkback_proto::segment::{SEGMENT_HEADER_BYTES, segment_file_name};
use blkback_proto::units::human_bytes;

use super::chains::Chain;
use super::gather::{Gathered, Record};
use super::layout::JournalFiles;
use super::slots::{AllSlots, Slots};

/// Something that is not as it was written.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Problem {
    /// File inside the journal directory, or the metadata file.
    pub(super) file: String,
    /// Byte offset in it.
    pub(super) offset: u64,
    pub(super) why: String,
}

/// One volume with everything found about it.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) index: Option<u16>,
    pub(super) meta: Option<VolumeMeta>,
    pub(super) slots: [Option<Result<u64, String>>; 2],
    pub(super) gathered: Gathered,
    pub(super) chains: Vec<Chain>,
    pub(super) problems: Vec<Problem>,
    pub(super) notes: Vec<String>,
}

/// Compares everything known about a volume.
pub(super) fn judge(
    files: &JournalFiles,
    gathered: Gathered,
    chains: Vec<Chain>,
    slots: &AllSlots,
) -> Volume {
    let of_volume: Option<&Slots<VolumeMeta>> = files.index.and_then(|i| slots.volumes.get(&i));
    let mut volume = Volume {
        index: files.index,
        meta: of_volume.and_then(|s| s.newest.clone()),
        slots: of_volume.map(|s| s.each.clone()).unwrap_or_default(),
        gathered,
        chains,
        problems: Vec::new(),
        notes: Vec::new(),
    };
    volume.check_segments();
    volume.check_chains();
    volume.check_lone_traces();
    volume.check_meta();
    volume
        .problems
        .sort_by(|a, b| (&a.file, a.offset).cmp(&(&b.file, b.offset)));
    volume
}

impl Volume {
    fn file_of(&self, place: Place) -> String {
        let count = self.gathered.segments.len().max(1) as u64;
        let index = u32::try_from(place.serial % count).expect("less than the count");
        segment_file_name(index)
    }

    fn problem(&mut self, place: Place, why: String) {
        let file = self.file_of(place);
        self.problems.push(Problem {
            file,
            offset: place.offset,
            why,
        });
    }

    fn check_segments(&mut self) {
        let count = self.gathered.segments.len() as u64;
        let mut sizes = BTreeSet::new();
        let mut found = Vec::new();
        for (at, segment) in (0u32..).zip(&self.gathered.segments) {
            let mut bad = |why: String| {
                let file = segment_file_name(segment.index);
                found.push(Problem {
                    file,
                    offset: 0,
                    why,
                });
            };
            sizes.insert(segment.bytes);
            if segment.index != at {
                bad(format!("segment file {at} is missing"));
                break;
            }
            let newest = self
                .gathered
                .records
                .iter()
                .filter(|r| r.file == segment.index);
            let newest = newest.map(|r| r.place.serial).max();
            match &segment.header {
                Some(Err(why)) => bad(format!("segment header: {why}")),
                None if newest.is_some() => bad("records without a segment header".to_owned()),
                None => {}
                Some(Ok(header)) => {
                    if header.serial % count != u64::from(segment.index) {
                        bad(format!(
                            "segment {} does not belong into this file",
                            header.serial
                        ));
                    }
                    if newest.is_some_and(|serial| serial > header.serial) {
                        bad(format!(
                            "the header is of segment {}, its records are newer",
                            header.serial
                        ));
                    }
                    if header.segment_bytes != segment.bytes {
                        bad(format!(
                            "{} bytes, the header says {}",
                            segment.bytes, header.segment_bytes
                        ));
                    }
                    if u64::from(header.segment_count) != count {
                        bad(format!(
                            "one of {count} segments, the header says {}",
                            header.segment_count
                        ));
                    }
                }
            }
        }
        if sizes.len() > 1 {
            let file = segment_file_name(0);
            found.push(Problem {
                file,
                offset: 0,
                why: "segments of different sizes".to_owned(),
            });
        }
        self.problems.extend(found);
    }

    fn check_chains(&mut self) {
        let volumes: BTreeSet<_> = self.chains.iter().map(|c| (c.group, c.volume)).collect();
        if volumes.len() > 1 {
            let names: Vec<String> = volumes.iter().map(|(_, v)| v.to_string()).collect();
            let why = format!("records of several volumes: {}", names.join(", "));
            self.problem(
                Place {
                    serial: 0,
                    offset: 0,
                },
                why,
            );
        }
        for chain in self.chains.clone() {
            let name = if chain.is_own() {
                "own writes"
            } else {
                "session"
            };
            let name = format!("{name} {}", chain.session);
            if let Some(broken) = &chain.broken {
                let lost = chain.watermark > chain.last_sealed().unwrap_or(0);
                if broken.seal_behind || lost {
                    self.problem(broken.place, format!("{name}: {}", broken.why));
                } else {
                    self.notes.push(format!(
                        "{name} ends torn at {} ({}): no seal is behind it",
                        broken.place, broken.why
                    ));
                }
            }
            if let Some(sealed) = chain.last_sealed()
                && chain.watermark > sealed
            {
                let why = format!(
                    "{name}: epoch {} was acknowledged, the last whole one is {sealed}",
                    chain.watermark
                );
                self.problem(chain.end, why);
            }
        }
    }

    /// The only record of a chain, damaged, leaves a segment without any record.
    fn check_lone_traces(&mut self) {
        let with_records: BTreeSet<u64> = self
            .gathered
            .records
            .iter()
            .map(|r| r.place.serial)
            .collect();
        for trace in self.gathered.traces.clone() {
            let first = trace.place.offset == SEGMENT_HEADER_BYTES as u64;
            if !first || with_records.contains(&trace.place.serial) {
                continue;
            }
            let why = format!("the first record of the segment: {}", trace.why);
            if trace.maybe_seal {
                self.problem(trace.place, why);
            } else {
                self.notes.push(format!("torn at {}: {why}", trace.place));
            }
        }
    }

    fn check_meta(&mut self) {
        let (Some(meta), Some(index)) = (self.meta.clone(), self.index) else {
            return;
        };
        let file = format!("volume-{index}.meta");
        let mut bad = Vec::new();
        let segments = self.gathered.segments.len();
        if meta.segment_count as usize != segments {
            let hint = if segments == 0 {
                ": type --journal DIR if the daemon has its journals elsewhere"
            } else {
                ""
            };
            bad.push(format!(
                "names {} segments, {segments} are there{hint}",
                meta.segment_count
            ));
        }
        for chain in &self.chains {
            if !meta.volume.is_none() && chain.volume != meta.volume {
                bad.push(format!(
                    "volume {}, the journal holds records of volume {}",
                    meta.volume, chain.volume
                ));
                break;
            }
        }
        if meta.inconsistent {
            self.notes
                .push("a sync has not ended: the volume is no epoch".to_owned());
        }
        if meta.journal_empty {
            self.notes
                .push("the journal is drained: the image alone is the volume".to_owned());
        } else if !meta.volume.is_none() {
            bad.extend(self.check_tail(&meta));
            self.note_unapplied(&meta);
        }
        self.problems.extend(bad.into_iter().map(|why| Problem {
            file: file.clone(),
            offset: 0,
            why,
        }));
    }

    /// What would be missing for whoever took the image alone. Metadata lags behind the image, so it may
    /// be less.
    fn note_unapplied(&mut self, meta: &VolumeMeta) {
        let counts = |record: &&Record| {
            let of = |chain: &&Chain| chain.session == record.session && record.place < chain.end;
            let whole = self.chains.iter().find(of).is_some_and(|chain| {
                chain.is_own() || chain.last_sealed().is_some_and(|last| record.epoch <= last)
            });
            record.place >= meta.tail && whole && record.epoch > meta.applied.0
        };
        let left = self.gathered.records.iter().filter(counts);
        let bytes = left.map(|record| record.payload_bytes).sum();
        if bytes > 0 {
            self.notes.push(format!(
                "up to {} of the journal, above epoch {}, are not in the image: the image alone is not \
                 the disk",
                human_bytes(bytes),
                meta.applied
            ));
        }
    }

    /// Everything the metadata calls durable has to be in the image or whole in the journal.
    fn check_tail(&mut self, meta: &VolumeMeta) -> Option<String> {
        let of_tail = |chain: &&Chain| {
            chain.session == meta.tail_session
                && chain.lineage == meta.tail_lineage
                && chain.end >= meta.tail
        };
        let tail = self.chains.iter().find(of_tail);
        let own = self
            .chains
            .iter()
            .rfind(|c| meta.own_serial != 0 && c.first.serial == meta.own_serial);
        let sealed = [tail, own]
            .into_iter()
            .flatten()
            .filter_map(Chain::last_sealed)
            .max();
        let sealed = sealed.unwrap_or(0).max(meta.applied.0);
        let known = meta.durable.0.max(meta.committed.0);
        if let Some(chain) = tail
            && let Some(broken) = &chain.broken
            && broken.place < meta.tail
        {
            self.notes.push(format!(
                "{}: damage in front of the tail, which is applied",
                broken.place
            ));
        }
        if sealed < meta.consistent_from.0 {
            self.notes.push(format!(
                "mixed by a sync until epoch {}: the volume is no epoch yet",
                meta.consistent_from
            ));
        }
        // Own writes that the image may depend on, sealed or not.
        let tail_is_own = tail.filter(|c| c.is_own());
        let whole = own.or(tail_is_own).map_or(0, Chain::last_record);
        if whole < meta.own_synced {
            return Some(format!(
                "own records up to {} were on disk, the last whole one is {whole}",
                meta.own_synced
            ));
        }
        (known > sealed)
            .then(|| format!("epoch {known} was acknowledged, the last whole one is {sealed}"))
    }
}
