//! A netbuf that has no frames: the states of one guest's output, and whether what was done to it might be done. It asks the
//! authority's file and the guest's memory for itself.

use super::guest::Memory;
use blkback_proto::ctl::{
    Answer, DaemonStatus, ErrorCode, NetDone, NetGuest, NetInterface, NetMechanism, NetState,
    NetStatus, Request,
};
use blockrep_host::ctl::{
    ControlSocket, EventLog, Handler, Limits, PeerCred, ReplyHandle, Server, ServerConfig,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What became of the output, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    /// Held from now on: it was open until the guest had counted to this.
    Begun { counted: u32 },
    /// Up to this epoch it left.
    Released(u64),
    /// All of it leaves; these hosts are in sync.
    Opened { in_sync: String },
}

#[derive(Debug)]
struct Known {
    dir: PathBuf,
    is_attached: bool,
    state: NetState,
    last_cut: Option<u64>,
    /// Cut and not released; a plug has one.
    cut: Option<u64>,
    reason: String,
    done: Vec<Done>,
}

/// See the module.
pub(crate) struct FakeOutput {
    known: Arc<Mutex<Known>>,
    _server: Server,
}

impl Known {
    fn done(&self) -> NetDone {
        NetDone {
            already: false,
            state: self.state.clone(),
            last_cut: self.last_cut,
            epochs_in_flight: u64::from(self.cut.is_some()),
            held_frames: Some(0),
            held_bytes: Some(0),
            dropped_frames: 0,
            alarm: false,
            limit_reached: false,
            note: String::new(),
        }
    }

    fn guests(&self) -> Vec<NetGuest> {
        let interface = NetInterface {
            interface: "tap0".to_owned(),
            index: 1,
            bridge: None,
            by: "a test".to_owned(),
            held_frames: Some(0),
            held_bytes: Some(0),
            oldest_held_ms: None,
            dropped_frames: Some(0),
            limit_bytes: 1 << 20,
            alarm: false,
            failed: None,
        };
        let guest = NetGuest {
            guest: "vm1".to_owned(),
            mechanism: NetMechanism::Plug,
            state: self.state.clone(),
            reason: self.reason.clone(),
            since_unix_ms: 0,
            next: "nothing".to_owned(),
            last_cut: self.last_cut,
            epochs_in_flight: u64::from(self.cut.is_some()),
            epochs_in_flight_max: 1,
            lineage: None,
            alarm: false,
            announcements_left: 0,
            interfaces: vec![interface],
        };
        self.is_attached.then_some(guest).into_iter().collect()
    }

    /// How far the guest is that runs now.
    fn counted(&self) -> u32 {
        Memory::open(&self.dir.join("a/vm1.ram")).counter()
    }

    /// As its host's record has it.
    fn in_sync(&self) -> String {
        let record = ["authority", "a.record"].map(|name| self.dir.join(name));
        let record = record
            .iter()
            .find_map(|file| std::fs::read_to_string(file).ok());
        let record: serde_json::Value =
            serde_json::from_str(&record.expect("a record")).expect("JSON");
        record["in_sync"].to_string()
    }

    fn cut(&mut self, epoch: u64) -> Result<(), String> {
        if self.cut.is_some() {
            return Err("an epoch is unreleased".to_owned());
        }
        if self.last_cut >= Some(epoch) {
            return Err("numbers only grow".to_owned());
        }
        match self.state {
            NetState::Open => {
                let counted = self.counted();
                self.done.push(Done::Begun { counted });
            }
            NetState::Holding => {}
            _ => return Err(format!("it is {}", self.state)),
        }
        (self.state, self.cut, self.last_cut) = (NetState::Cut, Some(epoch), Some(epoch));
        Ok(())
    }

    fn release(&mut self, epoch: u64) -> Result<(), String> {
        if self.cut != Some(epoch) {
            return Err(format!("{epoch} is not cut"));
        }
        (self.state, self.cut) = (NetState::Holding, None);
        self.done.push(Done::Released(epoch));
        Ok(())
    }
}

struct Mailbox(Arc<Mutex<Known>>);

impl Handler for Mailbox {
    fn handle(&mut self, request: Request, _: PeerCred, reply: ReplyHandle) {
        let mut known = self.0.lock().expect("nobody panics");
        let done = match &request {
            Request::NetStatus(_) => {
                return reply.ok(Answer::NetStatus(Box::new(NetStatus {
                    daemon: DaemonStatus {
                        name: "netbuf".to_owned(),
                        version: "0".to_owned(),
                        pid: 0,
                        uptime_s: 0,
                    },
                    mechanism: NetMechanism::Plug,
                    why: "a test".to_owned(),
                    limit_bytes: 1 << 20,
                    at_limit: "drop".to_owned(),
                    guests: known.guests(),
                })));
            }
            Request::NetAttach(_) => {
                known.is_attached = true;
                Ok(())
            }
            Request::NetDetach(_) => {
                (known.is_attached, known.state) = (false, NetState::Open);
                (known.cut, known.last_cut) = (None, None);
                Ok(())
            }
            Request::NetCut(asked) => known.cut(asked.epoch),
            Request::NetRelease(asked) => known.release(asked.epoch),
            Request::NetHold(asked) => {
                known.state = NetState::Held;
                known.reason = format!("held: {}", asked.reason);
                Ok(())
            }
            Request::NetAuthority(_) => Ok(()),
            Request::NetOpen(_) => {
                let in_sync = known.in_sync();
                known.done.push(Done::Opened { in_sync });
                (known.state, known.cut) = (NetState::Open, None);
                Ok(())
            }
            _ => Err("not here".to_owned()),
        };
        let after = known.done();
        match (done, request) {
            (Err(why), _) => reply.error(ErrorCode::Refused, why),
            (Ok(()), Request::NetAttach(_)) => reply.ok(Answer::NetAttach(after)),
            (Ok(()), Request::NetDetach(_)) => reply.ok(Answer::NetDetach(after)),
            (Ok(()), Request::NetCut(_)) => reply.ok(Answer::NetCut(after)),
            (Ok(()), Request::NetRelease(_)) => reply.ok(Answer::NetRelease(after)),
            (Ok(()), Request::NetHold(_)) => reply.ok(Answer::NetHold(after)),
            (Ok(()), Request::NetAuthority(_)) => reply.ok(Answer::NetAuthority(after)),
            (Ok(()), _) => reply.ok(Answer::NetOpen(after)),
        }
    }
}

impl FakeOutput {
    /// Its socket is `netbuf.sock` in the directory of both hosts.
    pub(crate) fn start(dir: &Path) -> Self {
        let known = Arc::new(Mutex::new(Known {
            dir: dir.to_owned(),
            is_attached: false,
            state: NetState::Open,
            last_cut: None,
            cut: None,
            reason: String::new(),
            done: Vec::new(),
        }));
        let path = dir.join("netbuf.sock");
        let socket = ControlSocket::claim(&path).expect("a socket");
        let config = ServerConfig {
            path,
            daemon: "netbuf of a test".to_owned(),
            limits: Limits::default(),
        };
        let log = EventLog::new().expect("random numbers");
        let server = Server::start_on(socket, config, log, Mailbox(Arc::clone(&known)));
        Self {
            known,
            _server: server.expect("a server"),
        }
    }

    /// Its host was started anew, or somebody has cleaned up: nothing is attached and nothing is known.
    pub(crate) fn begin_anew(&self) {
        let mut known = self.known.lock().expect("nobody panics");
        (known.is_attached, known.state) = (false, NetState::Open);
        (known.cut, known.last_cut) = (None, None);
        known.done.clear();
    }

    pub(crate) fn done(&self) -> Vec<Done> {
        self.known.lock().expect("nobody panics").done.clone()
    }

    pub(crate) fn state(&self) -> NetState {
        self.known.lock().expect("nobody panics").state.clone()
    }
}
