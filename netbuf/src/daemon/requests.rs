//! Requests of clients: bounds are checked, then one hold is asked.

use super::announcer::{self, Announcement};
use super::guests::Guests;
use crate::gate::{Epoch, Lineage};
use crate::hold::{Hold, HoldError};
use blkback_proto::ctl::{
    Answer, DaemonStatus, ErrorCode, ErrorReply, EventKind, NET_ADDRESSES_MAX, NetAnnounceRequest,
    NetDetachRequest, NetDone, NetGuest, NetLineageRequest, NetStation, NetStatus, Request,
    Response, one_line,
};
use blockrep_host::ctl::{NewEvent, ReplyHandle, elsewhere};

const AT_LIMIT: &str = "the newest frames are dropped and counted, as on a full wire";

type Done = Result<NetDone, ErrorReply>;

fn refused(text: impl AsRef<str>) -> ErrorReply {
    ErrorReply::new(ErrorCode::Refused, text)
}

fn reply_of(error: &HoldError) -> ErrorReply {
    let code = match error {
        HoldError::BadName { .. } => ErrorCode::BadRequest,
        error if error.is_refusal() => ErrorCode::Refused,
        _ => ErrorCode::IoError,
    };
    ErrorReply::new(code, error.to_string())
}

fn lineage(request: &NetLineageRequest) -> Result<Lineage, ErrorReply> {
    Lineage::parse(&request.lineage).ok_or_else(|| {
        let text = "a lineage is 32 hexadecimal digits; type it as the authority shows it";
        ErrorReply::new(ErrorCode::BadRequest, text)
    })
}

impl Guests {
    pub(super) fn answer(&mut self, request: &Request, reply: ReplyHandle) {
        if let Request::NetStatus(asked) = request {
            let status = self.status(asked.guest.as_deref());
            reply.send(match status {
                Ok(status) => Response::Ok(Answer::NetStatus(Box::new(status))),
                Err(error) => Response::Error(error),
            });
            return;
        }
        reply.send(match self.carry_out(request) {
            Ok(answer) => Response::Ok(answer),
            Err(error) => Response::Error(error),
        });
    }

    fn carry_out(&mut self, request: &Request) -> Result<Answer, ErrorReply> {
        match request {
            Request::NetAttach(asked) => {
                let bridge = asked.bridge.as_deref();
                let done = self.attach(&asked.guest, &asked.interface, bridge);
                done.map(Answer::NetAttach)
                    .map_err(|error| reply_of(&error))
            }
            Request::NetDetach(asked) => self.detach(asked).map(Answer::NetDetach),
            Request::NetCut(asked) => {
                let done = self.of(&asked.guest, |hold| hold.cut(Epoch(asked.epoch)));
                done.map(Answer::NetCut)
            }
            Request::NetRelease(asked) => {
                let done = self.of(&asked.guest, |hold| hold.release(Epoch(asked.epoch)));
                done.map(Answer::NetRelease)
            }
            Request::NetHold(asked) => {
                let why: String = match asked.reason.as_str() {
                    "" => "asked for by a client".to_owned(),
                    // The status of all guests has to fit one answer.
                    reason => one_line(reason).chars().take(200).collect(),
                };
                self.announcer.stop(&asked.guest, None);
                let done = self.of(&asked.guest, |hold| hold.hold(&why));
                done.map(Answer::NetHold)
            }
            Request::NetAuthority(asked) => {
                let id = lineage(asked)?;
                let done = self.of(&asked.guest, |hold| hold.authority(id));
                done.map(Answer::NetAuthority)
            }
            Request::NetOpen(asked) => {
                let id = lineage(asked)?;
                let done = self.of(&asked.guest, |hold| hold.open(id));
                done.map(Answer::NetOpen)
            }
            Request::NetResync(asked) => {
                let (epoch, committed) = (Epoch(asked.epoch), asked.committed.map(Epoch));
                let done = self.of(&asked.guest, |hold| {
                    hold.resync(epoch, asked.paused, committed)
                });
                done.map(Answer::NetResync)
            }
            Request::NetAnnounce(asked) => self.announce(asked).map(Answer::NetAnnounce),
            other => Err(ErrorReply::new(ErrorCode::Unsupported, elsewhere(other))),
        }
    }

    fn known(&mut self, guest: &str) -> Result<&mut Hold, ErrorReply> {
        let names: Vec<&str> = self.holds.keys().take(8).map(String::as_str).collect();
        let text = match names.as_slice() {
            [] => format!(
                "guest {guest:.40?} has no interface here; type netbuf attach GUEST INTERFACE"
            ),
            names => format!(
                "guest {guest:.40?} has no interface here; there is {}",
                names.join(", ")
            ),
        };
        self.holds.get_mut(guest).ok_or_else(|| refused(text))
    }

    /// One request to one hold, and the event if the state is another one after it.
    fn of(
        &mut self,
        guest: &str,
        ask: impl FnOnce(&mut Hold) -> Result<NetDone, HoldError>,
    ) -> Done {
        let hold = self.known(guest)?;
        let before = hold.standing();
        let done = ask(hold);
        let after = hold.standing();
        self.state_event(guest, &before, &after);
        done.map_err(|error| reply_of(&error))
    }

    fn detach(&mut self, asked: &NetDetachRequest) -> Done {
        let (guest, interface) = (&asked.guest, &asked.interface);
        let index = self.known(guest)?.index_of(interface);
        let done = self.of(guest, |hold| hold.detach(interface));
        if let Some(index) = index {
            self.announcer.stop(guest, Some(index));
            let why = match &done {
                Ok(done) if done.note.is_empty() => "its output passes",
                Ok(_) => "its output is dropped",
                Err(_) => "not everything was removed",
            };
            self.interface_event(guest, interface, "detached", why, "");
        }
        let hold = self.known(guest)?;
        // Asked of a guest without interfaces, it is the guest that is let go.
        if hold.is_empty() && (hold.standing().state == "open" || index.is_none()) {
            self.holds.remove(guest);
        }
        done
    }

    fn announce(&mut self, asked: &NetAnnounceRequest) -> Done {
        let guest = asked.guest.as_str();
        let many: usize = asked.stations.iter().map(|of| 1 + of.addresses.len()).sum();
        if asked.stations.is_empty() || many > NET_ADDRESSES_MAX {
            let text =
                format!("1 to {NET_ADDRESSES_MAX} addresses are announced at a time, not {many}");
            return Err(ErrorReply::new(ErrorCode::BadRequest, text));
        }
        let standing = self.known(guest)?.standing();
        if !matches!(standing.state, "open" | "holding" | "cut") {
            let text = format!(
                "{guest}: output is {}: whoever announces it takes it from another host; {}",
                standing.state, standing.next
            );
            return Err(refused(text));
        }
        let mut all = Vec::new();
        for station in &asked.stations {
            all.push(self.station(guest, station)?);
        }
        self.announcer.stop(guest, None);
        let frames: usize = all.iter().map(|what| what.frames.len()).sum();
        for what in all {
            self.announcer.begin(what).map_err(refused)?;
        }
        let reason = format!("{frames} frames, {} times", announcer::AT_MS.len());
        let event = NewEvent::new(guest, EventKind::NetAnnounced, reason, "");
        self.log.publish(event.asked_for());
        self.of(guest, |hold| Ok(hold.done(false, String::new())))
    }

    /// What is to be said of a station; its bridge looks for it at the right port from now on.
    fn station(&mut self, guest: &str, station: &NetStation) -> Result<Announcement, ErrorReply> {
        let bad = |text: String| ErrorReply::new(ErrorCode::BadRequest, text);
        let mac = announcer::parse_mac(&station.mac).map_err(bad)?;
        let frames = announcer::frames(mac, &station.addresses, station.vlan).map_err(bad)?;
        let hold = self.known(guest)?;
        let index = match (&station.interface, hold.interfaces().as_slice()) {
            (Some(name), _) => hold.index_of(name),
            (None, [(index, _)]) => Some(*index),
            (None, _) => None,
        };
        let index = index.ok_or_else(|| {
            refused(format!(
                "{guest}: name one of its interfaces with --interface"
            ))
        })?;
        let said = hold.announced_on(index).map_err(|error| reply_of(&error))?;
        let said = said.ok_or_else(|| {
            refused(format!(
                "{guest}: its interface is a port of no bridge; nothing can be announced there"
            ))
        })?;
        if let Some(port) = said.port {
            let moved = hold.station_is_behind(port, mac.0);
            moved.map_err(|error| reply_of(&error))?;
        }
        Ok(Announcement {
            guest: guest.to_owned(),
            interface: index,
            on: said.on,
            frames,
        })
    }

    fn status(&mut self, only: Option<&str>) -> Result<NetStatus, ErrorReply> {
        if let Some(guest) = only {
            self.known(guest)?;
        }
        let wanted = self
            .holds
            .iter_mut()
            .filter(|(name, _)| only.is_none_or(|o| o == *name));
        let mut guests: Vec<NetGuest> = wanted.map(|(_, hold)| hold.status()).collect();
        for guest in &mut guests {
            guest.announcements_left = self.announcer.rounds_left(&guest.guest);
        }
        Ok(NetStatus {
            daemon: DaemonStatus {
                name: "netbuf".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_s: self.begun.elapsed().as_secs(),
            },
            mechanism: self.chosen.mechanism.word(),
            why: self.chosen.why.clone(),
            limit_bytes: self.limit_bytes.into(),
            at_limit: AT_LIMIT.to_owned(),
            guests,
        })
    }
}
