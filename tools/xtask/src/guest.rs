//! The guest: QEMU with one disk over NBD or vhost-user, and what its program says on the serial line.

mod disks;
mod words;

pub(crate) use disks::{disk, image_disk, own_disk, vhost_disk};
pub(crate) use words::Word;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdout, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::checkout::{Checkout, tool};
use crate::kernel::GuestKernel;
use crate::netns::Host;
use crate::process::{self, Process};
use crate::{stop, ui};

/// Lines that may wait for this program before the serial line holds the guest back.
const LINES_MAX: usize = 65_536;
/// Memory of a guest that needs no more.
pub(crate) const MEMORY_MIB: u32 = 256;
/// A guest that has said nothing for this long will not say anything.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(120);
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// How QEMU executes the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    Tcg,
}

impl Accelerator {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// A word and when this program had it, which is later than when the guest said it.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) at_unix_ns: u64,
    pub(crate) word: Word,
}

/// The guest's program ran and found something wrong.
#[derive(Debug)]
pub(crate) struct GuestFailed(pub(crate) String);

impl std::fmt::Display for GuestFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the guest says: {}", self.0)
    }
}

impl std::error::Error for GuestFailed {}

/// A running guest; dropped = killed.
#[derive(Debug)]
pub(crate) struct Guest {
    process: Process,
    words: Receiver<Heard>,
    reader: Option<JoinHandle<()>>,
    serial_log: std::path::PathBuf,
}

/// What to boot.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    pub(crate) kernel: &'a GuestKernel,
    pub(crate) accelerator: Accelerator,
    /// Words for the guest's program.
    pub(crate) arguments: String,
    pub(crate) memory_mib: u32,
    /// The NBD server with the guest's disk; none for a probe.
    pub(crate) disk_socket: Option<&'a Path>,
    /// Further arguments for QEMU, such as more devices.
    pub(crate) devices: &'a [String],
    /// Where the logs go, and what they are called.
    pub(crate) dir: &'a Path,
    pub(crate) name: &'a str,
    /// The host it runs on.
    pub(crate) host: Option<&'a Host>,
    /// The line it was in the middle of, if it goes on from elsewhere.
    pub(crate) half_line: Vec<u8>,
}

impl Guest {
    pub(crate) fn boot(boot: &Boot<'_>) -> Result<Self> {
        let mut command = tool("qemu-system-x86_64");
        boot.fill(&mut command);
        if let Some(host) = boot.host {
            host.place(&mut command);
        }
        let log = boot.dir.join(format!("{}-qemu.log", boot.name));
        let serial_log = boot.dir.join(format!("{}-serial.log", boot.name));
        let (process, pipe) = Process::spawn_piped(&mut command, "QEMU", &log)?;
        let (sender, words) = sync_channel(LINES_MAX);
        let file = std::fs::File::create(&serial_log)?;
        let begun = boot.half_line.clone();
        let reader = std::thread::spawn(move || read_serial(begun, pipe, file, &sender));
        Ok(Self {
            process,
            words,
            reader: Some(reader),
            serial_log,
        })
    }

    /// The next word, `None` if there is none within `limit`; an error if the guest failed or ended.
    pub(crate) fn next(&mut self, limit: Duration) -> Result<Option<Heard>> {
        let end = Instant::now() + limit;
        loop {
            stop::check()?;
            let left = end.saturating_duration_since(Instant::now());
            match self.words.recv_timeout(left.min(Duration::from_millis(50))) {
                Ok(Heard {
                    word: Word::Fail(why),
                    ..
                }) => return Err(GuestFailed(why).into()),
                Ok(heard) => return Ok(Some(heard)),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.process.must_be_alive()?;
                    bail!("the guest's serial line is closed{}", self.evidence());
                }
            }
        }
    }

    /// The next word, which must come within `limit`.
    pub(crate) fn expect_word(&mut self, what: &str, limit: Duration) -> Result<Word> {
        match self.next(limit)? {
            Some(heard) => Ok(heard.word),
            None => {
                let seconds = limit.as_secs();
                bail!(
                    "waited {seconds} s in vain for the guest {what}{}",
                    self.evidence()
                )
            }
        }
    }

    /// Kills it, and returns what it said that was not taken yet.
    pub(crate) fn rest_after_kill(mut self) -> Vec<Heard> {
        self.end_and_rest()
    }

    /// As [`Guest::rest_after_kill`], with the line that it was in the middle of.
    pub(crate) fn rest_and_half_line(mut self) -> Result<(Vec<Heard>, Vec<u8>)> {
        let rest = self.end_and_rest();
        let path = &self.serial_log;
        let log = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let end = log.iter().rposition(|byte| *byte == b'\n');
        Ok((rest, log[end.map_or(0, |at| at + 1)..].to_vec()))
    }

    fn end_and_rest(&mut self) -> Vec<Heard> {
        self.process.kill();
        // The pipe is closed now, so the reader comes to its end.
        let mut rest = Vec::new();
        while let Ok(heard) = self.words.recv_timeout(Duration::from_secs(5)) {
            rest.push(heard);
        }
        rest
    }

    /// The file that is its memory, of a guest whose memory is shared. It is there for as long as it is
    /// open, also when the guest is not.
    pub(crate) fn memory(&self) -> Result<File> {
        let dir = format!("/proc/{}/fd", self.process.id());
        for entry in std::fs::read_dir(&dir).with_context(|| format!("read {dir}"))? {
            let path = entry?.path();
            let is_memory = std::fs::read_link(&path)
                .is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:memory-backend"));
            if is_memory {
                let file = File::options().read(true).write(true).open(&path);
                return file.with_context(|| format!("open {}", path.display()));
            }
        }
        bail!("{dir} shows no memory of the guest")
    }

    /// SIGSTOP, SIGCONT or SIGKILL, without waiting for what it does.
    pub(crate) fn signal(&mut self, signal: libc::c_int) {
        self.process.signal(signal);
    }

    pub(crate) fn wait_for_power_off(&mut self) -> Result<()> {
        let status = self.process.wait(Duration::from_secs(30))?;
        if !status.success() {
            bail!("QEMU: {}{}", process::describe(status), self.evidence());
        }
        Ok(())
    }

    fn evidence(&self) -> String {
        process::tail_of(&self.serial_log)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.process.kill();
        // Receiver first: a reader that waits for room would not see the end of the pipe.
        self.words = sync_channel(0).1;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Boot<'_> {
    fn fill(&self, command: &mut Command) {
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        let memory = format!("{}M", self.memory_mib);
        command.args(["-accel", self.accelerator.name(), "-m", &memory]);
        command.args(["-smp", "1"]);
        if self.accelerator == Accelerator::Kvm {
            command.args(["-cpu", "host"]);
        }
        command.args([
            "-chardev",
            "stdio,id=serial,signal=off",
            "-serial",
            "chardev:serial",
        ]);
        command.arg("-kernel").arg(&self.kernel.image);
        command.arg("-initrd").arg(&self.kernel.initramfs);
        let line = "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off";
        command
            .arg("-append")
            .arg(format!("{line} {}", self.arguments));
        if let Some(socket) = self.disk_socket {
            command.args(disk("d0", socket));
        }
        command.args(self.devices);
    }
}

fn read_serial(
    mut line: Vec<u8>,
    pipe: ChildStdout,
    mut copy: std::fs::File,
    words: &SyncSender<Heard>,
) {
    let mut lines = BufReader::new(pipe);
    loop {
        match lines.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let at_unix_ns = now_unix_ns();
        // The log is evidence only; a full disk shows elsewhere.
        let _ = copy.write_all(&line);
        // A line cut off by SIGKILL is no word: its number may be cut as well.
        if line.last() != Some(&b'\n') {
            return;
        }
        if let Some(word) = Word::parse(&String::from_utf8_lossy(&line))
            && words.send(Heard { at_unix_ns, word }).is_err()
        {
            return;
        }
        line.clear();
    }
}

/// Nanoseconds since 1970 by this machine's clock, which all daemons of a demo share.
pub(crate) fn now_unix_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Which accelerator boots a guest here. /dev/kvm alone proves nothing: there are machines where it
/// exists and a stock kernel hangs under it. The answer is kept until the machine is rebooted.
pub(crate) fn accelerator(checkout: &Checkout, kernel: &GuestKernel) -> Result<Accelerator> {
    let device = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    if device.is_err() {
        return Ok(Accelerator::Tcg);
    }
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("read /proc/sys/kernel/random/boot_id")?;
    let cache = checkout.work().join("guest");
    let memory = cache.join("accelerator");
    let key = format!("{} {} ", boot_id.trim(), kernel.version);
    let known = std::fs::read_to_string(&memory).unwrap_or_default();
    match known.strip_prefix(&key) {
        Some("kvm") => return Ok(Accelerator::Kvm),
        Some("tcg") => return Ok(Accelerator::Tcg),
        _ => {}
    }
    let step = ui::step("trying KVM with a probe guest");
    let (found, how) = match probe(kernel, &cache) {
        Ok(Some(Word::ProbeOk)) => (Accelerator::Kvm, "it works"),
        Ok(None) => (
            Accelerator::Tcg,
            "it does not boot this kernel within 10 s; using TCG instead, which is slower",
        ),
        Err(error) if error.is::<stop::Interrupted>() => return Err(error),
        Ok(Some(_)) | Err(_) => (
            Accelerator::Tcg,
            "QEMU cannot use it on this machine; using TCG instead, which is slower",
        ),
    };
    std::fs::write(&memory, format!("{key}{}", found.name()))?;
    step.done(how);
    Ok(found)
}

/// What a guest under KVM says; `None` if it says nothing in time.
fn probe(kernel: &GuestKernel, dir: &Path) -> Result<Option<Word>> {
    let mut guest = Guest::boot(&Boot {
        kernel,
        accelerator: Accelerator::Kvm,
        arguments: "role=probe".to_owned(),
        memory_mib: MEMORY_MIB,
        disk_socket: None,
        devices: &[],
        dir,
        name: "probe",
        host: None,
        half_line: Vec::new(),
    })?;
    let heard = guest.next(PROBE_LIMIT)?;
    Ok(heard.map(|heard| heard.word))
}
