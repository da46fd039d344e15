//! `blockrep-load` against a real server, `qemu-nbd`, and against real kills.

#![allow(
    clippy::unwrap_used,
    reason = "a helper that fails is a test that fails"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use blkback_proto::ctl::{Answer, CutAnswer, Request};
use blockrep_host::ctl::{EventLog, Handler, Limits, PeerCred, ReplyHandle, Server, ServerConfig};
use serde_json::Value;
use tempfile::TempDir;

const DISK_BYTES: u64 = 16 << 20;
/// Requests that leave zeroes.
const ZEROES: [&str; 4] = ["--zero-percent", "10", "--discard-percent", "5"];
const LIMIT: Duration = Duration::from_secs(60);

/// A child that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory with an image of zeroes and a qemu-nbd that serves it.
struct Peer {
    dir: TempDir,
    server: Process,
}

impl Peer {
    fn start() -> Peer {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("image"))
            .unwrap()
            .set_len(DISK_BYTES)
            .unwrap();
        let server = Command::new("qemu-nbd")
            .args([
                "--persistent",
                "--shared=4",
                "--format=raw",
                "--discard=unmap",
            ])
            .arg(format!("--socket={}", dir.path().join("nbd").display()))
            .arg(dir.path().join("image"))
            .stdin(Stdio::null())
            .spawn()
            .expect("these tests need qemu-nbd (Debian: qemu-utils)");
        let peer = Peer {
            dir,
            server: Process(server),
        };
        wait_for("qemu-nbd listens", || {
            UnixStream::connect(peer.path("nbd")).is_ok()
        });
        peer
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn load(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockrep-load"));
        command
            .arg(args[0])
            .arg("--log")
            .arg(self.path("log"))
            .args(&args[1..]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Command {
        let nbd = format!("unix:{}", self.path("nbd").display());
        let mut command = self.load(&["run", "--nbd", &nbd, "--json"]);
        command.args([
            "--span",
            "8m",
            "--queue-depth",
            "16",
            "--block-sizes",
            "512,4k,32k",
        ]);
        command.args(["--overlap-percent", "30", "--dependent-percent", "20"]);
        command.args(args);
        command
    }

    /// Exit code and report of `check` on the image file.
    fn check(&self, args: &[&str]) -> (i32, Value) {
        let image = self.path("image");
        let mut command = self.load(&["check", "--json", "--image", image.to_str().unwrap()]);
        outcome(command.args(args).output().unwrap())
    }

    fn log_bytes(&self) -> u64 {
        self.path("log").metadata().map_or(0, |log| log.len())
    }
}

fn outcome(output: Output) -> (i32, Value) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let value = serde_json::from_slice(&output.stdout);
    (
        output.status.code().unwrap(),
        value.unwrap_or_else(|_| panic!("no JSON; stderr: {stderr}")),
    )
}

fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < LIMIT, "did not happen: {what}");
        sleep(Duration::from_millis(10));
    }
}

fn kill(process: &mut Process) {
    process.0.kill().unwrap();
    process.0.wait().unwrap();
}

fn flip_byte(image: &Path, at: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(image)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x10], at)
}

/// Production: the oracle blames a correct disk, or the generator does not speak NBD as others do.
#[test]
fn a_correct_server_is_accepted_and_a_flipped_byte_is_not() {
    let peer = Peer::start();
    let args = [
        "--writes",
        "6000",
        "--connections",
        "2",
        "--flush-every",
        "50",
    ];
    let (code, summary) = outcome(
        peer.run(&args)
            .args(["--fua-percent", "5"])
            .args(ZEROES)
            .output()
            .unwrap(),
    );
    assert_eq!(
        (code, summary["completed"].as_u64()),
        (0, Some(6000)),
        "{summary}"
    );
    assert!(summary["flushes"].as_u64() >= Some(100), "{summary}");

    let (code, report) = peer.check(&["--ack", "write"]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["lost_tail"], 0, "{report}");
    assert!(report["writes_visible"].as_u64() > Some(100), "{report}");

    let nbd = format!("unix:{}", peer.path("nbd").display());
    let over_nbd = peer
        .load(&["check", "--json", "--nbd", &nbd])
        .output()
        .unwrap();
    assert_eq!(outcome(over_nbd).0, 0);

    for at in [0, 4 << 20, DISK_BYTES - 1] {
        flip_byte(&peer.path("image"), at).unwrap();
        let (code, report) = peer.check(&[]);
        assert_eq!(
            (code, report["violations"][0]["offset"].as_u64()),
            (1, Some(at / 512 * 512))
        );
        flip_byte(&peer.path("image"), at).unwrap();
    }
}

/// Production: an image from which one completed write was taken back looks fine to any checksum.
#[test]
fn a_unit_set_back_to_an_older_write_is_found() {
    let peer = Peer::start();
    assert_eq!(
        outcome(peer.run(&["--writes", "3000"]).output().unwrap()).0,
        0
    );
    let image = peer.path("image");
    let unit_of = |at: u64| {
        let mut unit = [0; 512];
        File::open(&image)
            .unwrap()
            .read_exact_at(&mut unit, at)
            .unwrap();
        unit
    };
    // The unit of the oldest visible write: all that came after it depends on it by now.
    let id = |unit: &[u8; 512]| u64::from_le_bytes(unit[16..24].try_into().unwrap());
    let units = (0..8u64 << 20)
        .step_by(512)
        .map(|at| (id(&unit_of(at)), at));
    let (_, at) = units.filter(|(id, _)| *id > 0).min().unwrap();
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&[0; 512], at).unwrap();
    let (code, report) = peer.check(&[]);
    assert_eq!(
        (code, report["violations"][0]["rule"].as_str()),
        (1, Some("lost")),
        "{report}"
    );
}

/// Production: the server is killed under load; what it had acknowledged is in the page cache of
/// its host.
#[test]
fn a_killed_server_ends_the_run_with_a_good_log() {
    let mut peer = Peer::start();
    let mut load = Process(peer.run(&["--seconds", "50"]).args(ZEROES).spawn().unwrap());
    wait_for("some thousand requests", || {
        assert!(
            load.0.try_wait().unwrap().is_none(),
            "the generator ended by itself"
        );
        peer.log_bytes() > 500_000
    });
    kill(&mut peer.server);
    wait_for("the generator ends", || {
        load.0.try_wait().unwrap().is_some()
    });
    assert_eq!(
        load.0.try_wait().unwrap().and_then(|status| status.code()),
        Some(3)
    );
    let (code, report) = peer.check(&["--ack", "write", "--split-writes"]);
    assert_eq!(code, 0, "{report}");
    assert!(
        report["requests_completed"].as_u64() > Some(1000),
        "{report}"
    );
}

/// Production: the generator is killed under load; a unit on the disk that its log does not know
/// would make the run worthless.
#[test]
fn a_killed_generator_leaves_a_good_log() {
    let peer = Peer::start();
    let mut load = Process(peer.run(&["--seconds", "50"]).args(ZEROES).spawn().unwrap());
    wait_for("some thousand requests", || {
        assert!(
            load.0.try_wait().unwrap().is_none(),
            "the generator ended by itself"
        );
        peer.log_bytes() > 500_000
    });
    kill(&mut load);
    // Requests still in the server's hands may land after the kill; a server that ended has none.
    let mut peer = peer;
    kill(&mut peer.server);
    let (code, report) = peer.check(&["--ack", "write", "--split-writes"]);
    assert_eq!(code, 0, "{report}");
    assert!(
        report["requests_completed"].as_u64() > Some(1000),
        "{report}"
    );
}

/// Ends one epoch after the other, and cuts nothing.
struct Daemon(u64);

impl Handler for Daemon {
    fn handle(&mut self, _: Request, _: PeerCred, reply: ReplyHandle) {
        self.0 += 1;
        reply.ok(Answer::Cut(CutAnswer {
            epoch: self.0,
            committed: false,
            ..CutAnswer::default()
        }));
    }
}

/// Production: cuts must bound from both sides what the promoted image may hold.
#[test]
fn cuts_asked_for_bound_what_the_image_may_hold() {
    let peer = Peer::start();
    let path = peer.path("control");
    let config = ServerConfig {
        path,
        daemon: "test".into(),
        limits: Limits::default(),
    };
    let server = Server::start(config, EventLog::new().unwrap(), Daemon(0)).unwrap();
    let control = server.path().to_str().unwrap();
    let args = [
        "--seconds",
        "1",
        "--control",
        control,
        "--cut-every",
        "20",
        "--rate",
        "2000",
    ];
    let (code, summary) = outcome(peer.run(&args).output().unwrap());
    assert_eq!(code, 0, "{summary}");
    let cuts = summary["cuts"].as_u64().unwrap();
    assert!(cuts >= 2, "{summary}");

    // The image holds all of the run, so it is at no epoch before the last.
    let last = cuts.to_string();
    let (code, report) = peer.check(&["--epoch", "1"]);
    assert_eq!(
        (code, &report["violations"][0]["rule"]),
        (1, &"after-cut".into()),
        "{report}"
    );
    let after_last = (cuts + 1).to_string();
    assert_eq!(peer.check(&["--epoch", &after_last]).0, 0);

    // An empty image is at epoch 0 and lacks what the last cut promised.
    File::create(peer.path("image"))
        .unwrap()
        .set_len(DISK_BYTES)
        .unwrap();
    assert_eq!(peer.check(&["--epoch", "0"]).0, 0);
    let (code, report) = peer.check(&["--epoch", &last]);
    assert_eq!(
        (code, &report["violations"][0]["rule"]),
        (1, &"lost".into()),
        "{report}"
    );
}

/// Production: a mistake must cost one line and exit code 2, and must not touch an earlier log.
#[test]
fn mistakes_get_one_line_and_exit_code_two() {
    let peer = Peer::start();
    let cases: [(&[&str], &str); 3] = [
        (
            &["--writes", "1", "--export", "nothing"],
            "refuses export \"nothing\"",
        ),
        (
            &[
                "--writes",
                "1",
                "--block-sizes",
                "16m",
                "--queue-depth",
                "1",
            ],
            "does not fit",
        ),
        (
            &["--writes", "1", "--nbd", "unix:/nonexistent/socket"],
            "cannot connect to unix:",
        ),
    ];
    for (args, expected) in cases {
        let nbd = format!("unix:{}", peer.path("nbd").display());
        let mut command = peer.load(&["run", "--span", "8m"]);
        if !args.contains(&"--nbd") {
            command.args(["--nbd", &nbd]);
        }
        let output = command.args(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(
            stderr.contains(expected) && stderr.lines().count() == 1,
            "{stderr}"
        );
        assert!(!peer.path("log").exists());
    }
    let (code, _) = outcome(peer.run(&["--writes", "10"]).output().unwrap());
    assert_eq!(code, 0);
    let before = std::fs::read(peer.path("log")).unwrap();
    let again = peer.run(&["--writes", "10"]).output().unwrap();
    assert_eq!(again.status.code(), Some(2));
    assert_eq!(std::fs::read(peer.path("log")).unwrap(), before);
}
