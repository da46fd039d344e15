//! Stopping early: signals become a flag that every wait looks at, so that a Ctrl-C returns through
//! the ordinary error path and every guard on the way undoes what it did.
//!
//! Waiting: every wait of this program has a limit and goes through [`wait_for`] or polls
//! [`check`] itself.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Exit code after Ctrl-C, SIGTERM or SIGHUP, as shells have it for SIGINT.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// The user or the system asked this program to stop.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted; everything started here has been stopped and removed")
    }
}

impl std::error::Error for Interrupted {}

/// `Duration` has no such constructor in the oldest supported compiler.
pub(crate) const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// Turns SIGINT, SIGTERM and SIGHUP into the flag. To be called once, before anything is started.
pub(crate) fn catch_signals() -> io::Result<()> {
    let flag = ASKED.get_or_init(|| Arc::new(AtomicBool::new(false)));
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag))?;
    }
    Ok(())
}

/// Fails with [`Interrupted`] once a signal has come.
pub(crate) fn check() -> Result<()> {
    if ASKED.get().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
        return Err(Interrupted.into());
    }
    Ok(())
}

/// Sleeps for `time`, less if a signal comes.
pub(crate) fn sleep(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// Asks `look` again and again until it has an answer; fails with one line after `limit`.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        check()?;
        if let Some(answer) = look()? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("waited {} s in vain for {what}", limit.as_secs_f32());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
