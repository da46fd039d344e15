//! What holds the guest's output, by netbuf's control socket.

use blkback_proto::ctl::{
    Answer, NetAnnounceRequest, NetAttachRequest, NetDetachRequest, NetDone, NetEpochRequest,
    NetGuest, NetHoldRequest, NetLineageRequest, NetState, NetStation, NetStatusRequest, Request,
};
use blkback_proto::ids::{Epoch, LineageId};
use blockrep_host::ctl::{Client, ClientError};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

/// Before the reason of a hold: whose word it is.
const OUR_WORD: &str = "checkpointer: ";
/// How often a first cut is tried beside a guest that speaks, and the rest between two.
const HOLD_TRIES: u32 = 20;
const HOLD_REST: Duration = Duration::from_millis(2);
const NAME: &str = concat!("checkpointer ", env!("CARGO_PKG_VERSION"));

/// An interface of the guest on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name of the device.
    pub name: String,
    /// The bridge of a relay, where it is not the one the device is a port of.
    pub bridge: Option<String>,
}

/// How the output stands, for the sequence and for status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputStanding {
    /// netbuf's word for the state.
    pub state: String,
    /// `plug` or `relay`.
    pub mechanism: String,
    /// Cuts that may be unreleased.
    pub cuts_max: usize,
    /// The last one, where there is one.
    pub unreleased: Option<Epoch>,
    /// The last that there ever was, as far as netbuf knows.
    pub last_cut: Option<Epoch>,
    /// It was open, and is held from now on.
    pub was_open: bool,
}

/// The connection to netbuf, for one guest. Every wait has a limit.
#[derive(Debug)]
pub struct Output {
    control: PathBuf,
    guest: String,
    interfaces: Vec<Interface>,
    limit: Duration,
    client: Option<Client>,
    cut: CutFrames,
}

/// Frames that belong to cuts that were not released.
#[derive(Debug, Default)]
struct CutFrames(VecDeque<(Epoch, u64)>);

impl CutFrames {
    fn sum(&self) -> u64 {
        self.0.iter().map(|(_, frames)| frames).sum()
    }

    /// All that is held now is of a cut.
    fn cut(&mut self, epoch: Epoch, held: u64) {
        let before = self.sum();
        self.0.push_back((epoch, held.saturating_sub(before)));
    }

    fn released(&mut self, up_to: Epoch) {
        self.0.retain(|(epoch, _)| *epoch > up_to);
    }
}

impl Output {
    #[must_use]
    pub fn new(
        control: PathBuf,
        guest: String,
        interfaces: Vec<Interface>,
        limit: Duration,
    ) -> Self {
        Self {
            control,
            guest,
            interfaces,
            limit,
            client: None,
            cut: CutFrames::default(),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Answer, ClientError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.control, NAME, self.limit)?,
        };
        let answer = client.request(request, self.limit);
        if matches!(answer, Ok(_) | Err(ClientError::Daemon(_))) {
            self.client = Some(client);
        }
        answer
    }

    fn done(&mut self, request: &Request) -> Result<NetDone, String> {
        match self.ask(request) {
            Ok(
                Answer::NetAttach(done)
                | Answer::NetDetach(done)
                | Answer::NetCut(done)
                | Answer::NetRelease(done)
                | Answer::NetHold(done)
                | Answer::NetAuthority(done)
                | Answer::NetOpen(done)
                | Answer::NetAnnounce(done),
            ) => Ok(done),
            Ok(_) => Err("netbuf answered something else".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Attaches every interface; what is attached already stays as it is.
    ///
    /// # Errors
    /// netbuf's reason, one line.
    pub fn attach(&mut self) -> Result<OutputStanding, String> {
        for interface in self.interfaces.clone() {
            self.done(&Request::NetAttach(NetAttachRequest {
                guest: self.guest.clone(),
                interface: interface.name,
                bridge: interface.bridge,
            }))?;
        }
        self.standing()
    }

    /// The same, and from then on it is held, whatever it was: what is open is cut, at a number that no checkpoint has had yet. The
    /// first that the backup has lets that cut go.
    ///
    /// # Errors
    /// netbuf's reason, one line; it may be open yet.
    pub fn attach_held(&mut self) -> Result<OutputStanding, String> {
        let found = self.attach()?;
        if found.state != "open" {
            return Ok(found);
        }
        let cut = Epoch(found.last_cut.map_or(1, |last| last.0 + 1));
        let mut tries = HOLD_TRIES;
        // Frames of a guest that runs are on their way: the first cut waits for a moment without any.
        while let Err(why) = self.cut(cut) {
            tries -= 1;
            if tries == 0 {
                return Err(why);
            }
            std::thread::sleep(HOLD_REST);
        }
        let held = self.standing()?;
        Ok(OutputStanding {
            was_open: true,
            ..held
        })
    }

    /// The guest is off, and its end is known as this epoch: all that it said may leave.
    ///
    /// # Errors
    /// netbuf's reason, one line.
    pub fn finish(&mut self, epoch: Epoch, lineage: LineageId) -> Result<(), String> {
        let guest = self.status()?;
        match guest.state {
            NetState::Open => return Ok(()),
            // Of whatever epochs it is: none is behind the end. So is what was held because the guest seemed lost.
            NetState::Adopted => return self.open(lineage).map(drop),
            NetState::Held if guest.reason.contains(OUR_WORD) => {
                return self.open(lineage).map(drop);
            }
            _ => {}
        }
        let found = self.standing()?;
        if let Some(before) = found.unreleased {
            self.release(before)?;
        }
        if found.last_cut < Some(epoch) {
            self.cut(epoch)?;
            self.release(epoch)?;
        }
        Ok(())
    }

    fn status(&mut self) -> Result<NetGuest, String> {
        let guest = Some(self.guest.clone());
        let status = match self.ask(&Request::NetStatus(NetStatusRequest { guest })) {
            Ok(Answer::NetStatus(status)) => status,
            Ok(_) => return Err("netbuf answered something else".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        let guest = (status.guests.into_iter()).find(|guest| guest.guest == self.guest);
        guest.ok_or_else(|| format!("netbuf does not know {}", self.guest))
    }

    /// Whether the guest has said something since the last cut. A frame that was released and has not left yet may be taken
    /// for one; `false` where netbuf cannot tell.
    ///
    /// # Errors
    /// netbuf's reason; or the guest is unknown there.
    pub fn waits(&mut self) -> Result<bool, String> {
        let guest = self.status()?;
        let held = guest.interfaces.iter().map(|one| one.held_frames);
        let held: Option<u64> = held.sum();
        Ok(held.is_some_and(|held| held > self.cut.sum()))
    }

    /// # Errors
    /// netbuf's reason; or the guest is unknown there.
    pub fn standing(&mut self) -> Result<OutputStanding, String> {
        let guest = self.status()?;
        if matches!(guest.state, NetState::Failed | NetState::Held) {
            return Err(format!(
                "its output is {}: {}; {}",
                guest.state, guest.reason, guest.next
            ));
        }
        Ok(OutputStanding {
            state: guest.state.to_string(),
            mechanism: guest.mechanism.to_string(),
            cuts_max: usize::try_from(guest.epochs_in_flight_max).unwrap_or(1),
            unreleased: (guest.epochs_in_flight != 0)
                .then_some(guest.last_cut)
                .flatten()
                .map(Epoch),
            last_cut: guest.last_cut.map(Epoch),
            was_open: false,
        })
    }

    /// Ends the epoch's output; the guest is paused.
    ///
    /// A daemon that was killed holds what it found, of unknown epochs: the interfaces are taken anew, and what
    /// is held of them is lost, as on a wire. No frame leaves between: the guest says nothing now.
    ///
    /// # Errors
    /// netbuf's reason.
    pub fn cut(&mut self, epoch: Epoch) -> Result<NetDone, String> {
        let done = self.cut_or_begin_anew(epoch)?;
        self.cut.cut(epoch, done.held_frames.unwrap_or(0));
        Ok(done)
    }

    fn cut_or_begin_anew(&mut self, epoch: Epoch) -> Result<NetDone, String> {
        let cut = self.epoch(epoch, Request::NetCut);
        let refused = match self.done(&cut) {
            Ok(done) => return Ok(done),
            Err(refused) => refused,
        };
        if !self
            .standing()
            .is_ok_and(|standing| standing.state == "adopted")
        {
            return Err(refused);
        }
        self.begin_anew()?;
        self.done(&cut)
    }

    /// What is held is lost, as on a wire; the guest says nothing now.
    fn begin_anew(&mut self) -> Result<OutputStanding, String> {
        for interface in self.interfaces.clone() {
            self.done(&Request::NetDetach(NetDetachRequest {
                guest: self.guest.clone(),
                interface: interface.name,
            }))?;
        }
        self.cut = CutFrames::default();
        self.attach()
    }

    /// As [`Output::attach_held`], of a guest that does not run yet: that the one before was held on this program's word, at its
    /// end, does not concern it.
    ///
    /// # Errors
    /// netbuf's reason, one line; or somebody else's word is that it is held.
    pub fn attach_before(&mut self) -> Result<OutputStanding, String> {
        let is_of_before =
            |guest: &NetGuest| guest.state == NetState::Held && guest.reason.contains(OUR_WORD);
        if self.status().is_ok_and(|guest| is_of_before(&guest)) {
            self.begin_anew()?;
        }
        self.attach_held()
    }

    /// Lets everything up to the end of the epoch go.
    ///
    /// # Errors
    /// netbuf's reason.
    pub fn release(&mut self, epoch: Epoch) -> Result<NetDone, String> {
        let release = self.epoch(epoch, Request::NetRelease);
        let done = self.done(&release)?;
        self.cut.released(epoch);
        Ok(done)
    }

    fn epoch(&self, epoch: Epoch, request: fn(NetEpochRequest) -> Request) -> Request {
        request(NetEpochRequest {
            guest: self.guest.clone(),
            epoch: epoch.0,
        })
    }

    /// Nothing more leaves.
    ///
    /// # Errors
    /// netbuf's reason.
    pub fn hold(&mut self, reason: &str) -> Result<NetDone, String> {
        self.done(&Request::NetHold(NetHoldRequest {
            guest: self.guest.clone(),
            reason: format!("{OUR_WORD}{reason}"),
        }))
    }

    /// Everything leaves: this host alone writes the guest, as the authority said.
    ///
    /// # Errors
    /// netbuf's reason.
    pub fn open(&mut self, lineage: LineageId) -> Result<NetDone, String> {
        let named = || NetLineageRequest {
            guest: self.guest.clone(),
            lineage: lineage.to_string(),
        };
        let (authority, open) = (named(), named());
        self.done(&Request::NetAuthority(authority))?;
        self.done(&Request::NetOpen(open))
    }

    /// Tells the network where the guest is.
    ///
    /// # Errors
    /// netbuf's reason.
    pub fn announce(&mut self, stations: Vec<NetStation>) -> Result<(), String> {
        let guest = self.guest.clone();
        self.done(&Request::NetAnnounce(NetAnnounceRequest {
            guest,
            stations,
        }))
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    //! Counted wrongly, output that waits for its release is taken for output that waits for a cut, and the guest is paused for
    //! nothing as often as it may be; or output that waits is never seen.
    use super::*;

    #[test]
    fn what_was_cut_is_told_from_what_came_since() {
        let mut cut = CutFrames::default();
        assert_eq!(cut.sum(), 0);
        cut.cut(Epoch(1), 3);
        // Two more came.
        cut.cut(Epoch(2), 5);
        assert_eq!(cut.sum(), 5);
        cut.released(Epoch(1));
        assert_eq!(cut.sum(), 2);
        cut.cut(Epoch(3), 2);
        assert_eq!(cut.sum(), 2, "nothing came");
        cut.released(Epoch(3));
        assert_eq!(cut.sum(), 0);
    }
}
