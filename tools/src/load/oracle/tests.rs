use super::*;
use crate::load::history::{Cut, NEVER, Request};
use crate::load::log::{Header, Kind};

/// A history by hand: (kind, first unit, units, submitted, completed).
fn history(requests: &[(Kind, u64, u32, u64, u64)], cuts: &[Cut]) -> History {
    let header = Header {
        run: 1,
        disk_bytes: 8 * 512,
        span_bytes: 8 * 512,
        seed: 0,
    };
    let request = |&(kind, first, count, submitted, completed): &(Kind, u64, u32, u64, u64)| {
        let (offset, len) = (first * 512, count * 512);
        Request {
            submitted,
            completed,
            offset,
            len,
            kind,
            fua: false,
            failed: false,
        }
    };
    History {
        header,
        requests: requests.iter().map(request).collect(),
        cuts: cuts.to_vec(),
    }
}

const LOCAL: Rules = Rules {
    ack: Ack::Local,
    epoch: None,
    split: false,
};

fn violations(history: &History, units: [Content; 8], rules: Rules) -> Vec<Violation> {
    judge(history, &units, &rules).violations
}

use Kind::{Flush, Write, Zero};

/// Production: an early write is missing at the backup while a write that depended on it is there.
#[test]
fn a_missing_write_under_a_later_dependent_one_is_found() {
    let history = history(&[(Write, 0, 1, 1, 2), (Write, 4, 1, 3, 4)], &[]);
    let lost = Violation::Lost {
        offset: 0,
        shows: None,
        lost: 1,
        because: Because::Before,
    };
    assert_eq!(
        violations(&history, [0, 0, 0, 0, 2, 0, 0, 0], LOCAL),
        [lost]
    );
    assert_eq!(violations(&history, [1, 0, 0, 0, 2, 0, 0, 0], LOCAL), []);
    assert_eq!(violations(&history, [1, 0, 0, 0, 0, 0, 0, 0], LOCAL), []);
    assert_eq!(violations(&history, [0; 8], LOCAL), []);
}

/// Production: a write missing beside one that was in flight with it is a legal state; a false
/// alarm would make the crash runner useless.
#[test]
fn requests_in_flight_together_are_independent() {
    let history = history(&[(Write, 0, 1, 1, 4), (Write, 4, 1, 2, 3)], &[]);
    for units in [
        [1, 0, 0, 0, 2, 0, 0, 0],
        [0, 0, 0, 0, 2, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(violations(&history, units, LOCAL), []);
    }
}

/// Production: the backup applies two overlapping writes in the wrong order.
#[test]
fn reordered_overlapping_writes_are_found_unless_they_were_in_flight_together() {
    let units = [2, 2, 1, 1, 0, 0, 0, 0];
    let ordered = history(&[(Write, 0, 4, 1, 2), (Write, 0, 4, 3, 4)], &[]);
    let lost = |offset| Violation::Lost {
        offset,
        shows: Some(1),
        lost: 2,
        because: Because::Visible,
    };
    assert_eq!(violations(&ordered, units, LOCAL), [lost(1024), lost(1536)]);
    let together = history(&[(Write, 0, 4, 1, 3), (Write, 0, 4, 2, 4)], &[]);
    assert_eq!(violations(&together, units, LOCAL), []);
}

/// Production: half of a write of one epoch reaches the image. Allowed only where the host died in
/// the write.
#[test]
fn half_a_write_is_found_unless_it_was_in_flight_and_split_is_allowed() {
    let units = [1, 0, 0, 0, 0, 0, 0, 0];
    let split = Rules {
        split: true,
        ..LOCAL
    };
    let open = history(&[(Write, 0, 2, 1, NEVER)], &[]);
    assert_eq!(violations(&open, units, LOCAL).len(), 1);
    assert_eq!(violations(&open, units, split), []);
    let done = history(&[(Write, 0, 2, 1, 2), (Write, 4, 1, 3, 4)], &[]);
    assert_eq!(violations(&done, [1, 0, 0, 0, 2, 0, 0, 0], split).len(), 1);
    let mut failed = open;
    failed.requests[0].failed = true;
    assert_eq!(violations(&failed, units, LOCAL), []);
}

/// Production: the promoted backup lacks a write that was acknowledged before its epoch's cut was
/// asked for.
#[test]
fn an_acknowledged_write_lost_before_the_cut_is_found() {
    let cut = Cut {
        sent: 3,
        replied: 4,
        epoch: 7,
    };
    let history = history(&[(Write, 0, 1, 1, 2)], &[cut]);
    let lost = Violation::Lost {
        offset: 0,
        shows: None,
        lost: 1,
        because: Because::Epoch,
    };
    let at = |epoch| Rules {
        epoch: Some(epoch),
        ..LOCAL
    };
    assert_eq!(violations(&history, [0; 8], at(7)), [lost]);
    assert_eq!(violations(&history, [0; 8], at(8)), [lost]);
    assert_eq!(violations(&history, [0; 8], at(6)), []);
    assert_eq!(violations(&history, [1, 0, 0, 0, 0, 0, 0, 0], at(7)), []);
}

/// Production: the promoted backup serves a write of an epoch that was never committed.
#[test]
fn a_write_submitted_after_the_cut_was_answered_is_found() {
    let cut = Cut {
        sent: 1,
        replied: 2,
        epoch: 7,
    };
    let history = history(&[(Write, 0, 2, 3, 4)], &[cut]);
    let units = [1, 1, 0, 0, 0, 0, 0, 0];
    let at = |epoch| Rules {
        epoch: Some(epoch),
        ..LOCAL
    };
    assert_eq!(
        violations(&history, units, at(7)),
        [Violation::AfterCut {
            offset: 0,
            write: 1
        }]
    );
    assert_eq!(violations(&history, units, at(8)), []);
}

/// Production: between the question and the answer of a cut either side of it is right.
#[test]
fn a_write_beside_a_cut_may_be_in_or_out() {
    let cut = Cut {
        sent: 2,
        replied: 4,
        epoch: 7,
    };
    let history = history(&[(Write, 0, 1, 1, 5), (Write, 1, 1, 3, 6)], &[cut]);
    let rules = Rules {
        epoch: Some(7),
        ..LOCAL
    };
    for units in [[0; 8], [1, 0, 0, 0, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(violations(&history, units, rules), []);
    }
}

/// Production: a FLUSH, a FUA write or (ack mode write) any write was answered and then lost.
#[test]
fn broken_promises_of_acknowledgement_are_found() {
    let mut history = history(
        &[
            (Write, 0, 1, 1, 2),
            (Flush, 0, 0, 3, 4),
            (Write, 1, 1, 5, 6),
        ],
        &[],
    );
    let with = |ack| Rules { ack, ..LOCAL };
    let lost = |offset, lost| Violation::Lost {
        offset,
        shows: None,
        lost,
        because: Because::Acknowledged,
    };
    assert_eq!(violations(&history, [0; 8], with(Ack::Local)), []);
    assert_eq!(violations(&history, [0; 8], with(Ack::Flush)), [lost(0, 1)]);
    assert_eq!(
        violations(&history, [1, 0, 0, 0, 0, 0, 0, 0], with(Ack::Flush)),
        []
    );
    assert_eq!(
        violations(&history, [0; 8], with(Ack::Write)),
        [lost(0, 1), lost(512, 3)]
    );
    history.requests[2].fua = true;
    assert_eq!(
        violations(&history, [0; 8], with(Ack::Flush)),
        [lost(0, 1), lost(512, 3)]
    );
    history.requests[1].completed = NEVER;
    history.requests[2].fua = false;
    assert_eq!(violations(&history, [0; 8], with(Ack::Flush)), []);
}

/// Production: a flushed write of an epoch that the backup then dropped: both facts in one run.
#[test]
fn a_promise_beyond_the_epoch_is_named() {
    let cut = Cut {
        sent: 1,
        replied: 2,
        epoch: 7,
    };
    let history = history(&[(Write, 0, 1, 3, 4)], &[cut]);
    let rules = Rules {
        ack: Ack::Write,
        epoch: Some(7),
        split: false,
    };
    let found = violations(&history, [1, 0, 0, 0, 0, 0, 0, 0], rules);
    assert!(
        found.contains(&Violation::PromiseAfterCut { request: 1 }),
        "{found:?}"
    );
}

/// Production: zeroes after a completed discard must not be taken for a lost write, nor the other
/// way round.
#[test]
fn zeroes_are_explained_by_zero_requests_that_may_be_last() {
    let zeroed = history(
        &[(Write, 0, 2, 1, 2), (Zero, 0, 1, 3, 4), (Write, 4, 1, 5, 6)],
        &[],
    );
    assert_eq!(violations(&zeroed, [0, 1, 0, 0, 3, 0, 0, 0], LOCAL), []);
    let lost = Violation::Lost {
        offset: 512,
        shows: None,
        lost: 1,
        because: Because::Before,
    };
    assert_eq!(violations(&zeroed, [0, 0, 0, 0, 3, 0, 0, 0], LOCAL), [lost]);
    let kept = Violation::Lost {
        offset: 0,
        shows: Some(1),
        lost: 2,
        because: Because::Before,
    };
    assert_eq!(violations(&zeroed, [1, 1, 0, 0, 3, 0, 0, 0], LOCAL), [kept]);
}

/// Production: the last thing before the crash was a discard; only it explains why a visible write
/// is partly zero. Its completion must drag in what completed before it.
#[test]
fn a_trailing_zero_request_is_found_and_brings_its_past() {
    let requests = [(Write, 0, 2, 1, 2), (Write, 4, 1, 3, 4), (Zero, 0, 1, 5, 6)];
    let history = history(&requests, &[]);
    assert_eq!(violations(&history, [0, 1, 0, 0, 2, 0, 0, 0], LOCAL), []);
    assert_eq!(
        violations(&history, [0, 1, 0, 0, 0, 0, 0, 0], LOCAL).len(),
        1
    );
}

/// Production: content of an earlier run under a completed write of this one is a lost write.
#[test]
fn earlier_content_is_initial_content() {
    let history = history(&[(Write, 0, 1, 1, 2), (Write, 4, 1, 3, 4)], &[]);
    assert_eq!(
        violations(&history, [EARLIER, 0, 0, 0, 0, 0, 0, 0], LOCAL),
        []
    );
    assert_eq!(
        violations(&history, [EARLIER, 0, 0, 0, 2, 0, 0, 0], LOCAL).len(),
        1
    );
}

/// Production: the figures of the report are what an operator reads after an accident.
#[test]
fn the_verdict_counts_what_is_there_and_what_may_be_lost() {
    let requests = [
        (Write, 0, 1, 1, 2),
        (Write, 0, 1, 3, 4),
        (Flush, 0, 0, 5, 6),
        (Write, 1, 1, 7, 8),
    ];
    let verdict = judge(&history(&requests, &[]), &[2, 0, 0, 0, 0, 0, 0, 0], &LOCAL);
    assert_eq!(
        (verdict.writes_visible, verdict.included, verdict.lost_tail),
        (1, 2, 1)
    );
    assert_eq!((verdict.latest_stamp, verdict.latest_id), (3, 2));
}
