//! What was promised against what is there. Pure: the stream, the ledger and the seed go in, faults come out.

use super::receipts::{AHEAD, DIFFERS, Record, SPOILT, beginning};
use super::stream::{Ended, Options, Stream, transaction};
use super::witness::Ledger;

/// Faults of one kind that are told one by one.
const TOLD_MAX: usize = 3;

/// Faults of one kind: the first ones, and how many there are.
#[derive(Debug, Default)]
struct Faults {
    told: Vec<String>,
    more: usize,
}

impl Faults {
    fn add(&mut self, fault: String) {
        if self.told.len() < TOLD_MAX {
            self.told.push(fault);
        } else {
            self.more += 1;
        }
    }

    fn all(mut self) -> Vec<String> {
        if self.more > 0 {
            self.told
                .push(format!("and {} more of the kind", self.more));
        }
        self.told
    }
}

/// What is wrong with what the client saw while it streamed.
pub(super) fn of_stream(options: &Options, stream: &Stream) -> Vec<String> {
    let mut faults = match &stream.ended {
        Ended::Whole => Vec::new(),
        Ended::Stalled => {
            let seconds = options.stall.as_secs_f32();
            vec![format!(
                "the connection is silent: no answer for {seconds} s"
            )]
        }
        Ended::Lost(why) => vec![format!("the connection was lost: {why}")],
    };
    if stream.answers.is_empty() {
        faults.push("nothing was answered: this proves nothing".to_owned());
    }
    let (mut order, mut state) = (Faults::default(), Faults::default());
    let (mut chain, mut monotonic_ns) = (beginning(options.run), 0);
    for (number, answer) in (1..).zip(&stream.answers) {
        let expected = transaction(options.seed, number);
        if (answer.number, answer.nonce, answer.position) != (number, expected.nonce, number) {
            order.add(format!(
                "answer {number} is of transaction {} at position {}",
                answer.number, answer.position
            ));
        }
        if answer.monotonic_ns < monotonic_ns {
            order.add(format!("the guest's clock went back at answer {number}"));
        }
        monotonic_ns = answer.monotonic_ns;
        if answer.chain_disk != chain {
            state.add(format!(
                "before transaction {number} the disk was of another moment"
            ));
        }
        chain = Record::after(chain, options.run, number, &expected).chain;
        if answer.chain != chain {
            state.add(format!(
                "at transaction {number} memory has another history"
            ));
        }
        // What was found stays in all later answers.
        chain = answer.chain;
    }
    faults.extend(order.all());
    faults.extend(state.all());
    let flags = stream
        .answers
        .iter()
        .fold(0, |all, answer| all | answer.flags);
    faults.extend(flag_words(flags));
    faults
}

fn flag_words(flags: u32) -> Vec<String> {
    let words = [
        (
            DIFFERS,
            "the guest's last record is not the one it remembers",
        ),
        (
            AHEAD,
            "the guest's disk has a record that it does not remember",
        ),
        (
            SPOILT,
            "a page of the guest's memory is not as it was written",
        ),
    ];
    let found = words.iter().filter(|(flag, _)| flags & flag != 0);
    found.map(|(_, words)| (*words).to_owned()).collect()
}

/// What is wrong with what was read back.
pub(super) fn of_ledger(options: &Options, stream: &Stream, ledger: &Ledger) -> Vec<String> {
    let (mut lost, mut wrong) = (Faults::default(), Faults::default());
    // The witness: whatever was let out is there.
    for answer in &stream.answers {
        match place(ledger, answer.position) {
            Some(Ok(record)) if (record.number, record.nonce) == (answer.number, answer.nonce) => {
                if record.chain != answer.chain {
                    wrong.add(format!(
                        "record {} is not the one that was answered",
                        answer.position
                    ));
                }
            }
            Some(Ok(record)) => lost.add(format!(
                "transaction {} was answered, and transaction {} stands in its place",
                answer.number, record.number
            )),
            Some(Err(why)) => lost.add(format!(
                "transaction {} was answered, and is not whole: {why}",
                answer.number
            )),
            None => lost.add(format!(
                "transaction {} was answered, and is not in the ledger",
                answer.number
            )),
        }
    }
    let mut chain = beginning(options.run);
    for (position, place) in (1..).zip(&ledger.records) {
        match place {
            Ok(record) => {
                let sent = transaction(options.seed, position);
                let is_known = position <= stream.sent.len() as u64;
                if !is_known || *record != Record::after(chain, options.run, position, &sent) {
                    wrong.add(format!("record {position} is none that was sent"));
                }
                chain = record.chain;
            }
            Err(why) => wrong.add(format!("record {position}: {why}")),
        }
    }
    if (ledger.chain, ledger.chain_disk) != (chain, chain) {
        wrong.add("the guest's memory, its disk and what was read do not agree".to_owned());
    }
    let mut faults = [lost.all(), wrong.all()].concat();
    if !ledger.audit.is_empty() {
        faults.push(format!("the guest's audit: {}", ledger.audit));
    }
    faults
}

fn place(ledger: &Ledger, position: u64) -> Option<&Result<Record, String>> {
    let index = usize::try_from(position.checked_sub(1)?).ok()?;
    ledger.records.get(index)
}
