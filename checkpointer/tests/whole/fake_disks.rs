//! A backup's daemon of disks that has no disks: it commits every epoch whose memory is whole, and promotes when it is
//! told to.

use blkback_proto::ctl::{Answer, ErrorCode, MemoryAnswer, PromoteAnswer, Request};
use blockrep_host::ctl::{
    ControlSocket, EventLog, Handler, Limits, PeerCred, ReplyHandle, Server, ServerConfig,
};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is asked for a promotion gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promotes {
    /// No, so many times; then yes.
    AfterRefusals(u32),
    /// That they serve already, as a daemon that was started anew says.
    IsPrimary,
}

#[derive(Debug)]
struct Known {
    at: Option<u64>,
    promotes: Promotes,
    promoted: Option<u64>,
}

/// See the module.
pub(crate) struct FakeDisks {
    known: Arc<Mutex<Known>>,
    _server: Server,
}

struct Mailbox(Arc<Mutex<Known>>);

fn answer(known: &Known) -> MemoryAnswer {
    MemoryAnswer {
        committed: known.at.unwrap_or_default(),
        with_memory: known.at,
    }
}

impl Handler for Mailbox {
    fn handle(&mut self, request: Request, _: PeerCred, reply: ReplyHandle) {
        let mut known = self.0.lock().expect("nobody panics");
        match request {
            Request::MemoryJoin(join) => {
                let whole = join.whole.iter().map(|whole| whole.epoch);
                known.at = known.at.max(whole.chain(join.committed).max());
                reply.ok(Answer::MemoryJoin(answer(&known)));
            }
            Request::MemoryWhole(whole) => {
                known.at = known.at.max(Some(whole.epoch));
                reply.ok(Answer::MemoryWhole(answer(&known)));
            }
            Request::MemoryWait(_) => {
                let known = Arc::clone(&self.0);
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(10));
                    let answer = answer(&known.lock().expect("nobody panics"));
                    reply.ok(Answer::MemoryWait(answer));
                });
            }
            Request::Promote(_) => match known.promotes {
                Promotes::IsPrimary => reply.error(ErrorCode::WrongRole, "the primary already"),
                Promotes::AfterRefusals(0) => {
                    let at = known.at.unwrap_or_default();
                    let epoch = *known.promoted.get_or_insert(at);
                    reply.ok(Answer::Promote(PromoteAnswer {
                        epoch,
                        ..PromoteAnswer::default()
                    }));
                }
                Promotes::AfterRefusals(left) => {
                    known.promotes = Promotes::AfterRefusals(left - 1);
                    reply.error(ErrorCode::IoError, "a disk that is busy");
                }
            },
            _ => reply.error(ErrorCode::Unsupported, "not here"),
        }
    }
}

impl FakeDisks {
    pub(crate) fn start(path: &Path, promotes: Promotes) -> Self {
        let known = Arc::new(Mutex::new(Known {
            at: None,
            promotes,
            promoted: None,
        }));
        let socket = ControlSocket::claim(path).expect("a socket");
        let config = ServerConfig {
            path: path.to_owned(),
            daemon: "disks of a test".to_owned(),
            limits: Limits::default(),
        };
        let log = EventLog::new().expect("random numbers");
        let server = Server::start_on(socket, config, log, Mailbox(Arc::clone(&known)));
        Self {
            known,
            _server: server.expect("a server"),
        }
    }

    pub(crate) fn set(&self, promotes: Promotes) {
        self.known.lock().expect("nobody panics").promotes = promotes;
    }
}
