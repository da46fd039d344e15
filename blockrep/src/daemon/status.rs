//! Status: every thread reports its volume, the last one to report answers.

mod links;
mod progress;
mod refused;

use self::links::tell_of_links;
pub(super) use self::progress::Progress;
pub(super) use self::refused::refused_lately;
use self::refused::{is_told_still, tell_of_refused};
use super::loss::{Held, ack_is_in_force, possible_loss};
use super::nbd_loop::PARTS_MAX;
use super::on_word;
use super::role::{Engine, Group};
use super::thread::VolumeThread;
use crate::config::LossPolicy;
use crate::engine::backup::Mode;
use crate::group::State;
use crate::group::refusal::remedy;
use blkback_proto::ctl::{
    AckMode, Answer, Bounds, CommitLatency, CutHold, DaemonStatus, DiskTime, Epochs, GroupState,
    GroupStatus, GuestMemoryStatus, JournalStatus, LineageEntry, LinkState, LinkStatus, MemoryPart,
    OutputClass, OutputStatus, QueueBound, Rates, Role, Stated, Status, UNSERVED, VolumeCounters,
    VolumeState, VolumeStatus,
};
use blkback_proto::ids::Epoch;
use blockrep_host::clock;
use blockrep_host::ctl::ReplyHandle;
use std::sync::Mutex;

/// What to do on a primary that was started without a backup.
const GIVE_A_BACKUP: &str = "give the address of a backup in the disk spec to protect it";

/// What one volume knows.
#[derive(Clone, Debug)]
pub(super) struct Report {
    volume: VolumeStatus,
    link: LinkStatus,
    epochs: Epochs,
    backlog: Backlog,
    disk: Option<DiskTime>,
    memory: Vec<MemoryPart>,
    queues: Vec<QueueBound>,
    in_per_s: u64,
    out_per_s: u64,
    /// Median and 99th percentile of holds, in microseconds.
    cut_hold_us: Option<(u64, u64)>,
    /// Writes have been waiting for room in the backup's journal.
    is_pressed: bool,
    group: Option<GroupReport>,
}

/// Bytes of a volume that are on their way, by where they are. Nothing adds the two up: what is
/// unsent is not safe, what is unapplied is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Backlog {
    unsent_bytes: Option<u64>,
    unapplied_bytes: Option<u64>,
}

impl Backlog {
    /// Of the group: the sums over the volumes that know.
    fn plus(self, other: Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (known, None) | (None, known) => known,
        };
        Self {
            unsent_bytes: sum(self.unsent_bytes, other.unsent_bytes),
            unapplied_bytes: sum(self.unapplied_bytes, other.unapplied_bytes),
        }
    }
}

/// What the group's thread knows.
#[derive(Clone, Debug)]
struct GroupReport {
    daemon: DaemonStatus,
    group: GroupStatus,
    /// Of a primary: a backup has taken every volume in since the start.
    was_linked: bool,
    ack_mode: AckMode,
    ack_in_force: bool,
    output: OutputStatus,
    uncommitted_ms: Option<u64>,
    guest_memory: Option<GuestMemoryStatus>,
    epochs_per_s: f64,
    commit_latency: CommitLatency,
    lineage: Vec<LineageEntry>,
}

impl Report {
    fn is_linked(&self) -> bool {
        self.link.stated.state == LinkState::Up
    }
}

/// Gathers the reports for one answer.
pub(super) struct Collector {
    parts: Mutex<(Vec<Option<Report>>, Option<ReplyHandle>)>,
}

impl Collector {
    pub(super) fn new(volumes: usize, reply: ReplyHandle) -> Self {
        Self {
            parts: Mutex::new((vec![None; volumes], Some(reply))),
        }
    }

    fn put(&self, index: usize, report: Report) {
        let mut parts = self.parts.lock().expect("nobody panics while reporting");
        parts.0[index] = Some(report);
        if parts.0.iter().all(Option::is_some)
            && let Some(reply) = parts.1.take()
        {
            let reports: Vec<Report> = parts.0.drain(..).flatten().collect();
            reply.ok(Answer::Status(Box::new(compose(reports))));
        }
    }
}

fn compose(mut reports: Vec<Report>) -> Status {
    let mut group = reports[0]
        .group
        .clone()
        .expect("the first volume has the group");
    for report in &mut reports {
        let refused = report.link.refused.take();
        report.link.refused = refused.filter(|refused| is_told_still(&group.group.stated, refused));
        report.volume.link = Some(report.link.clone());
    }
    let first_not_up = reports.iter().find(|report| !report.is_linked());
    let mut link = first_not_up.unwrap_or(&reports[0]).link.clone();
    let refused = reports.iter().filter_map(|r| r.link.refused.clone());
    link.refused = refused.max_by_key(|refused| refused.unix_ms);
    tell_of_failed(&mut group.group.stated, &reports);
    tell_of_links(&mut group.group.stated, &reports, group.was_linked);
    tell_of_pressure(&mut group.group.stated, &reports);
    if let Some(refused) = &link.refused {
        tell_of_refused(&mut group.group.stated, refused, clock::unix_ms());
    }
    let least =
        |pick: fn(&Epochs) -> Option<u64>| reports.iter().map(|r| pick(&r.epochs)).min().flatten();
    let epochs = Epochs {
        open: reports[0].epochs.open,
        sealed: least(|e| e.sealed),
        committed: least(|e| e.committed),
        released: least(|e| e.released),
        applied: least(|e| e.applied),
    };
    let backlogs = reports.iter().map(|r| r.backlog);
    let backlog = backlogs.fold(Backlog::default(), Backlog::plus);
    let memory: Vec<MemoryPart> = reports.iter().flat_map(|r| r.memory.clone()).collect();
    let disk = disk_of(&reports);
    Status {
        daemon: group.daemon,
        group: group.group,
        ack_mode: group.ack_mode,
        ack_in_force: group.ack_in_force,
        output: group.output,
        epochs,
        unsent_bytes: backlog.unsent_bytes,
        uncommitted_ms: group.uncommitted_ms,
        unapplied_bytes: backlog.unapplied_bytes,
        disk,
        guest_memory: group.guest_memory,
        link,
        bounds: Bounds {
            memory_bytes_max: memory.iter().map(|p| p.bytes_max).sum(),
            memory,
            queues: reports.iter().flat_map(|r| r.queues.clone()).collect(),
        },
        rates: Rates {
            in_bytes_per_s: reports.iter().map(|r| r.in_per_s).sum(),
            out_bytes_per_s: reports.iter().map(|r| r.out_per_s).sum(),
            epochs_per_s: group.epochs_per_s,
        },
        commit_latency: group.commit_latency,
        // The guest waits for the slowest of its volumes.
        cut_hold: CutHold {
            p50_us: reports.iter().filter_map(|r| Some(r.cut_hold_us?.0)).max(),
            p99_us: reports.iter().filter_map(|r| Some(r.cut_hold_us?.1)).max(),
        },
        lineage: group.lineage,
        volumes: reports.into_iter().map(|r| r.volume).collect(),
    }
}

/// What failed first at the group may be its metadata, where the image of a volume did at the same
/// moment, for the same reason.
fn tell_of_failed(stated: &mut Stated<GroupState>, reports: &[Report]) {
    if stated.state != GroupState::Failed {
        return;
    }
    for Report { volume, .. } in reports {
        let reason = &volume.stated.reason;
        if volume.stated.state == VolumeState::Failed && !stated.reason.contains(reason.as_str()) {
            stated.reason += &format!("; {}: {reason}", volume.name);
        }
    }
}

/// A guest that crawls is no state of its own, and not one with nothing to do either.
fn tell_of_pressure(stated: &mut Stated<GroupState>, reports: &[Report]) {
    let pressed = reports.iter().find(|report| report.is_pressed);
    if let Some(Report { volume, .. }) = pressed
        && stated.state == GroupState::Protected
    {
        let name = &volume.name;
        stated.reason += &format!("; writes of {name} wait for room in the backup's journal");
        stated.next.clone_from(&volume.stated.next);
    }
}

/// Of the group: the epoch that every volume has. When it was cut any volume may know that was
/// written then.
fn disk_of(reports: &[Report]) -> Option<DiskTime> {
    let disks: Option<Vec<&DiskTime>> = reports.iter().map(|r| r.disk.as_ref()).collect();
    let disks = disks?;
    Some(DiskTime {
        epoch: disks.iter().map(|disk| disk.epoch).min()?,
        cut_unix_ns: disks.iter().filter_map(|disk| disk.cut_unix_ns).max(),
    })
}

fn some(epoch: Epoch) -> Option<u64> {
    (epoch != Epoch::NONE).then_some(epoch.0)
}

fn state_word(state: State) -> GroupState {
    GroupState::from(state.word())
}

impl VolumeThread {
    pub(super) fn report(&mut self, collector: &Collector) {
        let report = self.make_report();
        collector.put(self.about.index, report);
    }

    /// Once a second, whoever asks: a rate since the last time somebody asked would be anything.
    pub(super) fn tick_rates(&mut self) {
        if !self.rates[0].is_due(self.now) {
            return;
        }
        let link = self.net.link.as_ref();
        let (received, sent) = link.map_or((0, 0), |l| (l.received_bytes, l.sent_bytes));
        let committed = match &self.group {
            Some(Group::Primary(group)) => group.epochs().1.0,
            Some(Group::Backup(group)) => group.committed().0,
            None => 0,
        };
        self.tick_pressure();
        let values = [
            self.net.received_bytes + received,
            self.net.sent_bytes + sent,
            committed,
        ];
        for (rate, value) in self.rates.iter_mut().zip(values) {
            rate.update(self.now, value);
        }
    }

    fn make_report(&mut self) -> Report {
        let (in_per_s, out_per_s) = (self.rates[0].per_s(), self.rates[1].per_s());
        Report {
            volume: self.volume_status(),
            link: self.link_status(),
            epochs: self.epochs(),
            backlog: self.backlog(),
            disk: self.disk(),
            memory: self.memory_parts(),
            queues: self.queues(),
            in_per_s,
            out_per_s,
            cut_hold_us: self.holds.percentiles_us(),
            is_pressed: self.pressure.is_told(),
            group: self.group_report(),
        }
    }

    /// What a promotion would serve; nothing where there is none, or has been.
    fn disk(&self) -> Option<DiskTime> {
        let Engine::Backup(engine) = &self.engine else {
            return None;
        };
        let (_, committed, _) = engine.epochs();
        let epoch = some(committed)?;
        let cut_unix_ns = engine.cut_unix_ns(committed);
        (self.volume_stands() == VolumeStands::InSync).then_some(DiskTime {
            epoch,
            cut_unix_ns: (cut_unix_ns != 0).then_some(cut_unix_ns),
        })
    }

    fn backlog(&self) -> Backlog {
        match &self.engine {
            Engine::Primary(_) => Backlog {
                unsent_bytes: self.net.remote.as_ref().map(|_| {
                    let link = self.net.link.as_ref();
                    link.map_or(0, |link| link.queued_bytes)
                }),
                unapplied_bytes: None,
            },
            Engine::Backup(engine) => Backlog {
                unsent_bytes: None,
                unapplied_bytes: Some(engine.unapplied_bytes()),
            },
        }
    }

    fn epochs(&self) -> Epochs {
        match &self.engine {
            Engine::Primary(engine) => {
                let (durable, committed, applied) = engine.acked();
                Epochs {
                    open: some(engine.epoch()),
                    sealed: some(durable),
                    committed: some(committed),
                    released: some(committed),
                    applied: some(applied),
                }
            }
            Engine::Backup(engine) => {
                let (durable, committed, applied) = engine.epochs();
                Epochs {
                    open: None,
                    sealed: some(durable),
                    committed: some(committed),
                    released: None,
                    applied: some(applied),
                }
            }
        }
    }

    fn volume_status(&self) -> VolumeStatus {
        let mut journal = None;
        let mut sync = None;
        match &self.engine {
            Engine::Primary(engine) => {
                if let Some((done, total)) = engine.sync_progress() {
                    sync = Some(self.progress.status(self.now, done, total));
                }
            }
            Engine::Backup(engine) => {
                let (used, total) = engine.journal_bytes();
                journal = Some(JournalStatus {
                    bytes_total: total,
                    bytes_used: used,
                    percent: u8::try_from(used * 100 / total.max(1)).unwrap_or(100),
                    extents: engine.extents() as u64,
                });
            }
        }
        let stands = self.volume_stands();
        let (state, reason, next) = match stands {
            VolumeStands::Failed => (
                VolumeState::Failed,
                self.failure().unwrap_or_default(),
                "repair the storage, start the daemon again",
            ),
            VolumeStands::Waiting => (
                VolumeState::Alone,
                "connected with the backup; not every volume of the group is".to_owned(),
                "compared with the backup when every volume of the group is connected",
            ),
            VolumeStands::Syncing => (
                VolumeState::Syncing,
                "being compared with the backup".to_owned(),
                "in sync when everything that differs is copied and committed",
            ),
            VolumeStands::InSync => {
                let (reason, next) = self.why_in_sync();
                (VolumeState::InSync, reason, next)
            }
            VolumeStands::Alone => {
                let (reason, next) = self.why_alone();
                (VolumeState::Alone, reason, next)
            }
            VolumeStands::Blank => (
                VolumeState::Alone,
                "empty: no primary was taken in yet".to_owned(),
                "compared with a primary when one connects",
            ),
            VolumeStands::Inconsistent => (
                VolumeState::Inconsistent,
                "no epoch: compared and copied in part, or not yet committed as one".to_owned(),
                "an epoch again when every volume of the group was compared",
            ),
            VolumeStands::Draining => (
                VolumeState::Alone,
                "promoted; the journal is being applied".to_owned(),
                "a plain volume when the journal is drained",
            ),
        };
        // What is wrong from outside is the more urgent.
        let mut reason = self.about.image_trouble.clone().unwrap_or(reason);
        if self.about.same_image {
            reason += "; --same-image was given: whether the image is the right one was not checked, \
                       leave it out at the next start";
        }
        if self.about.on_word && stands != VolumeStands::Syncing {
            reason += &format!("; {}", on_word::text(self.about.is_primary_daemon));
        }
        VolumeStatus {
            name: self.exports[self.about.index].name().to_owned(),
            image: self.about.image_path.clone(),
            size_bytes: self.about.size_bytes,
            uuid: self.volume_uuid(),
            stated: Stated {
                state,
                reason,
                since_unix_ms: self.since.volume.1,
                next: next.to_owned(),
            },
            journal,
            sync,
            guest: self.rings.as_ref().map(|rings| rings.guest_status()),
            link: None,
            counters: self.counters(),
        }
    }

    fn why_in_sync(&self) -> (String, &'static str) {
        if self.is_equal_alone() {
            (
                "was compared with the backup; the group is not protected yet".to_owned(),
                "counts when every volume of the group is compared and committed",
            )
        } else {
            let pressure = &self.pressure;
            let reason = pressure.reason("holds what is committed");
            (reason, pressure.next("nothing to do"))
        }
    }

    fn why_alone(&self) -> (String, &'static str) {
        if let Some(code) = self.net.refusal {
            let reason = "the backup does not take this side in: the link says why";
            (reason.to_owned(), remedy(code))
        } else if self.net.remote.is_some() {
            let next = "compared with the backup when it answers";
            (self.trouble_with_backup(), next)
        } else if self.about.is_primary_daemon {
            ("no backup was given".to_owned(), GIVE_A_BACKUP)
        } else {
            (
                "promoted; it has no backup".to_owned(),
                State::Promoted.next(),
            )
        }
    }

    fn failure(&self) -> Option<String> {
        match &self.engine {
            Engine::Primary(engine) => engine.failed().map(str::to_owned),
            Engine::Backup(engine) => engine.failed().map(str::to_owned),
        }
    }

    fn volume_stands(&self) -> VolumeStands {
        match &self.engine {
            Engine::Primary(engine) if engine.failed().is_some() => VolumeStands::Failed,
            Engine::Primary(engine) if engine.waits_for_others() => VolumeStands::Waiting,
            Engine::Primary(engine) if engine.sync_progress().is_some() => VolumeStands::Syncing,
            Engine::Primary(engine) if engine.is_greeted() => VolumeStands::InSync,
            Engine::Primary(_) => VolumeStands::Alone,
            Engine::Backup(engine) if engine.failed().is_some() => VolumeStands::Failed,
            Engine::Backup(engine) if engine.is_inconsistent() => VolumeStands::Inconsistent,
            Engine::Backup(engine) if engine.meta().volume.is_none() => VolumeStands::Blank,
            Engine::Backup(engine) => match engine.mode() {
                Mode::Serving | Mode::Drained => VolumeStands::Draining,
                _ => VolumeStands::InSync,
            },
        }
    }

    fn link_stands(&self) -> LinkStands {
        let greeting = matches!(&self.engine, Engine::Primary(engine) if !engine.is_greeted());
        match (&self.net.link, &self.net.remote, self.net.listener) {
            (Some(_), _, _) if !greeting => LinkStands::Up,
            (_, Some(_), _) if self.net.refusal.is_some() => LinkStands::Refused,
            (_, Some(_), _) => LinkStands::Connecting,
            (_, None, Some(_)) => LinkStands::Listening,
            (_, None, None) => LinkStands::Absent,
        }
    }

    /// Notes when volume and link came to stand as they do.
    pub(super) fn note_standing(&mut self) {
        let (volume, link) = (self.volume_stands(), self.link_stands());
        if self.since.volume.0 != Some(volume) {
            self.since.volume = (Some(volume), clock::unix_ms());
        }
        if self.since.link.0 != Some(link) {
            self.since.link = (Some(link), clock::unix_ms());
        }
    }

    /// A backup learns which volume it holds from its first primary.
    pub(super) fn volume_uuid(&self) -> Option<String> {
        match &self.engine {
            Engine::Backup(engine) if !engine.meta().volume.is_none() => {
                Some(engine.meta().volume.to_string())
            }
            _ => self.about.volume_uuid.clone(),
        }
    }

    fn counters(&self) -> VolumeCounters {
        match &self.engine {
            Engine::Primary(engine) => {
                let c = engine.counters();
                VolumeCounters {
                    reads: c.reads,
                    writes: c.writes,
                    flushes: c.flushes,
                    bytes_read: c.read_bytes,
                    bytes_written: c.write_bytes,
                    errors: c.errors,
                    ..VolumeCounters::default()
                }
            }
            Engine::Backup(engine) => {
                let c = engine.counters();
                VolumeCounters {
                    reads: c.reads,
                    writes: c.writes,
                    bytes_read: c.read_bytes,
                    bytes_written: engine.applied_bytes(),
                    errors: c.errors,
                    ..VolumeCounters::default()
                }
            }
        }
    }

    /// What a promotion of this backup would serve.
    fn held(&self, group: &Group) -> Option<Held> {
        let (Group::Backup(group), Engine::Backup(engine)) = (group, &self.engine) else {
            return None;
        };
        let epoch = some(group.committed())?;
        let cut_unix_ns = engine.cut_unix_ns(group.committed());
        Some(Held { epoch, cut_unix_ns })
    }

    fn is_promoted(&self) -> bool {
        matches!(self.engine, Engine::Primary(_)) || self.volume_stands() == VolumeStands::Draining
    }

    fn trouble_with_backup(&self) -> String {
        if self.net.trouble.is_empty() {
            "the backup has not answered yet".to_owned()
        } else {
            self.net.trouble.clone()
        }
    }

    fn memory_parts(&self) -> Vec<MemoryPart> {
        let part = |(name, bytes_max): &(String, u64)| MemoryPart {
            name: name.clone(),
            bytes_max: *bytes_max,
        };
        let parts = self.about.memory_bytes_max.iter().map(part);
        parts.chain(self.record_part()).collect()
    }

    /// A primary's volume whose images are equal, while the group is none that may be promoted.
    fn is_equal_alone(&self) -> bool {
        matches!(&self.engine, Engine::Primary(engine) if !engine.is_protected())
    }

    fn queues(&self) -> Vec<QueueBound> {
        let stats = self.mem.0.stats();
        let page = crate::reactor::PAGE_BYTES as u64;
        let volume = self.about.index;
        let mut queues = vec![QueueBound {
            name: format!("volume {volume}: buffers"),
            unit: "bytes".to_owned(),
            used: u64::from(stats.pages_used) * page,
            limit: u64::from(stats.pages_total) * page,
            at_limit: "clients and link are not read until buffers are free".to_owned(),
        }];
        if let Engine::Primary(engine) = &self.engine {
            queues.push(QueueBound {
                name: format!("volume {volume}: writes waiting for room in the backup's journal"),
                unit: "requests".to_owned(),
                used: engine.waiting_for_window() as u64,
                limit: PARTS_MAX as u64,
                at_limit: "clients are not read until requests end".to_owned(),
            });
        }
        queues
    }

    fn group_reason(&self, group: &Group) -> String {
        let mut reason = group.standing().reason.clone();
        if let Some(name) = self.other_name(group) {
            let peer = if self.about.is_primary_daemon {
                "backup"
            } else {
                "primary"
            };
            reason += &format!("; the {peer} is of group {name}");
        }
        reason
    }

    fn group_next(&self, group: &Group) -> String {
        let standing = group.standing();
        let next = standing.next;
        let given = self.net.remote.is_some() || standing.state != State::Standalone;
        match standing.state {
            _ if !given => GIVE_A_BACKUP.to_owned(),
            State::Promoted if self.is_unserved() => format!("{UNSERVED}; {next}"),
            State::Failed if self.about.is_primary_daemon => {
                format!("{next}; or stop this daemon and its guest, and promote the backup")
            }
            _ => next.to_owned(),
        }
    }

    fn group_loss(&self, group: &Group) -> String {
        let state = group.standing().state;
        let waits = self.about.loss == LossPolicy::Pause;
        let tip = group.meta().tip();
        let loss = possible_loss(state, self.about.output, tip, waits, self.held(group));
        match &self.about.lost {
            Some(lost) => format!("{loss}; {lost}"),
            None => loss,
        }
    }

    fn group_report(&mut self) -> Option<GroupReport> {
        let epochs_per_s = self.rates[2].per_s() as f64;
        let group = self.group.as_ref()?;
        let standing = group.standing().clone();
        let meta = group.meta();
        let promoted = matches!(standing.state, State::Promoted);
        let primary = self.about.is_primary_daemon || promoted;
        let ack_mode = AckMode::from(self.about.settings.ack.to_string().as_str());
        let percentiles = self.latencies.percentiles_us();
        Some(GroupReport {
            daemon: DaemonStatus {
                name: if self.about.is_primary_daemon {
                    "blockrep"
                } else {
                    "blockrep-backup"
                }
                .to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_s: self.about.started.elapsed().as_secs(),
            },
            group: GroupStatus {
                name: self.about.group_name.clone(),
                uuid: (!meta.group.is_none()).then(|| meta.group.to_string()),
                role: if primary { Role::Primary } else { Role::Backup },
                stated: Stated {
                    state: state_word(standing.state),
                    reason: self.group_reason(group),
                    since_unix_ms: standing.since_unix_ns / 1_000_000,
                    next: self.group_next(group),
                },
            },
            was_linked: group.was_linked(),
            ack_mode,
            ack_in_force: ack_is_in_force(standing.state),
            output: OutputStatus {
                class: match self.about.output {
                    crate::config::OutputClass::Held => OutputClass::Held,
                    crate::config::OutputClass::Open => OutputClass::Open,
                },
                possible_loss: self.group_loss(group),
            },
            uncommitted_ms: match group {
                Group::Primary(group) if self.net.remote.is_some() => {
                    Some(group.oldest_uncommitted_ns(self.now) / 1_000_000)
                }
                Group::Primary(_) | Group::Backup(_) => None,
            },
            guest_memory: match group {
                Group::Primary(_) => None,
                Group::Backup(group) => group.memory().map(|memory| GuestMemoryStatus {
                    joined: memory.joined,
                    epoch: memory.at.map(|epoch| epoch.0),
                    waiting: memory.waiting as u64,
                }),
            },
            epochs_per_s,
            commit_latency: CommitLatency {
                p50_us: percentiles.map(|p| p.0),
                p99_us: percentiles.map(|p| p.1),
            },
            lineage: meta
                .lineage
                .iter()
                .map(|e| LineageEntry {
                    id: e.id.to_string(),
                    first_epoch: e.first_epoch.0,
                    why: e.why.word().to_owned(),
                    unix_ms: e.unix_s * 1000,
                })
                .collect(),
        })
    }

    /// Tells of a sync: a bar on a terminal, a line now and then in a log.
    pub(super) fn tick_progress(&mut self) {
        let (progress, is_linked) = match &self.engine {
            Engine::Primary(engine) => (engine.sync_progress(), engine.is_greeted()),
            Engine::Backup(_) => (None, false),
        };
        self.progress
            .update(self.about.index, self.now, progress, is_linked);
    }
}

/// How a volume stands, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VolumeStands {
    Failed,
    Waiting,
    Syncing,
    InSync,
    Alone,
    Inconsistent,
    Draining,
    Blank,
}

/// How a link stands, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkStands {
    Up,
    Connecting,
    Refused,
    Listening,
    Absent,
}

/// Since when volume and link stand as they do, in milliseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Since {
    volume: (Option<VolumeStands>, u64),
    link: (Option<LinkStands>, u64),
}
