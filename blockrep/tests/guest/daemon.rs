//! A primary without a backup, in a process of its own.

use blockrep_host::ctl::Client;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Length of its disk.
pub(crate) const DISK_BYTES: u64 = 8 << 20;

pub(crate) struct Daemon {
    dir: TempDir,
    child: Child,
}

impl Daemon {
    /// With a disk of random bytes, and faults as `BLOCKREP_FAULTS` has them.
    pub(crate) fn start(seed: u64, faults: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut disk = vec![0; DISK_BYTES as usize];
        random.fill(&mut disk);
        std::fs::write(dir.path().join("a.img"), disk).unwrap();
        let child = run(dir.path(), faults);
        Self { dir, child }
    }

    /// Kills it and starts it again.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = run(self.dir.path(), "");
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("a.vu")
    }

    /// A control client.
    pub(crate) fn client(&self) -> Client {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Client::connect(&self.dir.path().join("a.ctl"), "test", PATIENCE) {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn run(dir: &Path, faults: &str) -> Child {
    let at = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockrep"));
    command
        .args(["-n", &format!("aio:{}", at("a.img"))])
        .args(["--vhost-user", &format!("unix:{}", at("a.vu"))])
        .args(["--control", &at("a.ctl")])
        .stdout(Stdio::null());
    if std::env::var_os("BLOCKREP_LOG").is_none() {
        command.stderr(Stdio::null());
    }
    if !faults.is_empty() {
        command.env("BLOCKREP_FAULTS", faults);
    }
    command.spawn().unwrap()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
