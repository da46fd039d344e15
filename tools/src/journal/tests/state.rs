//! A state directory as a whole, and what is printed of it.

use super::*;

/// Metadata knows of epochs the journal has lost without a trace.
#[test]
fn metadata_and_journal_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    save_state(dir.path(), &Journal::usual(), &volume_meta(4));
    let (result, report) = verify(dir.path());
    assert!(result.is_ok(), "{report:#}");
    assert_eq!(report["group"]["meta"]["name"], "vm1");
    assert_eq!(report["volumes"][0]["meta"]["durable"], 4);
    save_state(dir.path(), &Journal::usual(), &volume_meta(6));
    let (result, _) = verify(dir.path());
    let text = result.unwrap_err().to_string();
    assert!(
        text.contains("epoch 6 was acknowledged, the last whole one is 4"),
        "{text}"
    );
    let other = VolumeMeta {
        volume: VolumeUuid([8; 16]),
        ..volume_meta(0)
    };
    save_state(dir.path(), &Journal::usual(), &other);
    assert!(
        verify(dir.path())
            .0
            .unwrap_err()
            .to_string()
            .contains("holds records of volume")
    );
}

/// A promoted side's own writes are gone, and the image depends on them.
#[test]
fn lost_own_records_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::usual();
    journal.next_segment();
    let own_serial = journal.head.serial;
    journal.lineage = LineageId([0xab; 16]);
    journal.session = SessionId(u64::from_le_bytes([0xab; 8]));
    (journal.seq, journal.prev_crc, journal.durable) = (0, 0, 0);
    journal.epoch(5);
    let whole = journal.seq;
    let meta = |own_synced| VolumeMeta {
        own_serial,
        own_synced,
        ..volume_meta(4)
    };
    save_state(dir.path(), &journal, &meta(whole));
    let (result, report) = verify(dir.path());
    assert!(result.is_ok(), "{report:#}");
    save_state(dir.path(), &journal, &meta(whole + 1));
    let text = verify(dir.path()).0.unwrap_err().to_string();
    let wanted = format!(
        "own records up to {} were on disk, the last whole one is {whole}",
        whole + 1
    );
    assert!(text.contains(&wanted), "{text}");
}

/// One torn slot is what the other is there for; two are the end of the volume.
#[test]
fn slots_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    save_state(dir.path(), &Journal::usual(), &volume_meta(4));
    let path = dir.path().join("volume-0.meta");
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let (result, report) = verify(dir.path());
    assert!(result.is_ok(), "{report:#}");
    assert_eq!(report["volumes"][0]["slots"][0]["state"], "damaged");
    bytes[SLOT_BYTES + 100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(
        verify(dir.path())
            .0
            .unwrap_err()
            .to_string()
            .contains("neither slot")
    );
}

/// "clean" under a volume that cannot be promoted reads like a promise.
#[test]
fn the_last_line_does_not_promise_a_promotion() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::usual();
    let mut meta = volume_meta(4);
    meta.inconsistent = true;
    save_state(dir.path(), &journal, &meta);
    let said = text(dir.path(), true);
    let last = "journal undamaged; the volume is no epoch: not promotable\n";
    assert!(said.ends_with(last), "{said}");
    assert!(said.contains("stopped in order: no"), "{said}");
}

/// An image was taken for the disk while 43 MiB of it stood in the journal.
#[test]
fn what_the_image_lacks_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut meta = volume_meta(4);
    save_state(dir.path(), &Journal::usual(), &meta);
    let said = text(dir.path(), true);
    let note =
        "note: up to 4.5 KiB of the journal, above epoch 0, are not in the image: the image alone";
    assert!(said.contains(note), "{said}");
    meta.applied = Epoch(4);
    save_state(dir.path(), &Journal::usual(), &meta);
    assert!(!text(dir.path(), true).contains("not in the image"));
}

/// What people read has to name place and reason.
#[test]
fn text_names_what_and_where() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::usual();
    save_state(dir.path(), &journal, &volume_meta(4));
    let dump = text(dir.path(), false);
    assert!(
        dump.contains("record 7 seal epoch 4 writes 1 bytes 512"),
        "{dump}"
    );
    assert!(dump.contains("lineage 03030303-0303-0303-0303-030303030303 from epoch 1, created"));
    // Nobody reads seconds since 1970.
    assert!(
        dump.contains("created, at 2023-11-14 22:13:20 UTC\n"),
        "{dump}"
    );
    let cut = "committed 4 (cut 2023-11-14 22:13:20.123 UTC), durable 4";
    assert!(dump.contains(cut), "{dump}");
    let good = text(dir.path(), true);
    assert!(
        good.contains("sealed epochs: 1, 3-4") && good.ends_with("clean\n"),
        "{good}"
    );
    journal.flip(4, HEADER_BYTES as u64);
    save_state(dir.path(), &journal, &volume_meta(4));
    let bad = text(dir.path(), true);
    let (place, _) = journal.places[4];
    let expected = format!("segment-0001.brj at {}: session", place.offset);
    assert!(
        bad.contains(&expected) && bad.contains("payload 0"),
        "{bad}"
    );
}

/// A mistyped directory is a mistake of whoever typed it, not damage.
#[test]
fn a_wrong_directory_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let (result, _) = verify(dir.path());
    assert!(result.unwrap_err().is_usage());
    let (result, _) = verify(&dir.path().join("nowhere"));
    let error = result.unwrap_err();
    assert!(error.is_usage());
    let text = error.to_string();
    let words = "nowhere: there is no such directory; type blockrepctl journal verify DIR with";
    assert!(text.contains(words) && text.lines().count() == 1, "{text}");
    // The image in the place of what stands beside it.
    let image = dir.path().join("disk.img");
    fs::write(&image, b"").unwrap();
    let state = dir.path().join("disk.img.blockrep");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("group.meta"), b"").unwrap();
    let typed = format!("; type blockrepctl journal verify {}", state.display());
    for (wrong, what) in [
        ("disk.img", "disk.img: this is no directory"),
        ("disk.im", "disk.im: there is no such directory"),
    ] {
        let text = verify(&dir.path().join(wrong)).0.unwrap_err().to_string();
        assert!(text.contains(what) && text.ends_with(&typed), "{text}");
    }
    fs::remove_dir_all(state).unwrap();
    fs::write(dir.path().join(segment_file_name(0)), b"short").unwrap();
    assert!(matches!(
        verify(dir.path()).0,
        Err(JournalError::SegmentSize { .. })
    ));
}

/// Without the group's metadata nothing starts on a directory; it was called clean.
#[test]
fn missing_metadata_of_the_group_is_found() {
    let dir = tempfile::tempdir().unwrap();
    save_state(dir.path(), &Journal::usual(), &volume_meta(4));
    fs::remove_file(dir.path().join("group.meta")).unwrap();
    let (result, report) = verify(dir.path());
    let words = "group.meta is missing";
    assert!(result.unwrap_err().to_string().contains(words));
    assert!(report["problems"][0].as_str().unwrap().contains(words));
    let text = text(dir.path(), true);
    assert!(text.contains("bad: group.meta is missing"), "{text}");
    assert!(!text.contains("clean\n"), "{text}");
}

/// "nope: No such file or directory" does not say which of the two directories, nor what to type.
#[test]
fn a_wrong_journal_directory_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    save_state(dir.path(), &Journal::usual(), &volume_meta(4));
    let command = JournalCommand::Verify(DirArgs {
        dir: dir.path().to_owned(),
        journal: Some(dir.path().join("nope")),
        json: false,
    });
    let error = run(&JournalArgs { command }, &mut Vec::new()).unwrap_err();
    let text = error.to_string();
    assert!(error.is_usage(), "{text}");
    let words =
        "nope: there is no such directory; type --journal with the directory that the daemon";
    assert!(text.contains(words), "{text}");
}
