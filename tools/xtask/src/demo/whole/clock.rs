//! `cargo xtask clock`: what protection costs the guest's clock.
//!
//! The clock of a guest stands still in every pause, and from the cut that it goes on from until it goes on. Here a guest is
//! protected with the adaptive interval as it is by default, and is asked the time once a second over TCP. An answer is
//! held, so of each it is known only that the guest looked at its clock between the request and the answer; the
//! bounds of that are carried through. At the end its host dies, and the same is compared with what the promotion tells.
//!
//! What must hold ([`Figures::faults`]): the drift is what the pauses explain; they take no more than their share; and the
//! promotion tells how far the clock is behind.

mod figures;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde_json::Value;

use super::machine::{self, Machine};
use super::protection::{Checkpointer, Protection, Scene};
use super::stage::{GUEST, PORT, Stage};
use super::{Ground, Kind, Options};
use crate::checkout::{Checkout, Scratch};
use crate::demo::Verdict;
use crate::guest::{MEMORY_MIB, now_unix_ns};
use crate::lab::Place;
use crate::netns::on;
use crate::receipts::{ANSWER_HEAD, Answer, READ, Request};
use crate::{stop, ui};
use figures::{Figures, Outage, Pauses, Sample, ms, span};

/// An answer that is held until the backup has what it is from, or waits for TCP to try again after a failover.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Of so many answers at the beginning and at the end the one counts that tells most.
const BEST_OF: usize = 20;

/// A busy machine is no dead host: it is the clock that is looked at, not how soon somebody notices.
const SILENCE_MS: u64 = 10_000;

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClockOptions {
    /// How long the guest is protected and asked
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    seconds: u64,
    /// Pages of its memory that the guest rewrites each second
    #[arg(long, default_value_t = 2_000)]
    pages_per_second: u64,
    /// Only print the command that would install what is missing
    #[arg(long)]
    no_install: bool,
    /// Build and use optimised daemons
    #[arg(long)]
    release: bool,
}

/// A connection to the guest's teller, which tells its clock with every answer.
struct Teller {
    stream: TcpStream,
    number: u64,
}

impl Teller {
    fn connect(stage: &Stage) -> Result<Self> {
        let to = SocketAddr::from((GUEST, PORT));
        let stream = on(&stage.client, move || {
            TcpStream::connect_timeout(&to, Duration::from_secs(30))
        });
        let stream = stream.with_context(|| format!("connect to the guest at {to}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self { stream, number: 0 })
    }

    fn sample(&mut self) -> Result<Sample> {
        self.number += 1;
        // No records: nothing is on its disk.
        let request = Request {
            kind: READ,
            number: 1,
            nonce: 0,
            payload: Vec::new(),
        };
        let sent = now_unix_ns() as f64;
        self.stream.write_all(&request.encode())?;
        let mut frame = vec![0; ANSWER_HEAD];
        let read = self.stream.read_exact(&mut frame);
        read.context("the guest's answer")?;
        let received = now_unix_ns() as f64;
        let answer = Answer::decode(&frame).map_err(|why| anyhow!("the guest's answer: {why}"))?;
        Ok(Sample {
            sent,
            received,
            guest: answer.real_ns as f64,
        })
    }

    /// The one of some that tells most.
    fn best(&mut self) -> Result<Sample> {
        let mut best: Option<Sample> = None;
        for _ in 0..BEST_OF {
            let one = self.sample()?;
            let width = |sample: &Sample| sample.received - sample.sent;
            if best.is_none_or(|best| width(&one) < width(&best)) {
                best = Some(one);
            }
            stop::sleep(Duration::from_millis(13))?;
        }
        best.context("no answer")
    }
}

/// Protects a guest, asks it the time, and lets its host die.
pub(crate) fn run(checkout: &Checkout, asked: &ClockOptions) -> Result<Verdict> {
    let stage = Stage::build().context("two hosts take network namespaces: run it as root")?;
    let scratch = Scratch::new(checkout)?;
    let options = Options {
        rounds: 1,
        seed: None,
        plant: None,
        no_install: asked.no_install,
        release: asked.release,
        protection: Kind::Checkpointer,
        seconds: asked.seconds,
        epoch_ms: 0,
        early_ms: 5,
        window: 1,
        pages_per_second: asked.pages_per_second,
        memory_mib: MEMORY_MIB,
    };
    let mut ground = super::prepare(checkout, &options)?;
    ground.means.interval_ms = None;
    ground.means.silence_ms = Some(SILENCE_MS);
    ui::note(format!(
        "whole VM, adaptive interval; guest Linux {} under {}",
        ground.kernel.version,
        ground.accelerator.name()
    ));
    let dir = scratch.round("clock")?;
    let place = Place {
        dir: dir.clone(),
        sockets: scratch.socket("clock-"),
    };
    let measured = measure(&ground, &stage, &place, asked.seconds);
    let is_sound = measured
        .as_ref()
        .is_ok_and(|figures| figures.faults().is_empty());
    if !is_sound {
        let logs = scratch.keep_logs(&dir)?;
        ui::note(format!("the logs are kept in {}", logs.display()));
    }
    std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    let figures = measured?;
    figures.print();
    let faults = figures.faults();
    for fault in &faults {
        println!("{fault}");
    }
    println!("{}", if faults.is_empty() { "holds" } else { "FAILED" });
    Ok(match faults.is_empty() {
        true => Verdict::Holds,
        false => Verdict::Failed,
    })
}

fn measure(ground: &Ground<'_>, stage: &Stage, place: &Place, seconds: u64) -> Result<Figures> {
    let words = machine::words(1, ground.options.pages_per_second);
    let scene = Scene {
        means: &ground.means,
        machine: Machine::teller(&ground.kernel, ground.accelerator, &words),
        stage,
        place,
    };
    let mut protection = Checkpointer::new(scene)?;
    protection.start_standby()?;
    protection.start_primary()?;
    protection.wait_until_protected()?;
    let mut teller = Teller::connect(stage)?;
    let first = teller.best()?;
    let told_first_ns = lost_ns(&protection.status()?);
    watch(&mut protection, &mut teller, &first, seconds)?;
    let last = teller.best()?;
    protection.fetch()?;
    let pauses = Pauses::between(protection.told(), &first, &last)?;
    let step = ui::step("host A is cut off and killed");
    stage.cut_off_a()?;
    protection.kill_host_a();
    let takeover = protection.wait_for_takeover()?;
    let told = takeover.clock_behind_ms;
    let told = told.context("the promotion does not tell how far the clock is behind")?;
    // The first answer waits for TCP to try again.
    teller.sample()?;
    let after = teller.best()?;
    step.done("the guest goes on at host B");
    Ok(Figures {
        time: last.sent - first.sent,
        behind: last.behind(&first),
        pauses,
        outage: Some(Outage {
            behind: after.behind(&first),
            told_ns: told as f64 * 1e6,
            told_first_ns,
        }),
    })
}

fn lost_ns(status: &Value) -> f64 {
    status["clock"]["lost_ms"].as_f64().unwrap_or(0.0) * 1e6
}

/// Asks once a second, and tells now and then.
fn watch(
    protection: &mut Checkpointer<'_>,
    teller: &mut Teller,
    first: &Sample,
    seconds: u64,
) -> Result<()> {
    let begun = Instant::now();
    let every = Duration::from_secs((seconds / 10).max(5));
    let mut next = every;
    let end = Duration::from_secs(seconds);
    while begun.elapsed() < end {
        stop::sleep(Duration::from_secs(1).min(end.saturating_sub(begun.elapsed())))?;
        protection.check()?;
        let sample = teller.sample()?;
        if begun.elapsed() >= next {
            next += every;
            let status = protection.status()?;
            ui::note(format!(
                "{:4} s: {} behind; the primary tells {} of pauses since it protects, {:.2} % of the last; interval {} ms",
                begun.elapsed().as_secs(),
                span(sample.behind(first)),
                ms(lost_ns(&status)),
                status["interval"]["pause_percent"].as_f64().unwrap_or(0.0),
                status["interval"]["now_ms"]
            ));
        }
    }
    Ok(())
}
