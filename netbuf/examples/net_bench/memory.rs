//! The memory of the daemon, with nothing held and with as much as it may.

use super::Figures;
use super::site::{Outcome, Site, Way};
use super::wire::{Wire, frame};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// Killed and waited for when it is no longer needed.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Daemon {
    fn memory_kib(&self, field: &str) -> Outcome<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let number = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
        Ok(number.ok_or("no memory in its status")?.parse()?)
    }
}

/// Starts the daemon at a guest, holds, and sends it one and a half times its limit.
pub(crate) fn daemon(program: &Path, way: Way, limit_mib: u32) -> Outcome<Figures> {
    let limit_bytes = limit_mib << 20;
    let site = Site::new(Way::Nothing)?;
    let dir = std::env::temp_dir().join(format!("net-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let command = |words: &[&str]| {
        let mut command = Command::new(program);
        command.args(words).env("BLOCKREP_RUNTIME_DIR", &dir);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let limit = limit_bytes.to_string();
    let words = [
        "run",
        "--mechanism",
        way.word(),
        "--limit",
        &limit,
        "--attach",
        "vm1=g1",
    ];
    let mut start = command(&words);
    // SAFETY: prctl(2) between fork and exec is async-signal-safe. A bench that is killed leaves no daemon.
    unsafe {
        start.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let daemon = Daemon(start.spawn()?);
    let end = Instant::now() + PATIENCE;
    while !command(&["hold", "vm1", "--reason", "bench"])
        .status()?
        .success()
    {
        if Instant::now() > end {
            return Err("the daemon does not answer".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let empty = daemon.memory_kib("VmRSS")?;
    let guest = site.guest.run(|| Wire::open("g0", false))?;
    let mut frame = frame(1514);
    for _ in 0..u64::from(limit_bytes) * 3 / 2 / 1514 / 64 {
        guest.send_many(&mut frame, 0, 64);
        // At leisure: no frame shall be lost in front of it.
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(Duration::from_millis(200));
    let full = daemon.memory_kib("VmRSS")?;
    let most = daemon.memory_kib("VmHWM")?;
    drop(daemon);
    // The bench's runtime directory is its own.
    let _ = std::fs::remove_dir_all(&dir);
    Ok(vec![
        ("empty_kib", empty),
        ("full_kib", full),
        ("most_kib", most),
        ("limit_kib", f64::from(limit_bytes / 1024)),
    ])
}
