//! `cargo xtask bench guest`: fio inside a guest whose disk is ours, by either door, or a plain image.
//!
//! ```text
//!  round:  vhost-user-blk        NBD, QEMU's client     image, QEMU's own
//!          pair, guest, points   pair, guest, points    guest, points
//! ```
//!
//! Every stack of every round is started anew and boots the guest of `guest-fio` once, in which fio
//! measures all points, reads before writes. Rounds begin with another stack each, so that none of them
//! has the same place in all. Ratios are made within a round.

mod image;
mod memory;
mod middle;
mod net;
mod point;
mod report;
mod session;

pub(crate) use memory::kernel_words;
pub(crate) use net::{Options as NetOptions, run as net};

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::Args;

use crate::checkout::{Checkout, Scratch};
use crate::churn::Ground;
use crate::demo::{self, Verdict};
use crate::guest::Accelerator;
use crate::lab::Place;
use crate::{stop, ui};
use point::{Measured, Point};
use report::{Conditions, Report};
use session::{Session, Stack};

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Rounds; every round measures every point once
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of load per point, less if a point has written what the journal has room for
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Where to write guest.md and guest.json [default: `bench` in cargo's target directory]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only print the command that would install what is missing
    #[arg(long)]
    no_install: bool,
}

/// Measures and reports.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<Verdict> {
    let out = match &options.out {
        Some(out) => out.clone(),
        None => checkout.metadata()?.target_dir()?.join("bench"),
    };
    let scratch = Scratch::new(checkout)?;
    let build = || demo::build(checkout, true);
    let ground = Ground::provide(checkout, true, options.no_install, build)?;
    let conditions = Conditions {
        kernel: ground.kernel.version.clone(),
        emulated: ground.accelerator == Accelerator::Tcg,
        rounds: options.rounds,
        seconds: options.seconds,
    };
    ui::note(format!("\n{}", conditions.told()));
    let measured = measure(&scratch, &ground, options)?;
    let report = Report::new(conditions, measured);
    let text = report.markdown();
    print!("\n{text}");
    std::fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let write = |name: &str, text: &str| {
        let path = out.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write("guest.md", &text)?;
    write("guest.json", &report.json())?;
    let path = out.join("guest.md");
    println!("\nwritten: {}, and guest.json beside it", path.display());
    Ok(Verdict::Holds)
}

/// Every point of every stack and round.
fn measure(scratch: &Scratch, ground: &Ground, options: &Options) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    let total = options.rounds as usize * Stack::ALL.len() * Point::ALL.len();
    let since = Instant::now();
    for round in 1..=options.rounds {
        for stack in Stack::in_round(round) {
            let name = format!("{round}-{}", stack.key());
            let place = Place {
                dir: scratch.round(&name)?,
                sockets: scratch.socket(&format!("{name}-")),
            };
            let session = Session {
                ground,
                stack,
                place: &place,
                seconds: options.seconds,
            };
            let result = session.play(round, |point, figures| {
                measured.push(Measured {
                    round,
                    stack,
                    point,
                    figures,
                });
                let left = time_left(since.elapsed(), measured.len(), total);
                ui::note(format!(
                    "  [{}/{total}, about {left} left] {point}, {stack}: {figures}",
                    measured.len()
                ));
            });
            if let Err(error) = result {
                return Err(explain(
                    error,
                    scratch,
                    &place,
                    &format!("{stack}, round {round}"),
                ));
            }
            std::fs::remove_dir_all(&place.dir)
                .with_context(|| format!("remove {}", place.dir.display()))?;
        }
    }
    Ok(measured)
}

/// One line: where it happened, why, and where the logs are.
fn explain(error: anyhow::Error, scratch: &Scratch, place: &Place, what: &str) -> anyhow::Error {
    if error.is::<stop::Interrupted>() {
        return error;
    }
    let reason = one_line(&format!("{error:#}"));
    match scratch.keep_logs(&place.dir) {
        Ok(kept) => anyhow!("{what}: {reason}; the logs are in {}", kept.display()),
        Err(lost) => anyhow!("{what}: {reason}; the logs could not be kept: {lost:#}"),
    }
}

/// The reason without the end of a log that stands under it, but for the log's last line.
fn one_line(text: &str) -> String {
    let Some((reason, log)) = text.split_once("; the end of ") else {
        return text.replace('\n', " ");
    };
    let lines = log.lines().skip(1).map(str::trim);
    let last = lines.filter(|line| !line.is_empty()).last();
    match last {
        Some(last) => format!("{reason}; its log ends with: {last}"),
        None => reason.to_owned(),
    }
}

/// What the rest takes if it goes on like this: "40 s", "3 min".
fn time_left(spent: Duration, done: usize, total: usize) -> String {
    let seconds = spent.as_secs_f64() / done.max(1) as f64 * total.saturating_sub(done) as f64;
    match seconds < 90.0 {
        true => format!("{seconds:.0} s"),
        false => format!("{:.0} min", seconds / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Forty lines of a log hide the one that says why.
    #[test]
    fn a_failure_is_one_line_with_the_last_word_of_the_log() {
        let text = "QEMU ended by itself (exit code 1); the end of /x/qemu.log:\n    warning: a\n    no io_uring\n";
        assert_eq!(
            one_line(text),
            "QEMU ended by itself (exit code 1); its log ends with: no io_uring"
        );
        assert_eq!(
            one_line("the guest says: no disk"),
            "the guest says: no disk"
        );
        let silent = "QEMU ended by itself (signal 9); it said nothing (/x/qemu.log)";
        assert_eq!(one_line(silent), silent);
    }

    // The estimate must count what has been done, not what has been begun.
    #[test]
    fn what_is_left_follows_from_what_was_done() {
        let after = |seconds, done| time_left(Duration::from_secs(seconds), done, 12);
        assert_eq!(after(30, 4), "60 s");
        assert_eq!(after(100, 4), "3 min");
        assert_eq!(after(100, 12), "0 s");
        assert_eq!(after(0, 0), "0 s");
    }
}
