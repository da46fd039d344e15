//! Status: everything there is to know, as one answer.

use super::Protector;
use super::first_copy::FirstCopy;
use crate::config::Interval;
use crate::hypervisor::qemu::state::Kind as StateWay;
use crate::memory::PAGE_BYTES;
use crate::memory::tracker::Kind;
use blkback_proto::ctl::{
    Bounds, DaemonStatus, GuestAuthority, GuestDisks, GuestEpochs, GuestHypervisor, GuestInterval,
    GuestOutput, GuestProtection, GuestReport, GuestSide, GuestTracker, IntervalMode, LinkState,
    MemoryLink, MemoryPart, StatePath, Stated, SyncProgress, TrackerKind,
};

impl Protector {
    pub(super) fn report(&mut self) -> GuestReport {
        let mut standing = self.sequence.standing();
        if let Some(words) = self.guest.copy.as_ref().and_then(FirstCopy::words) {
            standing.reason += &format!("; {words}");
        }
        let authority = self
            .config
            .authority
            .open(&self.config.guest, &self.config.host);
        GuestReport {
            daemon: DaemonStatus {
                name: "checkpointer".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_s: self.begun.elapsed().as_secs(),
            },
            guest: self.config.guest.clone(),
            host: self.config.host.clone(),
            side: GuestSide::Primary,
            stated: Stated {
                state: GuestProtection::from(standing.state),
                reason: standing.reason,
                since_unix_ms: self.state_since_unix_ms,
                next: standing.next.to_owned(),
            },
            hypervisor: Some(self.hypervisor()),
            tracker: self.tracker(),
            authority: GuestAuthority {
                words: authority.words(),
                record: self.record.as_ref().map(crate::authority::Record::told),
                failed: self.authority_words.clone(),
            },
            disks: self.config.disks.as_ref().map(|control| GuestDisks {
                control: control.display().to_string(),
                state: Some(self.disks_standing.state.clone()).filter(|state| !state.is_empty()),
                reason: self.disks_standing.reason.clone(),
            }),
            output: self.output.as_mut().map(|output| match output.standing() {
                Ok(standing) => GuestOutput {
                    state: Some(standing.state.as_str().into()),
                    mechanism: Some(standing.mechanism.as_str().into()),
                    reason: self.output_words.clone(),
                },
                Err(reason) => GuestOutput {
                    state: None,
                    mechanism: None,
                    reason,
                },
            }),
            memory_link: Some(self.memory_link()),
            first_copy: self.first_copy_progress(),
            epochs: GuestEpochs {
                cut: self.timeline.cut,
                sent: self.timeline.sent,
                whole: self.timeline.whole,
                committed: self.sequence.committed().map(|epoch| epoch.0),
                released: self.timeline.released,
            },
            interval: Some(self.interval()),
            timeline: self.timeline.summary(),
            clock: Some(self.timeline.clock()),
            given_up: self.timeline.given_up_so_far(),
            standby: None,
            bounds: self.bounds(),
        }
    }

    fn hypervisor(&self) -> GuestHypervisor {
        GuestHypervisor {
            pid: Some(self.guest.qemu.pid()),
            version: format!("QEMU {}", self.guest.qemu.version()),
            state_path: Some(match self.guest.state_way() {
                StateWay::Devices => StatePath::XenSave,
                StateWay::Whole => StatePath::Migrate,
            }),
            why: self.guest.saver_why().to_owned(),
        }
    }

    fn tracker(&self) -> Option<GuestTracker> {
        let tracker = self.guest.tracker.as_ref()?;
        Some(GuestTracker {
            kind: match tracker.kind() {
                Kind::Userfaultfd => TrackerKind::Uffd,
                Kind::SoftDirty => TrackerKind::SoftDirty,
                Kind::Compare => TrackerKind::Compare,
            },
            why: self.guest.tracker_why.clone(),
            last_scan_us: Some(self.guest.steps.scan).filter(|us| *us != 0),
        })
    }

    fn memory_link(&self) -> MemoryLink {
        let state = if self.standing.is_up {
            LinkState::Up
        } else {
            LinkState::Connecting
        };
        let next = if self.standing.is_up {
            ""
        } else {
            "it tries again by itself"
        };
        MemoryLink {
            peer: self.config.memory.backup.clone(),
            stated: Stated {
                state,
                reason: self.standing.why.clone(),
                since_unix_ms: self.standing.since_unix_ms,
                next: next.to_owned(),
            },
            rtt_us: None,
            sent_bytes: self.standing.sent_bytes,
            received_bytes: 0,
        }
    }

    fn first_copy_progress(&self) -> Option<SyncProgress> {
        let copy = self.guest.copy.as_ref()?;
        let (done, total) = copy.progress();
        let (done_bytes, total_bytes) = (done * PAGE_BYTES, total * PAGE_BYTES);
        let ms = u64::try_from(copy.since.elapsed().as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let bytes_per_s = done_bytes.saturating_mul(1000) / ms;
        Some(SyncProgress {
            done_bytes,
            total_bytes,
            bytes_per_s,
            eta_s: (bytes_per_s != 0).then(|| (total_bytes - done_bytes) / bytes_per_s),
        })
    }

    fn interval(&self) -> GuestInterval {
        let (mode, min_ms, max_ms, share) = match self.config.epochs.interval {
            Interval::Fixed { interval_ms } => {
                (IntervalMode::Fixed, interval_ms, interval_ms, None)
            }
            Interval::Adaptive {
                min_ms,
                max_ms,
                pause_percent,
            } => (IntervalMode::Adaptive, min_ms, max_ms, Some(pause_percent)),
        };
        #[allow(clippy::cast_precision_loss, reason = "a percentage")]
        let pause_percent_max = share.map(|percent| percent as f64);
        GuestInterval {
            mode,
            now_ms: self.settings.interval_ns / 1_000_000,
            min_ms,
            max_ms,
            pause_percent: self.timeline.pause_percent(),
            pause_percent_max,
        }
    }

    fn bounds(&self) -> Bounds {
        let part = |name: &str, bytes_max: u64| MemoryPart {
            name: name.to_owned(),
            bytes_max,
        };
        let memory = vec![
            part(
                "checkpoints on their way",
                self.config.memory.buffer_mib << 20,
            ),
            part(
                "pages that differences are made against",
                self.config.memory.cache_mib << 20,
            ),
        ];
        Bounds {
            memory_bytes_max: memory.iter().map(|part| part.bytes_max).sum(),
            memory,
            queues: Vec::new(),
        }
    }
}
