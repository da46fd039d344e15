//! What the authority is asked, on threads of their own: a fence command may take its time.

use super::asks::TakenIn;
use super::{Input, Protector};
use crate::authority::{By, Decision, Record, Stamp, Wish, decide};
use crate::config::Config;
use crate::sequence::{Event, Word};
use blkback_proto::ids::{Epoch, LineageId};
use blockrep_host::clock;

/// A mark of this moment, with a fresh lineage.
fn stamp(note: &str) -> Stamp {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the kernel gives random numbers");
    Stamp {
        lineage: LineageId(id),
        unix_ms: clock::unix_ms(),
        note: note.to_owned(),
    }
}

fn ask(config: &Config, wish: Wish<'_>, note: &str, by: By) -> Result<Decision, String> {
    let authority = config.authority.open(&config.guest, &config.host);
    let stamp = stamp(note);
    decide(&*authority, &config.guest, &config.host, wish, &stamp, by).map_err(|e| e.to_string())
}

/// The guest is this host's.
///
/// # Errors
/// It is not, or nobody can say, one line.
pub(super) fn claim(config: &Config) -> Result<Record, String> {
    match ask(config, Wish::Claim, "protected from here", By::Daemon)? {
        Decision::Done(record) => Ok(record),
        Decision::Refused(refusal) => Err(refusal.to_string()),
    }
}

impl Protector {
    /// The first epoch is whole and committed at the backup: from now on it may take the guest over, and that has
    /// to be known before anything is let go on its account.
    pub(super) fn take_in(&mut self, epoch: Epoch) {
        if !self.asks.take_in(epoch, self.standing.generation) {
            return;
        }
        // Whatever the answer will be, and whether it comes.
        self.may_be_in = true;
        let (config, outbox) = (self.config.clone(), self.outbox.clone());
        let backup = self.config.memory.backup_host.clone();
        let run = move || {
            let wish = Wish::Protect { backup: &backup };
            let result = match ask(&config, wish, "the backup has the guest", By::Daemon) {
                Ok(Decision::Done(record)) => Ok(record),
                Ok(Decision::Refused(refusal)) => Err(refusal.to_string()),
                Err(why) => Err(why),
            };
            // Without the owner nobody wants to know.
            let _ = outbox.put(Input::TakenIn(result));
        };
        if let Err(error) = std::thread::Builder::new()
            .name("authority".to_owned())
            .spawn(run)
        {
            self.taken_in(Err(error.to_string()));
            tracing::error!("the authority is not asked: {error}");
        }
    }

    /// The standby gets it with each checkpoint: where each host keeps a record of its own, that is how it comes there.
    pub(super) fn show_record(&mut self) {
        let record = self.record.as_ref().map(serde_json::to_vec);
        self.guest.record = record.and_then(Result::ok).unwrap_or_default();
    }

    pub(super) fn taken_in(&mut self, result: Result<Record, String>) {
        let TakenIn { epoch, degrades } = self.asks.taken_in(self.standing.generation);
        match result {
            Ok(record) => {
                self.record = Some(record);
                self.show_record();
                self.authority_words = None;
                if let Some(epoch) = epoch {
                    self.standing.is_member = true;
                    self.memory_acked(epoch);
                }
            }
            // Asked again with the next commit; until then nothing is let go.
            Err(why) => {
                tracing::warn!("the authority does not take the backup in: {why}");
                self.authority_words = Some(why);
            }
        }
        if degrades {
            self.ask_authority();
        }
    }

    /// The answer to a loss, to an operator's stop, or to a guest that was started anew.
    pub(super) fn word(&mut self, word: Word, record: Option<Record>) {
        let is_out = matches!(word, Word::Won(_));
        if is_out {
            self.may_be_in = false;
            self.authority_words = None;
        }
        if let Some(record) = record {
            self.record = Some(record);
            self.show_record();
        }
        if let Word::Unreachable(why) = &word {
            self.authority_words = Some(why.clone());
            self.refuse_stops(&why.clone());
        }
        self.asks.told();
        self.step(Event::Authority(word));
        // Out for the sake of a guest that began, it is taken in again.
        if is_out && self.sequence.has_ended() {
            self.asks.ends_alone();
        }
    }

    pub(super) fn ask_authority(&mut self) {
        if !self.asks.degrade() {
            return;
        }
        let (config, outbox) = (self.config.clone(), self.outbox.clone());
        let by = if self.is_by_hand {
            By::Operator
        } else {
            By::Daemon
        };
        let note = if self.is_stopping {
            "protection was ended"
        } else if self.sequence.is_held_from_before() {
            "it was started, and the backup has nothing of it since"
        } else {
            "the backup was lost"
        };
        let run = move || {
            let (word, record) = match ask(&config, Wish::Degrade, note, by) {
                Ok(Decision::Done(record)) => (Word::Won(record.lineage), Some(record)),
                Ok(Decision::Refused(refusal)) if refusal.is_lost() => (Word::Lost, None),
                Ok(Decision::Refused(refusal)) => (Word::Unreachable(refusal.to_string()), None),
                Err(why) => (Word::Unreachable(why), None),
            };
            // Without the owner nobody wants to know.
            let _ = outbox.put(Input::Word(word, record));
        };
        if let Err(error) = std::thread::Builder::new()
            .name("authority".to_owned())
            .spawn(run)
        {
            self.asks.told();
            tracing::error!("the authority is not asked: {error}");
        }
    }
}
