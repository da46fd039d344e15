//! Requests of a checkpointer (it makes the epochs) and of a standby's daemon (it holds the guest's memory).

use super::role::Group;
use super::thread::VolumeThread;
use crate::engine::Nanos;
use crate::group::memory::{MemoryError, MemoryFacts};
use blkback_proto::ctl::{
    Answer, DriveAnswer, ErrorCode, MEMORY_WHOLE_MAX, MemoryAnswer, MemoryEpoch, MemoryJoinRequest,
    Request,
};
use blkback_proto::ids::{Epoch, LineageId};
use blockrep_host::ctl::ReplyHandle;

/// How long after a client's last word the daemon leaves the epochs to it.
const DRIVEN_NS: Nanos = 2_000_000_000;
/// Longest wait that a client may ask for, in milliseconds.
const WAIT_MS_MAX: u64 = 60_000;
/// Clients that may wait at once; the oldest is answered when there are more.
const WAITS_MAX: usize = 16;

/// Who waits for what.
enum For {
    /// Another state, or a wish for a cut.
    Drive { state: String },
    /// A commit.
    Commit { above: Epoch },
}

/// A client that waits.
struct Wait {
    what: For,
    until: Nanos,
    reply: ReplyHandle,
}

/// Clients that wait, and those whose coming or going is being made durable.
#[derive(Default)]
pub(super) struct GuestMemory {
    waits: Vec<Wait>,
    changes: Vec<(u64, bool, ReplyHandle)>,
}

fn parsed(given: &MemoryEpoch) -> Result<(Epoch, LineageId), String> {
    let lineage = given.lineage.parse();
    let lineage = lineage
        .map_err(|_| format!("\"{}\" is no lineage: 32 hexadecimal digits", given.lineage))?;
    if given.epoch == 0 {
        return Err("0 is no epoch".to_owned());
    }
    Ok((Epoch(given.epoch), lineage))
}

fn code_of(error: &MemoryError) -> ErrorCode {
    match error {
        MemoryError::Primary => ErrorCode::WrongRole,
        MemoryError::Failed(_) => ErrorCode::IoError,
        _ => ErrorCode::Refused,
    }
}

impl VolumeThread {
    pub(super) fn guest_memory(&mut self, request: Request, reply: ReplyHandle) {
        match (request, &mut self.group) {
            (Request::Drive(drive), Some(Group::Primary(group))) => {
                group.drive(self.now + DRIVEN_NS);
                self.wait(For::Drive { state: drive.state }, drive.timeout_ms, reply);
            }
            (Request::MemoryWait(wait), Some(Group::Backup(_))) => {
                let above = Epoch(wait.above);
                self.wait(For::Commit { above }, wait.timeout_ms, reply);
            }
            (Request::MemoryJoin(join), Some(Group::Backup(_))) => self.join(&join, reply),
            (Request::MemoryWhole(whole), Some(Group::Backup(group))) => {
                let result = match parsed(&whole) {
                    Err(text) => Err((ErrorCode::BadRequest, text)),
                    Ok((epoch, lineage)) => group
                        .memory_whole(epoch, lineage, &mut self.gfx)
                        .map_err(|error| (code_of(&error), error.to_string())),
                };
                match result {
                    Ok(_) => reply.ok(Answer::MemoryWhole(self.memory_answer())),
                    Err((code, text)) => reply.error(code, text),
                }
            }
            (Request::MemoryLeave(_), Some(Group::Backup(group))) => {
                let token = self.next_token;
                self.next_token += 1;
                self.guest_memory.changes.push((token, false, reply));
                group.memory_leave(token, &mut self.gfx);
            }
            (Request::Drive(_), _) => {
                let text = "this side is a backup: whoever makes the epochs asks the primary";
                reply.error(ErrorCode::WrongRole, text);
            }
            _ => {
                let text = "this side is the primary: the guest's memory belongs beside the backup";
                reply.error(ErrorCode::WrongRole, text);
            }
        }
    }

    fn join(&mut self, join: &MemoryJoinRequest, reply: ReplyHandle) {
        let whole: Result<Vec<_>, String> = join
            .whole
            .iter()
            .rev()
            .take(MEMORY_WHOLE_MAX)
            .map(parsed)
            .collect();
        let whole = match whole {
            Ok(whole) => whole,
            Err(text) => {
                reply.error(ErrorCode::BadRequest, text);
                return;
            }
        };
        let committed = join.committed.filter(|epoch| *epoch != 0).map(Epoch);
        let token = self.next_token;
        self.next_token += 1;
        self.guest_memory.changes.push((token, true, reply));
        if let Some(Group::Backup(group)) = &mut self.group {
            group.memory_join(token, MemoryFacts { committed, whole }, &mut self.gfx);
        }
    }

    pub(super) fn memory_changed(&mut self, token: u64, result: Result<Epoch, MemoryError>) {
        let changes = &mut self.guest_memory.changes;
        let Some(at) = changes.iter().position(|change| change.0 == token) else {
            return;
        };
        let (_, is_join, reply) = changes.swap_remove(at);
        match result {
            Ok(_) => {
                let answer = self.memory_answer();
                reply.ok(match is_join {
                    true => Answer::MemoryJoin(answer),
                    false => Answer::MemoryLeave(answer),
                });
            }
            Err(error) => reply.error(code_of(&error), error.to_string()),
        }
    }

    fn wait(&mut self, what: For, timeout_ms: u64, reply: ReplyHandle) {
        let until = self.now + timeout_ms.min(WAIT_MS_MAX) * 1_000_000;
        let waits = &mut self.guest_memory.waits;
        waits.push(Wait { what, until, reply });
        if waits.len() > WAITS_MAX {
            waits[0].until = 0;
        }
        self.tick_guest_memory();
    }

    /// Answers waits that are over.
    pub(super) fn tick_guest_memory(&mut self) {
        if self.guest_memory.waits.is_empty() {
            return;
        }
        let (now, answer) = (self.now, self.memory_answer());
        let is_waited_for = |wait: &Wait| matches!(wait.what, For::Drive { .. });
        if self.guest_memory.waits.iter().any(is_waited_for)
            && let Some(Group::Primary(group)) = &mut self.group
        {
            group.drive(now + DRIVEN_NS);
        }
        let standing = self.drive_answer();
        let over = |wait: &mut Wait| {
            wait.until <= now
                || match &wait.what {
                    For::Drive { state } => standing.cut_wanted || standing.state != *state,
                    For::Commit { above } => answer.with_memory.is_some_and(|at| at > above.0),
                }
        };
        let over: Vec<Wait> = self.guest_memory.waits.extract_if(.., over).collect();
        for wait in over {
            wait.reply.ok(match wait.what {
                For::Drive { .. } => Answer::Drive(standing.clone()),
                For::Commit { .. } => Answer::MemoryWait(answer.clone()),
            });
        }
    }

    fn memory_answer(&self) -> MemoryAnswer {
        let with_memory = match &self.group {
            Some(Group::Backup(group)) => group.memory().and_then(|memory| memory.at),
            _ => None,
        };
        MemoryAnswer {
            committed: self.committed().0,
            with_memory: with_memory.map(|epoch| epoch.0),
        }
    }

    /// When the next wait is over at the latest.
    pub(super) fn next_guest_memory(&self) -> Option<Nanos> {
        self.guest_memory.waits.iter().map(|wait| wait.until).min()
    }

    fn drive_answer(&self) -> DriveAnswer {
        let Some(Group::Primary(group)) = &self.group else {
            return DriveAnswer::default();
        };
        let standing = group.standing();
        let lineage = group.meta().tip().map(|tip| tip.id.to_string());
        let volumes = self.exports.iter().map(|export| export.name().to_owned());
        DriveAnswer {
            state: standing.state.word().to_owned(),
            reason: standing.reason.clone(),
            cut_wanted: group.is_cut_wished(self.now),
            ack_mode: self.about.settings.ack.to_string(),
            on_backup_loss: self.about.loss.to_string(),
            lineage: lineage.unwrap_or_default(),
            volumes: volumes.collect(),
        }
    }

    /// The last epoch that both sides have.
    pub(super) fn committed(&self) -> Epoch {
        match &self.group {
            Some(Group::Primary(group)) => group.epochs().1,
            Some(Group::Backup(group)) => group.committed(),
            None => Epoch::NONE,
        }
    }

    /// The history that is written, for the answer to a cut.
    pub(super) fn lineage_text(&self) -> String {
        match &self.group {
            Some(Group::Primary(group)) => {
                let tip = group.meta().tip();
                tip.map(|tip| tip.id.to_string()).unwrap_or_default()
            }
            _ => String::new(),
        }
    }
}
