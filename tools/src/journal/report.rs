//! What is printed: for people, or as JSON.

use std::io::{self, Write};

use blkback_proto::meta::GroupMeta;
use blkback_proto::record::RecordKind;
use serde_json::{Value, json};

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

fn kind_word(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Writes => "writes",
        RecordKind::Seal => "seal",
        RecordKind::Commit => "commit",
        RecordKind::Resync => "resync",
    }
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
        }
        self.problems_text(out)?;
        if self.first_problem().is_none() {
            writeln!(out, "clean")?;
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
            "  {} \"{}\", {} volumes, {role}, promoted {}, clean {}, all dirty {}",
            meta.group,
            meta.name.escape_debug(),
            meta.volume_count,
            meta.promoted,
            meta.clean,
            meta.all_dirty
        )?;
        for entry in &meta.lineage {
            writeln!(
                out,
                "  lineage {} from epoch {}, {}, at {} s",
                entry.id,
                entry.first_epoch,
                entry.why.word(),
                entry.unix_s
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

    /// One JSON object; with `verify` chains in place of single records.
    pub(super) fn json(&self, verify: bool, out: &mut dyn Write) -> io::Result<()> {
        let volumes: Vec<Value> = self
            .volumes
            .iter()
            .map(|volume| volume_json(volume, verify))
            .collect();
        let group = self.group.as_ref().map(|slots| {
            json!({
                "slots": slots_json(&slots.each),
                "meta": slots.newest.as_ref().map(group_json),
            })
        });
        let value = json!({
            "clean": self.first_problem().is_none(),
            "first_problem": self.first_problem(),
            "group": group,
            "problems": self.problems,
            "volumes": volumes,
        });
        serde_json::to_writer_pretty(&mut *out, &value)?;
        writeln!(out)
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
        "  volume {}, {} bytes, applied {}, committed {}, durable {}",
        meta.volume, meta.size_bytes, meta.applied, meta.committed, meta.durable
    )?;
    writeln!(
        out,
        "  tail {} record {} session {} lineage {}",
        meta.tail, meta.tail_record_seq, meta.tail_session, meta.tail_lineage
    )?;
    writeln!(
        out,
        "  inconsistent {}, consistent from {}, journal empty {}, own segment {}, clean {}",
        meta.inconsistent, meta.consistent_from, meta.journal_empty, meta.own_serial, meta.clean
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

fn slots_json(slots: &[Option<Result<u64, String>>; 2]) -> Vec<Value> {
    let one = |slot: &Option<Result<u64, String>>| match slot {
        None => json!({ "state": "empty" }),
        Some(Ok(generation)) => json!({ "state": "ok", "generation": generation }),
        Some(Err(why)) => json!({ "state": "damaged", "why": why }),
    };
    slots.iter().map(one).collect()
}

fn group_json(meta: &GroupMeta) -> Value {
    let lineage: Vec<Value> = meta
        .lineage
        .iter()
        .map(|e| {
            json!({
                "id": e.id.to_string(),
                "first_epoch": e.first_epoch.0,
                "why": e.why.word(),
                "unix_s": e.unix_s,
            })
        })
        .collect();
    json!({
        "uuid": meta.group.to_string(),
        "name": meta.name,
        "volume_count": meta.volume_count,
        "is_primary": meta.role == blkback_proto::meta::Role::Primary,
        "promoted": meta.promoted.0,
        "clean": meta.clean,
        "all_dirty": meta.all_dirty,
        "lineage": lineage,
    })
}

fn volume_json(volume: &Volume, verify: bool) -> Value {
    let meta = volume.meta.as_ref().map(|meta| {
        json!({
            "uuid": meta.volume.to_string(),
            "size_bytes": meta.size_bytes,
            "segment_bytes": meta.segment_bytes,
            "segment_count": meta.segment_count,
            "tail": { "serial": meta.tail.serial, "offset": meta.tail.offset },
            "tail_record_seq": meta.tail_record_seq,
            "tail_session": meta.tail_session.to_string(),
            "tail_lineage": meta.tail_lineage.to_string(),
            "applied": meta.applied.0,
            "committed": meta.committed.0,
            "durable": meta.durable.0,
            "consistent_from": meta.consistent_from.0,
            "inconsistent": meta.inconsistent,
            "journal_empty": meta.journal_empty,
            "clean": meta.clean,
            "own_serial": meta.own_serial,
        })
    });
    let mut value = json!({
        "index": volume.index,
        "slots": slots_json(&volume.slots),
        "meta": meta,
        "problems": volume.problems,
        "notes": volume.notes,
    });
    if verify {
        value["chains"] = volume.chains.iter().map(chain_json).collect();
    } else {
        value["segments"] = volume.gathered.segments.iter().map(segment_json).collect();
        value["records"] = volume.gathered.records.iter().map(record_json).collect();
    }
    value
}

fn chain_json(chain: &Chain) -> Value {
    let sealed: Vec<Value> = chain
        .sealed
        .iter()
        .map(|(epoch, cut)| json!({ "epoch": epoch, "cut_unix_ns": cut }))
        .collect();
    let broken = chain.broken.as_ref().map(|broken| {
        json!({
            "serial": broken.place.serial,
            "offset": broken.place.offset,
            "why": broken.why,
            "records_behind": broken.behind,
            "seal_behind": broken.seal_behind,
        })
    });
    json!({
        "session": chain.session.to_string(),
        "lineage": chain.lineage.to_string(),
        "own": chain.is_own(),
        "records": chain.records,
        "first_record": chain.first_seq,
        "sealed": sealed,
        "open": chain.open,
        "watermark": chain.watermark,
        "end": { "serial": chain.end.serial, "offset": chain.end.offset },
        "broken": broken,
    })
}

fn segment_json(segment: &Segment) -> Value {
    let mut value = json!({
        "file": segment.path.display().to_string(),
        "bytes": segment.bytes,
        "stale_records": segment.stale,
    });
    match &segment.header {
        None => value["state"] = "unused".into(),
        Some(Err(why)) => {
            value["state"] = "damaged".into();
            value["why"] = why.clone().into();
        }
        Some(Ok(header)) => {
            value["state"] = "used".into();
            value["serial"] = header.serial.into();
            value["first_record"] = header.first_record_seq.into();
            value["lineage"] = header.lineage.to_string().into();
        }
    }
    value
}

fn record_json(record: &Record) -> Value {
    json!({
        "file": record.file,
        "serial": record.place.serial,
        "offset": record.place.offset,
        "record": record.seq,
        "kind": kind_word(record.kind),
        "epoch": record.epoch,
        "writes": record.writes,
        "discards": record.discards,
        "payload_bytes": record.payload_bytes,
        "total_bytes": record.total_bytes,
        "session": record.session.to_string(),
        "lineage": record.lineage.to_string(),
        "durable": record.durable,
        "committed": record.committed,
        "released": record.released,
        "base_epoch": record.base_epoch,
        "cut_unix_ns": record.cut_unix_ns,
        "crc": format!("{:08x}", record.crc),
        "ok": record.payload_error.is_none(),
        "why": record.payload_error,
    })
}
