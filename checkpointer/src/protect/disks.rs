//! The guest's disks, by the control socket of their daemon: how they stand, cuts, and commits.
//!
//! Three threads with a connection each, because an answer may take as long as an epoch: one watches, one cuts
//! (within the pause), one waits for commits. They end with the channel of whoever made them.

use crate::sequence::{Attempt, Event, Part};
use blkback_proto::ctl::{Answer, CutRequest, DriveAnswer, DriveRequest, Request};
use blkback_proto::ids::{Epoch, LineageId};
use blockrep_host::ctl::{Client, ClientError};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long the daemon may keep an answer back before it says that nothing has changed.
const WATCH_MS: u64 = 1_000;
/// Between two tries to reach the daemon.
const AGAIN: Duration = Duration::from_millis(200);
/// For an answer beyond what was asked to be waited.
const SLACK: Duration = Duration::from_secs(1);
/// Commits that may be waited for: more than checkpoints are on their way.
const WAITED_MAX: usize = 256;
/// Name under which the daemon's log knows this client.
const NAME: &str = concat!("checkpointer ", env!("CARGO_PKG_VERSION"));

/// What the threads say, on the way to the sequence.
#[derive(Debug)]
pub(super) enum Told {
    /// For the sequence.
    Event(Event),
    /// An epoch that was cut, with the history it is of, and how long after the order that was answered: whoever
    /// hears of it may have been at something else.
    Cut(Attempt, Result<(Epoch, LineageId), String>, Duration),
    /// How the disks stand, for status.
    Standing(DriveAnswer),
}

/// The threads.
#[derive(Debug)]
pub(super) struct Disks {
    cuts: SyncSender<(Attempt, Instant)>,
    commits: SyncSender<(Epoch, LineageId)>,
}

impl Disks {
    /// Starts the threads; what they say goes to `told`.
    ///
    /// # Errors
    /// Of starting a thread.
    pub(super) fn start(
        control: &Path,
        cut_max: Duration,
        commit_max: Duration,
        told: impl Fn(Told) -> bool + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let (cuts, asked) = sync_channel(1);
        let (commits, waited) = sync_channel(WAITED_MAX);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(run)
                .map(drop)
        };
        let (path, tell) = (control.to_owned(), told.clone());
        spawn("disks-watch", Box::new(move || watch(&path, &tell)))?;
        let (path, tell) = (control.to_owned(), told.clone());
        spawn(
            "disks-cut",
            Box::new(move || cut(&path, cut_max, &asked, &tell)),
        )?;
        let path = control.to_owned();
        spawn(
            "disks-commit",
            Box::new(move || commit(&path, commit_max, &waited, &told)),
        )?;
        Ok(Self { cuts, commits })
    }

    /// Ends the open epoch; [`Told::Cut`] answers. False where the thread is busy with an attempt before.
    #[must_use]
    pub(super) fn cut(&self, attempt: Attempt) -> bool {
        self.cuts.try_send((attempt, Instant::now())).is_ok()
    }

    /// [`Event::DiskCommitted`] follows when the epoch of this history is.
    pub(super) fn wait_for(&self, epoch: Epoch, lineage: LineageId) {
        // A thread that has ended has told why. Without room the epoch is not answered for: the sequence has the limit.
        let _ = self.commits.try_send((epoch, lineage));
    }
}

fn connect(path: &Path) -> Result<Client, ClientError> {
    Client::connect(path, NAME, Duration::from_secs(2))
}

/// Whether a group in this state takes a checkpoint along.
fn is_there(answer: &DriveAnswer) -> Result<(), String> {
    if answer.ack_mode != "local" {
        return Err(format!(
            "the disks answer the guest after the backup has its writes (--ack {}), which a held guest would wait for in \
             every epoch: start their daemon with --ack local",
            answer.ack_mode
        ));
    }
    // Writes would wait for protection, protection for a checkpoint, and that for what the guest has asked of its disks.
    if !matches!(answer.on_backup_loss.as_str(), "" | "degrade") {
        return Err(format!(
            "the disks let the guest's writes wait while their backup is lost (--on-backup-loss {}), and a checkpoint, which \
             brings it back, would wait for those writes: start their daemon with --on-backup-loss degrade",
            answer.on_backup_loss
        ));
    }
    match answer.state.as_str() {
        "protected" => Ok(()),
        // What was compared waits for its first commit, which takes a checkpoint.
        "resyncing" if answer.cut_wanted => Ok(()),
        state => Err(format!("{state}: {}", answer.reason)),
    }
}

fn watch(path: &Path, tell: &impl Fn(Told) -> bool) {
    let lost = |why: String| {
        let part = Part::Disk;
        tell(Told::Event(Event::Lost { part, why }))
    };
    loop {
        let mut client = match connect(path) {
            Ok(client) => client,
            Err(error) => {
                if !lost(error.to_string()) {
                    return;
                }
                thread::sleep(AGAIN);
                continue;
            }
        };
        let mut state = String::new();
        loop {
            let timeout_ms = if state.is_empty() { 0 } else { WATCH_MS };
            let request = Request::Drive(DriveRequest { state, timeout_ms });
            let answer = match client.request(&request, Duration::from_millis(WATCH_MS) + SLACK) {
                Ok(Answer::Drive(answer)) => answer,
                Ok(_) => DriveAnswer::default(),
                Err(error) => {
                    if !lost(error.to_string()) {
                        return;
                    }
                    break;
                }
            };
            state = answer.state.clone();
            let is_wanted = answer.cut_wanted;
            let goes_on = match is_there(&answer) {
                // Said each time: the sequence takes a part for lost that owes it an answer, too.
                Ok(()) => {
                    let part = Part::Disk;
                    tell(Told::Event(Event::Back {
                        part,
                        has_base: true,
                    }))
                }
                Err(why) => lost(why),
            };
            let goes_on = goes_on && (!is_wanted || tell(Told::Event(Event::CutWanted)));
            if !(goes_on && tell(Told::Standing(answer))) {
                return;
            }
            if is_wanted {
                // It is wanted until it is made: asked at once again, the daemon would answer at once.
                thread::sleep(Duration::from_millis(5));
            }
        }
        thread::sleep(AGAIN);
    }
}

fn cut(
    path: &Path,
    cut_max: Duration,
    asked: &Receiver<(Attempt, Instant)>,
    tell: &impl Fn(Told) -> bool,
) {
    let mut client = connect(path).ok();
    while let Ok((attempt, ordered)) = asked.recv() {
        let request = Request::Cut(CutRequest {
            seal: true,
            ..CutRequest::default()
        });
        let result = match client.take().map_or_else(|| connect(path), Ok) {
            Ok(mut known) => {
                let answer = known.request(&request, cut_max);
                if answer.is_ok() {
                    client = Some(known);
                }
                answer
            }
            Err(error) => Err(error),
        };
        let result = match result {
            Ok(Answer::Cut(cut)) => match cut.lineage.parse() {
                Ok(lineage) => Ok((Epoch(cut.epoch), lineage)),
                Err(_) => Err("the answer to a cut names no lineage".to_owned()),
            },
            Ok(_) => Err("the answer to a cut is another".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        if !tell(Told::Cut(attempt, result, ordered.elapsed())) {
            return;
        }
    }
}

/// Commits come in order, so one is waited for at a time; an epoch that was not committed in time is no news:
/// the sequence has the limit.
fn commit(
    path: &Path,
    commit_max: Duration,
    waited: &Receiver<(Epoch, LineageId)>,
    tell: &impl Fn(Told) -> bool,
) {
    let mut client = connect(path).ok();
    let timeout_ms = u64::try_from(commit_max.as_millis()).unwrap_or(u64::MAX);
    while let Ok((epoch, lineage)) = waited.recv() {
        let request = Request::Cut(CutRequest {
            epoch: Some(epoch.0),
            wait_durable: true,
            timeout_ms,
            ..CutRequest::default()
        });
        let Ok(mut known) = client.take().map_or_else(|| connect(path), Ok) else {
            continue;
        };
        match known.request(&request, commit_max + SLACK) {
            // A daemon that was started anew counts on: its commits say nothing of an epoch from before.
            Ok(Answer::Cut(cut)) if cut.committed && cut.lineage.parse() == Ok(lineage) => {
                let committed = Epoch(cut.epoch);
                if !tell(Told::Event(Event::DiskCommitted(committed))) {
                    return;
                }
                client = Some(known);
            }
            Ok(_) | Err(ClientError::Daemon(_)) => client = Some(known),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    //! Disks that wait for what a checkpoint waits for: the guest stands until somebody kills it.
    use super::*;

    type Change<'a> = &'a dyn Fn(&mut DriveAnswer);

    #[test]
    fn disks_that_would_wait_for_a_checkpoint_are_refused() {
        let good = DriveAnswer {
            state: "protected".to_owned(),
            ack_mode: "local".to_owned(),
            on_backup_loss: "degrade".to_owned(),
            ..DriveAnswer::default()
        };
        let of = |change: Change<'_>| {
            let mut answer = good.clone();
            change(&mut answer);
            is_there(&answer)
        };
        assert_eq!(of(&|_| {}), Ok(()));
        // A daemon from before it was told.
        assert_eq!(of(&|answer| answer.on_backup_loss.clear()), Ok(()));
        let refused: [(&str, Change<'_>); 3] = [
            ("--ack local", &|answer| {
                answer.ack_mode = "write".to_owned()
            }),
            ("--on-backup-loss degrade", &|answer| {
                answer.on_backup_loss = "pause".to_owned()
            }),
            ("standalone: why", &|answer| {
                answer.state = "standalone".to_owned();
                answer.reason = "why".to_owned();
            }),
        ];
        for (told, change) in refused {
            let why = of(change).expect_err(told);
            assert!(why.contains(told) && !why.contains('\n'), "{why}");
        }
        // It is said before there is a backup, too, and while one is compared.
        for state in ["waiting-for-backup", "paused", "resyncing"] {
            let why = of(&|answer| {
                answer.state = state.to_owned();
                answer.cut_wanted = true;
                answer.on_backup_loss = "pause".to_owned();
            });
            assert!(why.is_err_and(|why| why.contains("degrade")), "{state}");
        }
    }
}
