use super::*;
use proptest::prelude::*;

pub(crate) fn sample() -> Header {
    Header {
        kind: RecordKind::Seal,
        flags: 0,
        prev_crc: 0x1122_3344,
        volume_index: 1,
        epoch: Epoch(42),
        record_seq: 7,
        session: SessionId(0x0102_0304_0506_0708),
        first_write_seq: 99,
        group: GroupUuid([0xaa; 16]),
        volume: VolumeUuid([0xbb; 16]),
        lineage: LineageId([0xcc; 16]),
        durable: Epoch(41),
        committed: Epoch(40),
        released: Epoch(39),
        cut_unix_ns: 1_700_000_000_000_000_000,
        base_epoch: Epoch(38),
        epoch_writes: 3,
        epoch_bytes: 1024,
        descriptors: vec![
            Descriptor {
                kind: DescriptorKind::Data,
                offset_bytes: 4096,
                length_bytes: 1024,
                payload_crc: crc32fast::hash(&[7; 1024]),
            },
            Descriptor {
                kind: DescriptorKind::Zero,
                offset_bytes: 512,
                length_bytes: 512,
                payload_crc: 0,
            },
            Descriptor {
                kind: DescriptorKind::Discard,
                offset_bytes: 1 << 30,
                length_bytes: 1 << 20,
                payload_crc: 0,
            },
        ],
    }
}

fn encoded(header: &Header) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    header.encode(&mut bytes);
    bytes
}

/// A journal written by an older build must stay readable: these bytes are frozen (version 1).
#[test]
fn golden_bytes() {
    let mut bytes = encoded(&sample());
    set_placement(
        &mut bytes,
        Place {
            serial: 5,
            offset: 8192,
        },
    );
    crate::golden::check("record-v1-seal.bin", &bytes);
    assert_eq!(Header::decode(&bytes).unwrap().0, sample());
    assert_eq!(
        placement(&bytes).unwrap(),
        Place {
            serial: 5,
            offset: 8192
        }
    );
}

/// A record copied to another place of the journal (a stale lap, a misdirected write) must not
/// pass for the one that belongs there.
#[test]
fn placement_is_bound_to_the_record() {
    let mut bytes = encoded(&sample());
    assert_eq!(placement(&bytes), Err(RecordError::Placement));
    set_placement(
        &mut bytes,
        Place {
            serial: 5,
            offset: 8192,
        },
    );
    assert!(placement(&bytes).is_ok());
    bytes[PLACEMENT_OFFSET] ^= 1;
    assert_eq!(placement(&bytes), Err(RecordError::Placement));
}

/// A torn header must never be read as a shorter valid one.
#[test]
fn truncation_at_every_length_is_refused() {
    let bytes = encoded(&sample());
    for length in 0..HEADER_BYTES {
        assert_eq!(Header::decode(&bytes[..length]), Err(RecordError::Short));
    }
}

/// Rot of a single bit anywhere under the checksum must be seen.
#[test]
fn every_flipped_bit_is_refused() {
    let good = encoded(&sample());
    let mut bytes = good.clone();
    for bit in 0..PLACEMENT_OFFSET * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Header::decode(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// A peer that computes right checksums over wrong fields must be refused as well.
#[test]
fn broken_rules_with_a_right_checksum_are_named() {
    type Case = (&'static str, fn(&mut Header));
    let cases: [Case; 7] = [
        ("chain", |h| h.record_seq = 0),
        ("chain start", |h| h.flags = FLAG_CHAIN_START),
        ("epoch", |h| {
            h.epoch = Epoch::NONE;
            h.durable = Epoch::NONE;
            h.committed = Epoch::NONE;
            h.released = Epoch::NONE;
        }),
        ("base", |h| h.base_epoch = Epoch(42)),
        ("watermarks", |h| h.released = Epoch(41)),
        ("length", |h| h.descriptors[1].length_bytes = 513),
        ("offset", |h| h.descriptors[1].offset_bytes = u64::MAX - 511),
    ];
    for (name, break_it) in cases {
        let mut header = sample();
        break_it(&mut header);
        assert!(Header::decode(&encoded(&header)).is_err(), "{name}");
    }
    let mut commit = sample();
    commit.kind = RecordKind::Commit;
    assert!(Header::decode(&encoded(&commit)).is_err());
}

/// Payload rot must be found, and found at the right descriptor.
#[test]
fn payloads_are_checked() {
    let header = sample();
    let mut record = encoded(&header);
    record.resize(usize::try_from(header.total_bytes()).unwrap(), 0);
    record[HEADER_BYTES..HEADER_BYTES + 1024].fill(7);
    assert_eq!(header.check_payloads(&record), Ok(()));
    record[HEADER_BYTES + 1000] ^= 0x80;
    assert_eq!(
        header.check_payloads(&record),
        Err(RecordError::PayloadCrc { index: 0 })
    );
    assert_eq!(
        header.check_payloads(&record[..4600]),
        Err(RecordError::Short)
    );
}

fn descriptors() -> impl Strategy<Value = Vec<Descriptor>> {
    let one = (0u8..3, 0u64..1 << 40, 1u32..32, any::<u32>()).prop_map(|(kind, at, units, crc)| {
        let kind = match kind {
            0 => DescriptorKind::Data,
            1 => DescriptorKind::Zero,
            _ => DescriptorKind::Discard,
        };
        Descriptor {
            kind,
            offset_bytes: at * UNIT_BYTES,
            length_bytes: units * 512,
            payload_crc: if kind == DescriptorKind::Data { crc } else { 0 },
        }
    });
    prop::collection::vec(one, 0..=DESCRIPTORS_MAX)
}

proptest! {
    /// What a primary writes must be what a recovery reads.
    #[test]
    fn round_trip(descriptors in descriptors(), epoch in 1u64..1 << 62, seq in 2u64.., crc: u32) {
        let header = Header {
            kind: RecordKind::Writes,
            epoch: Epoch(epoch),
            record_seq: seq,
            prev_crc: crc,
            durable: Epoch(0), committed: Epoch(0), released: Epoch(0),
            cut_unix_ns: 0, base_epoch: Epoch(0), epoch_writes: 0, epoch_bytes: 0,
            descriptors,
            ..sample()
        };
        let bytes = encoded(&header);
        prop_assert_eq!(peek_total_bytes(&bytes).unwrap(), header.total_bytes());
        prop_assert!(header.charge_bytes() >= header.total_bytes());
        prop_assert_eq!(Header::decode(&bytes).unwrap().0, header);
    }

    /// Garbage must be refused without a panic, whatever its prefix says.
    #[test]
    fn garbage_is_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..5000), good: bool) {
        if good && bytes.len() >= 10 {
            bytes[..8].copy_from_slice(&RECORD_MAGIC);
            bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        }
        prop_assert!(Header::decode(&bytes).is_err());
        let _ = peek_total_bytes(&bytes);
        let _ = placement(&bytes);
    }
}
