//! Commands that ask once: status, cut, promote.

use std::io::Write;
use std::time::Duration;

use blkback_proto::ctl::{
    CutRequest, PromoteAnswer, PromoteRequest, RefusedPeer, Request, StatusRequest, UNSERVED,
    one_line,
};
use blockrep_host::clock::{unix_ms, utc_text, utc_text_ms};
use serde_json::Value;

use super::args::{CutArgs, PromoteArgs, StatusArgs, TargetArgs};
use super::failure::Failure;
use super::render;
use super::target::{as_typed, connect};
use super::units::{micros, seconds};

/// Seconds to wait for an answer that is ready at once.
pub(super) const ANSWER_S: u64 = 10;
/// Seconds to wait for a commit.
const COMMIT_S: u64 = 30;
/// Seconds to wait for a promotion.
const PROMOTION_S: u64 = 60;

pub(super) fn status(
    target: &TargetArgs,
    args: &StatusArgs,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let timeout = target.timeout_or(ANSWER_S);
    let mut client = connect(target, timeout)?;
    if args.json {
        let json = client.request_json(&Request::Status(StatusRequest {}), timeout)?;
        return write_json(&json, out);
    }
    let status = client.status()?;
    let page = render::status(&status, unix_ms());
    out.write_all(as_typed(&page, target).as_bytes())?;
    Ok(())
}

pub(super) fn cut(target: &TargetArgs, args: &CutArgs, out: &mut dyn Write) -> Result<(), Failure> {
    // With --wait the daemon gives up first and says why; this side waits a little longer.
    let (daemon_waits, answer_wait) = if args.wait {
        (target.timeout_or(COMMIT_S), Duration::from_secs(ANSWER_S))
    } else {
        (Duration::ZERO, target.timeout_or(ANSWER_S))
    };
    let request = CutRequest {
        epoch: None,
        wait_durable: args.wait,
        seal: false,
        timeout_ms: u64::try_from(daemon_waits.as_millis()).unwrap_or(u64::MAX),
    };
    let mut client = connect(target, answer_wait)?;
    if args.json {
        let json = client.request_json(&Request::Cut(request), daemon_waits + answer_wait)?;
        return write_json(&json, out);
    }
    let answer = client.cut(request)?;
    let done = if answer.committed {
        "cut and committed"
    } else {
        "cut"
    };
    writeln!(out, "epoch {} {done}", answer.epoch)?;
    Ok(())
}

pub(super) fn promote(
    target: &TargetArgs,
    args: &PromoteArgs,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let timeout = target.timeout_or(PROMOTION_S);
    let request = PromoteRequest {
        force: args.force,
        accept_suspect: args.accept_suspect,
        with_memory: false,
        disk_only: args.disk_only,
        reason: one_line(&args.reason),
    };
    let mut client = connect(target, timeout)?;
    if args.json {
        let json = client.request_json(&Request::Promote(request), timeout)?;
        return write_json(&json, out);
    }
    let answer = client.promote(request)?;
    writeln!(out, "{}", promoted(&answer))?;
    if let Some(text) = beyond(&answer, unix_ms()) {
        writeln!(out, "{text}")?;
    }
    if answer.unserved {
        writeln!(out, "warning: {UNSERVED}")?;
    }
    if let Some(refused) = &answer.refused {
        writeln!(out, "{}", warning(refused, unix_ms()))?;
    }
    Ok(())
}

/// Two primaries are the worst that can come of a promotion: whoever lives is named.
fn warning(refused: &RefusedPeer, now_unix_ms: u64) -> String {
    let ago = seconds(now_unix_ms.saturating_sub(refused.unix_ms) / 1000);
    one_line(&format!(
        "warning: the primary at {} was alive {ago} ago, when this backup refused it: stop it now, its \
         guest must not run on",
        refused.peer
    ))
}

/// What may have been answered by the primary and cannot be here. The backup does not know the
/// primary's policy, nor whether it was alive.
fn beyond(answer: &PromoteAnswer, now_unix_ms: u64) -> Option<String> {
    const UNDER: &str = "under --on-backup-loss degrade (the default)";
    let moment = |unix_ms: u64| {
        let ago = seconds(now_unix_ms.saturating_sub(unix_ms) / 1000);
        format!("{}, {ago} ago", utc_text(unix_ms))
    };
    let text = if let Some(peer) = &answer.cut_off {
        format!(
            "warning: the primary at {peer} was connected: it is cut off, not stopped; stop it now, \
             its guest must not run on: what it answers from now on is not here"
        )
    } else if let Some(lost) = answer.link_lost_unix_ms {
        format!(
            "note: the link was lost at {}: if the primary ran on {UNDER}, what it answered after \
             that is not here",
            moment(lost)
        )
    } else {
        format!(
            "note: no primary was connected since this backup was started at {}: if the primary ran \
             on {UNDER}, what it answered after its loss of this backup is not here",
            moment(answer.no_link_since_unix_ms?)
        )
    };
    Some(one_line(&text))
}

fn promoted(answer: &PromoteAnswer) -> String {
    let when = if answer.cut_unix_ns == 0 {
        "cut at a time that is not known any more".to_owned()
    } else {
        format!("cut {}", utc_text_ms(answer.cut_unix_ns / 1_000_000))
    };
    if answer.duration_us == 0 {
        return one_line(&format!(
            "promoted before: serving what epoch {} became, under lineage {}",
            answer.epoch, answer.lineage
        ));
    }
    one_line(&format!(
        "promoted: serving epoch {} ({when}) under lineage {}; {}; took {}",
        answer.epoch,
        answer.lineage,
        answer.dropped_text(),
        micros(answer.duration_us)
    ))
}

fn write_json(json: &Value, out: &mut dyn Write) -> Result<(), Failure> {
    writeln!(out, "{json:#}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After a failover the operator must read at once what was kept and what was not.
    #[test]
    fn promotion_is_told_in_one_line() {
        let mut answer = PromoteAnswer {
            epoch: 1041,
            cut_unix_ns: 1_763_758_503_123_000_000,
            lineage: "9f0c1d2e3b4a5968".into(),
            dropped_epochs: 2,
            duration_us: 1830,
            ..PromoteAnswer::default()
        };
        assert_eq!(
            promoted(&answer),
            "promoted: serving epoch 1041 (cut 2025-11-21 20:55:03.123 UTC) \
             under lineage 9f0c1d2e3b4a5968; 2 epochs that had not arrived whole dropped; took 1.8 ms"
        );
        (answer.cut_unix_ns, answer.dropped_epochs) = (0, 0);
        assert!(promoted(&answer).contains("not known any more"));
        assert!(promoted(&answer).contains("nothing was dropped"));
        // "nothing was dropped" was said of a flush that was gone.
        (answer.dropped_epochs, answer.damaged_epoch) = (1, Some(1042));
        let text = promoted(&answer);
        let lost = "; epoch 1042 was damaged in the journal and dropped: what was written and flushed in \
                    it is lost; took";
        assert!(text.contains(lost), "{text}");
        assert!(!text.contains("arrived whole"), "{text}");
        answer.damaged_epoch = Some(1044);
        assert!(promoted(&answer).contains("; epochs 1042 to 1044 were damaged"));
        answer.duration_us = 0;
        assert!(promoted(&answer).starts_with("promoted before: "));
    }

    /// Hours of a degraded primary are missing from the disk that is served: to be read at once, not
    /// found out.
    #[test]
    fn what_cannot_be_here_is_told() {
        let mut answer = PromoteAnswer {
            epoch: 7,
            cut_unix_ns: 1,
            lineage: "ab".into(),
            dropped_epochs: 0,
            duration_us: 5,
            ..PromoteAnswer::default()
        };
        let now = 1_763_758_503_000;
        assert_eq!(beyond(&answer, now), None, "promoted before");
        answer.no_link_since_unix_ms = Some(now - 5_000);
        let text = beyond(&answer, now).unwrap();
        let since = "since this backup was started at 2025-11-21 20:54:58 UTC, 5 s ago: if";
        assert!(text.contains(since), "{text}");
        answer.link_lost_unix_ms = Some(now - 60_000);
        assert_eq!(
            beyond(&answer, now).unwrap(),
            "note: the link was lost at 2025-11-21 20:54:03 UTC, 60 s ago: if the primary ran on \
             under --on-backup-loss degrade (the default), what it answered after that is not here"
        );
        answer.cut_off = Some("10.0.0.1:4711\n".into());
        let text = beyond(&answer, now).unwrap();
        assert!(
            text.starts_with("warning: the primary at 10.0.0.1:4711"),
            "{text}"
        );
        assert!(text.contains("cut off, not stopped; stop it now"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    /// The primary was never dead, only refused: whoever promotes beside it reads so.
    #[test]
    fn a_living_primary_is_warned_of() {
        let refused = RefusedPeer {
            peer: "10.0.0.1:4711".into(),
            reason: "one of the two went\nits own way".into(),
            unix_ms: 1_000,
        };
        let text = warning(&refused, 4_500);
        assert!(
            text.starts_with("warning: the primary at 10.0.0.1:4711 was alive 3 s ago"),
            "{text}"
        );
        assert!(
            text.contains("must not run") && text.lines().count() == 1,
            "{text}"
        );
    }
}
