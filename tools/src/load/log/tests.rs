use super::*;
use proptest::prelude::*;

const HEADER: Header = Header {
    run: 7,
    disk_bytes: 1 << 20,
    span_bytes: 1 << 19,
    seed: 3,
};

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Write),
        Just(Kind::Zero),
        Just(Kind::Discard),
        Just(Kind::Flush)
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (
            any::<u64>(),
            kind(),
            any::<bool>(),
            any::<u64>(),
            any::<u32>(),
            any::<u32>()
        )
            .prop_map(|(id, kind, fua, offset, len, connection)| Event::Submit {
                id,
                kind,
                fua,
                offset,
                len,
                connection
            }),
        (any::<u64>(), any::<u32>()).prop_map(|(id, error)| Event::Complete { id, error }),
        any::<u64>().prop_map(|id| Event::CutSent { id }),
        (any::<u64>(), any::<Option<u64>>()).prop_map(|(id, epoch)| Event::CutReply { id, epoch }),
    ]
}

proptest! {
    /// Production: a record that reads back differently makes the oracle judge another history.
    #[test]
    fn a_record_reads_back_and_any_flipped_bit_is_refused(
        event in event(), stamp: u64, ns: u64, bit in 0..RECORD_SIZE * 8
    ) {
        let record = Record { stamp, ns, event };
        let mut bytes = encode_record(&record);
        prop_assert_eq!(decode_record(&bytes), Some(record));
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(decode_record(&bytes), None);
    }
}

fn records(count: u64) -> Vec<Record> {
    let complete = |id| Event::Complete { id, error: 0 };
    (1..=count)
        .map(|n| Record {
            stamp: n * 2,
            ns: n,
            event: complete(n),
        })
        .collect()
}

fn written(path: &Path, records: &[Record]) -> Vec<u8> {
    let mut writer = LogWriter::create(path, &HEADER).unwrap();
    records.iter().for_each(|record| writer.append(record));
    writer.flush().unwrap();
    std::fs::read(path).unwrap()
}

fn read_all(path: &Path) -> Result<Vec<Record>, LogError> {
    let mut reader = LogReader::open(path)?;
    assert_eq!(reader.header(), HEADER);
    let mut found = Vec::new();
    while let Some(record) = reader.next_record()? {
        found.push(record);
    }
    Ok(found)
}

/// Production: the generator is killed while it writes; everything before the last record must
/// count.
#[test]
fn a_log_cut_at_any_byte_keeps_its_whole_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let records = records(3);
    let bytes = written(&path, &records);
    for cut in RECORD_SIZE..=bytes.len() {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        assert_eq!(read_all(&path).unwrap(), records[..(cut / RECORD_SIZE) - 1]);
    }
    std::fs::write(&path, &bytes[..RECORD_SIZE - 1]).unwrap();
    assert!(matches!(read_all(&path), Err(LogError::NotALog { .. })));
}

/// Production: a damaged middle read as the end would drop the acknowledgements behind it
/// unseen.
#[test]
fn damage_in_the_middle_is_refused_and_at_the_end_is_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let records = records(3);
    let mut bytes = written(&path, &records);
    bytes[RECORD_SIZE * 2 + 9] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    match read_all(&path) {
        Err(LogError::Damaged { at, .. }) => assert_eq!(at, RECORD_SIZE as u64 * 2),
        other => panic!("expected damage, got {other:?}"),
    }
    bytes[RECORD_SIZE * 2 + 9] ^= 1;
    bytes[RECORD_SIZE * 3 + 9] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(read_all(&path).unwrap(), records[..2]);
}

/// Production: events out of order would turn "completed before submitted" upside down.
#[test]
fn stamps_that_do_not_grow_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut records = records(3);
    records[2].stamp = records[1].stamp;
    written(&path, &records);
    assert!(matches!(read_all(&path), Err(LogError::Damaged { .. })));
}

/// Production: a second run into the same log would destroy the evidence of the first.
#[test]
fn an_existing_log_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    written(&path, &[]);
    assert!(matches!(
        LogWriter::create(&path, &HEADER),
        Err(LogError::Exists { .. })
    ));
}
