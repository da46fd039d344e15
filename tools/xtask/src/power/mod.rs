//! `cargo xtask power`: the backup's machine loses its power, and its disk what was not flushed.
//!
//! kill -9 never loses an unsynced write, because the kernel lives on. Here the backup runs in a guest
//! whose disks are served by this program, which keeps unflushed sectors in memory and drops a random
//! part of them at the cut. After it the backup must be exactly one epoch, not below the last one the
//! primary had released, with every write in it whose flush was answered.
//!
//! `--plant no-sync` stands for a daemon that does not sync its journal: from the moment of protection
//! on, the disk answers flushes and does not carry them out in the space that was zeroed before, which
//! is the journal's. To the journal that is the same as an fdatasync that is not there; the file system
//! under it keeps its word. The command must then fail.

mod cache;
mod disk;
mod nbd;
mod round;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::checkout::{Checkout, Scratch};
use crate::demo::{self, Verdict, aligned};
use crate::guest::{self, Accelerator};
use crate::kernel::{self, Contents, GuestKernel};
use crate::lab::{Place, Programs};
use crate::packages::{self, Purpose};
use crate::{parcel, stop, ui};

use round::Row;

/// Damage done on purpose, which the rounds have to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Plant {
    /// No sync of the backup's journal has an effect.
    NoSync,
}

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// How many power cuts, each on fresh disks
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Decides the random moments and losses; without it a new one is taken and printed
    #[arg(long)]
    seed: Option<u64>,
    /// Do damage on purpose; the command must then fail
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    /// Rounds at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    parallel: u32,
    /// Only print the command that would install what is missing
    #[arg(long)]
    no_install: bool,
    /// Build and use optimised daemons
    #[arg(long)]
    release: bool,
}

/// What all rounds share.
#[derive(Debug)]
struct Stage<'a> {
    options: &'a Options,
    seed: u64,
    scratch: Scratch,
    programs: Programs,
    kernel: GuestKernel,
    accelerator: Accelerator,
    /// The next round, from 1.
    next: AtomicU32,
    /// No further round is to begin.
    enough: AtomicBool,
}

/// Runs the rounds; prints the table.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<Verdict> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let scratch = Scratch::new(checkout)?;
    packages::provide(checkout, &[Purpose::Guest], options.no_install)?;
    packages::require(&[Purpose::Guest])?;
    let programs = demo::build(checkout, options.release)?;
    let parcel = scratch.round("parcel")?;
    let files = parcel::collect(&programs, &["blockrep-backup", "blockrepctl"], &parcel)?;
    let contents = Contents {
        program: "power",
        modules: &["virtio_net"],
        files: &files,
    };
    let kernel = kernel::provide_with(checkout, &contents)?;
    let accelerator = guest::accelerator(checkout, &kernel)?;
    let stage = Stage {
        options,
        seed,
        scratch,
        programs,
        kernel,
        accelerator,
        next: AtomicU32::new(1),
        enough: AtomicBool::new(false),
    };
    ui::note(stage.headline());
    let rows = stage.rounds()?;
    Ok(stage.print(&rows))
}

impl Stage<'_> {
    fn headline(&self) -> String {
        let (version, under) = (&self.kernel.version, self.accelerator.name());
        let rounds = self.options.rounds;
        let plant = match self.options.plant {
            Some(Plant::NoSync) => "; planted: flushes do not reach the journal",
            None => "",
        };
        let seed = self.seed;
        format!("{rounds} power cuts; guest Linux {version} under {under}; seed {seed}{plant}")
    }

    /// Several rounds at a time, each on a thread that starts and ends its own processes.
    fn rounds(&self) -> Result<Vec<Row>> {
        let (sender, results) = channel();
        let mut rows = std::thread::scope(|scope| {
            for _ in 0..self.options.parallel.min(self.options.rounds) {
                let sender = sender.clone();
                scope.spawn(move || self.lane(&sender));
            }
            drop(sender);
            self.gather(&results)
        })?;
        rows.sort_by_key(|row| row.number);
        Ok(rows)
    }

    fn lane(&self, results: &Sender<Result<Row>>) {
        while !self.enough.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number > self.options.rounds || results.send(self.round(number)).is_err() {
                return;
            }
        }
    }

    /// Takes results until every lane has ended; the first error counts.
    fn gather(&self, results: &Receiver<Result<Row>>) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut first_error = None;
        for result in results {
            match result {
                Ok(row) => {
                    let text = if row.faults.is_empty() {
                        "holds".to_owned()
                    } else {
                        // One finding is all that planted damage is for.
                        self.enough
                            .fetch_or(self.options.plant.is_some() && row.lost, Ordering::Relaxed);
                        format!("FAILED: {}", row.faults.join("; "))
                    };
                    ui::note(format!("  round {}: {text}", row.number));
                    rows.push(row);
                }
                Err(error) => {
                    self.enough.store(true, Ordering::Relaxed);
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(rows), Err)
    }

    /// One round in a directory of its own, which is gone afterwards; logs stay if it failed.
    fn round(&self, number: u32) -> Result<Row> {
        let dir = self.scratch.round(&format!("round-{number}"))?;
        let place = Place {
            dir: dir.clone(),
            sockets: self.scratch.socket(&format!("{number}-")),
        };
        let row = round::run(self, number, &place);
        let keep = match &row {
            Ok(row) => !row.faults.is_empty(),
            Err(error) => !error.is::<stop::Interrupted>(),
        };
        if keep {
            let kept = self.scratch.keep_logs(&dir)?;
            let kept = kept.display();
            ui::note(format!("  the logs of round {number} are kept in {kept}"));
        }
        std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        row.map_err(|error| match error.is::<stop::Interrupted>() {
            true => error,
            false => error.context(format!("round {number}")),
        })
    }

    fn print(&self, rows: &[Row]) -> Verdict {
        println!("\n{}", self.headline());
        print!("{}", table(rows));
        let faults = faults(rows);
        for fault in &faults {
            println!("{fault}");
        }
        if self.options.plant.is_some() {
            let found = if rows.iter().any(|row| row.lost) {
                "was found"
            } else {
                "WAS NOT FOUND"
            };
            println!("planted damage (no-sync): {found}");
            return planted(rows);
        }
        if faults.is_empty() {
            Verdict::Holds
        } else {
            Verdict::Failed
        }
    }
}

/// The command must fail by what is planted, which is a loss: anything else would hide that it is not
/// found any more, and counts as found by nobody.
fn planted(rows: &[Row]) -> Verdict {
    if rows.iter().any(|row| row.lost) {
        Verdict::Failed
    } else {
        Verdict::Holds
    }
}

/// What does not hold.
fn faults(rows: &[Row]) -> Vec<String> {
    let told = |row: &Row, fault: &String| format!("round {}: {fault}", row.number);
    let mut faults: Vec<String> = rows
        .iter()
        .flat_map(|row| row.faults.iter().map(move |fault| told(row, fault)))
        .collect();
    if rows.iter().all(|row| row.cut.dropped == 0) {
        faults.push("no cut took an unflushed sector: this proves nothing".to_owned());
    }
    faults
}

fn table(rows: &[Row]) -> String {
    let head = [
        "round", "image on", "released", "promoted", "suspect", "dropped", "kept", "writes",
        "flushes", "result",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let promoted = row
            .promoted
            .map_or("refused".to_owned(), |epoch| epoch.to_string());
        lines.push(vec![
            row.number.to_string(),
            row.image.to_owned(),
            row.released.to_string(),
            promoted,
            if row.suspect { "yes" } else { "no" }.to_owned(),
            row.cut.dropped.to_string(),
            row.cut.kept.to_string(),
            row.writes.to_string(),
            row.flushes.to_string(),
            if row.faults.is_empty() {
                "holds"
            } else {
                "FAILED"
            }
            .to_owned(),
        ]);
    }
    let sum = |figure: fn(&Row) -> u64| rows.iter().map(figure).sum::<u64>().to_string();
    let failed = rows.iter().filter(|row| !row.faults.is_empty()).count();
    lines.push(vec![
        "all".to_owned(),
        String::new(),
        String::new(),
        String::new(),
        sum(|row| u64::from(row.suspect)),
        sum(|row| row.cut.dropped),
        sum(|row| row.cut.kept),
        sum(|row| row.writes),
        sum(|row| row.flushes),
        format!("{failed} failed"),
    ]);
    aligned(&lines)
}

#[cfg(test)]
mod tests {
    use super::cache::Cut;
    use super::*;

    fn row(dropped: u64, faults: &[&str]) -> Row {
        Row {
            number: 3,
            image: "ext4",
            released: 7,
            promoted: Some(8),
            cut: Cut { kept: 1, dropped },
            writes: 1,
            flushes: 1,
            suspect: false,
            faults: faults.iter().map(|fault| (*fault).to_owned()).collect(),
            lost: faults.contains(&"lost"),
        }
    }

    // Rounds in which nothing was at stake must not count as proof.
    #[test]
    fn cuts_that_took_nothing_do_not_hold() {
        assert!(faults(&[row(0, &[]), row(1, &[])]).is_empty());
        assert_eq!(faults(&[row(0, &[])]).len(), 1);
        assert_eq!(faults(&[row(1, &["lost"])]), ["round 3: lost"]);
    }

    // A daemon that does not start for another reason would look as if a missing sync was noticed.
    #[test]
    fn planted_damage_is_found_by_a_loss_only() {
        assert!(matches!(
            planted(&[row(1, &[]), row(1, &["lost"])]),
            Verdict::Failed
        ));
        assert!(matches!(planted(&[row(1, &["no memory"])]), Verdict::Holds));
        assert!(matches!(planted(&[row(0, &[])]), Verdict::Holds));
    }
}
