//! What must hold, and whether it does. Watches from outside: what engines hand to disks, what
//! groups say, what the guest is told, and what the disks hold after a crash.

use super::disk::Disk;
use super::guest::Outstanding;
use super::host::{Engine, Group, Host};
use super::model::{Cuts, Volume, fill, ids};
use super::plan::Plan;
use super::world::{World, say};
use blkback_proto::ids::{Epoch, UNIT_BYTES};
use blkback_proto::link::Frame;
use blkback_proto::meta::{GroupMeta, Role};
use blockrep::config::AckMode;
use blockrep::engine::{Protection, ToGroup, ToVolume};
use blockrep::group::{PromoteError, Promoted, State};
use blockrep::io::Target;
use blockrep::journal::scan::{ReadAt, ScannedEpoch};
use blockrep::journal::start::{Refusal, VolumeShape, VolumeStart, read_group, recover_volume};
use blockrep::overlay::{Overlay, Source};
use fastrand::Rng;

/// A position in the history of a volume: first step of the era, and number of steps.
pub type Position = (usize, usize);

/// What the oracle knows.
pub struct Oracle {
    /// Histories.
    pub volumes: Vec<Volume>,
    /// Cuts.
    pub cuts: Cuts,
    /// Somebody outside may have seen this much: a promoted backup must have it.
    pub promise: Vec<usize>,
    /// The backup's group said that it has this much.
    pub committed: Vec<usize>,
    /// The primary was protected and no sync began since: the backup must be promotable.
    pub whole: bool,
    /// Bits were flipped in the backup's journal since it was whole.
    pub rot: bool,
    /// The operator accepted that an epoch may be missing.
    pub accepted_suspect: bool,
    /// The backup was promoted: position in each history.
    pub promoted: Option<Vec<usize>>,
    /// Histories of the primary when it was protected last, until it is not.
    protected_tip: Option<blkback_proto::ids::LineageId>,
    /// The backup was told to promote, and has not answered: one volume may serve what was decided before it does.
    pub(super) is_promoting: bool,
    shape: VolumeShape,
    killed: bool,
}

/// What disks of a backup are.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Exactly this epoch.
    Epoch(Epoch, Vec<Position>),
    /// No epoch, rightly.
    Mixed,
    /// Nobody connected yet.
    Blank,
    /// Recovery refuses, rightly.
    Refused,
    /// The operator's word is needed.
    Suspect(Epoch, Vec<Position>),
}

fn contents(disk: &Disk, size_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size_bytes).expect("small")];
    disk.read(Target::Image, 0, &mut bytes);
    bytes
}

/// The image with these epochs over it.
fn view(disk: &Disk, shape: VolumeShape, epochs: &[ScannedEpoch], limit: Epoch) -> Vec<u64> {
    let mut bytes = contents(disk, shape.size_bytes);
    let mut overlay = Overlay::default();
    for epoch in epochs.iter().filter(|e| e.epoch <= limit) {
        epoch.extents.iter().for_each(|e| overlay.insert(*e));
    }
    for extent in overlay.iter_from(0, limit) {
        let start = usize::try_from(extent.offset).expect("small");
        let to = &mut bytes[start..start + usize::try_from(extent.length).expect("small")];
        match extent.source {
            Source::Journal(place) => {
                let target = Target::Segment(shape.geometry.file_of(place.serial));
                disk.read(target, place.offset, to);
            }
            Source::Zero { .. } => to.fill(0),
        }
    }
    ids(&bytes, 0).collect()
}

impl Oracle {
    /// Fills the images of both hosts.
    pub fn new(plan: &Plan, hosts: &mut [Host; 2], rng: &mut Rng) -> Self {
        let mut volumes = Vec::new();
        for index in 0..plan.volumes {
            let sectors = plan.size_bytes / UNIT_BYTES;
            for host in 0..2 {
                // Some extents of old contents; equal ones where the operator says so.
                let mut old = Rng::with_seed(plan.seed ^ if plan.identical { 0 } else { host });
                for extent in 0..old.u64(0..4) {
                    let first = old.u64(..sectors);
                    let count = old.u64(1..40).min(sectors - first);
                    let mut buf = vec![0; usize::try_from(count * UNIT_BYTES).expect("small")];
                    fill(
                        &mut buf,
                        first,
                        0x100 + extent + if plan.identical { 0 } else { host } * 16,
                    );
                    let disk = &mut hosts[usize::try_from(host).expect("two")].disks[index];
                    disk.write(Target::Image, first * UNIT_BYTES, &buf);
                    disk.sync_all();
                }
            }
            let image = contents(&hosts[0].disks[index], plan.size_bytes);
            volumes.push(Volume::new(ids(&image, 0).collect()));
        }
        let _ = rng;
        Self {
            promise: vec![0; plan.volumes],
            committed: vec![0; plan.volumes],
            volumes,
            cuts: Cuts::default(),
            whole: false,
            rot: false,
            accepted_suspect: false,
            promoted: None,
            protected_tip: None,
            is_promoting: false,
            shape: VolumeShape {
                size_bytes: plan.size_bytes,
                geometry: plan.geometry,
            },
            killed: false,
        }
    }

    /// Size and journal of every volume.
    #[must_use]
    pub fn shape(&self) -> VolumeShape {
        self.shape
    }

    /// The guest of that host counts.
    #[must_use]
    pub fn serves(&self, host: usize) -> bool {
        host == usize::from(self.promoted.is_some())
    }

    /// Reads the stores of a backup as its daemon would at start.
    ///
    /// # Errors
    /// Recovery refuses.
    pub fn recover(
        &self,
        disks: &[Disk],
    ) -> Result<(Option<GroupMeta>, Vec<VolumeStart>), Refusal> {
        let group = read_group(&disks[0])?;
        let starts = disks
            .iter()
            .map(|disk| recover_volume(disk as &dyn ReadAt, group.as_ref(), self.shape))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((group, starts))
    }

    /// What the disks of a backup are; an error is a violation.
    ///
    /// # Errors
    /// What must not be.
    pub fn judge(
        &self,
        disks: &[Disk],
        recovered: &Result<(Option<GroupMeta>, Vec<VolumeStart>), Refusal>,
    ) -> Result<Found, String> {
        let (group, starts) = match recovered {
            Ok(recovered) => recovered,
            Err(_) if self.rot => return Ok(Found::Refused),
            Err(refusal) => return Err(format!("recovery refuses an undamaged store: {refusal}")),
        };
        let limit = match group {
            Some(group) if group.role == Role::Primary => Some(group.promoted),
            _ => None,
        };
        let whole = starts
            .iter()
            .map(|s| s.facts.sealed)
            .min()
            .unwrap_or(Epoch::NONE);
        let whole = limit.unwrap_or(whole);
        if limit.is_none() {
            let mixed = |s: &VolumeStart| s.facts.inconsistent || whole < s.facts.consistent_from;
            let blank = starts.iter().any(|s| s.facts.blank);
            let damaged = |s: &VolumeStart| whole < s.facts.committed;
            if blank || starts.iter().any(mixed) || starts.iter().any(damaged) {
                if self.whole && !self.rot {
                    let facts: Vec<_> = starts
                        .iter()
                        .map(|s| (s.facts, &s.recovered.meta))
                        .collect();
                    return Err(format!(
                        "the backup is no epoch, and the primary was told it is: {facts:?}"
                    ));
                }
                return Ok(if blank { Found::Blank } else { Found::Mixed });
            }
        }
        let suspect = starts.iter().any(|s| s.facts.suspect);
        let views: Vec<Vec<u64>> = disks
            .iter()
            .zip(starts)
            .map(|(disk, start)| view(disk, self.shape, &start.recovered.epochs, whole))
            .collect();
        let waived = self.rot && (suspect || (limit.is_some() && self.accepted_suspect));
        let promise = if waived {
            &vec![0; views.len()]
        } else {
            &self.promise
        };
        match self.which_cut(&views, whole, promise) {
            Ok(at) if suspect => Ok(Found::Suspect(whole, at)),
            Ok(at) => Ok(Found::Epoch(whole, at)),
            Err(text) => Err(text),
        }
    }

    fn which_cut(
        &self,
        views: &[Vec<u64>],
        epoch: Epoch,
        promise: &[usize],
    ) -> Result<Vec<Position>, String> {
        let mut why = format!("no cut ever ended epoch {epoch}");
        let before_all = vec![Some((0, 0)); views.len()];
        let beginning = (epoch == Epoch::NONE).then_some(&before_all);
        for at in self.cuts.numbered(epoch).map(|c| &c.at).chain(beginning) {
            let at: Vec<Position> = at.iter().map(|p| p.expect("whole cuts only")).collect();
            match self.differs(views, &at, promise) {
                None => return Ok(at),
                Some(text) => why = text,
            }
        }
        Err(format!("the backup says it is epoch {epoch}: {why}"))
    }

    fn differs(&self, views: &[Vec<u64>], at: &[Position], promise: &[usize]) -> Option<String> {
        for (index, ((era_start, position), found)) in at.iter().zip(views).enumerate() {
            if *position < promise[index] {
                return Some(format!(
                    "volume {index} has {position} writes of {} that were promised",
                    promise[index]
                ));
            }
            let expected = self.volumes[index].at_in_era(*era_start, *position);
            if let Some(sector) = expected.iter().zip(found).position(|(a, b)| a != b) {
                return Some(format!(
                    "volume {index} sector {sector} holds {:x} instead of {:x} (write {position})",
                    found[sector], expected[sector]
                ));
            }
        }
        None
    }
}

impl World {
    /// Looks at the backup's disks as if its power went now.
    pub fn probe(&mut self) {
        if !self.hosts[1].up || self.oracle.promoted.is_some() {
            return;
        }
        let mut disks = self.hosts[1].disks.clone();
        for disk in &mut disks {
            disk.power_cut(&mut self.rng);
        }
        let recovered = self.oracle.recover(&disks);
        self.note_rows(&recovered);
        let group_is_primary = matches!(&recovered, Ok((Some(g), _)) if g.role == Role::Primary);
        if group_is_primary {
            return;
        }
        if let Err(text) = self.oracle.judge(&disks, &recovered) {
            self.violated(format!("if the backup's power went now: {text}"));
        }
    }

    /// Counts rows of the recovery table.
    pub fn note_rows(
        &mut self,
        recovered: &Result<(Option<GroupMeta>, Vec<VolumeStart>), Refusal>,
    ) {
        self.stats.recoveries += 1;
        match recovered {
            Ok((_, starts)) => {
                for row in starts.iter().flat_map(|s| &s.rows) {
                    *self.stats.rows.entry(row.name).or_default() += 1;
                }
            }
            Err(Refusal::Damaged { row, .. } | Refusal::OwnDamaged { row, .. }) => {
                *self.stats.rows.entry(row).or_default() += 1
            }
            Err(_) => {}
        }
    }

    /// A message of the group is about to reach a volume.
    pub fn oracle_sees_order(&mut self, host: usize, volume: usize, message: &ToVolume) {
        match message {
            ToVolume::Cut { epoch, .. } if host == 0 => {
                let history = &self.oracle.volumes[volume];
                let at = (history.era_start(), history.position());
                let era = self.hosts[0].boot;
                if self.oracle.serves(0) {
                    let volumes = self.plan.volumes;
                    self.oracle.cuts.note(era, *epoch, volumes, volume, at);
                    self.check_closed(era, *epoch, volume, at.1);
                }
            }
            ToVolume::Protect(protection) => self.sees_protection(host, volume, *protection),
            ToVolume::Accept { .. } if host == 1 => self.backup_follows(volume),
            ToVolume::Commit(epoch) if host == 1 => self.sees_commit(volume, *epoch),
            _ => {}
        }
    }

    /// A cut is crash-consistent over all volumes: a write that was asked for after another one was
    /// answered is not in it without the other.
    fn check_closed(&mut self, era: u32, epoch: Epoch, volume: usize, position: usize) {
        let Some(at) = self.oracle.cuts.so_far(era, epoch) else {
            return;
        };
        let volumes = &self.oracle.volumes;
        let left_out = |(other, at): (usize, &Option<Position>)| {
            let (_, from) = (*at)?;
            let answered = volumes[other]
                .steps_from(from)
                .iter()
                .filter_map(|s| s.answered);
            (other != volume).then(|| answered.min()).flatten()
        };
        let earliest = at.iter().enumerate().filter_map(left_out).min();
        let taken = volumes[volume].last_submitted(position);
        if let (Some(answered), Some(asked)) = (earliest, taken)
            && asked > answered
        {
            self.violated(format!(
                "epoch {epoch} has a write of volume {volume} asked for at {asked}, and not one of \
                 another volume answered at {answered}"
            ));
        }
    }

    /// Invariant 5: the loss of protection is durable before writes go on without a backup.
    fn sees_protection(&mut self, host: usize, volume: usize, protection: Protection) {
        self.hosts[host].slots[volume].protection = protection;
        if host != 0 || protection != Protection::Unprotected {
            return;
        }
        let Some(protected_tip) = self.oracle.protected_tip else {
            return;
        };
        let mut disk = self.hosts[0].disks[0].clone();
        disk.power_cut(&mut Rng::with_seed(0));
        let tip = read_group(&disk)
            .ok()
            .flatten()
            .and_then(|g| g.tip().map(|t| t.id));
        if tip == Some(protected_tip) {
            self.violated("writes go on unprotected and that is not durable".to_owned());
        }
    }

    fn sees_commit(&mut self, volume: usize, epoch: Epoch) {
        let slot = &mut self.hosts[1].slots[volume];
        let Engine::Backup(engine) = &slot.engine else {
            return;
        };
        if slot.era == 0 || self.oracle.promoted.is_some() {
            // After a start: what was found then, if that is what is committed now.
            slot.shows = slot.started_shows.filter(|_| epoch == slot.started_at);
            return;
        }
        let cut = self.oracle.cuts.find(slot.era, epoch);
        slot.shows = cut
            .and_then(|cut| cut.at[volume])
            .filter(|_| epoch >= engine.consistent_from() && !engine.meta().inconsistent);
    }

    /// A volume's message reaches the group.
    pub fn oracle_sees_report(&mut self, host: usize, message: &ToGroup) {
        if host == 0 && matches!(message, ToGroup::LinkUp { .. }) && self.oracle.promoted.is_some()
        {
            self.violated("a promoted backup took the old primary in".to_owned());
        }
    }

    /// A frame reaches a side.
    pub fn oracle_sees_frame(&mut self, host: usize, volume: usize, frame: &Frame) {
        if host == 1 && matches!(frame, Frame::SyncStart) {
            self.oracle.whole = false;
            self.hosts[1].slots[volume].shows = None;
        }
    }

    /// A group changed its state.
    pub fn oracle_sees_change(&mut self, host: usize, state: State) {
        if host != 0 {
            return;
        }
        if state == State::Protected {
            if let Group::Primary(group) = &self.hosts[0].group {
                self.oracle.protected_tip = group.meta().tip().map(|t| t.id);
            }
            if self.oracle.promoted.is_none() {
                self.oracle.whole = true;
                self.stats.syncs += 1;
            }
        }
    }

    /// A group did something: what it says outside becomes a promise.
    pub fn oracle_sees_group(&mut self, host: usize) {
        if host == 1 && self.oracle.promoted.is_none() {
            self.memory_sees_group();
        }
        let era = self.hosts[0].boot;
        match &self.hosts[host].group {
            Group::Primary(group) if host == 0 => {
                let committed = group.epochs().1;
                if group.standing().state != State::Protected || committed == Epoch::NONE {
                    return;
                }
                let Some(cut) = self.oracle.cuts.find(era, committed) else {
                    if self.oracle.serves(0) {
                        self.violated(format!("epoch {committed} was committed and never cut"));
                    }
                    return;
                };
                let at: Vec<usize> = cut.at.iter().map(|p| p.expect("whole").1).collect();
                self.promise(&at, "released");
            }
            Group::Backup(group) if host == 1 && self.oracle.promoted.is_none() => {
                let committed = group.committed();
                if let Some(cut) = self.oracle.cuts.find(era, committed) {
                    let at = cut.at.clone();
                    for (have, at) in self.oracle.committed.iter_mut().zip(at) {
                        *have = (*have).max(at.expect("whole").1);
                    }
                }
            }
            _ => {}
        }
    }

    /// Somebody outside may know of these writes from now on.
    pub fn promise(&mut self, at: &[usize], what: &str) {
        for (volume, at) in at.iter().enumerate() {
            if let Some(promoted) = &self.oracle.promoted
                && !(self.oracle.rot && self.oracle.accepted_suspect)
                && *at > promoted[volume]
            {
                let text = format!("volume {volume}: {what} {at} writes after a promotion at less");
                self.violated(text);
                return;
            }
            if *at > self.oracle.committed[volume] {
                let have = self.oracle.committed[volume];
                self.violated(format!(
                    "volume {volume}: {what} {at} writes, the backup committed {have}"
                ));
                return;
            }
            self.oracle.promise[volume] = self.oracle.promise[volume].max(*at);
        }
    }

    fn promise_one(&mut self, volume: usize, position: usize, what: &str) {
        let mut at = vec![0; self.plan.volumes];
        at[volume] = position;
        self.promise(&at, what);
    }

    fn is_protected(&self, request: &Outstanding) -> bool {
        let slot = &self.hosts[request.host].slots[request.volume];
        request.host == 0 && slot.protection == Protection::Protected
    }

    /// A write was answered.
    pub fn check_write(&mut self, request: &Outstanding, fua: bool) {
        if !self.oracle.serves(request.host) {
            return;
        }
        let Some(step) = request.step else {
            self.violated("a write was answered that was never stamped".to_owned());
            return;
        };
        let now = self.now;
        let history = &mut self.oracle.volumes[request.volume];
        history.step(step).answered = Some(now);
        if fua {
            history.step(step).flushed = true;
        }
        let remote = match self.plan.ack {
            AckMode::Write => true,
            AckMode::Flush => fua,
            AckMode::Local => false,
        };
        if remote && self.is_protected(request) {
            self.promise_one(request.volume, step + 1, "answered");
        }
    }

    /// A flush was answered.
    pub fn check_flush(&mut self, request: &Outstanding) {
        if !self.oracle.serves(request.host) {
            return;
        }
        let history = &mut self.oracle.volumes[request.volume];
        history.flush(request.submitted);
        let position = history.answered_position(request.submitted);
        if self.plan.ack != AckMode::Local && self.is_protected(request) {
            self.promise_one(request.volume, position, "flushed");
        }
    }

    /// A read was answered.
    pub fn check_read(&mut self, request: &Outstanding, bytes: &[u8]) {
        let volume = request.volume;
        let history = &self.oracle.volumes[volume];
        let found = ids(bytes, request.first);
        let mut wrong = None;
        if self.oracle.serves(request.host) {
            if request.life != self.guest.life {
                // Somebody read the backup, and it was promoted meanwhile.
                return;
            }
            for (sector, id) in (request.first..).zip(found) {
                if !history.may_read(sector, id, request.submitted) {
                    wrong = Some((sector, id));
                }
            }
        } else if request.host == 1 {
            let shows = self.hosts[1].slots[volume].shows;
            let (Some((era, from)), Some((now_era, to))) = (request.shows, shows) else {
                return;
            };
            if era != now_era {
                return;
            }
            // Any version since then; which epoch it is is compared when the promotion is answered.
            let newest = if self.oracle.is_promoting {
                history.position()
            } else {
                to
            };
            let to = to.max(newest);
            let old = history.at_in_era(era, from);
            let mut allowed: Vec<Vec<u64>> = old.iter().map(|id| vec![*id]).collect();
            let new = history.at_in_era(era, to.max(from));
            for position in from..to.max(from) {
                for (sector, id) in history.at_in_era(era, position).into_iter().enumerate() {
                    allowed[sector].push(id);
                }
            }
            for (sector, id) in (request.first..).zip(found) {
                let index = usize::try_from(sector).expect("small");
                if !allowed[index].contains(&id) && new[index] != id {
                    wrong = Some((sector, id));
                }
            }
        }
        if let Some((sector, id)) = wrong {
            self.violated(format!(
                "host {} volume {volume}: a read of sector {sector} gave {id:x}",
                request.host
            ));
        }
    }

    /// A host died.
    pub fn oracle_sees_crash(&mut self, host: usize, power: bool) {
        if host == 0 {
            self.oracle.protected_tip = None;
        }
        if self.oracle.serves(host) {
            self.oracle.killed = !power;
        }
    }

    /// Invariant of a plain disk: the primary's image after a crash.
    pub fn check_plain(&mut self, host: usize, volume: usize) {
        let image = contents(&self.hosts[host].disks[volume], self.plan.size_bytes);
        let found: Vec<u64> = ids(&image, 0).collect();
        let history = &mut self.oracle.volumes[volume];
        let wrong = history.plain_crash_violation(&found, self.oracle.killed);
        history.rebase(found);
        if let Some(text) = wrong {
            self.violated(format!("host {host} volume {volume} after a crash: {text}"));
        }
    }

    /// A promoted side starts again: what it served is there, up to a point.
    pub fn check_promoted(&mut self, disks: &[Disk], starts: &[VolumeStart]) {
        for (volume, start) in starts.iter().enumerate() {
            if start.recovered.meta.journal_empty {
                self.check_plain(1, volume);
                continue;
            }
            let all = Epoch(u64::MAX);
            let found = view(
                &disks[volume],
                self.oracle.shape,
                &start.recovered.epochs,
                all,
            );
            let history = &mut self.oracle.volumes[volume];
            let least = if self.oracle.rot {
                0
            } else {
                history.safe_position(self.oracle.killed)
            };
            let prefix = history.prefix(&found, least);
            history.rebase(found);
            match prefix {
                Some(position) => {
                    say!(self, "promoted volume {volume} has {position} writes");
                }
                None => self.violated(format!(
                    "promoted volume {volume} is no prefix of what was written, {least} at least"
                )),
            }
        }
    }

    /// A promotion ended.
    pub fn promoted(&mut self, host: usize, result: Result<Promoted, PromoteError>) {
        self.oracle.is_promoting = false;
        if let Ok(promoted) = &result
            && host == 1
            && self.oracle.promoted.is_none()
        {
            self.stats.promotions += 1;
            self.take_over(promoted.epoch);
            // The old guest is dead, or as good as dead to everybody.
            self.guest_starts(1);
        } else if host == 1
            && self.oracle.promoted.is_none()
            && !matches!(result, Err(PromoteError::Failed(_)))
        {
            // One that failed may have come true: only a start of the backup tells.
            self.give_back();
        }
        self.promote_reply = Some(result);
    }

    /// From now on the backup's side is the volume: it has to be exactly that epoch.
    pub fn take_over(&mut self, epoch: Epoch) {
        let disks = self.hosts[1].disks.clone();
        let recovered = self.oracle.recover(&disks);
        let found = match self.oracle.judge(&disks, &recovered) {
            Ok(Found::Epoch(found, at) | Found::Suspect(found, at)) if found == epoch => at,
            Ok(found) => {
                self.violated(format!(
                    "promoted at epoch {epoch}, the disks are {found:?}"
                ));
                return;
            }
            Err(text) => {
                self.violated(format!("promoted at epoch {epoch}: {text}"));
                return;
            }
        };
        self.check_memory(epoch, &found);
        for (history, (era_start, position)) in self.oracle.volumes.iter_mut().zip(&found) {
            let base = history.at_in_era(*era_start, *position);
            history.rebase(base);
        }
        self.guest.outstanding.retain(|_, o| o.host == 1);
        self.memory_has_gone_on();
        self.oracle.promoted = Some(found.iter().map(|(_, position)| *position).collect());
        self.oracle.killed = true;
    }
}
