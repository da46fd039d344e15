//! SIGTERM and SIGINT: the first asks for a drain, the second ends the process at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::Waker;

/// Whether the process was asked to end. The descriptor becomes readable at the first signal and
/// stays so, for use in poll.
#[derive(Debug, Clone)]
pub struct Shutdown {
    requested: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Shutdown {
    /// Takes over SIGTERM and SIGINT of the process. A second signal of either kind exits with
    /// 128 + its number, as a shell reports a killed program.
    ///
    /// # Errors
    /// The kernel's.
    pub fn install() -> io::Result<Self> {
        let shutdown = Self {
            requested: Arc::new(AtomicBool::new(false)),
            waker: Arc::new(Waker::new()?),
        };
        for signal in [SIGTERM, SIGINT] {
            // Order matters: the exit looks at the flag before this signal sets it.
            let exit_code = 128 + signal;
            signal_hook::flag::register_conditional_shutdown(
                signal,
                exit_code,
                Arc::clone(&shutdown.requested),
            )?;
            let inner = shutdown.clone();
            // SAFETY: the handler stores to an atomic and makes one write(2); both are
            // async-signal-safe, and the Arcs are never dropped in the handler. The crate's safe
            // calls only write one byte, which an eventfd does not take.
            unsafe { signal_hook::low_level::register(signal, move || inner.request())? };
        }
        Ok(shutdown)
    }

    /// Asks for the drain from within the process.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    /// True from the first signal on.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Waits for a signal, at most `timeout`; true if the process was asked to end. A signal
    /// interrupts whatever the thread that gets it waits in: who polls the descriptor alone must
    /// expect EINTR, here it is dealt with.
    pub fn wait_within(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        while !self.requested() {
            let left = deadline.map(|moment| moment.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return false;
            }
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            // Whatever poll says, flag and clock decide.
            let _ = poll(&mut [PollFd::new(self, PollFlags::IN)], timeout.as_ref());
        }
        true
    }
}

impl AsFd for Shutdown {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    const CHILD: &str = "BLOCKREP_TEST_SIGNALS_CHILD";

    fn child() {
        let shutdown = Shutdown::install().unwrap();
        assert!(!shutdown.requested());
        assert!(!shutdown.wait_within(Duration::ZERO));
        println!("\ninstalled");
        assert!(shutdown.wait_within(Duration::MAX));
        let readable = poll(&mut [PollFd::new(&shutdown, PollFlags::IN)], None);
        assert_eq!(
            readable,
            Ok(1),
            "the descriptor stays readable for those who poll it"
        );
        println!("draining");
        // A drain that hangs: only the second signal ends it.
        loop {
            std::thread::park();
        }
    }

    /// A daemon that ignores SIGTERM is killed in mid-write by the manager; one whose drain hangs
    /// must still be stoppable by hand.
    #[test]
    fn first_signal_drains_second_exits() {
        if std::env::var_os(CHILD).is_some() {
            child();
        }
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "signals::tests::first_signal_drains_second_exits",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&process);
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut wait_for = |word: &str| {
            let found = lines.by_ref().any(|line| line.unwrap().contains(word));
            assert!(found, "the child ended without \"{word}\"");
        };
        wait_for("installed");
        kill_process(pid, Signal::TERM).unwrap();
        wait_for("draining");
        kill_process(pid, Signal::INT).unwrap();
        assert_eq!(process.wait().unwrap().code(), Some(128 + SIGINT));
    }
}
