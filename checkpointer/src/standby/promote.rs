//! The guest goes on here: no more acknowledgements, the authority's word, disks and memory of one epoch, device
//! state, output.
//!
//! ```text
//!            refused                 a step failed: `unfinished`
//!           ◄──────┐                ┌─────────────────────────┐
//!  standby ─► disks? ─► decide ─► network ─► disks ─► RAM ─► load ─► mark ─► cont ─► promoted
//! ```
//! Once the authority has decided, the guest is this host's: the sessions stay closed, and a promotion that failed is gone on
//! with, by itself or by an operator's word. Every step may be repeated: disks that are promoted say so, the store makes the
//! same epoch, and a QEMU that did not take the state is ended for a fresh one. From the mark in the store on the guest may
//! have run, so only `cont` is repeated then, to the same QEMU.
//!
//! The network is told before the guest runs: frames that come for it meanwhile wait at its device, instead of
//! going where nobody is.

use super::found::told_record;
use super::progress::Progress;
use super::{Keeper, Waiting, end_leftover, lock};
use crate::authority::{Authority, By, Decision, Stamp, Wish, decide};
use crate::hypervisor::qemu::standby::Standby;
use crate::hypervisor::qemu::{Error, Limits};
use crate::memory::store::Ready;
use crate::plant::{Plant, planted};
use crate::protect::unframed;
use blkback_proto::ctl::{
    ErrorCode, EventKind, GuestPromoteAnswer, GuestProtection, NetStation, PromoteSteps,
};
use blkback_proto::ids::{Epoch, LineageId};
use blockrep_host::clock;
use blockrep_host::ctl::NewEvent;
use std::time::Instant;

/// By so many epochs the planted bug is behind.
pub(super) const OLDER_BY: u64 = 20;

fn us(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Why it was not done, one line.
#[derive(Debug)]
pub(super) struct NotPromoted {
    pub(super) code: ErrorCode,
    pub(super) why: String,
}

impl From<String> for NotPromoted {
    fn from(why: String) -> Self {
        let code = ErrorCode::Refused;
        Self { code, why }
    }
}

impl Keeper {
    /// Everything, in order, or what is left of it. Nothing is acknowledged from its beginning on; where it fails before the
    /// authority has decided, sessions are taken in again.
    ///
    /// # Errors
    /// What failed.
    pub(super) fn promote(
        &mut self,
        reason: &str,
        by_hand: bool,
    ) -> Result<GuestPromoteAnswer, NotPromoted> {
        let began = Instant::now();
        self.may_promote()?;
        if let (Some(disks), None) = (&self.disks, &self.unfinished) {
            disks.may_promote()?;
        }
        self.change(GuestProtection::Promoting, reason.to_owned());
        self.sessions.close();
        self.link = None;
        let lineage = match self.decide(reason, by_hand) {
            Ok(lineage) => lineage,
            Err(refused) => {
                match self.unfinished.take() {
                    None => self.sessions.reopen(),
                    Some(known) => {
                        self.set_unfinished(known.lineage, reason, &refused.why, known.tries)
                    }
                }
                return Err(refused);
            }
        };
        let steps = PromoteSteps {
            decide_us: us(began),
            ..PromoteSteps::default()
        };
        match self.go_on(lineage, reason, began, steps) {
            Ok(answer) => Ok(answer),
            Err(why) => {
                let tries = self.unfinished.take().map_or(0, |known| known.tries);
                self.set_unfinished(lineage, reason, &why, tries);
                Err(NotPromoted::from(format!(
                    "decided, and not done: {why}; {}",
                    self.next()
                )))
            }
        }
    }

    /// All that comes after the authority's word.
    fn go_on(
        &mut self,
        lineage: LineageId,
        reason: &str,
        began: Instant,
        mut steps: PromoteSteps,
    ) -> Result<GuestPromoteAnswer, String> {
        let step = Instant::now();
        let told = self.tell_the_network();
        steps.announce_us = us(step);
        let mut notes = vec![told.err().unwrap_or_default()];
        if !lock(&self.store).is_promoted() {
            let step = Instant::now();
            let (epoch, note) = self.promote_disks(lineage, reason)?;
            notes.insert(0, note);
            steps.disk_us = us(step);
            let step = Instant::now();
            let ready = self.ready(epoch)?;
            steps.memory_us = us(step);
            let step = Instant::now();
            if let Err(why) = self.load(&ready) {
                // Whatever it has of the state: another begins without.
                self.waiting = Waiting::None;
                return Err(why);
            }
            steps.load_us = us(step);
            lock(&self.store)
                .set_promoted()
                .map_err(|e| e.to_string())?;
        }
        let step = Instant::now();
        self.let_run(lineage)?;
        steps.cont_us = us(step);
        let epoch = lock(&self.store).committed();
        let (clock_behind_ms, clock_words) = self.clock_behind();
        notes.push(clock_words);
        let answer = GuestPromoteAnswer {
            already: false,
            epoch: epoch.0,
            lineage: lineage.to_string(),
            duration_us: us(began),
            steps,
            clock_behind_ms,
            note: notes.join(" ").trim().to_owned(),
        };
        self.done(&answer, epoch, lineage, reason);
        Ok(answer)
    }

    fn done(
        &mut self,
        answer: &GuestPromoteAnswer,
        epoch: Epoch,
        lineage: LineageId,
        reason: &str,
    ) {
        self.unfinished = None;
        self.promoted = Some(answer.clone());
        let mut progress = Progress::new(lineage);
        progress.set_disks(epoch);
        progress.answer = Some(answer.clone());
        if let Err(error) = progress.write(&self.path) {
            tracing::warn!(
                "a daemon that is started anew will not know what this promotion took: {error}"
            );
        }
        // Room for the guest; nobody goes on from those.
        if let Err(error) = lock(&self.store).drop_above(epoch) {
            tracing::warn!(
                "epochs that were not gone on from take memory until the store is removed: {error}"
            );
        }
        let text = format!(
            "goes on from epoch {epoch}, {} us after it was decided on; {reason}",
            answer.duration_us
        );
        let event = NewEvent::new(&self.config.guest, EventKind::GuestPromoted, &text, "");
        let mut event = event.detail("epoch", epoch).detail("lineage", lineage);
        if let Some(ms) = answer.clock_behind_ms {
            event = event.detail("clock_behind_ms", ms);
        }
        self.log.publish(event);
        self.change(GuestProtection::Promoted, text);
    }

    /// How far the guest's clock is behind, by what came with its memory; and words for people.
    fn clock_behind(&self) -> (Option<u64>, String) {
        let state = lock(&self.store).device_state();
        let state = state.map_err(|e| e.to_string());
        match state.and_then(|state| Ok(unframed(&state.bytes)?.moment)) {
            Ok(moment) => moment.behind(clock::unix_ms()),
            Err(why) => (
                None,
                format!("How far its clock is behind is not known: {why}."),
            ),
        }
    }

    pub(super) fn may_promote(&self) -> Result<(), String> {
        if self.is_off {
            return Err("the guest switched itself off: there is nothing to go on from".to_owned());
        }
        if lock(&self.store).committed() == Epoch::NONE {
            return Err("no epoch of the guest is whole here".to_owned());
        }
        match &self.waiting {
            Waiting::Up(..) | Waiting::Found(_) => Ok(()),
            Waiting::Starting(_) => Err("the standby is starting: again in a moment".to_owned()),
            // Decided already, it is started when all else is ready.
            _ if self.unfinished.is_some() => Ok(()),
            Waiting::Failed { why, .. } => Err(format!("no standby waits: {why}")),
            Waiting::None => Err("the standby is starting: again in a moment".to_owned()),
        }
    }

    fn decide(&self, note: &str, by_hand: bool) -> Result<LineageId, NotPromoted> {
        let config = &self.config;
        let authority = config.authority.open(&config.guest, &config.host);
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|e| e.to_string())?;
        let stamp = Stamp {
            lineage: LineageId(id),
            unix_ms: clock::unix_ms(),
            note: note.to_owned(),
        };
        self.adopt(&*authority)?;
        let by = if by_hand { By::Operator } else { By::Daemon };
        let wish = Wish::Promote;
        match decide(&*authority, &config.guest, &config.host, wish, &stamp, by) {
            Ok(Decision::Done(record)) => Ok(record.lineage),
            Ok(Decision::Refused(refusal)) => Err(refusal.to_string().into()),
            Err(error) if error.needs_by_hand() => Err(NotPromoted {
                code: ErrorCode::NeedsByHand,
                why: error.to_string(),
            }),
            // It may have been decided all the same.
            Err(error) => match authority.read() {
                Ok(Some(own)) if own.is_alone(&config.host) => Ok(own.lineage),
                _ => Err(error.to_string().into()),
            },
        }
    }

    /// Where each host keeps a record of its own, the primary's came with the memory.
    fn adopt(&self, authority: &dyn Authority) -> Result<(), String> {
        let own = authority.read().map_err(|e| e.to_string())?;
        if own.is_some_and(|own| own.is_alone(&self.config.host)) {
            // Decided before; what was wrong then came later.
            return Ok(());
        }
        let told = told_record(&self.store)?;
        authority.adopt(&told).map_err(|e| e.to_string())
    }

    /// The epoch that disks and memory both have; the disks serve it from now on. Asked again, they name it again.
    fn promote_disks(&self, lineage: LineageId, reason: &str) -> Result<(Epoch, String), String> {
        let Some(disks) = &self.disks else {
            let store = lock(&self.store);
            let newest = store.whole().last().copied();
            return Ok((newest.unwrap_or(store.committed()), String::new()));
        };
        let authority = self
            .config
            .authority
            .open(&self.config.guest, &self.config.host);
        let record = authority.read().ok().flatten();
        let mut progress = Progress::of(&self.path, record.as_ref());
        match disks.promote(reason) {
            Ok(answer) => {
                let epoch = Epoch(answer.epoch);
                if progress.disks() != Some(epoch) {
                    progress = Progress::new(lineage);
                    progress.set_disks(epoch);
                    let written = progress.write(&self.path);
                    written.map_err(|e| format!("{}: {e}", self.path.display()))?;
                }
                Ok((epoch, answer.dropped_text()))
            }
            Err(refused) => match progress.disks() {
                // Started anew since, their daemon knows nothing of a promotion but that it is the primary.
                Some(epoch) if refused.is_primary => Ok((epoch, String::new())),
                _ => Err(format!("the disks: {}", refused.why)),
            },
        }
    }

    /// RAM and device state of exactly this epoch.
    fn ready(&self, epoch: Epoch) -> Result<Ready, String> {
        let mut store = lock(&self.store);
        let epoch = if planted(Plant::OlderEpoch) {
            store
                .commit(Epoch(epoch.0.saturating_sub(OLDER_BY)))
                .map_err(|e| e.to_string())?
        } else {
            epoch
        };
        store.ready(epoch).map_err(|e| e.to_string())
    }

    fn load(&mut self, ready: &Ready) -> Result<(), String> {
        let parts = unframed(&ready.state.bytes)?;
        let generation = lock(&self.store).generation();
        match &self.waiting {
            Waiting::Up(of, _) if *of == generation => {}
            Waiting::Starting(_) => return Err("the standby is starting".to_owned()),
            // One that waits with the RAM of the copy before would go on from that.
            _ => {
                let place = self.standby_place(&ready.ram)?;
                self.waiting = Waiting::None;
                end_leftover(&place.monitor)?;
                let standby = Standby::start(&self.spec, &place, Limits::default());
                let standby = standby.map_err(|e| e.to_string())?;
                self.waiting = Waiting::Up(generation, Box::new(standby));
            }
        }
        let Waiting::Up(_, standby) = &mut self.waiting else {
            unreachable!("it was just looked at");
        };
        standby
            .load(parts.constant, parts.state)
            .map_err(|e| e.to_string())?;
        Ok(())
    }

    fn let_run(&mut self, lineage: LineageId) -> Result<(), String> {
        if let Some(output) = &mut self.output {
            // It never held anything here; who writes the guest is said all the same.
            if let Err(why) = output.open(lineage) {
                tracing::warn!("netbuf was not told who writes the guest: {why}");
            }
        }
        let done = match &mut self.waiting {
            Waiting::Up(_, standby) => standby.cont().map(drop),
            Waiting::Found(qemu) => qemu.cont_anyway(),
            _ => Err(Error::Gone("nobody has its memory".to_owned())),
        };
        match done {
            Ok(()) => Ok(()),
            Err(error @ Error::Gone(_)) => {
                self.guest_ended(&error.to_string());
                Err(error.to_string())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Says where the guest is from now on. A network that was not told learns it when the guest speaks.
    fn tell_the_network(&mut self) -> Result<(), String> {
        let stations: Vec<NetStation> = self.config.output.stations.clone();
        let Some(output) = &mut self.output else {
            return Ok(());
        };
        output.attach()?;
        if stations.is_empty() {
            return Ok(());
        }
        output.announce(stations)
    }
}
