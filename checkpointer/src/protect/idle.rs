//! Whether a guest is idle, from outside: the threads of its processors sleep, and have hardly run since the last look.
//!
//! The kernel brings a thread's time up to date when it goes to sleep, else with its own tick only. So a thread counts as idle
//! only where it sleeps now: its time is exact then, and one that ran at the last look had less on its account than it
//! should have, which makes it look busier, not idler.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// Of the time since the last look, all processors together.
const BUSY_PERCENT_MAX: u64 = 10;

#[derive(Debug)]
struct Thread {
    state: File,
    time: File,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Processors {
    threads: Vec<Thread>,
    last: Option<(Instant, u64)>,
}

/// One look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) is_idle: bool,
    /// It has not run at all since the last look.
    pub(super) is_quiet: bool,
}

impl Processors {
    /// # Errors
    /// The process has no such threads.
    pub(super) fn of(pid: u32, threads: &[u64]) -> io::Result<Self> {
        let open = |thread: &u64| {
            let of = |name| File::open(format!("/proc/{pid}/task/{thread}/{name}"));
            let (state, time) = (of("stat")?, of("schedstat")?);
            Ok(Thread { state, time })
        };
        let threads = threads.iter().map(open).collect::<io::Result<Vec<_>>>()?;
        if threads.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self {
            threads,
            last: None,
        })
    }

    /// # Errors
    /// A thread has ended: processors were plugged or unplugged, or QEMU is gone.
    pub(super) fn look(&mut self) -> io::Result<Look> {
        let now = Instant::now();
        let mut sleeps = true;
        let mut ran_ns = 0;
        let mut bytes = [0; 256];
        for thread in &self.threads {
            let read = thread.state.read_at(&mut bytes, 0)?;
            sleeps &= state_of(&bytes[..read]).ok_or(io::ErrorKind::InvalidData)? == b'S';
            let read = thread.time.read_at(&mut bytes, 0)?;
            ran_ns += time_of(&bytes[..read]).ok_or(io::ErrorKind::InvalidData)?;
        }
        let before = self.last.replace((now, ran_ns));
        let Some((then, ran_before_ns)) = before else {
            let (is_idle, is_quiet) = (false, false);
            return Ok(Look { is_idle, is_quiet });
        };
        let wall_ns = u64::try_from((now - then).as_nanos()).unwrap_or(u64::MAX);
        Ok(judge(sleeps, ran_ns.saturating_sub(ran_before_ns), wall_ns))
    }
}

fn judge(sleeps: bool, ran_ns: u64, wall_ns: u64) -> Look {
    Look {
        is_idle: sleeps && ran_ns.saturating_mul(100) <= wall_ns.saturating_mul(BUSY_PERCENT_MAX),
        is_quiet: sleeps && ran_ns == 0,
    }
}

/// The letter behind the name, which may have brackets and spaces of its own.
fn state_of(stat: &[u8]) -> Option<u8> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(end + 2).copied()
}

/// Nanoseconds that it ran.
fn time_of(schedstat: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(schedstat).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    //! A busy guest that counts as idle is paused far more often than it should be.
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn what_the_kernel_tells_is_read() {
        assert_eq!(state_of(b"12 (CPU 0/TCG) S 1 2"), Some(b'S'));
        assert_eq!(state_of(b"12 (a) S (b)) R 1 2"), Some(b'R'));
        assert_eq!(state_of(b"12 (a)"), None);
        assert_eq!(time_of(b"1234 5 6\n"), Some(1234));
        assert_eq!(time_of(b""), None);
    }

    #[test]
    fn a_tenth_of_the_time_is_idle_still() {
        let of = |sleeps, ran, wall| {
            let look = judge(sleeps, ran, wall);
            (look.is_idle, look.is_quiet)
        };
        assert_eq!(of(true, 0, 1000), (true, true));
        assert_eq!(of(true, 100, 1000), (true, false));
        assert_eq!(of(true, 101, 1000), (false, false));
        assert_eq!(of(false, 0, 1000), (false, false));
    }

    /// A thread of this process that spins, then waits.
    #[test]
    fn a_thread_that_runs_is_not_idle_and_one_that_waits_is() {
        let (told, id) = channel();
        let (wake, woken) = channel::<()>();
        let thread = std::thread::spawn(move || {
            let path = std::fs::read_link("/proc/thread-self").expect("itself");
            let number = path
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok());
            told.send(number.expect("a number")).expect("told");
            while woken.try_recv().is_err() {
                std::hint::spin_loop();
            }
            told.send(0).expect("told");
            // Until the other end goes.
            let _ = woken.recv();
        });
        let tid: u64 = id.recv().expect("its number");
        let mut processors = Processors::of(std::process::id(), &[tid]).expect("a thread");
        let mut looks = || processors.look().expect("a look");
        looks();
        for _ in 0..200 {
            assert!(!looks().is_quiet && !looks().is_idle, "it spins");
        }
        wake.send(()).expect("woken");
        id.recv().expect("it waits soon");
        let mut all = (0..2000).map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            looks()
        });
        assert!(all.any(|look| look.is_idle && look.is_quiet), "it waits");
        drop(wake);
        thread.join().expect("it ends");
        assert!(processors.look().is_err(), "it is gone");
    }
}
