//! The guest goes on here: no more acknowledgements, the authority's word, disks and memory of one epoch, device
//! state, output.
//!
//! The network is told before the guest runs: frames that come for it meanwhile wait at its device, instead of
//! going where nobody is.

use super::{Keeper, Waiting, lock};
use crate::authority::{Authority, By, Decision, Record, Stamp, Wish, decide};
use crate::memory::store::Ready;
use crate::plant::{Plant, planted};
use crate::protect::{Moment, unframed};
use blkback_proto::ctl::{
    EventKind, GuestPromoteAnswer, GuestProtection, NetStation, PromoteSteps,
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

impl Keeper {
    /// Everything, in order. Nothing is acknowledged from its beginning on; where it fails before the authority has
    /// decided, sessions are taken in again.
    ///
    /// # Errors
    /// What failed, one line.
    pub(super) fn promote(
        &mut self,
        reason: &str,
        by_hand: bool,
    ) -> Result<GuestPromoteAnswer, String> {
        let began = Instant::now();
        self.may_promote()?;
        self.change(GuestProtection::Promoting, reason.to_owned());
        self.sessions.close();
        self.link = None;
        let lineage = match self.decide(reason, by_hand) {
            Ok(lineage) => lineage,
            Err(why) => {
                self.sessions.reopen();
                return Err(why);
            }
        };
        let decide_us = us(began);
        let step = Instant::now();
        let told = self.tell_the_network();
        let announce_us = us(step);
        let step = Instant::now();
        let (epoch, note) = self.promote_disks(reason)?;
        let disk_us = us(step);
        let step = Instant::now();
        let ready = self.ready(epoch)?;
        let memory_us = us(step);
        let (moment, load_us, cont_us) = self.load(&ready.state.bytes, lineage)?;
        let (clock_behind_ms, clock_words) = moment.behind(clock::unix_ms());
        lock(&self.store)
            .set_promoted()
            .map_err(|e| e.to_string())?;
        let answer = GuestPromoteAnswer {
            already: false,
            epoch: epoch.0,
            lineage: lineage.to_string(),
            duration_us: us(began),
            steps: PromoteSteps {
                decide_us,
                disk_us,
                memory_us,
                load_us,
                cont_us,
                announce_us,
            },
            clock_behind_ms,
            note: [note, told.err().unwrap_or_default(), clock_words]
                .join(" ")
                .trim()
                .to_owned(),
        };
        self.promoted = Some(answer.clone());
        let text = format!(
            "goes on from epoch {epoch}, {} us after it was decided on; {reason}",
            answer.duration_us
        );
        let event = NewEvent::new(&self.config.guest, EventKind::GuestPromoted, &text, "");
        let mut event = event.detail("epoch", epoch).detail("lineage", lineage);
        if let Some(ms) = clock_behind_ms {
            event = event.detail("clock_behind_ms", ms);
        }
        self.log.publish(event);
        self.change(GuestProtection::Promoted, text);
        Ok(answer)
    }

    fn may_promote(&self) -> Result<(), String> {
        if self.is_off {
            return Err("the guest switched itself off: there is nothing to go on from".to_owned());
        }
        if lock(&self.store).committed() == Epoch::NONE {
            return Err("no epoch of the guest is whole here".to_owned());
        }
        match &self.waiting {
            Waiting::Up(..) => Ok(()),
            Waiting::Failed { why, .. } => Err(format!("no standby waits: {why}")),
            Waiting::None | Waiting::Starting(_) => {
                Err("the standby is starting: again in a moment".to_owned())
            }
        }
    }

    fn decide(&self, note: &str, by_hand: bool) -> Result<LineageId, String> {
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
            Ok(Decision::Refused(refusal)) => Err(refusal.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Where each host keeps a record of its own, the primary's came with the memory.
    fn adopt(&self, authority: &dyn Authority) -> Result<(), String> {
        let own = authority.read().map_err(|e| e.to_string())?;
        if own.is_some_and(|own| own.is_alone(&self.config.host)) {
            // Decided before; what was wrong then came later.
            return Ok(());
        }
        let state = lock(&self.store)
            .device_state()
            .map_err(|e| e.to_string())?;
        let record = unframed(&state.bytes)?.record;
        let told: Record = serde_json::from_slice(record)
            .map_err(|e| format!("the authority's record that came with the memory: {e}"))?;
        authority.adopt(&told).map_err(|e| e.to_string())
    }

    /// The epoch that disks and memory both have; the disks serve it from now on.
    fn promote_disks(&self, reason: &str) -> Result<(Epoch, String), String> {
        match &self.disks {
            Some(disks) => {
                let answer = disks.promote(reason)?;
                Ok((Epoch(answer.epoch), answer.dropped_text()))
            }
            None => {
                let store = lock(&self.store);
                let newest = store.whole().last().copied();
                Ok((newest.unwrap_or(store.committed()), String::new()))
            }
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

    fn load(&mut self, state: &[u8], lineage: LineageId) -> Result<(Moment, u64, u64), String> {
        let parts = unframed(state)?;
        let Waiting::Up(_, standby) = &mut self.waiting else {
            return Err("no standby waits".to_owned());
        };
        let step = Instant::now();
        standby
            .load(parts.constant, parts.state)
            .map_err(|e| e.to_string())?;
        let load_us = us(step);
        let step = Instant::now();
        if let Some(output) = &mut self.output {
            // It never held anything here; who writes the guest is said all the same.
            if let Err(why) = output.open(lineage) {
                tracing::warn!("netbuf was not told who writes the guest: {why}");
            }
        }
        standby.cont().map_err(|e| e.to_string())?;
        Ok((parts.moment, load_us, us(step)))
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
