//! A host with a bridge, a guest, a witness, and the daemon.

use crate::namespace::{PATIENCE, ip, ip_shows, possible, settled, unshare, until};
use crate::wire::Wire;
use blkback_proto::ctl::{
    Answer, Event, NetAttachRequest, NetDetachRequest, NetDone, NetEpochRequest, NetHoldRequest,
    NetLineageRequest, NetStatus, NetStatusRequest, Request,
};
use blockrep_host::ctl::{Client, ClientError};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

pub(crate) const LINEAGE: &str = "0102030405060708090a0b0c0d0e0f10";
const SENTINEL: [u8; 2] = [0x88, 0xb6];

pub(crate) struct Site {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
    /// To this daemon; made with the first question.
    client: Mutex<Option<Client>>,
    pub(crate) guest: Wire,
    pub(crate) witness: Wire,
    sentinel: Wire,
    sentinels: u64,
}

/// What the daemon is told to hold with: the relay, where nobody says otherwise.
pub(crate) fn mechanism() -> String {
    std::env::var("NETBUF_TEST_MECHANISM").unwrap_or_else(|_| "relay".to_owned())
}

/// Runs a body in a namespace of its own; says so and skips where that is not allowed.
pub(crate) fn in_namespace(body: impl FnOnce() + Send + 'static) {
    if !possible() {
        return;
    }
    let thread = std::thread::spawn(|| {
        unshare();
        body();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A number that the environment may set, else the default.
pub(crate) fn number_of_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

/// A line about a long test, at the line's beginning: `cargo xtask net` shows it.
pub(crate) fn note(text: &str) {
    println!("\nnoted: {text}");
}

/// Every device, with what it is a port of; sorted, without counters.
pub(crate) fn devices() -> Vec<String> {
    let text = ip_shows("-o link show");
    let word = |line: &str, key: &str| {
        let mut words = line
            .split_ascii_whitespace()
            .skip_while(|word| *word != key);
        words.nth(1).unwrap_or("-").to_owned()
    };
    let name = |line: &str| {
        let name = line.split_ascii_whitespace().nth(1).unwrap();
        name.trim_end_matches(':')
            .split('@')
            .next()
            .unwrap()
            .to_owned()
    };
    let mut all: Vec<String> = text
        .lines()
        .map(|line| {
            format!(
                "{} of {}{}",
                name(line),
                word(line, "master"),
                if line.contains("NOARP") { " NOARP" } else { "" }
            )
        })
        .collect();
    all.sort();
    all
}

/// A frame of the guest's to everybody.
pub(crate) fn frame(mark: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.resize(60, mark);
    frame
}

impl Site {
    /// The network, without a daemon.
    pub(crate) fn new() -> Self {
        let mut lines = String::from("link set lo up\n");
        lines += "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n";
        for (near, far) in [("g0", "g1"), ("w1", "w0"), ("s0", "s1")] {
            lines += &format!("link add {near} type veth peer name {far}\n");
            lines += &format!("link set {far} master br0\n");
        }
        for up in ["br0", "g0", "g1", "w0", "w1", "s0", "s1"] {
            lines += &format!("link set {up} up\n");
        }
        ip(&lines);
        settled();
        Self {
            dir: tempfile::tempdir().unwrap(),
            daemon: None,
            client: Mutex::new(None),
            guest: Wire::open("g0"),
            witness: Wire::open("w1"),
            sentinel: Wire::open("s0"),
            sentinels: 0,
        }
    }

    /// The same, with a daemon that has the guest.
    pub(crate) fn started(more: &[&str]) -> Self {
        let mut site = Self::new();
        site.start_with_guest(more);
        site
    }

    pub(crate) fn start_with_guest(&mut self, more: &[&str]) {
        let mechanism = mechanism();
        let mut words = vec!["run", "--mechanism", &mechanism, "--attach", "vm1=g1"];
        words.extend(more);
        self.start(&words);
        settled();
    }

    /// A daemon that is killed after a moment, wherever it is then.
    pub(crate) fn start_and_kill(&mut self, after: Duration) {
        let mechanism = mechanism();
        let mut program = self.program(&["run", "--mechanism", &mechanism]);
        let daemon = program.stderr(Stdio::null()).spawn().unwrap();
        self.daemon = Some(daemon);
        std::thread::sleep(after);
        self.kill();
    }

    pub(crate) fn program(&self, words: &[&str]) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_netbuf"));
        program
            .args(words)
            .env("BLOCKREP_RUNTIME_DIR", self.dir.path());
        program
    }

    /// One command, and how it ended.
    pub(crate) fn types(&self, words: &[&str]) -> (i32, String) {
        let output = self.program(words).output().unwrap();
        let mut text = String::from_utf8(output.stdout).unwrap();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), text)
    }

    pub(crate) fn start(&mut self, words: &[&str]) {
        *self.client.get_mut().unwrap() = None;
        let daemon = self
            .program(words)
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        until("the daemon", || {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "the daemon ended");
            self.connect().ok()
        });
    }

    pub(crate) fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// SIGKILL, in the middle of whatever it does.
    pub(crate) fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// SIGTERM, and its exit code.
    pub(crate) fn end(&mut self) -> i32 {
        let mut daemon = self.daemon.take().unwrap();
        // SAFETY: kill(2) with the id of a child that was not waited for.
        unsafe { libc::kill(daemon.id().cast_signed(), libc::SIGTERM) };
        daemon.wait().unwrap().code().unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("netbuf.sock")
    }

    pub(crate) fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.socket(), "test", PATIENCE)
    }

    pub(crate) fn ask(&self, request: &Request) -> Result<Answer, ClientError> {
        let mut client = self.client.lock().unwrap();
        let client = client.get_or_insert_with(|| self.connect().unwrap());
        client.request(request, PATIENCE)
    }

    /// A request that gets a [`NetDone`].
    #[track_caller]
    pub(crate) fn done(&self, request: &Request) -> NetDone {
        match self.ask(request).unwrap() {
            Answer::NetAttach(done)
            | Answer::NetDetach(done)
            | Answer::NetCut(done)
            | Answer::NetRelease(done)
            | Answer::NetHold(done)
            | Answer::NetAuthority(done)
            | Answer::NetOpen(done)
            | Answer::NetResync(done)
            | Answer::NetAnnounce(done) => done,
            other => panic!("{other:?}"),
        }
    }

    /// Why it was refused.
    #[track_caller]
    pub(crate) fn refused(&self, request: &Request) -> String {
        match self.ask(request) {
            Err(ClientError::Daemon(error)) => error.message,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn cut(&self, epoch: u64) -> NetDone {
        self.done(&Request::NetCut(of_epoch(epoch)))
    }

    pub(crate) fn release(&self, epoch: u64) -> NetDone {
        self.done(&Request::NetRelease(of_epoch(epoch)))
    }

    pub(crate) fn open(&self) -> NetDone {
        self.done(&Request::NetAuthority(lineage()));
        self.done(&Request::NetOpen(lineage()))
    }

    pub(crate) fn status(&self) -> NetStatus {
        let request = Request::NetStatus(NetStatusRequest::default());
        match self.ask(&request).unwrap() {
            Answer::NetStatus(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn state(&self) -> String {
        self.status().guests[0].state.to_string()
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.connect().unwrap().events(0).unwrap().events
    }

    /// The daemon holds as many frames: they were said, and have come as far as it.
    #[track_caller]
    pub(crate) fn holds(&self, frames: u64) {
        until(&format!("that {frames} frames are held"), || {
            let port = &self.status().guests[0].interfaces[0];
            let (held, dropped) = (port.held_frames?, port.dropped_frames?);
            let lost = held < frames && dropped > 0;
            assert!(!lost, "of {frames} frames {dropped} were lost");
            (held == frames).then_some(())
        });
    }

    /// Marks of the guest's frames that the witness has got and not been asked for yet.
    pub(crate) fn seen(&mut self) -> Vec<u8> {
        let of_guest = |frame: &Vec<u8>| frame[12..14] == [0x88, 0xb5];
        let frames = self.frames().into_iter().filter(of_guest);
        frames.map(|frame| frame[20]).collect()
    }

    /// All frames that the witness has got and not been asked for yet.
    pub(crate) fn frames(&mut self) -> Vec<Vec<u8>> {
        self.sentinels += 1;
        let mut sentinel = vec![0xff; 6];
        sentinel.extend([2, 0, 0, 0, 0, 9]);
        sentinel.extend(SENTINEL);
        sentinel.extend(self.sentinels.to_be_bytes());
        sentinel.resize(60, 0);
        self.sentinel.send(&sentinel);
        let mut seen = Vec::new();
        loop {
            let frame = self.witness.receive();
            if frame == sentinel {
                return seen;
            }
            seen.push(frame);
        }
    }

    /// The next frame for the guest, but for the sentinels that everybody hears.
    pub(crate) fn guest_hears(&self) -> Vec<u8> {
        loop {
            let frame = self.guest.receive();
            if frame[12..14] != SENTINEL {
                return frame;
            }
        }
    }

    /// The next frame of the guest at the witness.
    pub(crate) fn comes(&self) -> u8 {
        loop {
            let frame = self.witness.receive();
            if frame[12..14] == [0x88, 0xb5] {
                return frame[20];
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // The namespace ends with its last process.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

pub(crate) fn of_epoch(epoch: u64) -> NetEpochRequest {
    NetEpochRequest {
        guest: "vm1".into(),
        epoch,
    }
}

pub(crate) fn lineage() -> NetLineageRequest {
    NetLineageRequest {
        guest: "vm1".into(),
        lineage: LINEAGE.into(),
    }
}

pub(crate) fn hold() -> Request {
    Request::NetHold(NetHoldRequest {
        guest: "vm1".into(),
        reason: "a test".into(),
    })
}

pub(crate) fn attach(interface: &str) -> Request {
    Request::NetAttach(NetAttachRequest {
        guest: "vm1".into(),
        interface: interface.into(),
        bridge: None,
    })
}

pub(crate) fn detach(interface: &str) -> Request {
    Request::NetDetach(NetDetachRequest {
        guest: "vm1".into(),
        interface: interface.into(),
    })
}
