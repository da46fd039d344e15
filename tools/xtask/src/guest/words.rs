//! What the guests' programs say (`tests/guest`), a line a word.

/// A line of a guest's program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    Ready,
    Entry(u64),
    Verified {
        last: u64,
        torn: u64,
    },
    Done,
    Fail(String),
    ProbeOk,
    /// Operations of the churn so far, and how often all that was read was compared in memory.
    Churn {
        operations: u64,
        rounds: u64,
    },
    /// The flush of this turn was answered.
    Safe {
        thread: u64,
        turn: u64,
    },
    /// What the survey of the churn's blocks found of a thread.
    Found {
        thread: u64,
        turn: u64,
        blocks: u64,
    },
    /// KiB that fio has written, and has read to verify.
    Fio {
        written: u64,
        verified: u64,
    },
    /// fio has written and flushed what stays as it is.
    FioSettled,
    /// It is as fio wrote it.
    FioVerified,
    /// fio has written and verified once more.
    FioWritten,
    /// What fio measured: the name of the point, and fio's line in its terse format.
    Point {
        name: String,
        terse: String,
    },
    /// What stands behind `POWER`.
    Power(String),
}

/// How words begin.
const BEGINNINGS: [&str; 9] = [
    "LEDGER", "VERIFIED", "PROBE", "POWER", "CHURN", "SAFE", "FOUND", "FIO", "POINT",
];

impl Word {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        // The serial line can carry half a kernel message in front.
        let start = BEGINNINGS.iter().filter_map(|word| line.find(word)).min();
        let mut words = line.get(start?..)?.split_whitespace();
        let first = words.next()?;
        let rest: Vec<&str> = words.collect();
        let number = |at: usize| rest.get(at)?.parse::<u64>().ok();
        Some(match first {
            "LEDGER-READY" => Self::Ready,
            "LEDGER-DONE" => Self::Done,
            "LEDGER-FAIL" => Self::Fail(rest.join(" ")),
            "LEDGER" => Self::Entry(number(0)?),
            "POWER" => Self::Power(rest.join(" ")),
            "CHURN" => Self::Churn {
                operations: number(0)?,
                rounds: number(1)?,
            },
            "SAFE" => Self::Safe {
                thread: number(0)?,
                turn: number(1)?,
            },
            "FOUND" => Self::Found {
                thread: number(0)?,
                turn: number(1)?,
                blocks: number(2)?,
            },
            "FIO" => Self::Fio {
                written: number(0)?,
                verified: number(1)?,
            },
            "FIO-SETTLED" => Self::FioSettled,
            "FIO-VERIFIED" => Self::FioVerified,
            "FIO-WRITTEN" => Self::FioWritten,
            "POINT" => Self::Point {
                name: (*rest.first()?).to_owned(),
                terse: rest.get(1..).filter(|line| !line.is_empty())?.join(" "),
            },
            "PROBE" if rest.first() == Some(&"ok") => Self::ProbeOk,
            "VERIFIED" => Self::Verified {
                last: rest.first()?.strip_prefix("last=")?.parse().ok()?,
                torn: rest.get(1)?.strip_prefix("torn=")?.parse().ok()?,
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A misread number would count an entry as promised that never was, or the reverse.
    #[test]
    fn words_are_read_and_noise_is_not() {
        assert_eq!(Word::parse("LEDGER 17\r\n"), Some(Word::Entry(17)));
        assert_eq!(Word::parse("[    1.0] xLEDGER 3\r"), Some(Word::Entry(3)));
        assert_eq!(
            Word::parse("VERIFIED last=9 torn=1 blank=0"),
            Some(Word::Verified { last: 9, torn: 1 })
        );
        assert_eq!(
            Word::parse("LEDGER-FAIL no disk"),
            Some(Word::Fail("no disk".into()))
        );
        let safe = Word::Safe {
            thread: 3,
            turn: 64,
        };
        assert_eq!(Word::parse("SAFE 3 64"), Some(safe));
        let point = Word::Point {
            name: "randread/1".into(),
            terse: "3;fio-3.33;guest;0".into(),
        };
        let line = "POINT randread/1 3;fio-3.33;guest;0\r\n";
        assert_eq!(Word::parse(line), Some(point));
        assert_eq!(Word::parse("FIO-SETTLED"), Some(Word::FioSettled));
        for noise in [
            "",
            "EXT4-fs error",
            "LEDGER",
            "LEDGER x",
            "VERIFIED last=1",
            "LEDGER -1",
            "CHURN 5",
            "SAFE 1 x",
            "POINT randread/1",
            "PROBE no",
        ] {
            assert_eq!(Word::parse(noise), None, "{noise}");
        }
    }
}
