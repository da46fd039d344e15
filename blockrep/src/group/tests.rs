//! What a refused side, and the side that refuses, say of themselves.

use super::backup::{BackupGroup, MemberFacts};
use super::primary::{GroupSettings, PrimaryGroup};
use super::refusal::superseded_text;
use super::{Alive, GroupEffect, Now, PromoteError, PromoteWish, State};
use crate::config::LossPolicy;
use crate::engine::{ToGroup, ToVolume};
use blkback_proto::ids::{Epoch, GroupUuid, LineageId, SessionId, VolumeUuid};
use blkback_proto::link::{Hello, RefuseCode};
use blkback_proto::meta::{GroupMeta, LineageEntry, LineageWhy, Role};

const OURS: GroupUuid = GroupUuid([1; 16]);
const TIP: LineageId = LineageId([2; 16]);

fn meta(role: Role, promoted: u64) -> GroupMeta {
    GroupMeta {
        generation: 1,
        group: OURS,
        name: "vm1".to_owned(),
        volume_count: 1,
        role,
        promoted: Epoch(promoted),
        clean: false,
        all_dirty: false,
        memory: false,
        lineage: vec![LineageEntry {
            id: TIP,
            first_epoch: Epoch(1),
            why: LineageWhy::Started,
            unix_s: 1,
        }],
    }
}

/// Tells a group of one volume something, and gives what it wants done.
fn tell_primary(group: &mut PrimaryGroup, message: ToGroup) -> Vec<GroupEffect> {
    tell_of(group, 0, message)
}

fn tell_of(group: &mut PrimaryGroup, index: usize, message: ToGroup) -> Vec<GroupEffect> {
    let mut fresh = || LineageId([9; 16]);
    let mut at = Now {
        ns: 1,
        unix_ns: 1,
        fresh: &mut fresh,
    };
    let mut fx = Vec::new();
    group.volume(&mut at, index, message, &mut fx);
    fx
}

fn primary(loss: LossPolicy) -> PrimaryGroup {
    let settings = GroupSettings {
        epoch_ns: None,
        loss,
        volume_names: Vec::new(),
    };
    PrimaryGroup::new(meta(Role::Primary, 0), settings, 1, "not reached yet")
}

/// Each volume has an address of its own, and the wrong one is looked for where the reason points.
#[test]
fn of_several_volumes_the_one_that_is_lost_is_named() {
    let settings = GroupSettings {
        epoch_ns: None,
        loss: LossPolicy::Degrade,
        volume_names: vec!["root.img".to_owned(), "data.img".to_owned()],
    };
    let mut meta = meta(Role::Primary, 0);
    meta.volume_count = 2;
    let mut group = PrimaryGroup::new(meta, settings, 1, "not reached yet");
    let up = ToGroup::LinkUp { sync_needed: true };
    tell_of(&mut group, 0, up.clone());
    let lost = ToGroup::LinkLost("h:2 does not answer".to_owned());
    // One that never got through takes nothing away from the other.
    let fx = tell_of(&mut group, 1, lost.clone());
    let is_drop = |fx: &GroupEffect| matches!(fx, GroupEffect::ToVolume(_, ToVolume::DropLink(_)));
    assert!(!fx.iter().any(is_drop), "{fx:?}");
    let compare = |fx: &GroupEffect| matches!(fx, GroupEffect::ToVolume(_, ToVolume::Compare));
    assert!(!fx.iter().any(compare), "{fx:?}");
    assert!(tell_of(&mut group, 1, up.clone()).iter().any(compare));
    let fx = tell_of(&mut group, 1, lost.clone());
    let dropped = |effect: &GroupEffect| matches!(effect, GroupEffect::ToVolume(0, ToVolume::DropLink(text)) if text.contains("volume 1"));
    assert!(fx.iter().any(dropped), "{fx:?}");
    let only_second = "volume 1 (data.img): h:2 does not answer";
    assert_eq!(group.standing().reason, only_second);
    // The first one gave its link up on that account: no reason of its own, and no new event.
    let given_up = ToGroup::LinkLost("volume 1 lost its link".to_owned());
    assert!(tell_of(&mut group, 0, given_up).is_empty());
    assert_eq!(group.standing().reason, only_second);
    tell_of(&mut group, 0, ToGroup::LinkLost("h:1 is silent".to_owned()));
    assert_eq!(
        group.standing().reason,
        format!("volume 0 (root.img): h:1 is silent; {only_second}")
    );
    // In turn they are told of together, so that tries in turn are no event each.
    assert!(tell_of(&mut group, 1, lost).is_empty());
    tell_of(&mut group, 1, up);
    tell_of(&mut group, 0, ToGroup::LinkLost("gone".to_owned()));
    assert_eq!(group.standing().reason, "volume 0 (root.img): gone");
}

fn superseded() -> ToGroup {
    let text = superseded_text(Epoch(7), LineageId([3; 16]), TIP);
    ToGroup::Refused(RefuseCode::Superseded, text)
}

/// An operator was told to stop the guest, and in the next line that a comparison would come.
#[test]
fn a_former_primary_is_told_one_thing() {
    for (loss, words) in [
        (LossPolicy::Degrade, "in nobody's history"),
        (LossPolicy::Pause, "writes wait here"),
    ] {
        let mut group = primary(loss);
        tell_primary(&mut group, superseded());
        let told = group.standing().clone();
        assert_eq!(told.state, State::Superseded);
        for word in ["promoted at epoch 7", "must not run", words] {
            assert!(told.reason.contains(word), "{}", told.reason);
        }
        assert!(told.next.starts_with("stop this daemon"), "{}", told.next);
        // The connection ends, another one is taken not now: still superseded, and told once.
        let busy = ToGroup::Refused(RefuseCode::Busy, "later".to_owned());
        for message in [ToGroup::LinkLost("closed".to_owned()), busy, superseded()] {
            let fx = tell_primary(&mut group, message);
            let changed = |fx: &GroupEffect| matches!(fx, GroupEffect::Changed { .. });
            assert!(!fx.iter().any(changed));
            assert_eq!(group.standing(), &told);
        }
        // The operator put another backup there.
        tell_primary(&mut group, ToGroup::LinkUp { sync_needed: true });
        assert_eq!(group.standing().state, State::Resyncing);
        tell_primary(&mut group, ToGroup::LinkLost("closed".to_owned()));
        assert!(group.standing().next.contains("back"), "no remedy is left");
    }
}

/// A refusal that waits for an operator must not read like an outage that ends by itself.
#[test]
fn a_final_refusal_promises_no_comparison() {
    let mut group = primary(LossPolicy::Degrade);
    assert!(group.standing().next.contains("when it answers"));
    let refused = |code| ToGroup::Refused(code, "the sizes differ".to_owned());
    tell_primary(&mut group, refused(RefuseCode::Size));
    tell_primary(&mut group, ToGroup::LinkLost("closed".to_owned()));
    let standing = group.standing();
    assert_eq!(standing.state, State::Standalone);
    assert!(
        standing.reason.contains("the sizes differ"),
        "{}",
        standing.reason
    );
    assert!(
        !standing.next.contains("when it answers"),
        "{}",
        standing.next
    );
    tell_primary(&mut group, refused(RefuseCode::Stopping));
    assert!(group.standing().next.contains("when it answers"));
}

fn backup(meta: GroupMeta, blank: bool) -> BackupGroup {
    let facts = MemberFacts {
        size_bytes: SIZE_BYTES,
        sealed: meta.promoted,
        inconsistent: false,
        suspect: false,
        damaged: Epoch::NONE,
        blank,
        consistent_from: Epoch::NONE,
        committed: Epoch::NONE,
    };
    BackupGroup::new(meta, &[facts], 1)
}

const SIZE_BYTES: u64 = 1 << 20;

fn refusal(group: &mut BackupGroup, from: GroupUuid) -> (RefuseCode, String) {
    refusal_of(group, from, SIZE_BYTES)
}

fn refusal_of(group: &mut BackupGroup, from: GroupUuid, size_bytes: u64) -> (RefuseCode, String) {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        session: SessionId(5),
        group: from,
        name: "vm2".to_owned(),
        volume: VolumeUuid([4; 16]),
        volume_index: 0,
        volume_count: 1,
        assume_identical: false,
        size_bytes,
        epoch: Epoch(9),
        lineage: vec![(TIP, Epoch(1))],
    };
    let mut fresh = || LineageId([9; 16]);
    let mut at = Now {
        ns: 1,
        unix_ns: 1,
        fresh: &mut fresh,
    };
    let mut fx = Vec::new();
    group.volume(&mut at, 0, ToGroup::Hello(Box::new(hello)), &mut fx);
    match fx.pop() {
        Some(GroupEffect::ToVolume(0, ToVolume::Refuse(code, text))) => (code, text),
        other => panic!("not refused: {other:?}"),
    }
}

/// A good new primary at an old address was told to stop its guest.
#[test]
fn another_group_is_no_former_primary() {
    let mut group = backup(meta(Role::Primary, 7), false);
    let (code, text) = refusal(&mut group, OURS);
    assert_eq!(code, RefuseCode::Superseded, "{text}");
    for promoted in [None, Some(7)] {
        let role = promoted.map_or(Role::Backup, |_| Role::Primary);
        let mut group = backup(meta(role, promoted.unwrap_or(0)), false);
        let (code, text) = refusal(&mut group, GroupUuid([8; 16]));
        assert_eq!(code, RefuseCode::Identity, "{text}");
        assert!(text.contains("another group, vm1 ("), "{text}");
        // A promoted side may have the only current disk.
        let overwrites = text.contains("overwrites its image");
        assert_eq!(overwrites, promoted.is_none(), "{text}");
        assert!(!text.contains("must not run"), "{text}");
        assert_eq!(text.contains("at epoch 7"), promoted.is_some(), "{text}");
    }
}

/// Whose backup it is comes before how large its image is: a stranger's size was advice to cut the
/// disk off.
#[test]
fn whose_it_is_comes_before_its_size() {
    for promoted in [0, 7] {
        let role = if promoted == 0 {
            Role::Backup
        } else {
            Role::Primary
        };
        let mut group = backup(meta(role, promoted), false);
        let (code, text) = refusal_of(&mut group, GroupUuid([8; 16]), SIZE_BYTES / 2);
        assert_eq!(code, RefuseCode::Identity, "{text}");
        assert!(text.contains("another group, vm1 ("), "{text}");
    }
    let mut group = backup(meta(Role::Primary, 7), false);
    let (code, text) = refusal_of(&mut group, OURS, SIZE_BYTES / 2);
    assert_eq!(code, RefuseCode::Superseded, "{text}");
    let mut blank = meta(Role::Backup, 0);
    blank.group = GroupUuid::NONE;
    blank.lineage.clear();
    let mut group = backup(blank, true);
    let (code, text) = refusal_of(&mut group, OURS, SIZE_BYTES * 2);
    assert_eq!(code, RefuseCode::Size, "{text}");
}

/// While a promotion may still be given up, nobody is told that it was done.
#[test]
fn a_promotion_under_way_supersedes_nobody() {
    let mut group = backup(meta(Role::Backup, 0), false);
    let mut fresh = || LineageId([9; 16]);
    let mut at = Now {
        ns: 1,
        unix_ns: 1,
        fresh: &mut fresh,
    };
    let wish = PromoteWish {
        alive: Some(Alive::default()),
        ..PromoteWish::default()
    };
    group.promote(&mut at, 1, wish, &mut Vec::new());
    assert_eq!(group.standing().state, State::Promoting);
    assert_eq!(refusal(&mut group, OURS).0, RefuseCode::Busy);
}

/// A promotion that cannot be done was offered.
#[test]
fn a_blank_backup_offers_no_promotion() {
    let blank = backup(meta(Role::Backup, 0), true);
    assert_eq!(
        blank.may_promote(&PromoteWish::default()),
        Err(PromoteError::Blank)
    );
    assert!(blank.standing().next.contains("not promotable"));
    let held = backup(meta(Role::Backup, 0), false);
    assert!(held.standing().next.contains("blockrepctl promote"));
}
