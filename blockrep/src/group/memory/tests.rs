//! Memory and disks of two moments would be one guest that never was: what may be committed and promoted.

use super::super::backup::{BackupGroup, MemberFacts};
use super::super::primary::{GroupSettings, PrimaryGroup};
use super::super::{GroupEffect, Now, PromoteError, PromoteWish};
use super::{MemoryError, MemoryFacts};
use crate::config::LossPolicy;
use crate::engine::{ToGroup, ToVolume};
use blkback_proto::ids::{Epoch, GroupUuid, LineageId, SessionId, VolumeUuid};
use blkback_proto::link::{Hello, RefuseCode};
use blkback_proto::meta::{GroupMeta, LineageEntry, LineageWhy, Role};

const TIP: LineageId = LineageId([2; 16]);
const OTHER: LineageId = LineageId([3; 16]);

struct Rig {
    group: BackupGroup,
    fx: Vec<GroupEffect>,
}

fn meta(role: Role, memory: bool) -> GroupMeta {
    GroupMeta {
        generation: 1,
        group: GroupUuid([1; 16]),
        name: "vm1".to_owned(),
        volume_count: 2,
        role,
        promoted: Epoch::NONE,
        clean: false,
        all_dirty: false,
        memory,
        lineage: vec![LineageEntry {
            id: TIP,
            first_epoch: Epoch(1),
            why: LineageWhy::Started,
            unix_s: 1,
        }],
    }
}

fn with_now<T>(run: impl FnOnce(&mut Now) -> T) -> T {
    let mut fresh = || LineageId([9; 16]);
    run(&mut Now {
        ns: 1,
        unix_ns: 1,
        fresh: &mut fresh,
    })
}

impl Rig {
    /// A backup daemon that has just started, with two volumes.
    fn new(memory: bool, sealed: u64, committed: u64) -> Self {
        let facts = MemberFacts {
            size_bytes: 1 << 20,
            sealed: Epoch(sealed),
            inconsistent: false,
            suspect: false,
            damaged: Epoch::NONE,
            blank: false,
            consistent_from: Epoch::NONE,
            committed: Epoch(committed),
        };
        let mut group = BackupGroup::new(meta(Role::Backup, memory), &[facts, facts], 1);
        let mut fx = Vec::new();
        group.start(&mut fx);
        Self { group, fx }
    }

    fn seal(&mut self, volume: usize, epoch: u64) {
        let message = ToGroup::Sealed(Epoch(epoch));
        with_now(|at| self.group.volume(at, volume, message, &mut self.fx));
    }

    fn seal_both(&mut self, epoch: u64) {
        self.seal(0, epoch);
        self.seal(1, epoch);
    }

    fn join(&mut self, committed: Option<u64>, whole: &[(u64, LineageId)]) {
        let facts = MemoryFacts {
            committed: committed.map(Epoch),
            whole: whole.iter().map(|(e, l)| (Epoch(*e), *l)).collect(),
        };
        self.group.memory_join(7, facts, &mut self.fx);
        self.written();
    }

    /// The metadata that was asked for becomes durable.
    fn written(&mut self) {
        let before = self.fx.len();
        self.fx
            .retain(|fx| !matches!(fx, GroupEffect::WriteMeta(_)));
        if self.fx.len() != before {
            with_now(|at| self.group.meta_written(at, Ok(()), &mut self.fx));
        }
    }

    fn whole(&mut self, epoch: u64) {
        let result = self.group.memory_whole(Epoch(epoch), TIP, &mut self.fx);
        result.expect("it is taken");
    }

    fn commits(&mut self) -> Vec<u64> {
        let told = self.fx.drain(..).filter_map(|fx| match fx {
            GroupEffect::ToVolume(0, ToVolume::Commit(epoch)) => Some(epoch.0),
            _ => None,
        });
        told.collect()
    }

    fn hello(&mut self, epoch: u64) -> Option<RefuseCode> {
        self.hello_of(epoch, &[(TIP, Epoch(1))])
    }

    fn hello_of(&mut self, epoch: u64, lineage: &[(LineageId, Epoch)]) -> Option<RefuseCode> {
        for index in 0..2 {
            let hello = Hello {
                version_min: 1,
                version_max: 1,
                session: SessionId(5),
                group: GroupUuid([1; 16]),
                name: "vm1".to_owned(),
                volume: VolumeUuid([4; 16]),
                volume_index: index,
                volume_count: 2,
                assume_identical: false,
                size_bytes: 1 << 20,
                epoch: Epoch(epoch),
                lineage: lineage.to_vec(),
            };
            let message = ToGroup::Hello(Box::new(hello));
            let index = usize::from(index);
            with_now(|at| self.group.volume(at, index, message, &mut self.fx));
            let refused = self.fx.iter().find_map(|fx| match fx {
                GroupEffect::ToVolume(_, ToVolume::Refuse(code, _)) => Some(*code),
                _ => None,
            });
            if refused.is_some() {
                return refused;
            }
            self.written();
            with_now(|at| {
                self.group
                    .volume(at, index, ToGroup::SessionUp, &mut self.fx)
            });
        }
        None
    }

    /// Promotes, and gives the epoch.
    fn promote(&mut self, with_memory: bool, disk_only: bool) -> Result<u64, PromoteError> {
        let wish = PromoteWish {
            force: true,
            with_memory,
            disk_only,
            ..PromoteWish::default()
        };
        self.group.may_promote(&wish)?;
        let sealed = |group: &BackupGroup, index: usize| group.members[index].facts.sealed;
        with_now(|at| {
            self.group.promote(at, 1, wish, &mut self.fx);
            for index in 0..2 {
                let sealed = sealed(&self.group, index);
                let begun = sealed;
                let message = ToGroup::Fenced { sealed, begun };
                self.group.volume(at, index, message, &mut self.fx);
            }
        });
        let refused = self.fx.iter().find_map(|fx| match fx {
            GroupEffect::PromoteReply { result, .. } => result.clone().err(),
            _ => None,
        });
        refused.map_or(Ok(self.group.meta().promoted.0), Err)
    }
}

/// A commit by the disks alone would let go what a guest said whose memory is not there.
#[test]
fn a_commit_waits_for_both() {
    let mut rig = Rig::new(false, 3, 0);
    assert_eq!(rig.commits(), [3]);
    rig.join(None, &[]);
    rig.seal_both(4);
    assert_eq!(rig.commits(), [0; 0]);
    rig.whole(4);
    assert_eq!(rig.commits(), [4]);
    rig.whole(5);
    rig.seal(0, 5);
    assert_eq!(rig.commits(), [0; 0]);
    rig.seal(1, 5);
    assert_eq!(rig.commits(), [5]);
    // An epoch of the disks without memory is covered by the next that has it.
    rig.seal_both(7);
    assert_eq!(rig.commits(), [0; 0]);
    rig.whole(6);
    assert_eq!(rig.commits(), [6]);
    assert_eq!(rig.promote(true, false), Ok(6));
}

/// The end of protection must not leave the disks waiting for ever.
#[test]
fn without_memory_the_disks_decide_again() {
    let mut rig = Rig::new(false, 3, 0);
    rig.join(None, &[]);
    rig.seal_both(9);
    rig.fx.clear();
    rig.group.memory_leave(8, &mut rig.fx);
    assert_eq!(rig.commits(), [0; 0], "before it is durable");
    with_now(|at| rig.group.meta_written(at, Ok(()), &mut rig.fx));
    assert_eq!(rig.commits(), [9]);
    assert_eq!(rig.group.memory(), None);
}

/// The daemon was killed: what was committed last is known to the memory, and nothing of it may be dropped.
#[test]
fn after_a_start_the_memory_says_what_counts() {
    let mut rig = Rig::new(true, 9, 5);
    assert_eq!(rig.commits(), [0; 0]);
    assert_eq!(rig.hello(20), Some(RefuseCode::Busy));
    rig.fx.clear();
    let refused = rig.promote(true, false).expect_err("nothing is known yet");
    assert!(refused.to_string().contains("has not said"), "{refused}");
    rig.join(Some(7), &[(8, TIP), (30, TIP), (9, OTHER)]);
    assert_eq!(rig.commits(), [8]);
    assert_eq!(rig.promote(true, false), Ok(8));
}

/// The standby's host was booted anew: its memory is gone, and the disks are not held back by it.
#[test]
fn memory_that_is_gone_leaves_the_disks() {
    for (committed, whole) in [
        (None, vec![]),
        (Some(4), vec![]),
        (None, vec![(4, TIP), (10, TIP)]),
    ] {
        let mut rig = Rig::new(true, 9, 5);
        rig.join(committed, &whole);
        assert_eq!(rig.commits(), [9]);
        let refused = rig.promote(true, false).expect_err("older than the disks");
        assert!(refused.to_string().contains("--disk-only"), "{refused}");
        assert_eq!(rig.promote(false, true), Ok(9));
    }
}

/// The standby's daemon was killed between the group's commit and its own note of it.
#[test]
fn a_holder_that_missed_the_commit_has_it() {
    let mut rig = Rig::new(false, 3, 0);
    rig.join(None, &[]);
    rig.whole(4);
    rig.seal_both(4);
    rig.join(Some(3), &[(4, TIP)]);
    assert_eq!(rig.promote(true, false), Ok(4));
    let mut rig = Rig::new(false, 3, 0);
    rig.join(None, &[]);
    rig.whole(4);
    rig.seal_both(4);
    rig.join(None, &[]);
    assert!(rig.promote(true, false).is_err(), "it lost epoch 4");
}

/// Numbers alone do not name an epoch: one that was cut before a session is none of its disks.
#[test]
fn memory_of_another_session_does_not_count() {
    let mut rig = Rig::new(false, 3, 0);
    rig.join(None, &[]);
    rig.whole(12);
    let refused = rig.group.memory_whole(Epoch(13), OTHER, &mut rig.fx);
    assert!(matches!(refused, Err(MemoryError::Lineage { .. })));
    assert_eq!(rig.hello(14), None);
    rig.fx.clear();
    rig.seal_both(15);
    assert_eq!(rig.commits(), [0; 0], "epoch 12 was never sealed");
    rig.whole(16);
    rig.seal_both(16);
    assert_eq!(rig.commits(), [16]);
}

/// A primary that is started anew numbers epochs from below: memory of the one before counted for an epoch of
/// the same number whose memory nobody has. Found by the simulator.
#[test]
fn memory_of_a_number_that_is_used_again_does_not_count() {
    let anew = [(TIP, Epoch(1)), (OTHER, Epoch(2))];
    let mut rig = Rig::new(false, 3, 0);
    rig.join(None, &[]);
    rig.whole(4);
    assert_eq!(rig.hello_of(2, &anew), None);
    rig.fx.clear();
    rig.seal_both(4);
    assert_eq!(rig.commits(), [0; 0], "this 4 is another one");
    // The same for a daemon that was started anew, and is told of it then.
    let meta = rig.group.meta().clone();
    let facts = rig.group.members[0].facts;
    let mut group = BackupGroup::new(meta, &[facts, facts], 1);
    let mut fx = Vec::new();
    group.start(&mut fx);
    let mut rig = Rig { group, fx };
    rig.join(Some(3), &[(3, TIP), (4, TIP)]);
    assert_eq!(rig.commits(), [3]);
    rig.fx.clear();
    let result = rig.group.memory_whole(Epoch(4), OTHER, &mut rig.fx);
    assert_eq!(result, Ok(Epoch(4)));
}

/// Where memory is no member the disks go on by themselves: promoted with memory, they were at an epoch that its
/// holder did not have. Found by the simulator.
#[test]
fn memory_that_is_no_member_is_not_promoted_with() {
    let mut rig = Rig::new(false, 3, 0);
    let refused = rig.promote(true, false).expect_err("nobody joined");
    assert!(refused.to_string().contains("no member"), "{refused}");
    assert_eq!(rig.promote(false, false), Ok(3));
}

/// After a comparison the disks are one disk only from an epoch on.
#[test]
fn memory_from_before_a_comparison_is_not_promoted() {
    let mut rig = Rig::new(false, 3, 0);
    rig.join(None, &[]);
    rig.whole(4);
    rig.seal_both(4);
    assert_eq!(rig.hello(5), None);
    with_now(|at| {
        let mut tell = |message| rig.group.volume(at, 0, message, &mut rig.fx);
        tell(ToGroup::Inconsistent);
        tell(ToGroup::Sealed(Epoch(6)));
    });
    rig.whole(6);
    rig.seal(1, 6);
    assert_eq!(rig.group.committed(), Epoch(4));
    let result = rig.promote(true, false);
    assert!(matches!(result, Err(PromoteError::Inconsistent { .. })));
    with_now(|at| {
        let message = ToGroup::Consistent(Epoch(8));
        rig.group.volume(at, 0, message, &mut rig.fx);
    });
    rig.whole(7);
    rig.seal_both(7);
    assert_eq!(rig.group.committed(), Epoch(4));
    rig.whole(8);
    rig.seal_both(8);
    assert_eq!(rig.group.committed(), Epoch(8));
    assert_eq!(rig.promote(true, false), Ok(8));
}

/// Disks promoted without the memory beside them boot the guest, and lose what it had not written.
#[test]
fn the_disks_alone_are_promoted_on_a_word_only() {
    let mut rig = Rig::new(false, 3, 0);
    rig.join(None, &[]);
    rig.whole(4);
    rig.seal_both(5);
    let refused = rig
        .promote(false, false)
        .expect_err("memory is beside them");
    assert!(
        refused.to_string().contains("blockrepctl guest promote"),
        "{refused}"
    );
    assert_eq!(rig.promote(false, true), Ok(5));
}

fn primary() -> PrimaryGroup {
    let settings = GroupSettings {
        epoch_ns: Some(1_000),
        loss: LossPolicy::Degrade,
        volume_names: Vec::new(),
    };
    let mut meta = meta(Role::Primary, false);
    meta.volume_count = 1;
    let mut group = PrimaryGroup::new(meta, settings, 1, "not reached yet");
    let link = ToGroup::LinkUp { sync_needed: false };
    tell(&mut group, link);
    group
}

fn tell(group: &mut PrimaryGroup, message: ToGroup) -> Vec<GroupEffect> {
    let mut fx = Vec::new();
    with_now(|at| group.volume(at, 0, message, &mut fx));
    fx
}

fn finish_cut(group: &mut PrimaryGroup, epoch: u64) -> Vec<GroupEffect> {
    tell(group, ToGroup::Prepared);
    let epoch = Epoch(epoch);
    tell(
        group,
        ToGroup::CutDone {
            epoch,
            wrote: false,
        },
    )
}

fn replies(fx: &[GroupEffect]) -> Vec<(u64, u64, bool)> {
    let group_wrote = fx.iter().any(|fx| {
        let seal = |wrote: &bool| *wrote;
        matches!(fx, GroupEffect::ToVolume(_, ToVolume::Seal { group_wrote, .. }) if seal(group_wrote))
    });
    let told = fx.iter().filter_map(|fx| match fx {
        GroupEffect::CutReply { token, epoch, .. } => Some((*token, epoch.0, group_wrote)),
        _ => None,
    });
    told.collect()
}

/// A cut that was under way may leave out the guest's last writes: memory would be newer than the disk.
#[test]
fn a_cut_under_way_does_not_answer_who_asks_during_it() {
    let mut group = primary();
    let mut fx = Vec::new();
    // The link asks for a seal of what comes first; that is done with.
    with_now(|at| group.cut(at, 1, false, &mut fx));
    finish_cut(&mut group, 1);
    with_now(|at| {
        group.cut(at, 2, false, &mut fx);
        group.cut(at, 3, true, &mut fx);
    });
    let fx = finish_cut(&mut group, 2);
    assert_eq!(replies(&fx), [(2, 2, false)]);
    let fx = finish_cut(&mut group, 3);
    assert_eq!(replies(&fx), [(3, 3, true)]);
}

/// A cut that nobody paused the guest for has no memory, and takes the place of one that would.
#[test]
fn who_makes_the_epochs_is_asked_for_a_cut() {
    let mut group = primary();
    let mut fx = Vec::new();
    group.drive(5_000);
    with_now(|at| {
        at.ns = 4_000;
        group.tick(at, &mut fx);
        group.volume(at, 0, ToGroup::WantCut, &mut fx);
        assert!(group.is_cut_wished(at.ns));
        assert!(
            !fx.iter()
                .any(|fx| matches!(fx, GroupEffect::ToVolume(_, ToVolume::Prepare)))
        );
        assert_eq!(group.next_tick(), Some(5_000));
        // It is gone: the disks go on by themselves.
        at.ns = 5_000;
        group.tick(at, &mut fx);
        assert!(
            fx.iter()
                .any(|fx| matches!(fx, GroupEffect::ToVolume(_, ToVolume::Prepare)))
        );
        assert!(!group.is_cut_wished(at.ns));
    });
}

/// Memory went on while the disks were away: with the oldest of it kept, nothing would ever be committed again.
#[test]
fn of_too_many_whole_epochs_the_newest_count() {
    let many = super::WHOLE_MAX as u64 + 10;
    let whole: Vec<(u64, LineageId)> = (4..4 + many).map(|epoch| (epoch, TIP)).collect();
    let mut rig = Rig::new(false, 3, 0);
    rig.join(None, &whole);
    rig.seal_both(3 + many);
    assert_eq!(rig.group.committed(), Epoch(3 + many));
    let mut rig = Rig::new(false, 3, 0);
    rig.join(None, &[]);
    for (epoch, _) in &whole {
        rig.whole(*epoch);
    }
    rig.seal_both(3 + many);
    assert_eq!(rig.group.committed(), Epoch(3 + many));
}
