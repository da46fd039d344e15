//! A guest that is kept standing right after a cut, with its checkpointer none the wiser.
//!
//! ```text
//!  checkpointer ── its monitor ──► Held ── QEMU's monitor ──► QEMU
//!                      stop ─────────►──────────► stop
//!                      state ────────►──────────► state
//!                      cont ─────────► │ kept back, and answered as if QEMU had gone on
//! ```
//! So its memory stays that of the epoch that was just cut, while a daemon as it is shipped sends and commits that. The
//! pauses after it find a guest that somebody else has paused: no checkpoint is made of it until it goes on.

use super::guest::{LIMIT, boot_disk, spec, wait_for};
use checkpointer::hypervisor::qemu::spec::{Place, Role};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Descriptors that come with one command.
const DESCRIPTORS_MAX: usize = 4;
/// Our own command to QEMU, whose answer is nobody's.
const OUR_ID: &str = "\"of the test\"";
const GONE_ON: &str =
    "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 0}, \"event\": \"RESUME\"}\r\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Runs,
    /// It is to be kept at the end of the next pause in which its state was saved.
    Wanted,
    Kept,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// The pause that is: whether the state was saved in it.
    has_state: bool,
    /// To QEMU, of the connection that is.
    qemu: Option<UnixStream>,
    /// Once, right before QEMU gets the next command of this name.
    before: Option<Before>,
}

/// A command, and what is to be done first.
struct Before(&'static str, Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Before {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// See the module. QEMU ends with it.
#[derive(Debug)]
pub(crate) struct Held {
    child: Child,
    inner: Arc<Mutex<Inner>>,
}

impl Held {
    /// Starts the guest of one boot sector; the monitor for its checkpointer is at `front`.
    pub(crate) fn start(program: &Path, dir: &Path, front: &Path) -> Self {
        let spec = spec(program, &boot_disk(dir), &[]);
        let a = dir.join("a");
        std::fs::create_dir_all(&a).expect("a directory");
        let place = Place {
            monitor: a.join("own.qmp"),
            memory: a.join("vm1.ram"),
            log: a.join("vm1.log"),
        };
        let memory = File::create(&place.memory).expect("memory");
        memory.set_len(spec.memory_bytes()).expect("its length");
        let listener = UnixListener::bind(front).expect("a socket");
        let number = listener.as_raw_fd();
        let mut command = Command::new(program);
        command
            .args(spec.arguments(Role::Primary, &place))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&place.log).expect("a log"));
        // SAFETY: one system call. Whoever listens last is whom the checkpointer takes for its QEMU.
        unsafe {
            command.pre_exec(move || match libc::listen(number, 8) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let child = command.spawn().expect("QEMU");
        wait_for("QEMU's monitor", || place.monitor.exists());
        let inner = Arc::new(Mutex::new(Inner {
            state: State::Runs,
            has_state: false,
            qemu: None,
            before: None,
        }));
        let (mine, monitor) = (Arc::clone(&inner), place.monitor);
        std::thread::spawn(move || {
            // One after the other, as QEMU takes them.
            for client in listener.incoming().flatten() {
                if let Ok(qemu) = UnixStream::connect(&monitor) {
                    between(&client, &qemu, &mine);
                }
            }
        });
        Self { child, inner }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        locked(&self.inner)
    }

    /// Returns when the guest stands still, right after a cut.
    pub(crate) fn keep(&self) {
        self.inner().state = State::Wanted;
        wait_for("a cut", || self.inner().state == State::Kept);
    }

    /// It goes on, as if somebody had told it so.
    pub(crate) fn let_go(&self) {
        let mut inner = self.inner();
        assert_eq!(inner.state, State::Kept);
        inner.state = State::Runs;
        let order = format!("{{\"execute\":\"cont\",\"id\":{OUR_ID}}}\n");
        let qemu = inner.qemu.as_mut().expect("a checkpointer is connected");
        qemu.write_all(order.as_bytes()).expect("told");
    }

    /// Does that once, right before QEMU gets this command.
    pub(crate) fn before(&self, command: &'static str, that: impl FnOnce() + Send + 'static) {
        self.inner().before = Some(Before(command, Box::new(that)));
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.kill();
    }
}

fn locked(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries everything between the two until one of them hangs up.
fn between(client: &UnixStream, qemu: &UnixStream, inner: &Mutex<Inner>) {
    for stream in [client, qemu] {
        stream.set_write_timeout(Some(LIMIT)).expect("set");
    }
    // Answers and what is answered in QEMU's place, line by line.
    let back = Mutex::new(client.try_clone().expect("a second one"));
    locked(inner).qemu = qemu.try_clone().ok();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = answers(qemu, &back);
            let _ = client.shutdown(std::net::Shutdown::Both);
        });
        let _ = commands(client, qemu, &back, inner);
        let _ = qemu.shutdown(std::net::Shutdown::Both);
    });
}

fn answers(qemu: &UnixStream, back: &Mutex<UnixStream>) -> io::Result<()> {
    let mut lines = BufReader::new(qemu);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        if !String::from_utf8_lossy(&line).contains(OUR_ID) {
            let mut back = back.lock().unwrap_or_else(PoisonError::into_inner);
            back.write_all(&line)?;
        }
        line.clear();
    }
    Ok(())
}

fn commands(
    client: &UnixStream,
    qemu: &UnixStream,
    back: &Mutex<UnixStream>,
    inner: &Mutex<Inner>,
) -> io::Result<()> {
    let mut rest = Vec::new();
    let mut bytes = vec![0; 1 << 16];
    loop {
        let (read, mut descriptors) = receive(client, &mut bytes)?;
        if read == 0 {
            return Ok(());
        }
        rest.extend_from_slice(&bytes[..read]);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            match kept_back(&line, inner) {
                // One command is sent with what belongs to it.
                None => send(qemu, &line, &std::mem::take(&mut descriptors))?,
                Some(answer) => {
                    let mut back = back.lock().unwrap_or_else(PoisonError::into_inner);
                    back.write_all(answer.as_bytes())?;
                }
            }
        }
    }
}

/// What is answered in QEMU's place, of a command that it does not get.
fn kept_back(line: &[u8], inner: &Mutex<Inner>) -> Option<String> {
    let command: serde_json::Value = serde_json::from_slice(line).ok()?;
    let mut inner = locked(inner);
    let name = command["execute"].as_str()?;
    if let Some(Before(_, that)) = inner.before.take_if(|before| before.0 == name) {
        that();
    }
    match name {
        "stop" => inner.has_state = false,
        "xen-save-devices-state" | "migrate" => inner.has_state = true,
        "cont" if inner.state == State::Wanted && inner.has_state => {
            inner.state = State::Kept;
            let id = &command["id"];
            return Some(format!("{GONE_ON}{{\"return\": {{}}, \"id\": {id}}}\r\n"));
        }
        _ => {}
    }
    None
}

fn receive(from: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(bytes)];
    let read = recvmsg(from, &mut parts, &mut with, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let mut descriptors = Vec::new();
    for message in with.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((read, descriptors))
}

fn send(to: &UnixStream, line: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut with = SendAncillaryBuffer::new(&mut space);
    let rights: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    if !rights.is_empty() {
        assert!(with.push(SendAncillaryMessage::ScmRights(&rights)));
    }
    let sent = sendmsg(to, &[IoSlice::new(line)], &mut with, SendFlags::NOSIGNAL)?;
    let mut to = to;
    to.write_all(&line[sent..])
}
