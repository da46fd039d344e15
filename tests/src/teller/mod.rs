//! The client of the whole demo: it streams numbered transactions over one TCP connection to a guest
//! (`tests/guest/teller.rs`) that may lose its host meanwhile, and judges from outside what it was promised.
//!
//! ```text
//!  client                                   guest
//!    │── transactions, a few in flight ───────►│ record on disk, fdatasync
//!    │◄── answer: position, chain, clocks ─────│        … host lost, guest goes on elsewhere …
//!    │── at the end, over another connection: all records, audit ──►│
//!  judge: every answer that was seen is in the ledger; one order, one chain; no reset
//! ```
//!
//! A transaction that was answered and is not in the ledger was let out before the backup had it: that is invariant
//! 1 of the project, seen by somebody who trusts nobody inside. All of it runs on the caller's thread, and every wait
//! has a limit.

#[cfg(test)]
#[allow(dead_code)] // The guest uses the rest.
#[path = "../../guest/book.rs"]
mod book;
mod connection;
mod figures;
mod judge;
#[path = "../../guest/receipts.rs"]
#[allow(dead_code)] // Shared with the guest's program, which uses the rest.
mod receipts;
mod report;
#[cfg(test)]
#[allow(dead_code)] // The guest uses the rest.
#[path = "../../guest/stir.rs"]
mod stir;
mod stream;
#[cfg(test)]
mod system;
#[cfg(test)]
mod tests;
mod witness;

pub use report::report;
pub use stream::{Options, Progress};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::Path;

use connection::Connection;
use figures::Figures;
use stream::Stream;
use witness::Ledger;

/// What one run came to.
#[derive(Debug)]
pub struct Outcome {
    /// What does not hold; none = all holds.
    pub faults: Vec<String>,
    /// For people.
    pub summary: String,
    json: Value,
}

impl Outcome {
    /// Writes all of it for the report.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, format!("{}\n", self.json))
            .with_context(|| format!("write {}", path.display()))
    }
}

/// Connects, streams until `stop` says so or the time is over, reads all back, judges.
///
/// # Errors
/// The guest could not be reached at the beginning. What goes wrong later is a fault of the outcome.
pub fn run(
    options: &Options,
    stop: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Outcome> {
    let mut connection = Connection::open(options.address, options.connect, stop)?;
    let stream = Stream::play(&mut connection, options, stop, progress);
    // Not over the stream's connection: what is read back is judged whatever became of that.
    let ledger = Ledger::read(
        options,
        stream.answers.last().map_or(0, |last| last.position),
    );
    drop(connection);
    Ok(outcome(options, &stream, &ledger))
}

fn outcome(options: &Options, stream: &Stream, ledger: &Result<Ledger>) -> Outcome {
    let mut faults = judge::of_stream(options, stream);
    match ledger {
        Ok(ledger) => faults.extend(judge::of_ledger(options, stream, ledger)),
        Err(error) => faults.push(format!("the ledger could not be read back: {error:#}")),
    }
    let figures = Figures::of(stream, ledger.as_ref().ok());
    let answers: Vec<[u64; 3]> = stream
        .answers
        .iter()
        .zip(&stream.sent)
        .map(|(answer, sent)| {
            let unix = |ns| stream.begun_unix_ns + ns;
            [answer.number, unix(sent.at_ns), unix(answer.at_ns)]
        })
        .collect();
    let json = json!({
        "run": options.run,
        "seed": options.seed,
        "window": options.window,
        "begun_unix_ns": stream.begun_unix_ns,
        "ended": stream.ended.words(),
        "figures": figures.json(),
        "faults": faults,
        "answers": answers,
        "clock": figures::clock_lag(stream),
    });
    Outcome {
        summary: figures.words(),
        faults,
        json,
    }
}
