//! One turn of the reactor: hand over, wait, take back; and the end of an operation.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::Reactor;
use super::flight::Kind;
use super::op::{Completion, OpError, SockOp};
use super::ring::{Entered, UNWATCHED, Wait};

/// How long a dropped reactor waits for the kernel before it leaks what the kernel still holds.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

impl Reactor {
    /// Hands over what was submitted, waits until something has completed or `timeout` has passed
    /// (`None`: for ever; zero: not at all), and appends what has completed to `out`. Returns early
    /// and empty-handed after a signal, and at once if nothing is in flight and `timeout` is `None`.
    ///
    /// # Errors
    /// The ring is broken. Failures of operations are in their completions.
    pub fn poll(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            self.wake_delayed();
            let idle = self.flights.active() == 0 && deadline.is_none();
            let wait = match deadline {
                _ if !self.ready.is_empty() || idle => Wait::No,
                None => self.until_delayed(Wait::Forever),
                Some(at) => match at.saturating_duration_since(Instant::now()) {
                    Duration::ZERO => Wait::No,
                    left => self.until_delayed(Wait::For(left)),
                },
            };
            let entered = self.ring.enter(wait)?;
            let reaped = self.reap();
            if !self.ready.is_empty() {
                out.append(&mut self.ready);
                return Ok(());
            }
            let expired = deadline.is_some_and(|at| Instant::now() >= at);
            // A wait that ends with nothing is a signal, also where the kernel reports only how
            // much it took.
            let disturbed = entered == Entered::Interrupted
                || (entered == Entered::Done && reaped == 0 && wait == Wait::Forever);
            if expired || idle || disturbed {
                return Ok(());
            }
            if entered == Entered::Busy && reaped == 0 {
                // The kernel has no memory for an entry: let others free some.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Takes what the kernel has finished; returns how much that was.
    fn reap(&mut self) -> usize {
        let mut reaped = std::mem::take(&mut self.reaped);
        self.ring.reap(&mut reaped);
        let count = reaped.len();
        for (user_data, result) in reaped.drain(..) {
            let Some(index) = self.kernel_let_go(user_data) else {
                continue;
            };
            match self.flights.get(index).kind {
                Kind::File(op) => self.file_step_done(index, op, result),
                Kind::Sock(op) => self.sock_step_done(index, op, result),
                Kind::Idle => unreachable!("a free record is never with the kernel"),
            }
            self.run();
        }
        self.reaped = reaped;
        count
    }

    fn kernel_let_go(&mut self, user_data: u64) -> Option<u32> {
        if user_data == UNWATCHED {
            return None;
        }
        let index = self.flights.of_completion(user_data)?;
        self.flights.get_mut(index).in_kernel = false;
        self.in_kernel -= 1;
        Some(index)
    }

    /// Lets file operations go on whose wait has ended.
    pub(super) fn run(&mut self) {
        while let Some(index) = self.runnable.pop_front() {
            self.advance_file(index);
        }
    }

    fn wake_delayed(&mut self) {
        if self.delayed.is_empty() {
            return;
        }
        let now = Instant::now();
        let due = self.delayed.extract_if(.., |(at, _)| *at <= now);
        self.runnable.extend(due.map(|(_, index)| index));
        self.run();
    }

    /// `wait`, but not longer than until the next delayed operation.
    fn until_delayed(&self, wait: Wait) -> Wait {
        let Some(next) = self.delayed.iter().map(|&(at, _)| at).min() else {
            return wait;
        };
        let next = next.saturating_duration_since(Instant::now());
        match wait {
            Wait::For(left) if left < next => wait,
            _ if next.is_zero() => Wait::No,
            _ => Wait::For(next),
        }
    }

    /// Completes an operation: gives back its buffers and whatever it held.
    pub(super) fn finish(&mut self, index: u32, result: Result<u32, OpError>) {
        let flight = self.flights.get_mut(index);
        let (token, kind, slot) = (flight.token, flight.kind, flight.slot);
        let buf = flight.take_buffers();
        if flight.chunk.take().is_some() {
            // In order, and each of them may have to wait again.
            self.runnable.extend(self.bounce_waiting.drain(..));
        }
        let locked = flight.locked;
        self.flights.give_back(index);
        if locked {
            self.slots
                .file_in_flight(slot)
                .unlock(index, &mut self.runnable);
        }
        if kind != Kind::Sock(SockOp::PollIn) {
            self.slots.leave(slot, &self.ring);
        }
        let accepted = self.accepted.take();
        self.ready.push(Completion {
            token,
            result,
            buf,
            accepted,
        });
    }

    /// Cancels what the kernel holds and waits for it; returns whether all of it came back.
    fn drain(&mut self) -> bool {
        for index in self.flights.indices() {
            if self.flights.get(index).in_kernel {
                let user_data = self.flights.user_data(index);
                self.ring.cancel(user_data);
            }
        }
        let deadline = Instant::now() + DRAIN_LIMIT;
        while self.in_kernel > 0 && Instant::now() < deadline {
            if let Err(error) = self.ring.enter(Wait::For(Duration::from_millis(100))) {
                tracing::error!("The ring broke while it was drained: {error}");
                return false;
            }
            let mut reaped = std::mem::take(&mut self.reaped);
            self.ring.reap(&mut reaped);
            for (user_data, result) in reaped.drain(..) {
                let Some(index) = self.kernel_let_go(user_data) else {
                    continue;
                };
                if self.flights.get(index).kind == Kind::Sock(SockOp::Accept) && result >= 0 {
                    // SAFETY: the kernel just opened this descriptor for us.
                    drop(unsafe { OwnedFd::from_raw_fd(result) });
                }
            }
            self.reaped = reaped;
        }
        self.in_kernel == 0
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        if !self.drain() {
            tracing::error!(
                operations = self.in_kernel,
                "Operations do not end; their memory is given up for lost"
            );
            std::mem::forget(std::mem::take(&mut self.flights));
            std::mem::forget((self.pool.clone(), self.bounce.clone(), self.zeros.clone()));
            return;
        }
        // Else the kernel would close the files only some time after the ring.
        self.ring.unregister_all();
    }
}
