//! Faults planted into the file operations of a reactor, for tests and for the daemon's `--fault`.
//!
//! A plan belongs to one file and costs nothing where none is set. Text form, rules separated by
//! commas:
//!
//! ```text
//!   rule   = op ":" nth ["+"] "=" action
//!   op     = read | write | zero | discard | sync | any
//!   nth    = which operation of that kind, from 1; with "+" that one and all after it
//!   action = ERRNO        fail without touching the file: EIO, ENOSPC, EDQUOT, EROFS, or a number
//!          | delay:<ms>ms hold back for that long, then go on
//!          | shuffle:<ms>ms  as delay, each for another time up to that long
//!          | short:<n>    let the kernel take at most n bytes at the first attempt
//! ```
//!
//! Example: `sync:3=EIO,write:10+=delay:50ms`. Operations are counted when they are submitted; of
//! several matching rules the first counts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::op::FileOp;

/// Rules and how many operations have been counted so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultPlan {
    rules: Vec<FaultRule>,
    /// Seen per kind; the last one counts all.
    seen: [u64; 6],
}

/// When to do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultRule {
    /// Which kind of operation; `None` counts all kinds together.
    pub op: Option<FileOp>,
    /// Which one of them, from 1.
    pub nth: u64,
    /// Whether all later ones are meant too.
    pub and_later: bool,
    pub action: FaultAction,
}

/// What happens to a chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultAction {
    /// Completes with this errno without reaching the kernel.
    Fail(i32),
    /// Reaches the kernel this much later.
    Delay(Duration),
    /// As [`FaultAction::Delay`], each operation for another time, at most that long: they end in
    /// another order than they were asked for in.
    Shuffle(Duration),
    /// The kernel sees at most this many bytes at first (rounded down to 512, at least 512), as if
    /// it had come up short.
    Short(u32),
}

/// Why a plan's text was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultParseError {
    #[error("Fault rule \"{rule}\" is not of the form op:nth=action")]
    Form { rule: String },
    #[error(
        "Fault rule \"{rule}\" names no operation: use read, write, zero, discard, sync or any"
    )]
    Operation { rule: String },
    #[error("Fault rule \"{rule}\" needs a count from 1 on, perhaps followed by +")]
    Count { rule: String },
    #[error(
        "Fault rule \"{rule}\" needs an errno (EIO, ENOSPC, EDQUOT, EROFS or a number), \
         delay:<n>ms, shuffle:<n>ms or short:<bytes>"
    )]
    Action { rule: String },
}

impl FaultPlan {
    /// A plan of these rules with nothing counted yet.
    pub fn new(rules: Vec<FaultRule>) -> FaultPlan {
        FaultPlan {
            rules,
            seen: [0; 6],
        }
    }

    /// Counts one operation and says what is to happen to it.
    pub(super) fn next(&mut self, op: FileOp) -> Option<FaultAction> {
        self.seen[op as usize] += 1;
        self.seen[5] += 1;
        let seen = self.seen;
        let hit = self.rules.iter().find(|rule| {
            let count = match rule.op {
                Some(wanted) if wanted == op => seen[op as usize],
                Some(_) => return false,
                None => seen[5],
            };
            count == rule.nth || (rule.and_later && count > rule.nth)
        });
        hit.map(|rule| match rule.action {
            FaultAction::Shuffle(most) => FaultAction::Delay(spread(most, seen[5])),
            action => action,
        })
    }
}

/// Some part of `most`, another for each operation.
fn spread(most: Duration, operation: u64) -> Duration {
    // A multiplicative hash: no two operations near each other wait equally long.
    let mixed = operation.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    most * (mixed as u32) / (1 << 16)
}

impl FromStr for FaultPlan {
    type Err = FaultParseError;

    fn from_str(text: &str) -> Result<FaultPlan, FaultParseError> {
        let rules = text.split(',').map(|rule| rule.trim().parse());
        Ok(FaultPlan::new(rules.collect::<Result<_, _>>()?))
    }
}

impl FromStr for FaultRule {
    type Err = FaultParseError;

    fn from_str(text: &str) -> Result<FaultRule, FaultParseError> {
        let rule = || text.to_owned();
        let (when, action) = text
            .split_once('=')
            .ok_or_else(|| FaultParseError::Form { rule: rule() })?;
        let (op, nth) = when
            .split_once(':')
            .ok_or_else(|| FaultParseError::Form { rule: rule() })?;
        let op = match op {
            "read" => Some(FileOp::Read),
            "write" => Some(FileOp::Write),
            "zero" => Some(FileOp::Zero),
            "discard" => Some(FileOp::Discard),
            "sync" => Some(FileOp::Sync),
            "any" => None,
            _ => return Err(FaultParseError::Operation { rule: rule() }),
        };
        let (digits, and_later) = match nth.strip_suffix('+') {
            Some(digits) => (digits, true),
            None => (nth, false),
        };
        let nth = digits.parse().ok().filter(|&nth| nth > 0);
        let nth = nth.ok_or_else(|| FaultParseError::Count { rule: rule() })?;
        let action =
            parse_action(action).ok_or_else(|| FaultParseError::Action { rule: rule() })?;
        Ok(FaultRule {
            op,
            nth,
            and_later,
            action,
        })
    }
}

const ERRNO_NAMES: [(&str, i32); 4] = [
    ("EIO", libc::EIO),
    ("ENOSPC", libc::ENOSPC),
    ("EDQUOT", libc::EDQUOT),
    ("EROFS", libc::EROFS),
];

fn parse_action(text: &str) -> Option<FaultAction> {
    if let Some(delay) = text.strip_prefix("delay:") {
        let ms = delay.strip_suffix("ms")?.parse().ok()?;
        return Some(FaultAction::Delay(Duration::from_millis(ms)));
    }
    if let Some(most) = text.strip_prefix("shuffle:") {
        let ms = most.strip_suffix("ms")?.parse().ok()?;
        return Some(FaultAction::Shuffle(Duration::from_millis(ms)));
    }
    if let Some(bytes) = text.strip_prefix("short:") {
        return Some(FaultAction::Short(bytes.parse().ok()?));
    }
    let named = ERRNO_NAMES
        .iter()
        .find(|(name, _)| *name == text)
        .map(|&(_, errno)| errno);
    named
        .or_else(|| text.parse().ok().filter(|errno| (1..4096).contains(errno)))
        .map(FaultAction::Fail)
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, rule) in self.rules.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            rule.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for FaultRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.op {
            Some(op) => op.fmt(f)?,
            None => f.write_str("any")?,
        }
        write!(f, ":{}{}=", self.nth, if self.and_later { "+" } else { "" })?;
        match self.action {
            FaultAction::Delay(by) => write!(f, "delay:{}ms", by.as_millis()),
            FaultAction::Shuffle(most) => write!(f, "shuffle:{}ms", most.as_millis()),
            FaultAction::Short(bytes) => write!(f, "short:{bytes}"),
            FaultAction::Fail(errno) => match ERRNO_NAMES.iter().find(|(_, e)| *e == errno) {
                Some((name, _)) => f.write_str(name),
                None => write!(f, "{errno}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A crash test that plants nothing proves nothing.
    #[test]
    fn text_and_plan_are_the_same() {
        let text =
            "sync:3=EIO,write:10+=delay:50ms,any:1=short:512,discard:2=95,read:1+=shuffle:9ms";
        let plan: FaultPlan = text.parse().unwrap();
        assert_eq!(plan.to_string(), text);
    }

    /// A mistyped plan must not run as no plan.
    #[test]
    fn mistakes_are_named() {
        for (text, wanted) in [
            ("", "not of the form"),
            ("write=EIO", "not of the form"),
            ("flush:1=EIO", "names no operation"),
            ("write:0=EIO", "count from 1"),
            ("write:x=EIO", "count from 1"),
            ("write:1=EWHAT", "needs an errno"),
            ("write:1=delay:5", "needs an errno"),
            ("write:1=0", "needs an errno"),
        ] {
            let error = text.parse::<FaultPlan>().unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    /// The wrong operation failing would let a crash test pass for the wrong reason.
    #[test]
    fn operations_are_counted_by_kind() {
        let mut plan: FaultPlan = "write:2=EIO,any:5+=ENOSPC".parse().unwrap();
        let seen: Vec<_> = [
            FileOp::Write,
            FileOp::Sync,
            FileOp::Write,
            FileOp::Write,
            FileOp::Read,
            FileOp::Sync,
        ]
        .into_iter()
        .map(|op| plan.next(op))
        .collect();
        let full = Some(FaultAction::Fail(libc::ENOSPC));
        assert_eq!(
            seen,
            [
                None,
                None,
                Some(FaultAction::Fail(libc::EIO)),
                None,
                full,
                full
            ]
        );
    }
}
