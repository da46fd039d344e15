//! What is printed for people.

use std::io::{self, Write};

use blkback_proto::meta::GroupMeta;
use blkback_proto::moment::{utc_text, utc_text_ms};
use blkback_proto::record::RecordKind;

use super::chains::Chain;
use super::gather::{Record, Segment};
use super::slots::Slots;
use super::verdict::Volume;

/// Everything found in a directory.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) group: Option<Slots<GroupMeta>>,
    pub(super) volumes: Vec<Volume>,
    pub(super) problems: Vec<String>,
}

pub(super) fn kind_word(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Writes => "writes",
        RecordKind::Seal => "seal",
        RecordKind::Commit => "commit",
        RecordKind::Resync => "resync",
    }
}

fn yes_no(it_is: bool) -> &'static str {
    if it_is { "yes" } else { "no" }
}

fn name_of(volume: &Volume) -> String {
    volume
        .index
        .map_or("journal".to_owned(), |index| format!("volume {index}"))
}

fn slot_words(slots: &[Option<Result<u64, String>>; 2]) -> String {
    let word = |slot: &Option<Result<u64, String>>| match slot {
        None => "empty".to_owned(),
        Some(Ok(generation)) => format!("generation {generation}"),
        Some(Err(why)) => format!("damaged ({why})"),
    };
    format!("slot 0 {}, slot 1 {}", word(&slots[0]), word(&slots[1]))
}

/// When an epoch was cut; nothing where that is not known.
fn cut_words(unix_ns: u64) -> String {
    match unix_ns {
        0 => String::new(),
        ns => format!(" (cut {})", utc_text_ms(ns / 1_000_000)),
    }
}

/// `3, 5-9, 12`.
fn ranges(epochs: impl Iterator<Item = u64>) -> String {
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for epoch in epochs {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == epoch => *last = epoch,
            _ => parts.push((epoch, epoch)),
        }
    }
    let words: Vec<String> = parts
        .iter()
        .map(|(a, b)| {
            if a == b {
                a.to_string()
            } else {
                format!("{a}-{b}")
            }
        })
        .collect();
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(", ")
    }
}

impl Report {
    /// The first thing that is wrong, in one line.
    pub(super) fn first_problem(&self) -> Option<String> {
        let of_volumes = self.volumes.iter().find_map(|volume| {
            let problem = volume.problems.first()?;
            let name = name_of(volume);
            Some(format!(
                "{name}: {} at {}: {}",
                problem.file, problem.offset, problem.why
            ))
        });
        self.problems.first().cloned().or(of_volumes)
    }

    /// Segments, records and metadata.
    pub(super) fn dump_text(&self, out: &mut dyn Write) -> io::Result<()> {
        self.group_text(out)?;
        for volume in &self.volumes {
            writeln!(out, "{}", name_of(volume))?;
            meta_text(volume, out)?;
            for segment in &volume.gathered.segments {
                segment_text(segment, out)?;
                let of_file = volume
                    .gathered
                    .records
                    .iter()
                    .filter(|r| r.file == segment.index);
                for record in of_file {
                    record_text(record, out)?;
                }
            }
        }
        self.problems_text(out)
    }

    /// Chains, whole epochs, and what is wrong.
    pub(super) fn verify_text(&self, out: &mut dyn Write) -> io::Result<()> {
        self.group_text(out)?;
        for volume in &self.volumes {
            writeln!(out, "{}", name_of(volume))?;
            meta_text(volume, out)?;
            for chain in &volume.chains {
                chain_text(chain, out)?;
            }
            for note in &volume.notes {
                writeln!(out, "  note: {note}")?;
            }
            self.promotion_note(volume, out)?;
        }
        self.problems_text(out)?;
        if self.first_problem().is_none() {
            let no_epoch = |v: &Volume| v.meta.as_ref().is_some_and(|meta| meta.inconsistent);
            let verdict = if self.volumes.iter().any(no_epoch) {
                "journal undamaged; the volume is no epoch: not promotable"
            } else if self.volumes.iter().any(|v| v.meta.is_none()) {
                "journal undamaged; whether its volume can be promoted only the state directory tells: give \
                 that one"
            } else {
                "clean"
            };
            writeln!(out, "{verdict}")?;
        }
        Ok(())
    }

    /// Why the epoch of a promotion may have no seal anywhere.
    fn promotion_note(&self, volume: &Volume, out: &mut dyn Write) -> io::Result<()> {
        let promoted = self.group.as_ref().and_then(|g| g.newest.as_ref());
        let promoted = promoted.map_or(0, |group| group.promoted.0);
        let committed = volume.meta.as_ref().map_or(0, |meta| meta.committed.0);
        if promoted > committed && committed > 0 {
            writeln!(
                out,
                "  note: promoted at {promoted}, committed {committed}: epochs without writes have \
                 no record, and hold what the one before them held"
            )?;
        }
        Ok(())
    }

    fn group_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let Some(slots) = &self.group else {
            return Ok(());
        };
        writeln!(out, "group: {}", slot_words(&slots.each))?;
        let Some(meta) = &slots.newest else {
            return Ok(());
        };
        let role = match meta.role {
            blkback_proto::meta::Role::Primary => "primary",
            blkback_proto::meta::Role::Backup => "backup",
        };
        writeln!(
            out,
            "  {} \"{}\", {} volumes, {role}, promoted {}, stopped in order: {}, all dirty {}, memory of the guest: {}",
            meta.group,
            meta.name.escape_debug(),
            meta.volume_count,
            meta.promoted,
            yes_no(meta.clean),
            meta.all_dirty,
            yes_no(meta.memory)
        )?;
        for entry in &meta.lineage {
            writeln!(
                out,
                "  lineage {} from epoch {}, {}, at {}",
                entry.id,
                entry.first_epoch,
                entry.why.word(),
                utc_text(entry.unix_s.saturating_mul(1000))
            )?;
        }
        Ok(())
    }

    fn problems_text(&self, out: &mut dyn Write) -> io::Result<()> {
        for problem in &self.problems {
            writeln!(out, "bad: {problem}")?;
        }
        for volume in &self.volumes {
            for problem in &volume.problems {
                let name = name_of(volume);
                writeln!(
                    out,
                    "bad: {name}: {} at {}: {}",
                    problem.file, problem.offset, problem.why
                )?;
            }
        }
        Ok(())
    }
}

fn meta_text(volume: &Volume, out: &mut dyn Write) -> io::Result<()> {
    if volume.slots.iter().any(Option::is_some) {
        writeln!(out, "  metadata: {}", slot_words(&volume.slots))?;
    }
    let Some(meta) = &volume.meta else {
        return Ok(());
    };
    writeln!(
        out,
        "  volume {}, {} bytes, applied {}, committed {}{}, durable {}",
        meta.volume,
        meta.size_bytes,
        meta.applied,
        meta.committed,
        cut_words(meta.committed_cut_unix_ns),
        meta.durable
    )?;
    writeln!(
        out,
        "  tail {} record {} session {} lineage {}",
        meta.tail, meta.tail_record_seq, meta.tail_session, meta.tail_lineage
    )?;
    writeln!(
        out,
        "  inconsistent {}, consistent from {}, journal empty {}, own segment {} synced to record {}, stopped in order: {}",
        meta.inconsistent,
        meta.consistent_from,
        meta.journal_empty,
        meta.own_serial,
        meta.own_synced,
        yes_no(meta.clean)
    )
}

fn segment_text(segment: &Segment, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "  {}: ", segment.path.display())?;
    match &segment.header {
        None => write!(out, "unused")?,
        Some(Err(why)) => write!(out, "damaged header: {why}")?,
        Some(Ok(header)) => write!(
            out,
            "segment {}, from record {} of lineage {}",
            header.serial, header.first_record_seq, header.lineage
        )?,
    }
    if segment.stale > 0 {
        write!(out, ", {} records of an earlier use", segment.stale)?;
    }
    writeln!(out)
}

fn record_text(record: &Record, out: &mut dyn Write) -> io::Result<()> {
    write!(
        out,
        "    {:>10} record {} {} epoch {} writes {} bytes {} session {} \
         durable {} committed {} released {} crc {:08x}",
        record.place.offset,
        record.seq,
        kind_word(record.kind),
        record.epoch,
        record.writes,
        record.payload_bytes,
        record.session,
        record.durable,
        record.committed,
        record.released,
        record.crc
    )?;
    match &record.payload_error {
        None => writeln!(out, " ok"),
        Some(why) => writeln!(out, " BAD: {why}"),
    }
}

fn chain_text(chain: &Chain, out: &mut dyn Write) -> io::Result<()> {
    let whose = if chain.is_own() {
        "own writes"
    } else {
        "session"
    };
    writeln!(
        out,
        "  {whose} {}: records {} to {}, {} to {}",
        chain.session,
        chain.first_seq,
        (chain.first_seq + chain.records).saturating_sub(1),
        chain.first,
        chain.end
    )?;
    writeln!(
        out,
        "    sealed epochs: {}",
        ranges(chain.sealed.iter().map(|(epoch, _)| *epoch))
    )?;
    if let Some(open) = chain.open {
        writeln!(out, "    epoch {open} has no seal")?;
    }
    writeln!(
        out,
        "    acknowledged as far as the records say: {}",
        chain.watermark
    )
}
