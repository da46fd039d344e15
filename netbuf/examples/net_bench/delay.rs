//! How long a frame takes.

use super::Figures;
use super::site::{Outcome, Site};
use super::wire::{Seen, Wire, frame, now_ns};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Frames of a burst, and of an epoch whose release is timed.
const BURST: usize = 32;
/// What follows must find nothing of it on its way.
pub(super) const PAUSE: Duration = Duration::from_millis(1);
/// As long as the last frames may take to be seen.
pub(super) const LAST_FRAMES: Duration = Duration::from_millis(20);

pub(super) fn wires(site: &Site) -> std::io::Result<(Wire, Wire)> {
    let guest = site.guest.run(|| Wire::open("g0", false))?;
    let witness = site.witness.run(|| Wire::open("w1", true))?;
    // The kernel begins to stamp frames a moment after it was asked to.
    std::thread::sleep(LAST_FRAMES);
    Ok((guest, witness))
}

/// Microseconds that a part of them stay below.
pub(super) fn part(sorted: &[u64], part: f64) -> Outcome<f64> {
    let last = sorted.len().checked_sub(1).ok_or("no frame came")?;
    Ok(sorted[(last as f64 * part).round() as usize] as f64 / 1000.0)
}

fn told(mut times: Vec<u64>, names: [&'static str; 2]) -> Outcome<Figures> {
    times.sort_unstable();
    Ok(vec![
        (names[0], part(&times, 0.5)?),
        (names[1], part(&times, 0.99)?),
    ])
}

fn since(seen: &Seen) -> u64 {
    seen.came_ns.saturating_sub(seen.sent_ns)
}

/// One frame at a time, held by nobody: from before it is sent until the witness's kernel has it.
pub(crate) fn hop(site: &mut Site, frames: u64) -> Outcome<Figures> {
    let (guest, witness) = wires(site)?;
    let mut frame = frame(60);
    for number in 0..frames {
        guest.send(&mut frame, number)?;
        std::thread::sleep(PAUSE);
    }
    std::thread::sleep(LAST_FRAMES);
    told(
        witness.seen().iter().map(since).collect(),
        ["p50_us", "p99_us"],
    )
}

/// A burst in one call, held by nobody: until the first and until the last of them is there.
pub(crate) fn burst(site: &mut Site, bursts: u64) -> Outcome<Figures> {
    let (guest, witness) = wires(site)?;
    let mut frame = frame(60);
    for number in 0..bursts {
        guest.send_many(&mut frame, number, BURST);
        std::thread::sleep(PAUSE);
    }
    std::thread::sleep(LAST_FRAMES);
    first_and_last(&witness.seen(), since)
}

/// From before RELEASE is ordered until the first and until the last frame of its epoch is there.
pub(crate) fn release(site: &mut Site, epochs: u64) -> Outcome<Figures> {
    let (guest, witness) = wires(site)?;
    let mut frame = frame(60);
    site.cut()?;
    site.release()?;
    let mut ordered = BTreeMap::new();
    for number in 0..epochs {
        guest.send_many(&mut frame, number, BURST);
        std::thread::sleep(PAUSE);
        site.cut()?;
        ordered.insert(number, now_ns());
        site.release()?;
        std::thread::sleep(PAUSE);
    }
    std::thread::sleep(LAST_FRAMES);
    let seen = witness.seen();
    let early = seen.iter().filter(|one| one.came_ns < ordered[&one.number]);
    if early.count() > 0 {
        return Err("a frame came before its release was ordered".into());
    }
    first_and_last(&seen, |one| one.came_ns - ordered[&one.number])
}

fn first_and_last(seen: &[Seen], time: impl Fn(&Seen) -> u64) -> Outcome<Figures> {
    let mut each: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for one in seen {
        let time = time(one);
        let (first, last) = each.entry(one.number).or_insert((time, time));
        (*first, *last) = ((*first).min(time), (*last).max(time));
    }
    let (firsts, lasts) = each.into_values().unzip();
    let mut figures = told(firsts, ["first_p50_us", "first_p99_us"])?;
    figures.extend(told(lasts, ["last_p50_us", "last_p99_us"])?);
    Ok(figures)
}

/// Frames at any time, and epochs of `epoch_ms` of which each is released as soon as it is cut: what holding
/// adds if the backup needs no time at all.
pub(crate) fn epochs(site: &mut Site, epoch_ms: u64, epochs: u64) -> Outcome<Figures> {
    let (guest, witness) = wires(site)?;
    let over = AtomicBool::new(false);
    let length = Duration::from_millis(epoch_ms);
    site.cut()?;
    site.release()?;
    let mut late = Duration::ZERO;
    std::thread::scope(|scope| -> Outcome<()> {
        let sender = scope.spawn(|| {
            let mut frame = frame(60);
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                // A lost one is not seen, and not counted.
                let _ = guest.send(&mut frame, number);
                number += 1;
                std::thread::sleep(Duration::from_micros(fastrand::u64(200..1800)));
            }
        });
        let begun = Instant::now();
        let played = (1..=epochs.max(5) as u32).try_for_each(|number| {
            let at = begun + length * number;
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            late = late.max(at.elapsed());
            site.cut()?;
            site.release()
        });
        over.store(true, Ordering::Relaxed);
        sender.join().map_err(|_| "the load panicked")?;
        played
    })?;
    site.cut()?;
    site.release()?;
    std::thread::sleep(LAST_FRAMES);
    let mut figures = told(
        witness.seen().iter().map(since).collect(),
        ["p50_us", "p99_us"],
    )?;
    figures.push(("tick_late_us", late.as_micros() as f64));
    Ok(figures)
}
