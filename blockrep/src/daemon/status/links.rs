//! The link of a volume, and what the state of a group says of the links of its volumes.

use super::super::net::TRIED_AGAIN;
use super::super::role::Engine;
use super::super::thread::VolumeThread;
use super::{LinkStands, Report};
use crate::group::primary::TOLD_VOLUMES_MAX;
use blkback_proto::ctl::{GroupState, LinkState, LinkStatus, Stated};
use blockrep_host::clock;

impl VolumeThread {
    /// How the link stands, and since when.
    pub(super) fn link_status(&self) -> LinkStatus {
        let stands = self.link_stands();
        let (state, reason, next) = match stands {
            LinkStands::Up => (LinkState::Up, "connected".to_owned(), "nothing to do"),
            LinkStands::Connecting => (
                LinkState::Connecting,
                self.trouble_with_backup(),
                TRIED_AGAIN,
            ),
            LinkStands::Refused => (
                LinkState::Refused,
                self.trouble_with_backup(),
                "tried again every five seconds",
            ),
            LinkStands::Listening if self.is_promoted() => (
                LinkState::Listening,
                "this side is promoted".to_owned(),
                "a former primary that connects is refused",
            ),
            LinkStands::Listening => (
                LinkState::Listening,
                "no primary is connected".to_owned(),
                "taken in when one connects",
            ),
            LinkStands::Absent => (
                LinkState::Absent,
                "no backup was given".to_owned(),
                "nothing to do",
            ),
        };
        let credit_bytes = match &self.engine {
            Engine::Primary(engine) if stands == LinkStands::Up => Some(engine.credit_bytes()),
            _ => None,
        };
        LinkStatus {
            peer: self
                .net
                .link
                .as_ref()
                .map(|l| l.peer.clone())
                .or_else(|| self.net.remote.as_ref().map(ToString::to_string)),
            stated: Stated {
                state,
                reason,
                since_unix_ms: self.since.link.1,
                next: next.to_owned(),
            },
            // A connection on which nobody has answered is none yet.
            session: (stands == LinkStands::Up).then(|| self.net.session.to_string()),
            rtt_us: None,
            credit_bytes,
            heard_unix_ms: self
                .net
                .last_session
                .heard_unix_ms(self.now, clock::unix_ms()),
            lost_unix_ms: self.net.last_session.lost_unix_ms(),
            refused: self.net.refused.clone(),
        }
    }
}

/// Where there are several volumes, each with an address of its own: the ones that are not linked are
/// named, or the wrong address is looked for where the right one stands.
pub(super) fn tell_of_links(stated: &mut Stated<GroupState>, reports: &[Report], was_linked: bool) {
    use GroupState::{Degraded, Inconsistent, Paused, Standalone, Suspect, WaitingForPrimary};
    let down: Vec<(usize, &Report)> = reports
        .iter()
        .enumerate()
        .filter(|(_, report)| !report.is_linked() && report.link.stated.state != LinkState::Absent)
        .collect();
    if reports.len() < 2 || down.is_empty() {
        return;
    }
    let name = |index: usize, report: &Report| format!("volume {index} ({})", report.volume.name);
    let told = |say: &dyn Fn(usize, &Report) -> String| {
        let mut parts: Vec<String> = down
            .iter()
            .take(TOLD_VOLUMES_MAX)
            .map(|(index, report)| say(*index, report))
            .collect();
        if down.len() > TOLD_VOLUMES_MAX {
            parts.push(format!("and {} more", down.len() - TOLD_VOLUMES_MAX));
        }
        parts.join("; ")
    };
    match stated.state {
        Standalone | Degraded | Paused => {
            let says = |index: usize, report: &Report| {
                format!("{}: {}", name(index, report), report.link.stated.reason)
            };
            let known =
                |(_, report): &(usize, &Report)| stated.reason.contains(&report.link.stated.reason);
            let text = told(&says);
            if was_linked && !down.iter().any(known) {
                stated.reason += &format!("; {text}");
            } else {
                stated.reason = text;
            }
        }
        WaitingForPrimary | Inconsistent | Suspect if down.len() < reports.len() => {
            let text = told(&|index, report| format!("{} is not connected", name(index, report)));
            let text = format!("{text}: see the primary's status for its address");
            if stated.state == WaitingForPrimary {
                stated.reason = format!("a primary is connected, not with every volume; {text}");
                let then = match stated.next.split_once("not promotable") {
                    Some((_, why)) => format!("not promotable{why}"),
                    None => "`blockrepctl promote` when the primary is dead".to_owned(),
                };
                stated.next = format!("follows when every volume is connected; {then}");
            } else if stated.state == Inconsistent {
                // The group's reason names the volume.
                stated.next =
                    "put its address right at the primary, whose status names what it tries; \
                               until then not promotable"
                        .to_owned();
            } else {
                stated.reason += &format!("; {text}");
            }
        }
        _ => {}
    }
}
