//! The real `blockrepctl` against a real control server: output and exit codes.

#![allow(
    clippy::unwrap_used,
    reason = "a test program: a failed unwrap is a failed test"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;

use blkback_proto::ctl::{
    Answer, CutAnswer, ErrorCode, EventKind, PromoteAnswer, Request, Response, Status,
};
use blockrep_host::ctl::{
    EventLog, Handler, Limits, NewEvent, PeerCred, ReplyHandle, Server, ServerConfig,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const STATUS: &str = include_str!("../src/ctl/testdata/status.json");

/// Answers as a daemon would; promotes only when forced; reports what it was asked.
struct Daemon {
    asked: mpsc::Sender<Request>,
}

impl Handler for Daemon {
    fn handle(&mut self, request: Request, _: PeerCred, reply: ReplyHandle) {
        // Nobody listens to this in most tests.
        let _ = self.asked.send(request.clone());
        match request {
            Request::Status(_) => {
                let status: Status = serde_json::from_str(STATUS).unwrap();
                reply.ok(Answer::Status(Box::new(status)));
            }
            Request::Cut(cut) if cut.wait_durable => {
                reply.error(
                    ErrorCode::TimedOut,
                    "vm1: epoch 7 was not committed in time",
                );
            }
            Request::Cut(_) => reply.ok(Answer::Cut(CutAnswer {
                epoch: 7,
                committed: false,
                ..CutAnswer::default()
            })),
            Request::Promote(promote) if promote.force => {
                reply.ok(Answer::Promote(PromoteAnswer {
                    epoch: 6,
                    cut_unix_ns: 1,
                    lineage: "ab".into(),
                    dropped_epochs: 1,
                    duration_us: 5,
                    ..PromoteAnswer::default()
                }));
            }
            _ => reply.send(Response::error(
                ErrorCode::NeedsForce,
                "vm1: the primary is alive: type promote --force",
            )),
        }
    }
}

struct Rig {
    dir: TempDir,
    log: EventLog,
    asked: mpsc::Receiver<Request>,
    server: Option<Server>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::new().unwrap();
        let (sender, asked) = mpsc::channel();
        let config = ServerConfig {
            path: dir.path().join("vm1.sock"),
            daemon: "blockrep test".into(),
            limits: Limits::default(),
        };
        let server = Server::start(config, log.clone(), Daemon { asked: sender }).unwrap();
        Self {
            dir,
            log,
            asked,
            server: Some(server),
        }
    }

    fn publish(&self, reason: &str) {
        let event = NewEvent::new("vm1", EventKind::LinkState, reason, "wait").change("up", "down");
        self.log.publish(event);
    }

    fn run(&self, words: &[&str]) -> Output {
        blockrepctl(self.dir.path(), words).output().unwrap()
    }

    fn start(&self, words: &[&str]) -> Child {
        blockrepctl(self.dir.path(), words)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

fn blockrepctl(runtime_dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockrepctl"));
    command.env("BLOCKREP_RUNTIME_DIR", runtime_dir).args(words);
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Asserts the exit code and a single line on stderr that contains `text`; nothing on stdout.
fn assert_fails(output: &Output, code: i32, text: &str) {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.starts_with("blockrepctl: ") && stderr.contains(text),
        "{stderr}"
    );
    assert!(output.stdout.is_empty());
}

/// Scripts of a cluster manager branch on these numbers.
#[test]
fn exit_codes_tell_failures_apart() {
    let mut rig = Rig::new();
    let forced = rig.run(&["promote", "--force"]);
    assert_eq!(forced.status.code(), Some(0));
    assert!(stdout(&forced).starts_with("promoted: serving epoch 6"));
    assert_fails(&rig.run(&["cut", "--wait"]), 1, "not committed in time");
    assert_fails(&rig.run(&["cut", "--wiat"]), 2, "--wait");
    assert_fails(&rig.run(&[]), 2, "blockrepctl status");
    assert_fails(&rig.run(&["promote"]), 4, "type promote --force");
    assert_fails(&rig.run(&["--group", "vm9", "status"]), 3, "--group vm1");
    rig.server = None;
    assert_fails(&rig.run(&["status"]), 3, "start one");
    assert_fails(
        &rig.run(&["status", "--control", "/none/x.sock"]),
        3,
        "/none/x.sock",
    );
    assert_fails(&rig.run(&["watch"]), 3, "start one");
    let help = rig.run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(stdout(&help).contains("  4  refused by the daemon, or in use by one"));
}

/// A flag that does not reach the daemon is a guard that is not there.
#[test]
fn flags_reach_the_daemon() {
    let rig = Rig::new();
    let asked = |words: &[&str]| {
        rig.run(words);
        serde_json::to_string(&rig.asked.try_recv().unwrap()).unwrap()
    };
    assert_eq!(
        asked(&["promote", "--accept-suspect", "--reason", "host a\nburns"]),
        r#"{"promote":{"force":false,"accept_suspect":true,"reason":"host a burns"}}"#
    );
    assert!(asked(&["promote", "--force", "--json"]).contains(r#""force":true,"#));
    assert_eq!(
        asked(&["cut"]),
        r#"{"cut":{"wait_durable":false,"timeout_ms":0}}"#
    );
    assert_eq!(
        asked(&["cut", "--wait", "--timeout", "3"]),
        r#"{"cut":{"wait_durable":true,"timeout_ms":3000}}"#
    );
}

/// Text for people, JSON for programs; both complete.
#[test]
fn output_is_text_or_json() {
    let rig = Rig::new();
    let text = stdout(&rig.run(&["status"]));
    assert!(text.starts_with("vm1, primary: protected\n"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&rig.run(&["--group", "vm1", "status", "--json"]))).unwrap();
    assert_eq!(json["group"]["state"], "protected");
    assert_eq!(json["volumes"][0]["counters"]["reads"], 1203);
    assert_eq!(stdout(&rig.run(&["cut"])), "epoch 7 cut\n");
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&rig.run(&["cut", "--json"]))).unwrap();
    assert_eq!(json, serde_json::json!({ "epoch": 7, "committed": false }));
}

/// Kept events page by page, then the stream; a reader that closes early is no error.
#[test]
fn events_are_listed_and_followed() {
    let rig = Rig::new();
    for i in 1..=100 {
        rig.publish(&format!("cable {i}"));
    }
    let text = stdout(&rig.run(&["events"]));
    assert_eq!(text.lines().count(), 100);
    assert!(
        text.lines()
            .last()
            .unwrap()
            .contains("up -> down: cable 100; next: wait")
    );
    let from = stdout(&rig.run(&["events", "--json", "--from", "99"]));
    let seqs: Vec<u64> = from
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64())
        .collect::<Option<_>>()
        .unwrap();
    assert_eq!(seqs, [99, 100]);

    let mut child = rig.start(&["events", "--follow", "--from", "100"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("cable 100"));
    rig.publish("cable 101");
    assert!(lines.next().unwrap().unwrap().contains("cable 101"));
    drop(lines);
    rig.publish("nobody reads this");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Watching must survive the very moment it is for, and end on Ctrl-C without noise.
#[test]
fn watch_goes_on_when_the_daemon_goes_and_ends_on_ctrl_c() {
    let mut rig = Rig::new();
    let mut child = rig.start(&["watch"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    let first = next();
    let why =
        "vm1 primary: protected since then: the backup acknowledges every epoch; next: nothing";
    assert!(first.contains(why), "{first}");
    let second = next();
    assert!(
        second.contains("vm1 primary: protected, committed 1041"),
        "{second}"
    );
    // A change is told with its reason, once, also one that is over at the next look.
    rig.publish("cable 1");
    rig.publish("cable 2");
    let told: Vec<String> = std::iter::repeat_with(&mut next)
        .skip_while(|line| !line.contains("cable"))
        .take(3)
        .collect();
    for (line, what) in told.iter().zip([
        "link-state: up -> down: cable 1; next: wait",
        "link-state: up -> down: cable 2; next: wait",
        "protected, committed 1041",
    ]) {
        assert!(line.ends_with(what) || line.contains(what), "{told:?}");
    }
    rig.server = None;
    let gone = lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| !line.contains("protected"));
    assert!(
        gone.is_some_and(|line| line.contains("UTC ")),
        "says that the daemon is gone"
    );
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
