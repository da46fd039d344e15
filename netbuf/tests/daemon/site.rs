//! A host with a bridge, a guest, a witness, and the daemon.

use crate::wire::Wire;
use blkback_proto::ctl::{
    Answer, Event, NetAttachRequest, NetDetachRequest, NetDone, NetEpochRequest, NetHoldRequest,
    NetLineageRequest, NetStatus, NetStatusRequest, Request,
};
use blockrep_host::ctl::{Client, ClientError};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const LINEAGE: &str = "0102030405060708090a0b0c0d0e0f10";
const SENTINEL: [u8; 2] = [0x88, 0xb6];
/// Of what happens by itself; nobody waits that long on a host that works.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Site {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
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
    let thread = std::thread::spawn(|| {
        // SAFETY: geteuid(2) touches no memory, unshare(2) neither; it affects this thread only.
        let made = unsafe { libc::geteuid() == 0 && libc::unshare(libc::CLONE_NEWNET) == 0 };
        if !made || Command::new("ip").arg("-V").output().is_err() {
            eprintln!("skipped: needs root and ip (Debian package iproute2)");
            return;
        }
        body();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// One ip(8) command in the thread's namespace.
#[track_caller]
pub(crate) fn ip(arguments: &str) -> String {
    let mut ip = Command::new("ip");
    let output = ip.args(arguments.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every device, with what it is a port of; sorted, without counters.
pub(crate) fn devices() -> Vec<String> {
    let text = ip("-o link show");
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

#[track_caller]
pub(crate) fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Every interface has its carrier and every port forwards: until then frames are swallowed.
fn settled() {
    until("the network", || {
        let text = ip("-d -o link show type veth");
        let ready = |line: &str| {
            let port = line.contains("bridge_slave");
            let up = line.contains(" state UP ");
            up && (!port || line.contains("bridge_slave state forwarding"))
        };
        text.lines().all(ready).then_some(())
    });
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
        for scope in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            let _ = std::fs::write(path, "1");
        }
        for family in ["ip", "ip6", "arp"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
            let _ = std::fs::write(path, "0");
        }
        ip("link set lo up");
        ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0");
        for (near, far) in [("g0", "g1"), ("w1", "w0"), ("s0", "s1")] {
            ip(&format!("link add {near} type veth peer name {far}"));
            ip(&format!("link set {far} master br0"));
        }
        for up in ["br0", "g0", "g1", "w0", "w1", "s0", "s1"] {
            ip(&format!("link set {up} up"));
        }
        settled();
        Self {
            dir: tempfile::tempdir().unwrap(),
            daemon: None,
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
        self.connect().unwrap().request(request, PATIENCE)
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
        until("the frames", || {
            (self.status().guests[0].interfaces[0].held_frames == Some(frames)).then_some(())
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
