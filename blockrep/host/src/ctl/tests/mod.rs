//! Server and client over real sockets.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use blkback_proto::ctl::{
    Answer, CutAnswer, CutRequest, ErrorCode, EventBody, EventKind, EventsRequest, FrameKind,
    HEADER_BYTES, HelloRequest, PACKET_BYTES_MAX, PrepareAnswer, PrepareRequest, PromoteRequest,
    Reassembly, Request, Response, StatusRequest, decode, encode,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    listen, recv, send, socket_with,
};
use tempfile::TempDir;

use super::*;

mod following;
mod hostile;
mod lifetime;
mod requests;

/// Far beyond anything a test needs; only a hang reaches it.
const LONG: Duration = Duration::from_secs(30);

/// Cut 1 is kept for the test to answer, prepare is answered at once, promote is dropped,
/// status is answered far too long.
struct TestHandler {
    kept: mpsc::Sender<(Request, PeerCred, ReplyHandle)>,
}

impl Handler for TestHandler {
    fn handle(&mut self, request: Request, peer: PeerCred, reply: ReplyHandle) {
        match &request {
            Request::Prepare(prepare) => {
                let epoch = prepare.epoch.unwrap_or(1);
                reply.ok(Answer::Prepare(PrepareAnswer { epoch }));
            }
            Request::Cut(_) => self.kept.send((request, peer, reply)).unwrap(),
            Request::Status(_) => {
                let message = "x".repeat(100_000);
                reply.send(Response::Error(blkback_proto::ctl::ErrorReply {
                    code: ErrorCode::Refused,
                    message,
                }));
            }
            _ => drop(reply),
        }
    }
}

struct Rig {
    dir: TempDir,
    log: EventLog,
    kept: mpsc::Receiver<(Request, PeerCred, ReplyHandle)>,
    server: Option<Server>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Limits::default(), EVENTS_KEPT)
    }

    fn with(limits: Limits, events_kept: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::with_capacity(events_kept).unwrap();
        let (sender, kept) = mpsc::channel();
        let config = ServerConfig {
            path: dir.path().join("g.sock"),
            daemon: "test 1".into(),
            limits,
        };
        let server = Server::start(config, log.clone(), TestHandler { kept: sender }).unwrap();
        Self {
            dir,
            log,
            kept,
            server: Some(server),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("g.sock")
    }

    fn client(&self) -> Client {
        Client::connect(&self.path(), "test", LONG).unwrap()
    }

    fn raw(&self) -> Raw {
        Raw::connect(&self.path())
    }

    fn publish(&self, reason: &str) -> u64 {
        self.log.publish(NewEvent::new(
            "g",
            EventKind::LimitReached,
            reason,
            "nothing",
        ))
    }
}

/// A client that sends what it likes.
struct Raw(OwnedFd);

impl Raw {
    fn connect(path: &Path) -> Self {
        let fd = seqpacket();
        connect(&fd, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Self(fd)
    }

    fn greeted(rig: &Rig) -> Self {
        let raw = rig.raw();
        raw.send(&hello(1, 1));
        assert!(matches!(
            raw.response(1),
            Some(Response::Ok(Answer::Hello(_)))
        ));
        raw
    }

    fn send(&self, packet: &[u8]) {
        send(&self.0, packet, SendFlags::NOSIGNAL).unwrap();
    }

    /// The next packet; `None` when the server has closed.
    fn packet(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        loop {
            let ready = poll(
                &mut [PollFd::new(&self.0, PollFlags::IN)],
                Some(&Timespec::try_from(LONG).unwrap()),
            );
            assert_eq!(ready, Ok(1), "nothing came");
            match recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, 0)) => return None,
                Ok((_, bytes)) => return Some(buffer[..bytes].to_vec()),
                // Tells that the server closed with packets of ours unread; what it sent is next.
                Err(rustix::io::Errno::CONNRESET) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
    }

    /// The next answer, which must be of this request.
    fn response(&self, id: u32) -> Option<Response> {
        let mut parts = Reassembly::new(id);
        loop {
            let packet = self.packet()?;
            if let Some(body) = parts.push(decode(&packet).unwrap()).unwrap() {
                return Some(Response::from_body(&body).unwrap());
            }
        }
    }

    fn error(&self, id: u32) -> ErrorCode {
        match self.response(id) {
            Some(Response::Error(error)) => {
                assert!(!error.message.is_empty() && !error.message.contains('\n'));
                error.code
            }
            other => panic!("not an error: {other:?}"),
        }
    }

    fn assert_closed(&self) {
        assert_eq!(self.packet(), None);
    }
}

fn seqpacket() -> OwnedFd {
    socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap()
}

fn hello(min: u16, max: u16) -> Vec<u8> {
    Request::Hello(HelloRequest {
        client: "raw".into(),
        min,
        max,
    })
    .to_packet(0, 1)
    .unwrap()
}

fn prepare(epoch: u64) -> Request {
    Request::Prepare(PrepareRequest { epoch: Some(epoch) })
}
