//! QEMU's end: of a guest that switched itself off, or of one that has to go on at the backup.
//!
//! A monitor that hung up is no proof: until the process has ended, the guest may run.

use super::Protector;
use super::link::Job;
use crate::sequence::Event;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A process that ends closes its monitor a little before it is gone.
const END: Duration = Duration::from_secs(1);
/// How long the backup is told that the guest is its own now.
const FAREWELL: Duration = Duration::from_secs(10);
/// A backup that takes the guest over ends the session, and takes no other in.
const TAKEN: Duration = Duration::from_secs(1);

/// A process, whoever gets its number later.
#[derive(Debug)]
pub(super) struct Process(OwnedFd);

impl Process {
    /// # Errors
    /// It has ended, or the kernel has no pidfds.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Whether it has ended, or does so within this time.
    pub(super) fn ends_within(&self, limit: Duration) -> bool {
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        let limit = Timespec::try_from(limit).unwrap_or_default();
        matches!(poll(&mut polled, Some(&limit)), Ok(1..))
    }
}

/// What the backup is told again with each session, until it has heard.
#[derive(Debug)]
pub(super) struct Farewell {
    why: String,
    until: Instant,
    /// Since when there has been no session, after one in which it was said.
    is_said: bool,
    ended: Option<Instant>,
}

impl Protector {
    /// QEMU's monitor has hung up, or talks nonsense.
    pub(super) fn monitor_gone(&mut self, why: String) {
        let pid = self.guest.qemu.pid();
        let has_ended = self.guest.process.ends_within(END);
        self.gone = Some(if has_ended {
            self.guest.let_guardian_go();
            let why = format!("QEMU, process {pid}, has ended");
            self.step(Event::HypervisorEnded(why.clone()));
            why
        } else {
            self.step(Event::HypervisorGone(why.clone()));
            format!(
                "{why}; its process {pid} is there still, and what it says is held: start this again to attach anew"
            )
        });
    }

    pub(super) fn hand_over(&mut self, why: String) {
        tracing::warn!("the backup is told to take the guest over: {why}");
        self.farewell = Some(Farewell {
            why,
            until: Instant::now() + FAREWELL,
            is_said: false,
            ended: None,
        });
        if self.standing.is_up {
            self.say_farewell();
        }
    }

    pub(super) fn say_farewell(&mut self) {
        let Some(farewell) = &mut self.farewell else {
            return;
        };
        let job = Job::HandOver(farewell.why.clone());
        farewell.is_said = self.link.send(self.standing.session, job).is_ok();
        farewell.ended = None;
    }

    /// The session is over.
    pub(super) fn farewell_heard(&mut self) {
        if let Some(farewell) = &mut self.farewell
            && farewell.is_said
        {
            farewell.ended.get_or_insert_with(Instant::now);
        }
    }

    /// Nothing is left to do for a guest whose QEMU is gone.
    pub(super) fn look_at_end(&mut self) {
        if self.gone.is_none() || self.sequence.standing().state != "over" {
            return;
        }
        let now = Instant::now();
        self.is_over = match &mut self.farewell {
            None => true,
            Some(farewell) if farewell.ended.is_some_and(|at| now - at >= TAKEN) => true,
            Some(farewell) if now >= farewell.until => {
                tracing::error!("it is not known whether the backup takes the guest over");
                true
            }
            Some(farewell) => {
                if !farewell.is_said && self.standing.is_up {
                    self.say_farewell();
                }
                false
            }
        };
    }
}
