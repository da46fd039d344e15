//! Status of the standby.

use super::{Keeper, Waiting, lock};
use crate::config::Promote;
use blkback_proto::ctl::{
    Bounds, DaemonStatus, GuestAuthority, GuestDisks, GuestEpochs, GuestHypervisor,
    GuestProtection, GuestReport, GuestSide, GuestStandby, LinkState, MemoryLink, MemoryPart,
    Stated,
};
use blkback_proto::ids::Epoch;

impl Keeper {
    pub(super) fn report(&mut self) -> GuestReport {
        let config = &self.config;
        let authority = config.authority.open(&config.guest, &config.host);
        let (record, failed) = match authority.read() {
            Ok(record) => (record.map(|record| record.told()), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let (committed, generation) = {
            let store = lock(&self.store);
            (store.committed(), store.generation())
        };
        let some = |epoch: Epoch| (epoch != Epoch::NONE).then_some(epoch.0);
        GuestReport {
            daemon: DaemonStatus {
                name: "checkpointer".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_s: self.begun.elapsed().as_secs(),
            },
            guest: config.guest.clone(),
            host: config.host.clone(),
            side: GuestSide::Standby,
            stated: Stated {
                state: self.state.clone(),
                reason: self.reason.clone(),
                since_unix_ms: self.since_unix_ms,
                next: self.next().to_owned(),
            },
            hypervisor: Some(GuestHypervisor {
                pid: self.standby_pid(),
                version: self
                    .received
                    .as_ref()
                    .map(|hello| hello.machine.clone())
                    .unwrap_or_default(),
                state_path: None,
                why: match &self.waiting {
                    Waiting::None => "no standby is started before there is an epoch".to_owned(),
                    Waiting::Starting(_) => "the standby is starting".to_owned(),
                    Waiting::Up(..) => "the standby waits".to_owned(),
                    Waiting::Found(_) => {
                        "the guest runs, promoted under a daemon before".to_owned()
                    }
                    Waiting::Failed { why, .. } => why.clone(),
                },
            }),
            tracker: None,
            authority: GuestAuthority {
                words: authority.words(),
                record,
                failed,
            },
            disks: config.disks.as_ref().map(|control| GuestDisks {
                control: control.display().to_string(),
                state: None,
                reason: self.disks_words.clone(),
            }),
            output: None,
            memory_link: Some(MemoryLink {
                peer: config.memory.listen.clone(),
                stated: Stated {
                    state: if self.link.is_some() {
                        LinkState::Up
                    } else {
                        LinkState::Listening
                    },
                    reason: self.link_words.clone(),
                    since_unix_ms: self.link_since_unix_ms,
                    next: String::new(),
                },
                rtt_us: None,
                sent_bytes: 0,
                received_bytes: 0,
            }),
            first_copy: None,
            epochs: GuestEpochs {
                whole: self.whole.and_then(some),
                committed: some(committed),
                ..GuestEpochs::default()
            },
            interval: None,
            timeline: None,
            clock: None,
            given_up: Default::default(),
            standby: Some(GuestStandby {
                generation,
                pid: self.standby_pid(),
                promotable_epoch: some(committed).filter(|_| !self.is_off),
                promotable_age_ms: self
                    .committed_at
                    .map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)),
                if_promoted: self.if_promoted(committed),
            }),
            bounds: Bounds {
                memory_bytes_max: config.memory.buffer_mib << 20,
                memory: vec![MemoryPart {
                    name: "epochs that are not applied".to_owned(),
                    bytes_max: config.memory.buffer_mib << 20,
                }],
                queues: Vec::new(),
            },
        }
    }

    pub(super) fn standby_pid(&self) -> Option<u32> {
        match &self.waiting {
            Waiting::Up(_, standby) => Some(standby.pid()),
            Waiting::Found(qemu) => Some(qemu.pid()),
            _ => None,
        }
    }

    pub(super) fn next(&self) -> &'static str {
        match self.state {
            GuestProtection::Waiting => {
                "start `checkpointer protect` or `checkpointer run` where the guest runs"
            }
            GuestProtection::Copying => "it follows when the first checkpoint is whole",
            GuestProtection::Lost => {
                "`blockrepctl guest promote` when the primary is dead; or it comes back by itself"
            }
            GuestProtection::Unfinished if self.config.standby.promote == Promote::Auto => {
                "it is tried again by itself; `blockrepctl guest promote` tries at once"
            }
            GuestProtection::Unfinished => {
                "mend what the reason names, then `blockrepctl guest promote`: it goes on where it stopped"
            }
            GuestProtection::Failed => "see the reason, then start the daemon again",
            _ => "",
        }
    }

    fn if_promoted(&self, committed: Epoch) -> String {
        match (&self.promoted, &self.waiting) {
            (Some(_), _) => "it was".to_owned(),
            _ if self.unfinished.is_some() => {
                format!("it goes on where it stopped; {}", self.next())
            }
            _ if self.is_off => "nothing: the guest is off".to_owned(),
            (None, Waiting::Up(..)) if committed != Epoch::NONE => {
                format!("the guest goes on from epoch {committed}")
            }
            (None, Waiting::Failed { why, .. }) => format!("refused: {why}"),
            _ => "refused: no epoch is whole here yet, or the standby is starting".to_owned(),
        }
    }
}
