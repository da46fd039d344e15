//! Two hosts that both run a guest alone, or one that goes on from a checkpoint older than what the guest has said
//! to somebody: the two things that must never happen.

mod model;

use super::*;
use blkback_proto::ids::LineageId;
use std::cell::RefCell;

pub(super) fn record(generation: u8, primary: &str, in_sync: &[&str]) -> Record {
    Record {
        guest: "vm1".into(),
        generation: generation.into(),
        lineage: LineageId([generation; 16]),
        primary: primary.into(),
        in_sync: in_sync.iter().map(|&host| host.to_owned()).collect(),
        note: "because".into(),
        unix_ms: 1_700_000_000_123,
    }
}

pub(super) fn stamp(lineage: u8) -> Stamp {
    Stamp {
        lineage: LineageId([lineage; 16]),
        note: "because".into(),
        unix_ms: 1_700_000_000_123,
    }
}

/// In memory, with somebody who is faster as often as there are changes of his.
#[derive(Debug, Default)]
struct Raced {
    present: RefCell<Option<Record>>,
    theirs: RefCell<Vec<Record>>,
}

impl Authority for Raced {
    fn read(&self) -> Result<Option<Record>, AuthorityError> {
        Ok(self.present.borrow().clone())
    }

    fn swap(
        &self,
        expected: Option<u64>,
        new: &Record,
        _by: By,
    ) -> Result<Swapped, AuthorityError> {
        if let Some(faster) = self.theirs.borrow_mut().pop() {
            *self.present.borrow_mut() = Some(faster);
        }
        let mut present = self.present.borrow_mut();
        if present.as_ref().map(|record| record.generation) != expected {
            return Ok(Swapped::Changed(present.clone().expect("the faster one's")));
        }
        *present = Some(new.clone());
        Ok(Swapped::Swapped)
    }

    fn words(&self) -> String {
        "memory".into()
    }
}

fn raced(present: Option<Record>, mut theirs: Vec<Record>) -> Raced {
    theirs.reverse();
    Raced {
        present: RefCell::new(present),
        theirs: RefCell::new(theirs),
    }
}

#[test]
fn whoever_was_slower_is_told_who_won() {
    let both = || Some(record(2, "a", &["a", "b"]));
    let of = raced(both(), vec![record(3, "a", &["a"])]);
    let lost = decide(&of, "vm1", "b", Wish::Promote, &stamp(9), By::Daemon).unwrap();
    let Decision::Refused(refusal) = lost else {
        panic!("{lost:?}")
    };
    assert!(refusal.is_lost());
    let text = refusal.to_string();
    assert!(
        text.starts_with("b is not in sync: a took it out"),
        "{text}"
    );
    assert_eq!(of.read().unwrap(), Some(record(3, "a", &["a"])));

    let of = raced(both(), vec![record(3, "b", &["b"])]);
    let lost = decide(&of, "vm1", "a", Wish::Degrade, &stamp(9), By::Operator).unwrap();
    let Decision::Refused(refusal) = lost else {
        panic!("{lost:?}")
    };
    assert!(refusal.is_lost());
    assert!(
        refusal
            .to_string()
            .contains("blockrepctl guest status vm1 at b"),
        "{refusal}"
    );
    let won = who_won(&record(3, "b", &["b"]), "a");
    assert_eq!(
        won,
        "b has vm1, and this host must not run it (generation 3: because)"
    );
    assert!(who_won(&record(3, "b", &["b"]), "b").starts_with("vm1 is this host's, alone"));

    // A change that decides nothing: the wish is carried through.
    let again = vec![record(3, "a", &["a", "b"]), record(4, "a", &["a", "b"])];
    let of = raced(both(), again);
    let done = decide(&of, "vm1", "b", Wish::Promote, &stamp(9), By::Daemon).unwrap();
    let Decision::Done(record) = done else {
        panic!("{done:?}")
    };
    assert!(record.is_alone("b") && record.generation == 5 && record.lineage == stamp(9).lineage);
    // Asked again: the same.
    let again = decide(&of, "vm1", "b", Wish::Promote, &stamp(10), By::Daemon).unwrap();
    assert_eq!(again, Decision::Done(record));
}

#[test]
fn a_record_that_never_rests_is_given_up() {
    let theirs = (3..100).map(|g| record(g, "a", &["a", "b"])).collect();
    let of = raced(Some(record(2, "a", &["a", "b"])), theirs);
    let error = decide(&of, "vm1", "b", Wish::Promote, &stamp(9), By::Daemon).unwrap_err();
    assert!(matches!(error, AuthorityError::Contended { .. }), "{error}");
}

#[test]
fn rules_of_each_wish() {
    let (alone, both) = (record(1, "a", &["a"]), record(2, "a", &["a", "b"]));
    let s = stamp(7);
    let swapped = |ruling: Result<Ruling, Refusal>| match ruling {
        Ok(Ruling::Swap(record)) => record,
        other => panic!("{other:?}"),
    };
    assert!(swapped(claim(None, "vm1", "a", &s)).is_alone("a"));
    assert_eq!(claim(Some(&both), "vm1", "a", &s), Ok(Ruling::Already));
    assert!(claim(Some(&both), "vm1", "b", &s).unwrap_err().is_lost());

    let joined = swapped(protect(&alone, "a", "b", &s));
    assert_eq!(joined.in_sync, ["a", "b"]);
    assert_eq!(joined.backup(), Some("b"));
    assert_eq!((joined.lineage, joined.generation), (alone.lineage, 2));
    assert_eq!(protect(&both, "a", "b", &s), Ok(Ruling::Already));
    // The backup before gets nothing any more, so it is out.
    let other = swapped(protect(&both, "a", "c", &s));
    assert_eq!(other.in_sync, ["a", "c"]);
    assert_eq!(Change::between(&both, &other), Change::Degrade { out: "b" });
    assert!(protect(&both, "b", "a", &s).unwrap_err().is_lost());
    let itself = protect(&alone, "a", "a", &s).unwrap_err();
    assert!(!itself.is_lost() && itself.to_string().contains("set `host`"));

    let degraded = swapped(degrade(&both, "a", &s));
    assert!(degraded.is_alone("a") && degraded.lineage == s.lineage);
    assert_eq!(
        Change::between(&both, &degraded),
        Change::Degrade { out: "b" }
    );
    assert_eq!(degrade(&alone, "a", &s), Ok(Ruling::Already));
    assert!(degrade(&both, "b", &s).unwrap_err().is_lost());

    let promoted = swapped(promote(&both, "b", &s));
    assert!(promoted.is_alone("b") && promoted.lineage == s.lineage);
    assert_eq!(
        Change::between(&both, &promoted),
        Change::Promote { from: "a" }
    );
    assert_eq!(Change::between(&alone, &both), Change::Quiet);
    assert!(promote(&alone, "b", &s).unwrap_err().is_lost());
    let primary = promote(&both, "a", &s).unwrap_err();
    assert!(!primary.is_lost() && primary.to_string().ends_with("promote at b, if at all"));
    for record in [joined, degraded, promoted] {
        record.check("vm1").unwrap();
    }
}
