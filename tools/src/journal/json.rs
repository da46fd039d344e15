//! The same report for programs.

use std::io::{self, Write};

use blkback_proto::meta::GroupMeta;
use serde_json::{Value, json};

use super::chains::Chain;
use super::gather::{Record, Segment};
use super::report::{Report, kind_word};
use super::verdict::Volume;

impl Report {
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
        "memory": meta.memory,
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
            "own_synced": meta.own_synced,
            "committed_cut_unix_ns": meta.committed_cut_unix_ns,
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
