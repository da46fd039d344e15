//! Whether the database has what its clients were promised. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Bytes of a page of memory.
const PAGE: u64 = 4096;

/// A line of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) client: u32,
    pub(super) txid: u32,
    pub(super) delta: i32,
}

/// What one connection has seen.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The process that served it, and since when.
    pub(super) server: String,
    pub(super) acknowledged: Vec<(Entry, Instant)>,
    /// Sent, and not answered: it may be there or not.
    pub(super) pending: Option<Entry>,
    /// Why it goes on no more, if so.
    pub(super) ended: Option<String>,
}

impl Told {
    /// The longest time from one answer to the next.
    pub(super) fn longest_gap(&self) -> Duration {
        let times = self.acknowledged.windows(2).map(|two| two[1].1 - two[0].1);
        times.max().unwrap_or_default()
    }
}

/// What the database said when it was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) ledger: Vec<Entry>,
    /// What branches, tellers, accounts, the history and the ledger sum up to.
    pub(super) sums: Vec<i64>,
}

impl Read {
    /// From psql's rows: "client|txid|delta", and one "sum|sum|…".
    pub(super) fn parse(ledger: &str, sums: &str) -> Result<Self> {
        let numbers = |line: &str| -> Result<Vec<i64>> {
            let words = line.trim().split('|');
            let numbers = words.map(|word| word.parse().with_context(|| format!("row {line}")));
            numbers.collect()
        };
        let entry = |line: &str| -> Result<Entry> {
            let numbers = numbers(line)?;
            ensure!(numbers.len() == 3, "row {line}");
            Ok(Entry {
                client: u32::try_from(numbers[0])?,
                txid: u32::try_from(numbers[1])?,
                delta: i32::try_from(numbers[2])?,
            })
        };
        Ok(Self {
            ledger: ledger.lines().map(entry).collect::<Result<_>>()?,
            sums: numbers(sums)?,
        })
    }
}

/// What came of the comparison.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) missing: usize,
    /// There without having been acknowledged; one of each connection may be.
    pub(super) more: usize,
    pub(super) faults: Vec<String>,
}

/// Compares what was promised with what is there.
pub(super) fn compare(told: &[Told], read: &Read) -> Found {
    let mut found = Found::default();
    let key = |entry: &Entry| (entry.client, entry.txid);
    let mut there: BTreeMap<_, i32> = read
        .ledger
        .iter()
        .map(|entry| (key(entry), entry.delta))
        .collect();
    let mut missing = Vec::new();
    for (entry, _) in told.iter().flat_map(|one| &one.acknowledged) {
        match there.remove(&key(entry)) {
            Some(delta) if delta == entry.delta => {}
            Some(delta) => found.faults.push(format!(
                "transaction {} of client {} moved {} and stands there with {delta}",
                entry.txid, entry.client, entry.delta
            )),
            None => missing.push(format!("{} of client {}", entry.txid, entry.client)),
        }
    }
    found.missing = missing.len();
    if let Some(first) = missing.first() {
        found.faults.push(format!(
            "{} acknowledged and missing, the first is {first}",
            missing.len()
        ));
    }
    for pending in told.iter().filter_map(|one| one.pending) {
        if there.remove(&key(&pending)) == Some(pending.delta) {
            found.more += 1;
        }
    }
    if !there.is_empty() {
        found
            .faults
            .push(format!("{} in the ledger that nobody sent", there.len()));
    }
    let sum: i64 = read.ledger.iter().map(|entry| i64::from(entry.delta)).sum();
    if read.sums.len() != 5 || read.sums.iter().any(|one| *one != sum) {
        found.faults.push(format!(
            "branches, tellers, accounts, history and ledger sum up to {:?}, and the ledger's lines to {sum}",
            read.sums
        ));
    }
    found
}

/// What checkpoints wrote and sent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Wire {
    pub(super) epochs: u64,
    pub(super) pages: u64,
    pub(super) zero_pages: u64,
    pub(super) bytes: u64,
}

impl Wire {
    /// Of those that were cut from `since_unix_ns` on: the first copy is all of the memory.
    pub(super) fn of(epochs: &Value, since_unix_ns: u64) -> Self {
        let mut wire = Self::default();
        let epochs = epochs.as_array().into_iter().flatten();
        for one in epochs.filter(|one| one["cut_unix_ns"].as_u64() >= Some(since_unix_ns)) {
            // What was not sent yet has none of it.
            let Some(zero) = one["zero_pages"].as_u64() else {
                continue;
            };
            wire.epochs += 1;
            wire.zero_pages += zero;
            wire.pages += one["pages"].as_u64().unwrap_or(0);
            wire.bytes += one["bytes"].as_u64().unwrap_or(0);
        }
        wire
    }

    /// Bytes sent for each byte of written pages that are not zero; `None` where nothing was written.
    pub(super) fn ratio(&self) -> Option<f64> {
        let raw = self.pages.saturating_sub(self.zero_pages) * PAGE;
        (raw > 0).then(|| self.bytes as f64 / raw as f64)
    }
}

/// What pg_amcheck said, with `--verbose`: how much it has looked at, or what is wrong.
pub(super) fn amcheck(status: Option<i32>, said: &str) -> Result<usize, String> {
    let looked = said.lines().filter(|line| line.contains(": checking "));
    let looked: Vec<&str> = looked.collect();
    if status != Some(0) {
        let other = said.lines().find(|line| {
            !line.contains(": checking ")
                && !line.contains("including database")
                && !line.contains("using amcheck")
        });
        let code = status.map_or("a signal".to_owned(), |code| format!("exit code {code}"));
        return Err(format!(
            "pg_amcheck: {code}: {}",
            other.unwrap_or("it said nothing")
        ));
    }
    for name in [
        "public.ledger\"",
        "public.ledger_pkey\"",
        "public.pgbench_accounts_pkey\"",
    ] {
        if !looked.iter().any(|line| line.ends_with(name)) {
            return Err(format!(
                "pg_amcheck did not look at {}",
                name.trim_end_matches('"')
            ));
        }
    }
    Ok(looked.len())
}

#[cfg(test)]
mod tests {
    //! A judge that misses a lost transaction makes every failover look good.

    use serde_json::json;

    use super::*;

    fn entry(client: u32, txid: u32, delta: i32) -> Entry {
        Entry {
            client,
            txid,
            delta,
        }
    }

    fn told(acknowledged: &[Entry], pending: Option<Entry>) -> Told {
        Told {
            acknowledged: acknowledged
                .iter()
                .map(|one| (*one, Instant::now()))
                .collect(),
            pending,
            ..Told::default()
        }
    }

    fn read(ledger: &[Entry]) -> Read {
        let sum = ledger.iter().map(|one| i64::from(one.delta)).sum();
        Read {
            ledger: ledger.to_vec(),
            sums: vec![sum; 5],
        }
    }

    #[test]
    fn what_was_acknowledged_has_to_be_there_and_what_was_sent_may_be() {
        let (one, two, other) = (entry(1, 1, 5), entry(1, 2, -7), entry(2, 1, 9));
        let all = [told(&[one], Some(two)), told(&[other], None)];
        assert_eq!(compare(&all, &read(&[one, other])), Found::default());
        let more = compare(&all, &read(&[one, two, other]));
        assert_eq!((more.more, more.faults.len()), (1, 0));
        let lost = compare(&all, &read(&[other, two]));
        assert_eq!(
            (lost.missing, lost.faults.len()),
            (1, 1),
            "{:?}",
            lost.faults
        );
        let strange = compare(&all, &read(&[one, other, entry(2, 9, 1)]));
        assert_eq!(strange.faults, ["1 in the ledger that nobody sent"]);
        let changed = compare(&all, &read(&[entry(1, 1, 6), other]));
        assert!(
            changed.faults[0].contains("moved 5"),
            "{:?}",
            changed.faults
        );
    }

    #[test]
    fn one_table_that_sums_up_to_something_else_is_a_fault() {
        let one = entry(1, 1, 5);
        let all = [told(&[one], None)];
        for place in 0..5 {
            let mut read = read(&[one]);
            read.sums[place] = 4;
            assert_eq!(compare(&all, &read).faults.len(), 1);
        }
        assert!(Read::parse("1|2|3\n", "1|x").is_err());
        assert_eq!(
            Read::parse("1|2|-3\n", "-3|-3|-3|-3|-3\n").unwrap(),
            read(&[entry(1, 2, -3)])
        );
    }

    #[test]
    fn zeros_do_not_make_the_ratio_look_good() {
        let epochs = json!([
            {"cut_unix_ns": 6, "pages": 100, "zero_pages": 50, "bytes": 4096},
            {"cut_unix_ns": 7, "pages": 10, "zero_pages": 2, "bytes": 4096 * 4},
            {"cut_unix_ns": 8, "pages": 90, "zero_pages": null, "bytes": 0},
        ]);
        let wire = Wire::of(&epochs, 7);
        assert_eq!((wire.epochs, wire.pages), (1, 10));
        assert_eq!(wire.ratio(), Some(0.5));
        assert_eq!(Wire::of(&json!([]), 0).ratio(), None);
    }

    #[test]
    fn a_check_that_looked_at_nothing_is_no_check() {
        let lines = |names: &[&str]| -> String {
            let line = |name: &&str| {
                format!("pg_amcheck: checking btree index \"postgres.public.{name}\"\n")
            };
            names.iter().map(line).collect()
        };
        let whole = lines(&["ledger", "ledger_pkey", "pgbench_accounts_pkey"]);
        assert_eq!(amcheck(Some(0), &whole), Ok(3));
        assert!(amcheck(Some(0), "").unwrap_err().contains("public.ledger"));
        let broken = whole + "heap table \"postgres.public.ledger\", block 0: broken\n";
        assert!(amcheck(Some(2), &broken).unwrap_err().ends_with("broken"));
    }
}
