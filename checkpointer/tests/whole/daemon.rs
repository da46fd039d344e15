//! A daemon as it is run, ended with its test.

use blkback_proto::ctl::{Answer, ErrorCode, GuestReport, GuestStatusRequest, Request};
use blockrep_host::ctl::{Client, ClientError};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Patience with a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// A daemon, ended with its test.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) control: PathBuf,
}

impl Daemon {
    pub(crate) fn protect(dir: &Path, qmp: &Path) -> Self {
        let qmp = qmp.display().to_string();
        Self::start_with(dir, "a", &["protect", "--qmp", &qmp])
    }

    pub(crate) fn start(dir: &Path, side: &str, word: &str) -> Self {
        Self::start_with(dir, side, &[word])
    }

    pub(crate) fn start_with(dir: &Path, side: &str, words: &[&str]) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_checkpointer"));
        Self::start_as(program, None, dir, side, words)
    }

    /// Of another build, which may have a bug planted that a variable switches on.
    pub(crate) fn start_as(
        program: &Path,
        variable: Option<(&str, &str)>,
        dir: &Path,
        side: &str,
        words: &[&str],
    ) -> Self {
        let run = dir.join(side);
        fs::create_dir_all(&run).expect("a directory");
        let log = fs::File::create(run.join("daemon.log")).expect("a log");
        let child = Command::new(program)
            .args(words)
            .arg("--config")
            .arg(dir.join(format!("{side}.toml")))
            .env("BLOCKREP_RUNTIME_DIR", &run)
            .envs(variable)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the daemon");
        let ending = if words[0] == "receive" {
            "standby"
        } else {
            "checkpointer"
        };
        let control = run.join(format!("vm1.{ending}.sock"));
        Self { child, control }
    }

    pub(crate) fn ask(&self, request: &Request) -> Result<Answer, String> {
        let limit = Duration::from_secs(30);
        let mut client =
            Client::connect(&self.control, "test", limit).map_err(|e| e.to_string())?;
        client.request(request, limit).map_err(|e| e.to_string())
    }

    /// The code of a refusal.
    pub(crate) fn refusal(&self, request: &Request) -> Option<ErrorCode> {
        let limit = Duration::from_secs(30);
        let mut client = Client::connect(&self.control, "test", limit).ok()?;
        match client.request(request, limit) {
            Err(ClientError::Daemon(reply)) => Some(reply.code),
            _ => None,
        }
    }

    pub(crate) fn report(&self) -> Option<GuestReport> {
        match self.ask(&Request::GuestStatus(GuestStatusRequest {})) {
            Ok(Answer::GuestStatus(report)) => Some(*report),
            _ => None,
        }
    }

    /// Waits until a report is as it should be.
    pub(crate) fn until(&self, what: &str, is_so: impl Fn(&GuestReport) -> bool) -> GuestReport {
        let until = Instant::now() + LIMIT;
        let mut last = None;
        while Instant::now() < until {
            if let Some(report) = self.report() {
                if is_so(&report) {
                    return report;
                }
                last = Some(report);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = fs::read_to_string(self.control.with_file_name("daemon.log")).unwrap_or_default();
        panic!("{what} did not come: {last:#?}\n{log}");
    }

    /// Waits until it has ended by itself; its exit code and what it said last.
    pub(crate) fn ended(&mut self) -> (Option<i32>, String) {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                let log = fs::read_to_string(self.control.with_file_name("daemon.log"));
                let log = log.unwrap_or_default();
                let last = log.lines().last().unwrap_or_default().to_owned();
                return (status.code(), last);
            }
            assert!(Instant::now() < until, "it did not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// From when this returns it says and does nothing any more, until it is killed.
    pub(crate) fn freeze(&mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP).expect("it is there");
        // Told when all of its threads stand.
        let ended = waitpid(Some(pid), WaitOptions::UNTRACED).expect("a child");
        assert!(ended.is_some_and(|(_, status)| status.stopped()));
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
