//! How many frames get through, and what each costs.

use super::Figures;
use super::site::{Outcome, Site};
use super::wire::{Wire, frame};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Frames per system call of the load.
const BATCH: usize = 64;
/// How often a paced load sends.
const BEAT: Duration = Duration::from_millis(1);

/// Processor time of this process, kernel's part and all, and of the relay's thread.
#[derive(Debug, Clone, Copy)]
struct Spent {
    all_ns: f64,
    relay_ns: f64,
}

impl Spent {
    fn now() -> Outcome<Self> {
        // SAFETY: getrusage(2) writes one structure of plain numbers, for which zero is a value.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
            usage
        };
        let ns = |time: libc::timeval| time.tv_sec as f64 * 1e9 + time.tv_usec as f64 * 1e3;
        let mut relay_ns = 0.0;
        for task in std::fs::read_dir("/proc/self/task")? {
            let task = task?.path();
            let is_relay =
                std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "relay");
            if is_relay {
                let stat = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
                let ran = stat.split_whitespace().next();
                relay_ns += ran.and_then(|ran| ran.parse::<f64>().ok()).unwrap_or(0.0);
            }
        }
        Ok(Self {
            all_ns: ns(usage.ru_utime) + ns(usage.ru_stime),
            relay_ns,
        })
    }
}

/// Frames that came in at the witness's interface: its kernel counts, nobody reads them.
fn received(site: &Site) -> Outcome<u64> {
    let count = site.witness.run(|| {
        let table = std::fs::read_to_string("/proc/thread-self/net/dev").ok()?;
        let line = table
            .lines()
            .find_map(|line| line.trim_start().strip_prefix("w1:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    });
    Ok(count.ok_or("no count of frames at w1")?)
}

fn told(
    site: &mut Site,
    bytes: usize,
    frames: u64,
    offered: u64,
    seconds: f64,
    spent: [Spent; 2],
) -> Figures {
    let [before, after] = spent;
    let each = frames.max(1) as f64;
    let rate = frames as f64 / seconds;
    vec![
        ("frames_per_s", rate),
        ("offered_per_s", offered as f64 / seconds),
        ("gbit_per_s", rate * bytes as f64 * 8.0 / 1e9),
        ("cpu_ns_per_frame", (after.all_ns - before.all_ns) / each),
        (
            "relay_ns_per_frame",
            (after.relay_ns - before.relay_ns) / each,
        ),
        ("dropped_frames", site.dropped() as f64),
    ]
}

/// As fast as one thread sends; with `epoch_ms` through epochs of that length, each released one epoch later
/// or, where only one may be in flight, at once.
pub(crate) fn flood(
    site: &mut Site,
    bytes: usize,
    run: Duration,
    epoch_ms: Option<u64>,
) -> Outcome<Figures> {
    let guest = site.guest.run(|| Wire::open("g0", false))?;
    let over = AtomicBool::new(false);
    if epoch_ms.is_some() {
        site.cut()?;
        site.release()?;
    }
    let (frames, spent, begun) = (received(site)?, Spent::now()?, Instant::now());
    let (offered, counted) = std::thread::scope(|scope| -> Outcome<(u64, (u64, f64, Spent))> {
        let sender = scope.spawn(|| {
            let mut frame = frame(bytes);
            let mut offered = 0;
            while !over.load(Ordering::Relaxed) {
                offered += guest.send_many(&mut frame, 0, BATCH) as u64;
            }
            offered
        });
        let mut played = Ok(());
        let mut beats = 0;
        while played.is_ok() && begun.elapsed() < run {
            beats += 1;
            let beat = Duration::from_millis(epoch_ms.unwrap_or(25)) * beats;
            std::thread::sleep((begun + beat.min(run)).saturating_duration_since(Instant::now()));
            if epoch_ms.is_some() {
                played = site.cut().and_then(|_| site.release());
            }
        }
        // Counted while the load still runs: what comes later is of no second.
        let counted = received(site)?;
        let seconds = begun.elapsed().as_secs_f64();
        let after = Spent::now()?;
        over.store(true, Ordering::Relaxed);
        let offered = sender.join().map_err(|_| "the load panicked")?;
        played?;
        Ok((offered, (counted, seconds, after)))
    })?;
    let (counted, seconds, after) = counted;
    Ok(told(
        site,
        bytes,
        counted - frames,
        offered,
        seconds,
        [spent, after],
    ))
}

/// So few that nothing is lost: what a frame costs.
pub(crate) fn paced(site: &mut Site, bytes: usize, run: Duration, per_s: u64) -> Outcome<Figures> {
    let guest = site.guest.run(|| Wire::open("g0", false))?;
    let copies = usize::try_from(per_s / 1000)?.max(1);
    let (frames, spent, begun) = (received(site)?, Spent::now()?, Instant::now());
    let mut frame = frame(bytes);
    let (mut offered, mut beats) = (0, 0);
    while begun.elapsed() < run {
        offered += guest.send_many(&mut frame, 0, copies) as u64;
        beats += 1;
        let next = begun + BEAT * beats;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (after, counted) = (Spent::now()?, received(site)?);
    Ok(told(
        site,
        bytes,
        counted - frames,
        offered,
        seconds,
        [spent, after],
    ))
}
