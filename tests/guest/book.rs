//! The teller's ledger: records on the raw disk, and their chain in memory.
//!
//! Memory and disk are of one moment as long as the last record on the disk is the last one that memory knows and
//! none stands behind it. That is looked at before every append, past the page cache: a guest that came back with
//! the memory of one moment and the disk of another shows it with its next answer.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::receipts::{AHEAD, DIFFERS, RECORD_LEN, RECORDS_MAX, Record, Request, beginning};
use super::system::Outcome;

/// O_DIRECT of open(2) on x86-64.
const DIRECT: i32 = 0x4000;
const PLACE: u64 = RECORD_LEN as u64;

/// Room for reads and writes past the page cache.
#[repr(align(4096))]
struct Sectors([u8; RECORDS_MAX * RECORD_LEN]);

/// What an append came to.
pub(crate) struct Receipt {
    pub(crate) position: u64,
    pub(crate) chain: u64,
    /// Of the record before, from the disk.
    pub(crate) chain_disk: u64,
    pub(crate) flags: u32,
}

pub(crate) struct Book {
    disk: File,
    run: u64,
    /// `chains[n]` is the chain up to record n.
    chains: Vec<u64>,
    sectors: Box<Sectors>,
    records_max: u64,
}

impl Book {
    /// The ledger of `run`, which has no record yet, on a disk of `bytes`.
    pub(crate) fn new(path: &str, bytes: u64, run: u64) -> Outcome<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(DIRECT);
        let disk = options.open(path).map_err(|e| format!("{path}: {e}"))?;
        Ok(Self {
            disk,
            run,
            chains: vec![beginning(run)],
            sectors: Box::new(Sectors([0; RECORDS_MAX * RECORD_LEN])),
            records_max: bytes / PLACE,
        })
    }

    /// The highest position, and the chain up to it.
    pub(crate) fn last(&self) -> (u64, u64) {
        let chain = *self.chains.last().expect("it begins with one");
        (self.chains.len() as u64 - 1, chain)
    }

    /// Appends what is asked for; returns when the disk has it.
    pub(crate) fn append(&mut self, request: &Request) -> Outcome<Receipt> {
        let (last, chain_memory) = self.last();
        // One place stays free: what stands behind the last record is looked at.
        if last + 2 > self.records_max {
            return Err("the disk is full".to_owned());
        }
        let (chain_disk, flags) = self.compare(last, chain_memory)?;
        let record = Record::after(chain_memory, self.run, last + 1, request);
        self.sectors.0[..RECORD_LEN].copy_from_slice(&record.encode());
        self.disk
            .write_all_at(&self.sectors.0[..RECORD_LEN], last * PLACE)
            .and_then(|()| self.disk.sync_data())
            .map_err(|e| format!("record {}: {e}", last + 1))?;
        self.chains.push(record.chain);
        Ok(Receipt {
            position: last + 1,
            chain: record.chain,
            chain_disk,
            flags,
        })
    }

    /// The chain of record `last` on the disk, and whether that and what is behind it are as memory has it.
    fn compare(&mut self, last: u64, chain: u64) -> Outcome<(u64, u32)> {
        if last == 0 {
            let run = self.run;
            let flags = if is_of(run, self.load(1, 1)?, 1) {
                AHEAD
            } else {
                0
            };
            return Ok((chain, flags));
        }
        let two = self.load(last, 2)?.to_vec();
        let (place, behind) = two.split_at(RECORD_LEN);
        let chain_disk = Record::decode(place).map_or(0, |record| record.chain);
        let mut flags = 0;
        if !is_of(self.run, place, last) || chain_disk != chain {
            flags |= DIFFERS;
        }
        if is_of(self.run, behind, last + 1) {
            flags |= AHEAD;
        }
        Ok((chain_disk, flags))
    }

    /// The places of `count` records from `first`, past the page cache.
    fn load(&mut self, first: u64, count: u64) -> Outcome<&[u8]> {
        let bytes = &mut self.sectors.0[..count as usize * RECORD_LEN];
        let read = self.disk.read_exact_at(bytes, (first - 1) * PLACE);
        read.map_err(|e| format!("records from {first}: {e}"))?;
        Ok(bytes)
    }

    /// What stands on the disk in the places of at most `count` records from `first`.
    pub(crate) fn read(&mut self, first: u64, count: u64) -> Outcome<Vec<u8>> {
        let (last, _) = self.last();
        let first = first.max(1);
        let count = count
            .min(RECORDS_MAX as u64)
            .min((last + 1).saturating_sub(first));
        Ok(self.load(first, count)?.to_vec())
    }

    /// Compares every record with memory; the first that is not as memory has it, and the last chain on the disk.
    pub(crate) fn audit(&mut self) -> Outcome<(Option<String>, u64)> {
        let (last, chain) = self.last();
        let (mut first, mut chain_disk) = (1, beginning(self.run));
        while first <= last {
            let places = self.read(first, last)?;
            for place in places.chunks(RECORD_LEN) {
                let expected = self.chains[first as usize];
                match Record::decode(place) {
                    Ok(record) if is_of(self.run, place, first) && record.chain == expected => {
                        chain_disk = record.chain;
                    }
                    Ok(_) => {
                        return Ok((Some(format!("record {first} is another one")), chain_disk));
                    }
                    Err(why) => return Ok((Some(format!("record {first}: {why}")), chain_disk)),
                }
                first += 1;
            }
        }
        let (_, flags) = self.compare(last, chain)?;
        let ahead = flags & AHEAD != 0;
        let fault = ahead.then(|| format!("the disk has a record {}, memory has not", last + 1));
        Ok((fault, chain_disk))
    }
}

/// Whether a whole record of `run` stands there, in its own place.
fn is_of(run: u64, place: &[u8], position: u64) -> bool {
    Record::decode(place).is_ok_and(|record| (record.run, record.position) == (run, position))
}

#[cfg(test)]
mod tests {
    //! A guest that came back with the disk of one moment and the memory of another must say so at once.

    use super::*;
    use crate::teller::receipts::APPEND;
    use std::path::Path;

    const BYTES: u64 = 1 << 20;

    fn request(number: u64) -> Request {
        Request {
            kind: APPEND,
            number,
            nonce: number * 3,
            payload: vec![number as u8; number as usize],
        }
    }

    fn book_with(path: &Path, count: u64) -> Book {
        std::fs::File::create(path).unwrap().set_len(BYTES).unwrap();
        let mut book = Book::new(path.to_str().unwrap(), BYTES, 5).unwrap();
        for number in 1..=count {
            let receipt = book.append(&request(number)).unwrap();
            assert_eq!((receipt.position, receipt.flags), (number, 0));
        }
        book
    }

    #[test]
    fn the_next_append_tells_of_a_disk_of_another_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        drop(book_with(&path("three"), 3));
        drop(book_with(&path("none"), 0));
        let mut book = book_with(&path("five"), 5);
        assert_eq!(book.audit().unwrap(), (None, book.last().1));
        std::fs::copy(path("three"), path("five")).unwrap();
        assert!(book.audit().unwrap().0.is_some());
        let receipt = book.append(&request(6)).unwrap();
        assert_eq!(receipt.flags, DIFFERS);
        assert_ne!(receipt.chain_disk, receipt.chain);

        let mut book = book_with(&path("older"), 3);
        drop(book_with(&path("five"), 5));
        std::fs::copy(path("five"), path("older")).unwrap();
        assert!(book.audit().unwrap().0.is_some());
        assert_eq!(book.append(&request(4)).unwrap().flags, AHEAD);

        let mut book = book_with(&path("first"), 0);
        std::fs::copy(path("three"), path("first")).unwrap();
        assert_eq!(book.append(&request(1)).unwrap().flags, AHEAD);
    }

    // What is read back is the whole of the judge's evidence.
    #[test]
    fn what_was_appended_is_read_back_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = book_with(&dir.path().join("disk"), 70);
        let mut places = Vec::new();
        while let part @ [_, ..] = &book
            .read(places.len() as u64 / PLACE + 1, u64::MAX)
            .unwrap()[..]
        {
            places.extend_from_slice(part);
        }
        let mut before = beginning(5);
        assert_eq!(places.len(), 70 * RECORD_LEN);
        for (number, place) in (1..).zip(places.chunks(RECORD_LEN)) {
            let record = Record::decode(place).unwrap();
            assert_eq!(record, Record::after(before, 5, number, &request(number)));
            before = record.chain;
        }
        assert_eq!(before, book.last().1);
    }
}
