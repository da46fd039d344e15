use blkback_proto::ctl::{DiskTime, EventKind, RefusedPeer};

use super::*;

const NOW_UNIX_MS: u64 = 1_763_759_245_000;

fn sample() -> Status {
    serde_json::from_str(include_str!("../testdata/status.json")).expect("the sample is a status")
}

/// The page an operator decides by; every change of it is to be seen in review.
#[test]
fn status_page_is_as_recorded() {
    assert_eq!(
        status(&sample(), NOW_UNIX_MS),
        include_str!("../testdata/status.txt")
    );
}

/// A backup that has just been started knows little; the page must not invent the rest.
#[test]
fn unknown_things_are_left_out() {
    let mut little = sample();
    little.epochs = Default::default();
    (little.unsent_bytes, little.uncommitted_ms) = (None, None);
    little.commit_latency = Default::default();
    little.link.peer = None;
    (
        little.link.session,
        little.link.rtt_us,
        little.link.credit_bytes,
    ) = (None, None, None);
    little.volumes.clear();
    little.lineage.clear();
    little.bounds.memory.clear();
    let text = status(&little, NOW_UNIX_MS);
    assert!(text.contains("epochs    none yet\n  rates"), "{text}");
    assert!(text.contains("link to no peer: up"), "{text}");
    assert!(text.contains("memory    at most 384.0 MiB\n"), "{text}");
    assert!(
        !text.contains("lineage") && !text.contains("disk "),
        "{text}"
    );
}

/// Without a backup the page must not promise what only a backup keeps.
#[test]
fn a_side_without_a_backup_says_so() {
    let mut alone = sample();
    alone.ack_in_force = false;
    alone.group.stated.state = GroupState::Degraded;
    alone.link.refused = Some(RefusedPeer {
        peer: "10.0.0.9:4711".into(),
        reason: "sizes differ".into(),
        unix_ms: NOW_UNIX_MS - 5000,
    });
    let text = status(&alone, NOW_UNIX_MS);
    for line in [
        "  ack mode  local, not in force: no backup\n",
        "  unsent    not known: no backup follows\n",
        "  refused   10.0.0.9:4711, last 2025-11-21 21:07:20 UTC, 5 s ago: sizes differ\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert!(!status_line(&alone, NOW_UNIX_MS).contains("unsent"));
    alone.group.stated.state = GroupState::Resyncing;
    assert!(status(&alone, NOW_UNIX_MS).contains("until the comparison has ended"));
    alone.group.role = Role::Backup;
    // That primary may be dead: what its status would say is not to be had.
    assert!(status(&alone, NOW_UNIX_MS).contains("ack mode  not known here: the primary's"));
    alone.group.stated.state = GroupState::Following;
    assert!(status(&alone, NOW_UNIX_MS).contains("ack mode  the primary's to set; see"));
}

/// `lag` was what is unsent on one host and what is unapplied on the other: whoever compared the
/// two read a loss where there was none.
#[test]
fn what_is_unsent_and_what_is_unapplied_are_told_apart() {
    let mut side = sample();
    (side.unsent_bytes, side.uncommitted_ms) = (Some(0), Some(0));
    let text = status(&side, NOW_UNIX_MS);
    let line = "  unsent    nothing; every epoch that was cut is committed\n";
    assert!(
        text.contains(line) && !text.contains("  unapplied"),
        "{text}"
    );
    side.group.role = Role::Backup;
    (side.unsent_bytes, side.uncommitted_ms) = (None, None);
    // An image that is being compared, or that never held anything, is no disk.
    for (count, is_epoch, told) in [
        (0, false, "nothing\n"),
        (0, true, "nothing: the image alone is the disk\n"),
        (1 << 20, true, "1.0 MiB, safe in the journal\n"),
    ] {
        side.disk = is_epoch.then(DiskTime::default);
        side.unapplied_bytes = Some(count);
        let text = status(&side, NOW_UNIX_MS);
        assert!(text.contains(&format!("  unapplied {told}")), "{text}");
        assert!(!text.contains("  unsent"), "{text}");
    }
    let line = status_line(&side, NOW_UNIX_MS);
    assert!(line.contains(", unapplied 1.0 MiB"), "{line}");
}

/// Only `promote` told of when the disk is that it serves: that is asked before.
#[test]
fn a_backup_tells_of_when_its_disk_is() {
    let mut backup = sample();
    (backup.group.role, backup.ack_in_force) = (Role::Backup, false);
    let row = |backup: &Status| {
        let text = status(backup, NOW_UNIX_MS);
        let row = text.lines().find_map(|line| line.strip_prefix("  disk "));
        row.map(|row| row.trim_start().to_owned())
    };
    assert_eq!(
        row(&backup),
        None,
        "the sample is protected: no state of a backup"
    );
    backup.group.stated.state = GroupState::WaitingForPrimary;
    assert_eq!(
        row(&backup).unwrap(),
        "of no moment: it never held an epoch"
    );
    backup.disk = Some(DiskTime {
        epoch: 1041,
        cut_unix_ns: Some((NOW_UNIX_MS - 1_877) * 1_000_000),
    });
    let disk = "of 2025-11-21 21:07:23.123 UTC, 1.8 s ago (epoch 1041)";
    let started = "no link since this daemon started at 2025-11-21 18:05:25 UTC, 3 h 2 min ago";
    assert_eq!(row(&backup).unwrap(), format!("{disk}; {started}"));
    backup.link.heard_unix_ms = Some(NOW_UNIX_MS - 300);
    assert_eq!(row(&backup).unwrap(), format!("{disk}; the link is up"));
    backup.link.lost_unix_ms = Some(NOW_UNIX_MS - 65_000);
    let lost = "2025-11-21 21:06:20 UTC, 65 s ago";
    assert_eq!(
        row(&backup).unwrap(),
        format!("{disk}; link lost at {lost}")
    );
    let text = status(&backup, NOW_UNIX_MS);
    assert!(text.contains(&format!("  lost      {lost}\n")), "{text}");
    assert!(
        text.contains("  heard     2025-11-21 21:07:24 UTC, 0 s ago\n"),
        "{text}"
    );
    let line = status_line(&backup, NOW_UNIX_MS);
    assert!(
        line.contains(", disk of 2025-11-21 21:07:23.123 UTC, 1.8 s ago"),
        "{line}"
    );
    backup.disk = Some(DiskTime::default());
    assert!(
        row(&backup)
            .unwrap()
            .contains("not known any more (epoch 0); ")
    );
    (backup.disk, backup.group.stated.state) = (None, GroupState::Inconsistent);
    assert_eq!(row(&backup).unwrap(), "of no moment: the image is no epoch");
}

/// Of two links the one that is up was shown: the wrong address stood nowhere.
#[test]
fn of_several_volumes_every_link_is_shown() {
    let mut two = sample();
    let mut second = two.link.clone();
    second.peer = Some("10.0.0.2:9009".into());
    second.stated.state = LinkState::Connecting;
    second.stated.reason = "Connection refused".into();
    second.stated.next = "tried again".into();
    two.volumes[0].link = Some(two.link.clone());
    two.volumes[1].link = Some(second);
    let text = status(&two, NOW_UNIX_MS);
    let peer = two.link.peer.as_ref().unwrap();
    assert!(
        text.contains(&format!("link of disk0 to {peer}: up\n")),
        "{text}"
    );
    let line = "link of disk1 to 10.0.0.2:9009: connecting\n";
    assert!(text.contains(line), "{text}");
    assert_eq!(
        link_lines(&two),
        ["vm1 primary: link of disk1 connecting: Connection refused; next: tried again"]
    );
}

/// Text from a peer or a file name must not write to the operator's terminal.
#[test]
fn control_characters_never_reach_the_terminal() {
    let mut hostile = sample();
    let evil = "\u{1b}[2Jx\r\ny\u{9b}1m".to_owned();
    hostile.group.name = evil.clone();
    hostile.group.stated.reason = evil.clone();
    hostile.volumes[0].name = evil.clone();
    hostile.volumes[0].image = evil.clone();
    hostile.bounds.queues[0].name = evil.clone();
    hostile.lineage[0].why = evil.clone();
    hostile.link.refused = Some(RefusedPeer {
        peer: evil.clone(),
        reason: evil.clone(),
        unix_ms: 0,
    });
    // One row more: the refused peer.
    let lines_before = status(&sample(), NOW_UNIX_MS).lines().count() + 1;
    let text = status(&hostile, NOW_UNIX_MS);
    assert_eq!(text.lines().count(), lines_before);
    let line = status_line(&hostile, NOW_UNIX_MS);
    assert!(
        !text
            .replace('\n', "")
            .chars()
            .chain(line.chars())
            .any(char::is_control)
    );
}

/// The line that goes to a log file each second.
#[test]
fn status_line_is_as_recorded() {
    assert_eq!(
        status_line(&sample(), NOW_UNIX_MS),
        "2025-11-21 21:07:25 UTC vm1 primary: protected, committed 1041, unsent 1.2 MiB, uncommitted 25 ms, \
             journal of disk0 12 %, guest of disk1 broken, sync of disk1 40 %"
    );
}

/// What an operator reads after the fact.
#[test]
fn event_lines_are_as_recorded() {
    let mut happened = Event {
        seq: 7,
        unix_ms: 1_763_758_503_000,
        group: "vm1".into(),
        kind: EventKind::GroupState,
        old_state: Some("waiting-for-backup".into()),
        new_state: Some("protected".into()),
        reason: "the backup\nis there".into(),
        next: "nothing to do".into(),
        detail: [("epoch", "41"), ("peer", "10.0.0.2")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    };
    assert_eq!(
        event(&happened),
        "2025-11-21 20:55:03 UTC     7  vm1  group-state: waiting-for-backup -> protected: \
             the backup is there; next: nothing to do; epoch=41 peer=10.0.0.2"
    );
    happened.old_state = happened.new_state.clone();
    assert!(event(&happened).contains("group-state: still protected: the backup"));
    (happened.old_state, happened.new_state) = (None, None);
    happened.detail.clear();
    assert!(event(&happened).ends_with("group-state: the backup is there; next: nothing to do"));
}
