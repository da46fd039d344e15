//! Events as lines of a daemon's own log.

use blkback_proto::ctl::{Event, EventKind, GroupState};
use tracing::Level;

use super::hint::aimed;

/// Writes an event to the log of the daemon.
pub(super) fn log_line(event: &Event, is_asked_for: bool, target: Option<&str>) {
    let text = log_text(event, target);
    match level_of(event, is_asked_for) {
        Level::ERROR => tracing::error!("{text}"),
        Level::WARN => tracing::warn!("{text}"),
        _ => tracing::info!("{text}"),
    }
}

/// The line; `target` is the option that names this daemon to `blockrepctl`.
pub(super) fn log_text(event: &Event, target: Option<&str>) -> String {
    let text = text_of(event);
    match target {
        Some(target) => aimed(&text, target),
        None => text,
    }
}

fn text_of(event: &Event) -> String {
    let Event {
        group,
        kind,
        reason,
        next,
        ..
    } = event;
    let mut text = format!("{group}: {kind}: ");
    match (&event.old_state, &event.new_state) {
        (Some(old), Some(new)) if old == new => text += &format!("still {new}: "),
        (Some(old), Some(new)) => text += &format!("{old} -> {new}: "),
        _ => {}
    }
    text += reason;
    if !next.is_empty() {
        text += &format!("; next: {next}");
    }
    text
}

/// Where protection is lost or an operator has something to do, it is more than information.
fn level_of(event: &Event, is_asked_for: bool) -> Level {
    if event.kind == EventKind::NetState {
        return match event.new_state.as_deref() {
            Some("failed") => Level::ERROR,
            Some("held" | "adopted") if !is_asked_for => Level::WARN,
            _ => Level::INFO,
        };
    }
    let state = event.new_state.as_deref().map(GroupState::from);
    if event.kind == EventKind::GuestState && event.new_state.as_deref() == Some("broken") {
        return Level::WARN;
    }
    match (&event.kind, state) {
        (EventKind::GroupState, Some(GroupState::Failed | GroupState::Superseded)) => Level::ERROR,
        _ if is_asked_for => Level::INFO,
        (
            EventKind::GroupState,
            Some(
                GroupState::Standalone
                | GroupState::Degraded
                | GroupState::Paused
                | GroupState::Suspect
                | GroupState::Promoted,
            ),
        )
        | (
            EventKind::RoleChanged
            | EventKind::Promoted
            | EventKind::PromotionRefused
            | EventKind::PeerRefused
            | EventKind::IoError
            | EventKind::JournalDamage
            | EventKind::LinkState
            | EventKind::LimitReached,
            _,
        ) => Level::WARN,
        _ => Level::INFO,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What asks for an operator must stand out in a log, and no line ends in the middle.
    #[test]
    fn lines_of_the_log_are_whole_and_weighed() {
        let mut event = Event {
            seq: 1,
            unix_ms: 1,
            group: "g".into(),
            kind: EventKind::DaemonStarted,
            old_state: None,
            new_state: None,
            reason: "started".into(),
            next: String::new(),
            detail: BTreeMap::new(),
        };
        assert_eq!(text_of(&event), "g: daemon-started: started");
        assert_eq!(level_of(&event, false), Level::INFO);
        event.kind = EventKind::GroupState;
        event.next = "stop it".into();
        for (old, new, level, text) in [
            (
                "standalone",
                "superseded",
                Level::ERROR,
                "standalone -> superseded",
            ),
            ("degraded", "degraded", Level::WARN, "still degraded"),
            (
                "resyncing",
                "protected",
                Level::INFO,
                "resyncing -> protected",
            ),
        ] {
            (event.old_state, event.new_state) = (Some(old.into()), Some(new.into()));
            let line = format!("g: group-state: {text}: started; next: stop it");
            assert_eq!(text_of(&event), line);
            assert_eq!(level_of(&event, false), level);
            // A stop by an operator looks like a loss, and is none; a failure is one.
            let asked_for = level_of(&event, true);
            let expected = if level == Level::WARN {
                Level::INFO
            } else {
                level
            };
            assert_eq!(asked_for, expected);
        }
    }
}
