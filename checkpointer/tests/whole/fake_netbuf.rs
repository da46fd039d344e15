//! A netbuf without a network. At each release, before it answers, it asks the standby whether that has the epoch:
//! else what the guest said would leave too early.
//!
//! It names its last cut as unreleased to each new checkpointer, so that none gives a number twice.

use blkback_proto::ctl::{
    Answer, DaemonStatus, ErrorCode, GuestStatusRequest, NetDone, NetGuest, NetMechanism, NetState,
    NetStatus, Request,
};
use blockrep_host::ctl::{
    Client, ControlSocket, EventLog, Handler, Limits, PeerCred, ReplyHandle, Server, ServerConfig,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Cuts that may be unreleased.
const CUTS_MAX: usize = 4;
/// A checkpointer waits for longer.
const ASK: Duration = Duration::from_millis(250);

/// The standby acknowledges an epoch, and a moment later tells of it.
const TELLS: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
struct Known {
    /// Cut and not released.
    cuts: Vec<u64>,
    last: Option<u64>,
    releases: u64,
    /// What must not be.
    wrong: Vec<String>,
}

/// See the module.
pub(crate) struct FakeNetbuf {
    known: Arc<Mutex<Known>>,
    _server: Server,
}

struct Mailbox {
    known: Arc<Mutex<Known>>,
    /// The standby's control socket.
    standby: PathBuf,
}

impl Mailbox {
    fn release(&self, known: &mut Known, epoch: u64) -> Result<(), String> {
        let until = Instant::now() + TELLS;
        let mut whole = self.whole()?;
        // The checkpointer waits for us: no other epoch is cut meanwhile.
        while whole < Some(epoch) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
            whole = self.whole()?;
        }
        if whole < Some(epoch) {
            let text = format!("epoch {epoch} left, and the standby has {whole:?}");
            known.wrong.push(text);
        }
        known.cuts.retain(|cut| *cut > epoch);
        known.releases += 1;
        Ok(())
    }

    /// What the standby has, and the disks have that there are not.
    fn whole(&self) -> Result<Option<u64>, String> {
        let mut client =
            Client::connect(&self.standby, "test", ASK).map_err(|error| error.to_string())?;
        match client.request(&Request::GuestStatus(GuestStatusRequest {}), ASK) {
            Ok(Answer::GuestStatus(report)) => Ok(report.epochs.whole),
            other => Err(format!("{other:?}")),
        }
    }
}

fn state(known: &Known) -> NetState {
    match known.cuts.is_empty() {
        true => NetState::Holding,
        false => NetState::Cut,
    }
}

fn done(known: &Known) -> NetDone {
    NetDone {
        already: false,
        state: state(known),
        last_cut: known.last,
        epochs_in_flight: known.cuts.len() as u64,
        held_frames: None,
        held_bytes: None,
        dropped_frames: 0,
        alarm: false,
        limit_reached: false,
        note: String::new(),
    }
}

fn status(known: &Known, guest: Option<String>) -> NetStatus {
    NetStatus {
        daemon: DaemonStatus {
            name: "netbuf of a test".to_owned(),
            version: "0".to_owned(),
            pid: 0,
            uptime_s: 0,
        },
        mechanism: NetMechanism::Relay,
        why: String::new(),
        limit_bytes: 0,
        at_limit: String::new(),
        guests: vec![NetGuest {
            guest: guest.unwrap_or_default(),
            mechanism: NetMechanism::Relay,
            state: state(known),
            reason: String::new(),
            since_unix_ms: 0,
            next: String::new(),
            last_cut: known.last,
            epochs_in_flight: u64::from(known.last.is_some()),
            epochs_in_flight_max: CUTS_MAX as u64,
            lineage: None,
            alarm: false,
            announcements_left: 0,
            interfaces: Vec::new(),
        }],
    }
}

impl Handler for Mailbox {
    fn handle(&mut self, request: Request, _: PeerCred, reply: ReplyHandle) {
        let mut known = self.known.lock().expect("nobody panics");
        match request {
            Request::NetAttach(_) => reply.ok(Answer::NetAttach(done(&known))),
            Request::NetStatus(asked) => {
                reply.ok(Answer::NetStatus(Box::new(status(&known, asked.guest))));
            }
            Request::NetCut(cut) => {
                if known.last >= Some(cut.epoch) {
                    let text = format!("a cut of {} after {:?}", cut.epoch, known.last);
                    known.wrong.push(text);
                }
                known.cuts.push(cut.epoch);
                known.last = Some(cut.epoch);
                reply.ok(Answer::NetCut(done(&known)));
            }
            Request::NetRelease(release) => match self.release(&mut known, release.epoch) {
                Ok(()) => reply.ok(Answer::NetRelease(done(&known))),
                // The standby is busy; it is released with the next.
                Err(why) => reply.error(ErrorCode::IoError, &why),
            },
            Request::NetHold(_) => reply.ok(Answer::NetHold(done(&known))),
            other => {
                known.wrong.push(format!("nobody may ask for {other:?}"));
                reply.error(ErrorCode::Unsupported, "not here");
            }
        }
    }
}

impl FakeNetbuf {
    /// For the stage in `dir`.
    pub(crate) fn start(dir: &Path) -> Self {
        let path = dir.join("netbuf.sock");
        let known = Arc::new(Mutex::new(Known::default()));
        let socket = ControlSocket::claim(&path).expect("a socket");
        let config = ServerConfig {
            path,
            daemon: "netbuf of a test".to_owned(),
            limits: Limits::default(),
        };
        let log = EventLog::new().expect("random numbers");
        let mailbox = Mailbox {
            known: Arc::clone(&known),
            standby: dir.join("b/vm1.standby.sock"),
        };
        let server = Server::start_on(socket, config, log, mailbox).expect("a server");
        Self {
            known,
            _server: server,
        }
    }

    /// Releases so far; none of them was too early.
    pub(crate) fn released(&self) -> u64 {
        let known = self.known.lock().expect("nobody panics");
        assert!(known.wrong.is_empty(), "{:?}", known.wrong);
        known.releases
    }
}
