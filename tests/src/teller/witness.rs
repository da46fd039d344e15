//! The ledger as the guest has it at the end, read over a connection of its own.

use std::time::Duration;

use anyhow::{Result, bail};

use super::connection::Connection;
use super::receipts::{AUDIT, Answer, READ, RECORD_LEN, RECORDS_MAX, Record, Request};
use super::stream::Options;

/// An emulated guest compares tens of thousands of records meanwhile.
const LIMIT: Duration = Duration::from_secs(60);
/// A guest that says it has more than this many records behind what was answered is not believed.
const UNKNOWN_MAX: u64 = 1 << 16;

/// What stands on the disk, and what the guest says of its memory.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Position n at index n − 1.
    pub(super) records: Vec<Result<Record, String>>,
    /// The chain in the guest's memory.
    pub(super) chain: u64,
    pub(super) chain_disk: u64,
    /// What the guest found to differ, in words.
    pub(super) audit: String,
}

impl Ledger {
    /// Reads all of it; `known` is the highest position that was answered.
    pub(super) fn read(options: &Options, known: u64) -> Result<Self> {
        let never = || false;
        let mut connection = Connection::open(options.address, options.stall, &never)?;
        let mut records = Vec::new();
        loop {
            let first = records.len() as u64 + 1;
            let part = connection.ask(&ask(READ, first, RECORDS_MAX as u64), LIMIT)?;
            if part.position > known + UNKNOWN_MAX {
                bail!("the guest says it has {} records", part.position);
            }
            if part.payload.is_empty() {
                break;
            }
            records.extend(part.payload.chunks(RECORD_LEN).map(Record::decode));
        }
        let audit: Answer = connection.ask(&ask(AUDIT, 0, 0), LIMIT)?;
        Ok(Self {
            records,
            chain: audit.chain,
            chain_disk: audit.chain_disk,
            audit: String::from_utf8_lossy(&audit.payload).into_owned(),
        })
    }
}

fn ask(kind: u32, number: u64, nonce: u64) -> Request {
    Request {
        kind,
        number,
        nonce,
        payload: Vec::new(),
    }
}
