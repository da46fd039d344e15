//! `checkpointer estimate`: what it would cost to protect a guest, before that is done.
//!
//! ```text
//!   attach ─► check ─► watch pages ─► 3 × each interval: windows (scanned live) … 2 windows that end in a pause ─► undo
//! ```
//! The guest is paused as a checkpoint pauses it, a bounded number of times ([`pauses`]), under the guardian. Nothing of it is
//! sent, cut or held. Whatever ends this process, the kernel lifts what watches the pages.

mod figures;
mod report;
mod sample;

pub use report::Report;

use super::ProtectError;
use super::guardian::Guardian;
use super::guest::{Guest, Opening};
use crate::hypervisor::qemu::check::{Served, Weight, check};
use crate::hypervisor::qemu::{Limits, Qemu};
use crate::memory::PAGE_BYTES;
use crate::memory::tracker::Kind;
use blkback_proto::ctl::{Answer, Request, StatusRequest};
use blockrep_host::ctl::Client;
use blockrep_host::signals::Shutdown;
use figures::{Measured, Pause, Wanted, Window};
use indicatif::{ProgressBar, ProgressStyle};
use sample::Sampler;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Every interval is looked at so often, so that what the guest does in one moment is not taken for an interval's.
const ROUNDS: u32 = 3;
/// Windows of a turn that end in a pause.
const PAUSES: u32 = 2;
/// Pages whose differences are known, where no configuration says it.
const CACHE_MIB: u64 = 64;
const NAME: &str = concat!("checkpointer ", env!("CARGO_PKG_VERSION"));
const CONTROL_LIMIT: Duration = Duration::from_secs(2);

/// What is to be estimated.
#[derive(Debug, Clone)]
pub struct Estimation {
    /// Monitor of the running QEMU.
    pub monitor: PathBuf,
    /// Where the disks' daemon serves them.
    pub served: Vec<Served>,
    pub tracker: Option<Kind>,
    /// How long the guest is looked at.
    pub looked: Duration,
    /// Ascending, none twice.
    pub intervals_ms: Vec<u64>,
    pub pause_percent: u64,
    pub link_mib_per_s: Option<u64>,
    pub round_trip_us: Option<u64>,
    /// Control socket of the disks' daemon, where the configuration names one.
    pub disks: Option<PathBuf>,
    /// The configuration's, or its defaults.
    pub in_flight_max: u64,
    pub buffer_mib: u64,
    pub cache_mib: Option<u64>,
    pub answer_max_ms: u64,
}

/// How often the guest is paused at most, for so many intervals; and once more to learn how its state is saved.
#[must_use]
pub fn pauses(intervals: usize) -> u32 {
    u32::try_from(intervals)
        .unwrap_or(u32::MAX)
        .saturating_mul(ROUNDS * PAUSES)
}

/// Looks the guest over and at its work.
///
/// # Errors
/// It cannot be protected, or not be looked at, and why; it runs on in every case that lets it.
pub fn run(estimation: &Estimation) -> Result<Report, ProtectError> {
    let io = |what| move |source| ProtectError::Io { what, source };
    let told = ProtectError::Guest;
    let shutdown = Shutdown::install().map_err(io("signals"))?;
    let mut qemu =
        Qemu::attach(&estimation.monitor, Limits::default()).map_err(|e| told(e.to_string()))?;
    let findings = check(&mut qemu, &estimation.served).map_err(|e| told(e.to_string()))?;
    let (refused, warned): (Vec<_>, Vec<_>) =
        (findings.into_iter()).partition(|f| f.weight == Weight::Refused);
    if !refused.is_empty() {
        return Err(ProtectError::Unfit(refused));
    }
    let guardian =
        Guardian::start(&estimation.monitor).map_err(io("the guardian of the guest's pauses"))?;
    let opening = Opening {
        buffer_bytes: estimation.buffer_mib << 20,
        loads: 1,
        // They would keep a record for whoever protects the guest.
        disks: None,
        tracker: estimation.tracker,
    };
    let guest = Guest::open(qemu, &opening, guardian).map_err(told)?;
    let cache_bytes = estimation.cache_mib.unwrap_or(CACHE_MIB) << 20;
    let mut look = Look {
        estimation,
        shutdown,
        windows: BTreeMap::new(),
        measured: Measured {
            guest_bytes: guest.mapping.pages() * PAGE_BYTES,
            ..Measured::default()
        },
    };
    let cache = usize::try_from(cache_bytes).unwrap_or(usize::MAX);
    let mut sampler = Sampler::begin(guest, cache).map_err(told)?;
    let kind = sampler
        .guest()
        .tracker
        .as_ref()
        .map(|tracker| tracker.kind());
    look.measured.is_compared = kind == Some(Kind::Compare);
    let looked = look.at(&mut sampler);
    let about = report::About::of(sampler.guest(), warned);
    let ended = sampler.end();
    looked.map_err(told)?;
    ended.map_err(told)?;
    Ok(look.report(about, cache_bytes))
}

struct Look<'a> {
    estimation: &'a Estimation,
    shutdown: Shutdown,
    windows: BTreeMap<u64, Vec<Window>>,
    measured: Measured,
}

impl Look<'_> {
    fn at(&mut self, sampler: &mut Sampler) -> Result<(), String> {
        let begun = Instant::now();
        let before = self.disk_bytes();
        let bar = bar(self.estimation);
        let turns = ROUNDS * u32::try_from(self.estimation.intervals_ms.len()).unwrap_or(u32::MAX);
        let turn = self.estimation.looked / turns.max(1);
        for _ in 0..ROUNDS {
            for interval_ms in self.estimation.intervals_ms.clone() {
                self.turn(sampler, interval_ms, turn, (&bar, begun))?;
            }
        }
        bar.finish_and_clear();
        if let (Some(before), Some(after)) = (before, self.disk_bytes()) {
            let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            let rate = after.saturating_sub(before).saturating_mul(1000) / ms.max(1);
            self.measured.disk_bytes_per_s = Some(rate);
        }
        Ok(())
    }

    /// One interval for a while: at least the windows that end in a pause, which are the last.
    fn turn(
        &mut self,
        sampler: &mut Sampler,
        interval_ms: u64,
        turn: Duration,
        (bar, begun): (&ProgressBar, Instant),
    ) -> Result<(), String> {
        let interval = Duration::from_millis(interval_ms);
        let until = Instant::now() + turn.saturating_sub(interval * PAUSES);
        let mut pauses = 0;
        while pauses < PAUSES {
            let rest = interval.saturating_sub(sampler.lasts());
            if self.shutdown.wait_within(rest) {
                return Err("ended early; the guest is as it was".to_owned());
            }
            let window = if Instant::now() >= until {
                pauses += 1;
                let (window, pause, state_bytes) = sampler.pause()?;
                self.paused(pause, state_bytes);
                window
            } else {
                sampler.window()?
            };
            self.windows.entry(interval_ms).or_default().push(window);
            bar.set_position(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    fn paused(&mut self, pause: Pause, state_bytes: u64) {
        // The first state has none to differ from.
        if !self.measured.pauses.is_empty() {
            self.measured.state_bytes.push(state_bytes);
        }
        self.measured.pauses.push(pause);
    }

    /// What the guest has written to its disks so far, where their daemon tells it.
    fn disk_bytes(&self) -> Option<u64> {
        written(self.estimation.disks.as_deref()?).ok()
    }

    fn report(self, about: report::About, cache_bytes: u64) -> Report {
        let estimation = self.estimation;
        let wanted = Wanted {
            pause_percent: estimation.pause_percent,
            link_mib_per_s: estimation.link_mib_per_s,
            round_trip_us: estimation.round_trip_us.unwrap_or(0),
            in_flight_max: estimation.in_flight_max,
            cache_bytes,
            answer_max_ms: estimation.answer_max_ms,
        };
        let point = |(interval_ms, windows): (&u64, &Vec<Window>)| {
            self.measured.point(*interval_ms, windows, &wanted)
        };
        let points: Vec<_> = self.windows.iter().map(point).collect();
        Report::new(about, &self.measured, points, &wanted, estimation)
    }
}

fn written(control: &Path) -> Result<u64, String> {
    let told = |e: blockrep_host::ctl::ClientError| e.to_string();
    let mut client = Client::connect(control, NAME, CONTROL_LIMIT).map_err(told)?;
    let request = Request::Status(StatusRequest::default());
    match client.request(&request, CONTROL_LIMIT).map_err(told)? {
        Answer::Status(status) => {
            let volumes = status.volumes.iter();
            Ok(volumes.map(|volume| volume.counters.bytes_written).sum())
        }
        _ => Err("the disks' daemon answered something else".to_owned()),
    }
}

/// Shown on a terminal only; what is about to be done is a line of its own.
fn bar(estimation: &Estimation) -> ProgressBar {
    let seconds = estimation.looked.as_secs_f64();
    eprintln!(
        "looking at the guest for {seconds:.0} s; it is paused {} times, as for a checkpoint",
        pauses(estimation.intervals_ms.len()) + 1
    );
    let style = ProgressStyle::with_template("  {bar:30} {percent} % ETA {eta}")
        .expect("the template is right");
    let length = u64::try_from(estimation.looked.as_millis()).unwrap_or(u64::MAX);
    ProgressBar::new(length).with_style(style)
}
