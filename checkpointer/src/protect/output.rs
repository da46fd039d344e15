//! What holds the guest's output, by netbuf's control socket.

use blkback_proto::ctl::{
    Answer, NetAnnounceRequest, NetAttachRequest, NetDetachRequest, NetDone, NetEpochRequest,
    NetHoldRequest, NetLineageRequest, NetState, NetStation, NetStatusRequest, Request,
};
use blkback_proto::ids::{Epoch, LineageId};
use blockrep_host::ctl::{Client, ClientError};
use std::path::PathBuf;
use std::time::Duration;

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
}

/// The connection to netbuf, for one guest. Every wait has a limit.
#[derive(Debug)]
pub struct Output {
    control: PathBuf,
    guest: String,
    interfaces: Vec<Interface>,
    limit: Duration,
    client: Option<Client>,
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

    /// # Errors
    /// netbuf's reason; or the guest is unknown there.
    pub fn standing(&mut self) -> Result<OutputStanding, String> {
        let guest = Some(self.guest.clone());
        let status = match self.ask(&Request::NetStatus(NetStatusRequest { guest })) {
            Ok(Answer::NetStatus(status)) => status,
            Ok(_) => return Err("netbuf answered something else".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        let guest = status.guests.iter().find(|guest| guest.guest == self.guest);
        let guest = guest.ok_or_else(|| format!("netbuf does not know {}", self.guest))?;
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
        for interface in self.interfaces.clone() {
            self.done(&Request::NetDetach(NetDetachRequest {
                guest: self.guest.clone(),
                interface: interface.name,
            }))?;
        }
        self.attach()?;
        self.done(&cut)
    }

    /// Lets everything up to the end of the epoch go.
    ///
    /// # Errors
    /// netbuf's reason.
    pub fn release(&mut self, epoch: Epoch) -> Result<NetDone, String> {
        let release = self.epoch(epoch, Request::NetRelease);
        self.done(&release)
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
            reason: reason.to_owned(),
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
