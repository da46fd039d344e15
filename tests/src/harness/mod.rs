//! Real daemons for tests: started in a directory of their own, killed when dropped.
//!
//! Binaries come from the target directory of the running test; [`binary`] builds nothing. Every
//! wait has a bound and says what it waited for.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A program of this workspace, beside the test that runs.
///
/// # Errors
/// It was not built: says which command builds it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let mut dir = std::env::current_exe().context("where the test runs")?;
    while dir.pop() {
        let path = dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
        if dir.file_name().is_some_and(|n| n == "target") {
            break;
        }
    }
    bail!("{name} is not built: cargo build -p blockrep -p blockrep-tools")
}

/// A port on loopback that was free a moment ago, outside the range the kernel takes ports of
/// outgoing connections from: there, a daemon that dials a backup that is away can meet itself.
///
/// # Errors
/// None is free.
pub fn free_port() -> Result<u16> {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..1000)
        .map(|_| fastrand::u16(10_000..30_000))
        .find(free)
        .context("no free port")
}

/// A process that is killed when dropped.
#[derive(Debug)]
pub struct Process {
    /// What it is.
    pub name: String,
    child: Child,
    /// Where its stderr goes.
    pub log: PathBuf,
}

impl Process {
    /// Starts a program; it dies with this one.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        // SAFETY: only prctl is called between fork and exec; it is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids are small")
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        ensure!(
            self.child.try_wait()?.is_none(),
            "{} has ended: {}",
            self.name,
            self.text()
        );
        // SAFETY: plain system call on a child that was not reaped yet.
        let sent = unsafe { libc::kill(self.pid(), signal) };
        ensure!(sent == 0, "cannot signal {}", self.name);
        Ok(())
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        // It may have ended already; either way it is reaped here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end; the exit code, or 128 + the signal.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn wait(&mut self, limit: Duration) -> Result<i32> {
        use std::os::unix::process::ExitStatusExt;
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or(128 + status.signal().unwrap_or(0)));
            }
            ensure!(
                Instant::now() < end,
                "{} does not end: {}",
                self.name,
                self.text()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// True while it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The last lines of what it has said.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Everything it has said.
    #[must_use]
    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A pair of hosts in one directory: `a` the primary, `b` the backup.
#[derive(Debug)]
pub struct Pair {
    /// Everything stands in here.
    pub dir: PathBuf,
    /// Port of the link on loopback.
    pub port: u16,
    /// Size of every image in bytes.
    pub size_bytes: u64,
    /// Ports of TCP NBD listeners of `a` and `b`; none: Unix sockets.
    pub nbd_ports: Option<[u16; 2]>,
    /// Flags of the primary besides the usual ones.
    pub primary_flags: Vec<String>,
    /// Flags of the backup besides the usual ones.
    pub backup_flags: Vec<String>,
}

impl Pair {
    /// Makes two sparse images in `dir`.
    ///
    /// # Errors
    /// No space, no port.
    pub fn new(dir: &Path, size_bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        for image in ["a.img", "b.img"] {
            File::create(dir.join(image))?.set_len(size_bytes)?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            port: free_port()?,
            size_bytes,
            nbd_ports: None,
            primary_flags: Vec::new(),
            backup_flags: vec!["--journal-size".into(), "64MiB".into()],
        })
    }

    /// A file in the directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The NBD address of `a` or `b` as the tools take it.
    #[must_use]
    pub fn nbd(&self, host: &str) -> String {
        match self.nbd_ports {
            Some([a, b]) => format!("tcp:127.0.0.1:{}", if host == "a" { a } else { b }),
            None => format!("unix:{}", self.path(&format!("{host}.nbd")).display()),
        }
    }

    /// The command line of the backup.
    ///
    /// # Errors
    /// It was not built.
    pub fn backup_command(&self) -> Result<Command> {
        let mut command = Command::new(binary("blockrep-backup")?);
        command
            .args([
                "--listen",
                &format!("127.0.0.1:{}", self.port),
                "--group",
                "test",
            ])
            .arg("--image")
            .arg(self.path("b.img"))
            .arg("--state")
            .arg(self.path("b.state"))
            .arg("--control")
            .arg(self.path("b.ctl"))
            .args(["--nbd", &self.nbd("b")])
            .args(&self.backup_flags);
        Ok(command)
    }

    /// The command line of the primary.
    ///
    /// # Errors
    /// It was not built.
    pub fn primary_command(&self) -> Result<Command> {
        let spec = format!(
            "remus:127.0.0.1:{}|aio:{}",
            self.port,
            self.path("a.img").display()
        );
        let mut command = Command::new(binary("blockrep")?);
        command
            .args(["-n", &spec, "--group", "test"])
            .arg("--state")
            .arg(self.path("a.state"))
            .arg("--control")
            .arg(self.path("a.ctl"))
            .args(["--nbd", &self.nbd("a")])
            .args(&self.primary_flags);
        Ok(command)
    }

    /// Starts the backup and waits until it answers.
    ///
    /// # Errors
    /// It does not come up: what it said.
    pub fn start_backup(&self) -> Result<Process> {
        self.launch("b", &mut self.backup_command()?)
    }

    /// Starts the primary and waits until it answers.
    ///
    /// # Errors
    /// It does not come up: what it said.
    pub fn start_primary(&self) -> Result<Process> {
        self.launch("a", &mut self.primary_command()?)
    }

    /// Starts the daemon of host `a` or `b` by a command line that uses its control socket, and
    /// waits until it answers.
    ///
    /// # Errors
    /// It does not come up: what it said.
    pub fn launch(&self, host: &str, command: &mut Command) -> Result<Process> {
        let name = if host == "a" { "primary" } else { "backup" };
        let mut process = Process::start(name, command, &self.path(&format!("{host}.log")))?;
        self.wait_up(host, &mut process)?;
        Ok(process)
    }

    fn wait_up(&self, host: &str, process: &mut Process) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        while let Err(error) = self.status(host) {
            ensure!(
                process.is_running(),
                "the {} ended: {}",
                process.name,
                process.last_words()
            );
            ensure!(
                Instant::now() < end,
                "the {} does not answer ({error:#}): {}",
                process.name,
                process.last_words()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Runs `blockrepctl` against host `a` or `b`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ctl(&self, host: &str, args: &[&str]) -> Result<Output> {
        Command::new(binary("blockrepctl")?)
            .arg("--control")
            .arg(self.path(&format!("{host}.ctl")))
            .args(args)
            .output()
            .context("running blockrepctl")
    }

    /// The same with `--json`, read.
    ///
    /// # Errors
    /// What blockrepctl said on stderr.
    pub fn ctl_json(&self, host: &str, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.push("--json");
        let out = self.ctl(host, &all)?;
        ensure!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
        serde_json::from_slice(&out.stdout).context("the output of blockrepctl")
    }

    /// Status of host `a` or `b`.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self, host: &str) -> Result<Value> {
        self.ctl_json(host, &["status"])
    }

    /// Waits until the group of a host is in a state.
    ///
    /// # Errors
    /// Not in time: the state it is in.
    pub fn wait_state(&self, host: &str, state: &str, limit: Duration) -> Result<Value> {
        let end = Instant::now() + limit;
        loop {
            let status = self.status(host)?;
            if status["group"]["state"] == state {
                return Ok(status);
            }
            ensure!(
                Instant::now() < end,
                "{host} is {} and not {state}",
                status["group"]
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
