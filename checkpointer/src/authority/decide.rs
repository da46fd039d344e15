//! A wish, carried through: read, rule, swap, and again where somebody was faster.

use super::rules::{Refusal, Ruling, Stamp, claim, degrade, promote, protect};
use super::{Authority, AuthorityError, By, Record, Swapped};

/// Two hosts compete at most a few times; more is a fault.
const ROUNDS_MAX: u32 = 16;

/// What a host wants of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish<'a> {
    /// The guest begins here.
    Claim,
    /// The output is held, and this backup has a whole checkpoint from since then.
    Protect {
        /// Name of its host.
        backup: &'a str,
    },
    /// The guest is to go on without its backup.
    Degrade,
    /// The guest is to go on here, and nothing is acknowledged any more.
    Promote,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is as wished, durably; the record.
    Done(Record),
    /// It is not, and why.
    Refused(Refusal),
}

/// Asks for a wish. Where the record was changed meanwhile, the rules are asked again about the new one, so a wish
/// that lost is refused with who won.
///
/// # Errors
/// [`AuthorityError`]: nothing was decided as far as it is known. Asking again is right at any time: a wish that came
/// true is [`Decision::Done`] again.
pub fn decide(
    authority: &dyn Authority,
    guest: &str,
    host: &str,
    wish: Wish<'_>,
    stamp: &Stamp,
    by: By,
) -> Result<Decision, AuthorityError> {
    let mut present = authority.read()?;
    for _ in 0..ROUNDS_MAX {
        let new = match rule(present.as_ref(), guest, host, wish, stamp) {
            Ok(Ruling::Swap(new)) => new,
            Ok(Ruling::Already) => {
                return Ok(Decision::Done(present.expect("the rules looked at it")));
            }
            Err(refusal) => return Ok(Decision::Refused(refusal)),
        };
        let expected = present.as_ref().map(|record| record.generation);
        match authority.swap(expected, &new, by) {
            Ok(Swapped::Swapped) => return Ok(Decision::Done(new)),
            Ok(Swapped::Changed(theirs)) => present = Some(theirs),
            Err(error) => return Err(error),
        }
    }
    Err(AuthorityError::Contended {
        guest: guest.to_owned(),
        rounds: ROUNDS_MAX,
    })
}

fn rule(
    record: Option<&Record>,
    guest: &str,
    host: &str,
    wish: Wish<'_>,
    stamp: &Stamp,
) -> Result<Ruling, Refusal> {
    if matches!(wish, Wish::Claim) {
        return claim(record, guest, host, stamp);
    }
    let record = record.ok_or_else(|| Refusal::NoRecord {
        guest: guest.to_owned(),
    })?;
    match wish {
        Wish::Claim => unreachable!("handled above"),
        Wish::Protect { backup } => protect(record, host, backup, stamp),
        Wish::Degrade => degrade(record, host, stamp),
        Wish::Promote => promote(record, host, stamp),
    }
}
