//! Nobody decides but an operator: two hosts and nothing that could fence one of them.
//!
//! Each host keeps a record of its own in a file. What takes the guest from nobody is done by the daemons; to promote
//! and to degrade needs the word of somebody who has looked: `--by-hand`, given with the command itself, so that it
//! holds for that once and for nothing else.

use super::{Authority, AuthorityError, By, Change, FileAuthority, Record, Swapped};

/// The record in a file of this host, and an operator.
#[derive(Debug)]
pub struct ManualAuthority {
    file: FileAuthority,
}

impl ManualAuthority {
    /// The file is this host's own.
    #[must_use]
    pub fn new(file: FileAuthority) -> Self {
        Self { file }
    }
}

impl Authority for ManualAuthority {
    fn read(&self) -> Result<Option<Record>, AuthorityError> {
        self.file.read()
    }

    fn swap(&self, expected: Option<u64>, new: &Record, by: By) -> Result<Swapped, AuthorityError> {
        if by == By::Daemon
            && let Some(old) = self.file.read()?
            && Some(old.generation) == expected
        {
            match Change::between(&old, new) {
                Change::Quiet => {}
                Change::Promote { from } => return Err(ask_promote(&old.guest, from)),
                Change::Degrade { out } => return Err(ask_degrade(&old.guest, out)),
            }
        }
        self.file.swap(expected, new, by)
    }

    fn adopt(&self, told: &Record) -> Result<(), AuthorityError> {
        self.file.take_in(told)
    }

    fn words(&self) -> String {
        format!(
            "an operator; this host's record is {}",
            self.file.path().display()
        )
    }
}

fn ask_promote(guest: &str, from: &str) -> AuthorityError {
    AuthorityError::NeedsByHand(format!(
        "only you can say that {from} is off: look, switch it off if need be, then type here: blockrepctl guest promote \
         {guest} --by-hand"
    ))
}

fn ask_degrade(guest: &str, out: &str) -> AuthorityError {
    AuthorityError::NeedsByHand(format!(
        "only you can say that {guest} does not run at {out}: look, then type here: blockrepctl guest stop {guest} \
         --by-hand; until then what it says is held"
    ))
}

#[cfg(test)]
mod tests {
    //! A daemon that promotes where only an operator may: both hosts run the guest after a cut cable. Or an operator
    //! at 3 a.m. who is told no and not what to type.

    use super::super::tests::{record, stamp};
    use super::super::{Decision, Wish, decide};
    use super::*;

    fn hosts() -> (tempfile::TempDir, ManualAuthority, ManualAuthority) {
        let dir = tempfile::tempdir().unwrap();
        let of = |host: &str| {
            let path = dir.path().join(host);
            ManualAuthority::new(FileAuthority::new(path, "vm1"))
        };
        let (a, b) = (of("a"), of("b"));
        (dir, a, b)
    }

    fn ask(
        of: &ManualAuthority,
        host: &str,
        wish: Wish<'_>,
        by: By,
        lineage: u8,
    ) -> Result<Record, String> {
        match decide(of, "vm1", host, wish, &stamp(lineage), by) {
            Ok(Decision::Done(record)) => Ok(record),
            Ok(Decision::Refused(refusal)) => Err(refusal.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn what_takes_the_guest_from_somebody_needs_a_word_each_time() {
        let (_dir, a, b) = hosts();
        ask(&a, "a", Wish::Claim, By::Daemon, 1).unwrap();
        let joined = ask(&a, "a", Wish::Protect { backup: "b" }, By::Daemon, 2).unwrap();
        // Not told yet: there is nothing that b could go on from.
        let text = ask(&b, "b", Wish::Promote, By::Operator, 3).unwrap_err();
        assert!(text.contains("never protected"), "{text}");
        b.adopt(&joined).unwrap();
        let text = ask(&b, "b", Wish::Promote, By::Daemon, 3).unwrap_err();
        assert!(
            text.ends_with("blockrepctl guest promote vm1 --by-hand"),
            "{text}"
        );
        let text = ask(&a, "a", Wish::Degrade, By::Daemon, 4).unwrap_err();
        assert!(
            text.contains("blockrepctl guest stop vm1 --by-hand"),
            "{text}"
        );
        assert_eq!(a.read().unwrap().unwrap(), joined);
        assert!(
            ask(&b, "b", Wish::Promote, By::Operator, 3)
                .unwrap()
                .is_alone("b")
        );
        // Told twice, and told to go on.
        assert!(
            ask(&b, "b", Wish::Promote, By::Daemon, 5)
                .unwrap()
                .is_alone("b")
        );
        // The word was for that once.
        let joined = ask(&b, "b", Wish::Protect { backup: "a" }, By::Daemon, 6).unwrap();
        ask(&b, "b", Wish::Degrade, By::Daemon, 7).unwrap_err();
        // The former primary is told, and takes it in.
        a.adopt(&joined).unwrap();
        a.adopt(&joined).unwrap();
        assert_eq!(a.read().unwrap().unwrap(), joined);
    }

    #[test]
    fn two_histories_are_not_made_one() {
        let (_dir, a, b) = hosts();
        ask(&a, "a", Wish::Claim, By::Daemon, 1).unwrap();
        let joined = ask(&a, "a", Wish::Protect { backup: "b" }, By::Daemon, 2).unwrap();
        b.adopt(&joined).unwrap();
        ask(&a, "a", Wish::Degrade, By::Operator, 3).unwrap();
        ask(&b, "b", Wish::Promote, By::Operator, 4).unwrap();
        let back = ask(&b, "b", Wish::Protect { backup: "a" }, By::Daemon, 5).unwrap();
        let before = a.read().unwrap();
        let text = a.adopt(&back).unwrap_err().to_string();
        assert!(text.contains("alone at a and at b"), "{text}");
        assert_eq!(a.read().unwrap(), before);
        // An old record that comes late.
        let text = b.adopt(&joined).unwrap_err().to_string();
        assert!(text.contains("generation 4 already"), "{text}");
        b.adopt(&record(9, "b", &["a"])).unwrap_err();
    }
}
