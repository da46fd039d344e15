//! `cargo xtask restarts`: the daemon behind a guest's disk is killed and started again, over and over.
//!
//! A guest on vhost-user-blk keeps 32 requests in flight, each thread writing blocks of its own and
//! reading them back. The primary's storage answers in another order than it was asked in, so that at
//! every kill requests are open between answered ones: a successor that goes by the number of answers
//! alone would lose some and repeat others. In the end guest and primary are killed for good, the
//! backup is promoted, and a second guest surveys every block there, again over vhost-user.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::checkout::{Checkout, Scratch};
use crate::demo::{self, Verdict};
use crate::guest::{self, Accelerator, BOOT_LIMIT, Boot, Guest, GuestFailed, Word};
use crate::kernel::{self, Contents, GuestKernel};
use crate::lab::{Blockrep, Lab, Place, Setup};
use crate::packages::{self, Purpose};
use crate::{stop, ui};

const DISK_BYTES: u64 = 64 << 20;
/// Every operation on the primary's image takes up to this long, each another time.
const SHUFFLE: &str = "image=any:1+=shuffle:12ms";
/// Operations of the guest between two kills, at least.
const OPERATIONS_MIN: u64 = 200;
/// A guest that gets no answer for that long has lost a request.
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);

/// What the daemon says when a VMM has come.
const CONNECTED: &str = "is connected by vhost-user";

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// How many times the daemon is killed
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// Decides the random moments; without it a new one is taken and printed
    #[arg(long)]
    seed: Option<u64>,
    /// Only print the command that would install what is missing
    #[arg(long)]
    no_install: bool,
    /// Build and use optimised daemons
    #[arg(long)]
    release: bool,
}

/// What is the same for both guests.
struct Stage<'a> {
    kernel: GuestKernel,
    accelerator: Accelerator,
    place: &'a Place,
}

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    kills: u32,
    operations: u64,
    /// Requests that a successor found open and carried out again.
    again: u64,
    /// Kills after which there were any.
    kills_with_open: u32,
    blocks: u64,
}

/// Runs it once; prints what was seen.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<Verdict> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let scratch = Scratch::new(checkout)?;
    packages::provide(checkout, &[Purpose::Guest], options.no_install)?;
    let programs = demo::build(checkout, options.release)?;
    let contents = Contents {
        program: "churn",
        modules: &[],
        files: &[],
    };
    let kernel = kernel::provide_with(checkout, &contents)?;
    let accelerator = guest::accelerator(checkout, &kernel)?;
    let dir = scratch.round("restarts")?;
    let place = Place {
        dir: dir.clone(),
        sockets: scratch.socket("r-"),
    };
    let (version, under) = (&kernel.version, accelerator.name());
    let kills = options.kills;
    let headline = format!("{kills} kills; guest Linux {version} under {under}; seed {seed}");
    ui::note(headline.clone());
    let image = dir.join("a.img");
    demo::sparse_file(&image, DISK_BYTES)?;
    let setup = Setup {
        programs,
        ack: "flush",
        image,
        vhost_user: true,
        faults: Some(SHUFFLE),
    };
    let stage = Stage {
        kernel,
        accelerator,
        place: &place,
    };
    let result = stage.play(&setup, kills, fastrand::Rng::with_seed(seed));
    let result = match result {
        Err(error) if error.is::<GuestFailed>() => Ok(Err(error.to_string())),
        other => other.map(Ok),
    };
    if !matches!(&result, Ok(Ok(_))) {
        let kept = scratch.keep_logs(&dir)?;
        ui::note(format!("the logs are kept in {}", kept.display()));
    }
    std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    println!("\n{headline}");
    Ok(match result? {
        Ok(seen) => judge(&seen),
        Err(fault) => {
            println!("FAILED: {fault}");
            Verdict::Failed
        }
    })
}

fn judge(seen: &Seen) -> Verdict {
    println!(
        "  {} kills under {} operations of the guest; {} requests were open in {} of them and were \
         carried out again; after the promotion {} blocks are whole",
        seen.kills, seen.operations, seen.again, seen.kills_with_open, seen.blocks
    );
    if seen.again < u64::from(seen.kills) || seen.blocks == 0 {
        println!("FAILED: too few requests were open at the kills: this proves nothing");
        return Verdict::Failed;
    }
    println!("  no answer was lost, wrong, or given twice");
    Verdict::Holds
}

impl Stage<'_> {
    fn boot(&self, name: &str, role: &str, socket: &Path) -> Result<Guest> {
        Guest::boot(&Boot {
            kernel: &self.kernel,
            accelerator: self.accelerator,
            arguments: format!("role={role}"),
            disk_socket: None,
            devices: &guest::vhost_disk(socket),
            dir: &self.place.dir,
            name,
            host: None,
        })
    }

    fn play(&self, setup: &Setup, kills: u32, mut random: fastrand::Rng) -> Result<Seen> {
        let step = ui::step("starting backup and primary");
        let mut lab = Blockrep::start(self.place.clone(), setup, None, |state| step.now(state))?;
        step.done("protected");
        let mut seen = Seen::default();
        let step = ui::step("booting the guest on vhost-user-blk");
        let mut guest = self.boot("churn", "churn", lab.vhost_sockets()[0])?;
        seen.operations = progress(&mut guest, 0, BOOT_LIMIT)?;
        step.done("");
        let step = ui::step("killing the daemon and starting it again");
        for number in 1..=kills {
            let least = seen.operations + OPERATIONS_MIN;
            seen.operations = progress(&mut guest, least, PROGRESS_LIMIT)?;
            std::thread::sleep(Duration::from_millis(random.u64(0..200)));
            lab.kill_primary();
            let log = lab.start_primary_again(number)?;
            // The VMM comes back within a second; then the guest must get on.
            stop::wait_for("the VMM to come back", PROGRESS_LIMIT, || {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                Ok(said.contains(CONNECTED).then_some(()))
            })?;
            let heard = rest_of(&mut guest, seen.operations)?;
            seen.operations = progress(&mut guest, heard + 1, PROGRESS_LIMIT)?;
            let open = carried_out_again(&log)?;
            seen.again += open;
            seen.kills_with_open += u32::from(open > 0);
            seen.kills = number;
            step.now(format!("{number} of {kills}"));
        }
        step.done(format!("{} operations", seen.operations));
        let step = ui::step("killing both for good, promoting the backup");
        lab.wait_until_protected(|state| step.now(state))?;
        seen.operations = progress(&mut guest, seen.operations + 100, PROGRESS_LIMIT)?;
        guest.signal(libc::SIGKILL);
        lab.kill_primary();
        drop(guest);
        let promotion = lab.promote()?;
        step.done(format!("epoch {}", promotion.epoch));
        let step = ui::step("surveying the promoted disk from a second guest");
        let mut guest = self.boot("survey", "survey", lab.vhost_sockets()[1])?;
        let Word::Churn(blocks) = guest.expect_word("to survey the disk", BOOT_LIMIT)? else {
            bail!("the second guest began with something else than CHURN");
        };
        seen.blocks = blocks;
        step.done(format!("{blocks} blocks"));
        Ok(seen)
    }
}

/// The last of what the guest has said already.
fn rest_of(guest: &mut Guest, known: u64) -> Result<u64> {
    let mut last = known;
    while let Some(heard) = guest.next(Duration::ZERO)? {
        if let Word::Churn(operations) = heard.word {
            last = operations;
        }
    }
    Ok(last)
}

/// Hears the guest until it has done `least` operations.
fn progress(guest: &mut Guest, least: u64, limit: Duration) -> Result<u64> {
    let end = Instant::now() + limit;
    let mut last = 0;
    loop {
        stop::check()?;
        let left = end.saturating_duration_since(Instant::now());
        match guest.next(left)? {
            Some(heard) => {
                if let Word::Churn(operations) = heard.word {
                    last = operations;
                }
            }
            None => {
                let seconds = limit.as_secs();
                return Err(GuestFailed(format!(
                    "nothing: it stands at {last} operations and should be at {least} after {seconds} s"
                ))
                .into());
            }
        }
        if last >= least {
            return Ok(last);
        }
        if left.is_zero() {
            return Err(GuestFailed(format!("too little: {last} operations, not {least}")).into());
        }
    }
}

/// What the successor said of requests it found open.
fn carried_out_again(log: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    Ok(count_again(&text))
}

fn count_again(log: &str) -> u64 {
    log.lines()
        .filter_map(|line| line.split_once(" requests are carried out again"))
        .filter_map(|(before, _)| before.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    // A run in which no request was open at a kill must not count as proof.
    #[test]
    fn open_requests_are_counted_and_asked_for() {
        let log = "x INFO vhost-user: ring 0: 17 requests are carried out again\n\
                   x INFO vhost-user: ring 1: 3 requests are carried out again\n";
        assert_eq!(count_again(log), 20);
        let seen = |again| Seen {
            kills: 20,
            again,
            blocks: 1,
            ..Seen::default()
        };
        assert!(matches!(judge(&seen(20)), Verdict::Holds));
        assert!(matches!(judge(&seen(0)), Verdict::Failed));
    }
}
