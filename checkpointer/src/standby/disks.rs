//! The disks beside the memory, by the control socket of their backup daemon: which epochs of memory are whole is
//! told there, and which are committed is heard.
//!
//! Two threads with a connection each: one tells, one waits for commits. A daemon that was started anew is joined
//! anew, with what the store has.

use crate::memory::store::Store;
use blkback_proto::ctl::{
    Answer, ErrorCode, GroupState, MEMORY_WHOLE_MAX, MemoryEpoch, MemoryJoinRequest,
    MemoryLeaveRequest, MemoryWaitRequest, PromoteAnswer, PromoteRequest, Request, Stated,
};
use blkback_proto::ids::{Epoch, LineageId};
use blockrep_host::ctl::{Client, ClientError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

const NAME: &str = concat!("checkpointer receive ", env!("CARGO_PKG_VERSION"));
const LIMIT: Duration = Duration::from_secs(2);
const WAIT_MS: u64 = 1_000;
/// Words that may wait for the teller.
const SAID_MAX: usize = 64;
/// Between two tries to reach the daemon, or to be taken.
const AGAIN: Duration = Duration::from_millis(100);

/// What the threads say.
#[derive(Debug)]
pub(super) enum Told {
    /// This epoch of memory is committed together with the disks.
    Committed(Epoch),
    /// The daemon does not answer, or does not take the memory; one line. Empty when all is well again.
    Standing(String),
}

/// Why the disks were not promoted.
#[derive(Debug)]
pub(super) struct Refused {
    /// They serve already.
    pub(super) is_primary: bool,
    /// One line.
    pub(super) why: String,
}

impl From<ClientError> for Refused {
    fn from(error: ClientError) -> Self {
        let is_primary =
            matches!(&error, ClientError::Daemon(reply) if reply.code == ErrorCode::WrongRole);
        let why = error.to_string();
        Self { is_primary, why }
    }
}

#[derive(Debug)]
enum Say {
    Whole(Epoch, LineageId),
    Again,
    Leave,
}

/// The threads.
#[derive(Debug)]
pub(super) struct Disks {
    control: PathBuf,
    say: SyncSender<Say>,
    missed: Arc<Missed>,
}

/// What found no room with the teller: the owner never waits for it.
#[derive(Debug, Default)]
struct Missed {
    /// Epochs that are whole: the store has them, and a join tells all.
    whole: AtomicBool,
    leave: AtomicBool,
}

fn connect(path: &Path) -> Result<Client, ClientError> {
    Client::connect(path, NAME, LIMIT)
}

impl Disks {
    /// # Errors
    /// Of starting a thread.
    pub(super) fn start(
        control: PathBuf,
        store: Arc<Mutex<Store>>,
        told: impl Fn(Told) -> bool + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let (say, said) = sync_channel(SAID_MAX);
        let missed = Arc::new(Missed::default());
        let (path, tell, again) = (control.clone(), told.clone(), say.clone());
        let left_out = Arc::clone(&missed);
        let teller = move || {
            let mut teller = Teller {
                path,
                store,
                tell,
                missed: left_out,
                client: None,
            };
            teller.run(&said);
        };
        thread::Builder::new()
            .name("disks-tell".to_owned())
            .spawn(teller)?;
        let path = control.clone();
        let waiter = move || wait(&path, &again, &told);
        thread::Builder::new()
            .name("disks-wait".to_owned())
            .spawn(waiter)?;
        Ok(Self {
            control,
            say,
            missed,
        })
    }

    /// The store has all of this epoch.
    pub(super) fn whole(&self, epoch: Epoch, lineage: LineageId) {
        // A thread that has ended has told why.
        if let Err(TrySendError::Full(_)) = self.say.try_send(Say::Whole(epoch, lineage)) {
            self.missed.whole.store(true, Ordering::SeqCst);
        }
    }

    /// Protection has ended in order: the disks decide alone again.
    pub(super) fn leave(&self) {
        if let Err(TrySendError::Full(_)) = self.say.try_send(Say::Leave) {
            self.missed.leave.store(true, Ordering::SeqCst);
        }
    }

    /// Why the disks would refuse a promotion, as far as they tell: to be asked before the authority, whose word cannot
    /// be taken back from here. What they refuse all the same is tried again.
    ///
    /// # Errors
    /// Their reason, and what to do, one line.
    pub(super) fn may_promote(&self) -> Result<(), String> {
        let mut client = connect(&self.control).map_err(|e| format!("the disks: {e}"))?;
        match client.status() {
            Ok(status) => in_the_way(&status.group.stated),
            // They answer, if not that.
            Err(ClientError::Daemon(_)) => Ok(()),
            Err(error) => Err(format!("the disks: {error}")),
        }
    }

    /// Promotes the disks to the newest epoch that memory and disks both have.
    ///
    /// # Errors
    /// The daemon's reason.
    pub(super) fn promote(&self, reason: &str) -> Result<PromoteAnswer, Refused> {
        let request = PromoteRequest {
            // The authority has decided.
            force: true,
            with_memory: true,
            reason: reason.to_owned(),
            ..PromoteRequest::default()
        };
        let mut client = connect(&self.control).map_err(Refused::from)?;
        client.promote(request).map_err(Refused::from)
    }

    /// How long ago the disks heard of their primary; nothing where they never did, or nobody knows.
    #[must_use]
    pub(super) fn heard_ms(&self) -> Option<u64> {
        let status = connect(&self.control).ok()?.status().ok()?;
        let now = blockrep_host::clock::unix_ms();
        let heard = status.link.heard_unix_ms?;
        status.link.session.as_ref()?;
        Some(now.saturating_sub(heard))
    }
}

fn in_the_way(stated: &Stated<GroupState>) -> Result<(), String> {
    match stated.state {
        GroupState::Inconsistent | GroupState::Suspect | GroupState::Failed => Err(format!(
            "the disks are {}: {}; {}",
            stated.state, stated.reason, stated.next
        )),
        _ => Ok(()),
    }
}

struct Teller<F> {
    path: PathBuf,
    store: Arc<Mutex<Store>>,
    tell: F,
    missed: Arc<Missed>,
    /// Connected, and joined.
    client: Option<Client>,
}

impl<F: Fn(Told) -> bool> Teller<F> {
    fn run(&mut self, said: &Receiver<Say>) {
        loop {
            let say = match said.recv_timeout(AGAIN) {
                Ok(say) => Some(say),
                // All that waited is done.
                Err(RecvTimeoutError::Timeout) => self.missed(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let done = match say {
                Some(Say::Whole(epoch, lineage)) if self.client.is_some() => {
                    self.whole(epoch, lineage)
                }
                Some(Say::Leave) => self.leave(),
                Some(Say::Again) => {
                    self.client = None;
                    self.join()
                }
                // What is whole is in the store, and told with the rest.
                Some(Say::Whole(..)) => self.join(),
                None if self.client.is_none() => self.join(),
                None => continue,
            };
            let (words, goes_on) = match done {
                Ok(None) => (String::new(), true),
                Ok(Some(epoch)) => (String::new(), (self.tell)(Told::Committed(epoch))),
                Err(why) => (why, true),
            };
            if !(goes_on && (self.tell)(Told::Standing(words))) {
                return;
            }
        }
    }

    fn missed(&self) -> Option<Say> {
        let Missed { whole, leave } = &*self.missed;
        if whole.swap(false, Ordering::SeqCst) {
            return Some(Say::Again);
        }
        leave.swap(false, Ordering::SeqCst).then_some(Say::Leave)
    }

    fn whole(&mut self, epoch: Epoch, lineage: LineageId) -> Result<Option<Epoch>, String> {
        let request = Request::MemoryWhole(MemoryEpoch {
            epoch: epoch.0,
            lineage: lineage.to_string(),
        });
        let client = self.client.as_mut().expect("it is connected");
        match client.request(&request, LIMIT) {
            Ok(Answer::MemoryWhole(answer)) => Ok(answer.with_memory.map(Epoch)),
            Ok(_) => Err("the disks' daemon answered something else".to_owned()),
            Err(error) => {
                if !matches!(error, ClientError::Daemon(_)) {
                    self.client = None;
                }
                Err(error.to_string())
            }
        }
    }

    /// With nothing in the store there is nothing to be a member with; unless the disks wait to hear just that: the
    /// memory that was a member went with the host's power.
    fn join(&mut self) -> Result<Option<Epoch>, String> {
        let (committed, whole) = {
            let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
            (store.committed(), store.whole_of())
        };
        let mut client = connect(&self.path).map_err(|e| e.to_string())?;
        if committed == Epoch::NONE && whole.is_empty() {
            let status = client.status().map_err(|e| e.to_string())?;
            if status.guest_memory.is_none_or(|memory| memory.joined) {
                return Ok(None);
            }
        }
        let newest = whole.iter().rev().take(MEMORY_WHOLE_MAX).rev();
        let whole = newest.map(|(epoch, lineage)| MemoryEpoch {
            epoch: epoch.0,
            lineage: lineage.to_string(),
        });
        let request = Request::MemoryJoin(MemoryJoinRequest {
            committed: Some(committed.0).filter(|epoch| *epoch != 0),
            whole: whole.collect(),
        });
        match client.request(&request, LIMIT) {
            Ok(Answer::MemoryJoin(answer)) => {
                self.client = Some(client);
                Ok(answer.with_memory.map(Epoch))
            }
            Ok(_) => Err("the disks' daemon answered something else".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn leave(&mut self) -> Result<Option<Epoch>, String> {
        let request = Request::MemoryLeave(MemoryLeaveRequest {});
        let mut client = connect(&self.path).map_err(|e| e.to_string())?;
        self.client = None;
        client.request(&request, LIMIT).map_err(|e| e.to_string())?;
        Ok(None)
    }
}

fn wait(path: &Path, again: &SyncSender<Say>, tell: &impl Fn(Told) -> bool) {
    let mut above = 0;
    loop {
        if let Ok(mut client) = connect(path) {
            loop {
                let request = Request::MemoryWait(MemoryWaitRequest {
                    above,
                    timeout_ms: WAIT_MS,
                });
                let limit = Duration::from_millis(WAIT_MS) + LIMIT;
                match client.request(&request, limit) {
                    Ok(Answer::MemoryWait(answer)) => {
                        let Some(at) = answer.with_memory.filter(|at| *at > above) else {
                            continue;
                        };
                        above = at;
                        if !tell(Told::Committed(Epoch(at))) {
                            return;
                        }
                    }
                    Ok(_) | Err(ClientError::Daemon(_)) => break,
                    Err(_) => {
                        above = 0;
                        break;
                    }
                }
            }
            if again.send(Say::Again).is_err() {
                return;
            }
        }
        thread::sleep(AGAIN);
    }
}

#[cfg(test)]
mod tests {
    //! A guest that is given to a host whose disks cannot go on: the other host must not start it any more, and this one
    //! cannot.
    use super::*;

    #[test]
    fn disks_that_would_refuse_are_known_before() {
        let stated = |state| Stated {
            state,
            reason: "volume 1 is being compared".to_owned(),
            since_unix_ms: 0,
            next: "let the primary connect".to_owned(),
        };
        let why = in_the_way(&stated(GroupState::Inconsistent)).expect_err("no epoch");
        assert_eq!(
            why,
            "the disks are inconsistent: volume 1 is being compared; let the primary connect"
        );
        for state in [GroupState::Suspect, GroupState::Failed] {
            assert!(in_the_way(&stated(state)).is_err());
        }
        for state in [
            GroupState::WaitingForPrimary,
            GroupState::Following,
            GroupState::Promoted,
        ] {
            assert!(in_the_way(&stated(state)).is_ok());
        }
    }
}
