//! Which damage is found in the records, and what is none.

use super::*;

/// A checker that cries over a good journal is not believed when it matters.
#[test]
fn a_good_journal_is_clean() {
    assert_clean(&Journal::new(), &[]);
    assert_clean(&Journal::usual(), &[1, 3, 4]);
    let mut over_segments = Journal::new();
    for epoch in 1..=12 {
        over_segments.record(RecordKind::Writes, epoch, &vec![5; 600 << 10]);
        over_segments.epoch_seal(epoch);
    }
    assert_clean(&over_segments, &(1..=12).collect::<Vec<_>>());
}

/// Segments are used again: what is left of an earlier lap is no damage, nor is its missing head.
#[test]
fn an_earlier_lap_is_not_mistaken_for_damage() {
    let mut journal = Journal::new();
    for epoch in 1..=40 {
        journal.record(RecordKind::Writes, epoch, &vec![5; 900 << 10]);
        journal.durable = epoch - 1;
        journal.epoch_seal(epoch);
    }
    assert!(
        journal.head.serial > u64::from(SEGMENTS),
        "the ring went round"
    );
    let (result, report) = journal.verify();
    assert!(result.is_ok(), "{report:#}");
    assert_eq!(sealed(&report).last(), Some(&40));
    // A new session in the segment after: the rest of the file is of the lap before.
    journal.next_segment();
    (journal.seq, journal.prev_crc, journal.session) = (0, 0, SessionId(9));
    journal.durable = 0;
    journal.epoch(50);
    let (result, report) = journal.verify();
    assert!(result.is_ok(), "{report:#}");
    assert_eq!(sealed(&report).last(), Some(&50));
}

/// A session that begins skips the segment behind the last one, so the ring does not write over the
/// oldest first: what is left of applied segments has gaps, and nobody needs it.
#[test]
fn gaps_in_front_of_the_tail_are_no_damage() {
    let mut journal = Journal::new();
    for epoch in 1..=u64::from(SEGMENTS) {
        journal.record(RecordKind::Writes, epoch, &vec![5; 900 << 10]);
        journal.durable = epoch - 1;
        journal.epoch_seal(epoch);
        journal.next_segment();
    }
    // The one that would be next is the oldest; the session begins behind it.
    journal.next_segment();
    (journal.seq, journal.prev_crc, journal.session) = (0, 0, SessionId(9));
    let tail = journal.head;
    journal.epoch(50);
    let dir = tempfile::tempdir().unwrap();
    let meta = |tail| VolumeMeta {
        tail,
        tail_session: SessionId(9),
        applied: Epoch(49),
        ..volume_meta(50)
    };
    save_state(dir.path(), &journal, &meta(tail));
    let (result, report) = verify(dir.path());
    assert!(result.is_ok(), "{report:#}");
    assert_eq!(sealed(&report), [50]);
    // Were it still needed, it would be damage.
    let early = Place { serial: 1, ..tail };
    save_state(dir.path(), &journal, &meta(early));
    assert!(verify(dir.path()).0.is_err());
}

/// A torn tail after a crash is what recovery drops; calling it damage would stop a failover.
#[test]
fn a_torn_tail_without_a_seal_is_noted_only() {
    for at in [100, 16, HEADER_BYTES as u64 + 3] {
        let mut journal = Journal::usual();
        journal.record(RecordKind::Writes, 5, &[9; 2048]);
        journal.flip(journal.places.len() - 1, at);
        let report = assert_clean(&journal, &[1, 3, 4]);
        assert!(
            report["volumes"][0]["notes"][0]
                .as_str()
                .unwrap()
                .contains("torn"),
            "{at}"
        );
    }
}

/// Rot anywhere in sealed epochs has to be found, wherever in the record it sits.
#[test]
fn rot_in_a_sealed_epoch_is_found() {
    // Head, middle, and the seal itself of the last epoch: header, placement, payload.
    let epochs_before: [&[u64]; 7] = [&[], &[], &[1], &[1], &[1], &[1, 3], &[1, 3]];
    for (record, before) in epochs_before.iter().enumerate() {
        for at in [2, 9, 41, 50, 300, 4040, HEADER_BYTES as u64 + 1] {
            let mut journal = Journal::usual();
            if record == 2 && at >= HEADER_BYTES as u64 {
                continue; // a commit has no payload
            }
            journal.flip(record, at);
            let (result, report) = journal.verify();
            assert!(result.is_err(), "record {record} byte {at}: {report:#}");
            assert_eq!(
                sealed(&report)[..before.len()],
                **before,
                "record {record} byte {at}"
            );
        }
    }
}

/// An epoch that is one record, the only one of its session: nothing else shows that it was there.
#[test]
fn rot_in_the_only_record_is_found() {
    for at in [2, 9, 41, 50, 300] {
        let mut journal = Journal::new();
        journal.record(RecordKind::Seal, 1, &[1; 512]);
        journal.flip(0, at);
        let (result, report) = journal.verify();
        assert!(result.is_err(), "byte {at}: {report:#}");
    }
}

/// The header of a segment hides everything in it from a reader that trusts it.
#[test]
fn rot_in_a_segment_header_is_found() {
    let mut journal = Journal::usual();
    journal.file(1)[40] ^= 1;
    assert_bad(&journal, &[1, 3, 4], "segment header");
}

/// A record that was written, acknowledged and lost by the device leaves a hole.
#[test]
fn a_lost_record_is_found() {
    let mut journal = Journal::usual();
    let (place, total) = journal.places[4];
    let at = usize::try_from(place.offset).unwrap();
    journal.file(1)[at..at + usize::try_from(total).unwrap()].fill(0);
    assert_bad(&journal, &[1], "record 5 is missing");
}

/// The end of the journal was lost; only the watermark tells that it was acknowledged.
#[test]
fn an_acknowledged_epoch_that_is_gone_is_found() {
    let mut journal = Journal::usual();
    journal.durable = 4;
    journal.record(RecordKind::Writes, 5, &[1; 512]);
    for record in [5, 6] {
        let (place, total) = journal.places[record];
        let at = usize::try_from(place.offset).unwrap();
        journal.file(1)[at..at + usize::try_from(total).unwrap()].fill(0);
    }
    assert_bad(&journal, &[1, 3], "is missing");
}

/// A write that landed elsewhere must not count there.
#[test]
fn a_misdirected_record_does_not_count() {
    let mut journal = Journal::usual();
    let (from, total) = journal.places[6];
    let (start, length) = (
        usize::try_from(from.offset).unwrap(),
        usize::try_from(total).unwrap(),
    );
    let bytes = journal.file(1)[start..start + length].to_vec();
    journal.file(2)[SEGMENT_HEADER_BYTES..SEGMENT_HEADER_BYTES + length].copy_from_slice(&bytes);
    assert_clean(&journal, &[1, 3, 4]);
    journal.file(1)[start..start + length].fill(0);
    let (_, report) = journal.verify();
    assert_eq!(sealed(&report), [1, 3]);
}

/// An epoch whose seal counts other writes than there are is not that epoch.
#[test]
fn a_seal_that_does_not_fit_its_epoch_is_found() {
    let mut journal = Journal::usual();
    journal.record(RecordKind::Writes, 5, &[1; 512]);
    journal.counted.0 += 1;
    journal.epoch_seal(5);
    assert_bad(&journal, &[1, 3, 4], "its seal says");
    let mut journal = Journal::usual();
    journal.sealed = 3;
    journal.epoch(5);
    assert_bad(&journal, &[1, 3, 4], "not of 4");
}

/// Two volumes in one journal: one of the two has lost everything.
#[test]
fn records_of_another_volume_are_found() {
    let mut journal = Journal::usual();
    journal.next_segment();
    journal.volume = VolumeUuid([9; 16]);
    (journal.seq, journal.prev_crc, journal.session) = (0, 0, SessionId(9));
    (journal.sealed, journal.durable) = (0, 0);
    journal.epoch(1);
    let (result, _) = journal.verify();
    assert!(result.unwrap_err().to_string().contains("several volumes"));
}

/// After a promotion two chains stand side by side: both have to be read.
#[test]
fn own_writes_after_a_promotion_are_a_chain() {
    let mut journal = Journal::usual();
    journal.next_segment();
    journal.lineage = LineageId([0xab; 16]);
    journal.session = SessionId(u64::from_le_bytes([0xab; 8]));
    (journal.seq, journal.prev_crc, journal.durable) = (0, 0, 0);
    journal.epoch(5);
    let report = assert_clean(&journal, &[1, 3, 4, 5]);
    assert_eq!(report["volumes"][0]["chains"][1]["own"], true);
}
