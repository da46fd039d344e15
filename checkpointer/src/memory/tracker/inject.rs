//! A userfaultfd of another process, unmodified: two system calls are run in it.
//!
//! A userfaultfd is for the memory of the process that creates it, and for that alone. So one thread of the process
//! is stopped, made to create one, and the descriptor is taken with pidfd_getfd(2); then it is made to close its
//! own. From then on the only descriptor is ours, and our end is the end of the watching.
//!
//! Nothing is written into the process: the instruction for a system call is found in what it has mapped (the vDSO
//! has one). The thread stands still for some tenths of a millisecond. Should this process be killed within that
//! time, its thread goes on with registers that are not its own, and the process most likely dies.

use super::TrackerError;
use std::os::fd::OwnedFd;

/// A userfaultfd for the memory of process `pid`, which thread `thread` of it has created (the process's number for
/// its first one).
///
/// # Errors
/// ptrace is forbidden, the kernel has none or gives none, or the process has gone. The process runs on.
#[cfg(not(target_arch = "x86_64"))]
pub fn userfaultfd(_pid: u32, _thread: u32) -> Result<OwnedFd, TrackerError> {
    Err(TrackerError::Refused(
        "system calls can be run in another process on x86-64 only".to_owned(),
    ))
}

#[cfg(target_arch = "x86_64")]
pub use self::x86_64::userfaultfd;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::super::kernel::UFFD_USER_MODE_ONLY;
    use super::super::maps;
    use super::super::ptrace::Stopped;
    use super::{OwnedFd, TrackerError};
    use std::ffi::c_int;
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    /// The instruction, wherever it stands: nothing behind it is run.
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    /// Most of a mapping that is searched for it.
    const SEARCH_BYTES_MAX: u64 = 4 << 20;
    /// How often a thread is found in a restartable sequence before it is given up.
    const TRIES: usize = 50;

    /// See the other one.
    ///
    /// # Errors
    /// As above.
    pub fn userfaultfd(pid: u32, thread: u32) -> Result<OwnedFd, TrackerError> {
        // A thread of its own: when it ends, however it ends, the kernel detaches.
        std::thread::Builder::new()
            .name("attach".to_owned())
            .spawn(move || run(pid, thread))
            .map_err(TrackerError::of("starting a thread"))?
            .join()
            .unwrap_or_else(|_| {
                Err(TrackerError::Refused(
                    "attaching has failed by a fault of this program".to_owned(),
                ))
            })
    }

    fn run(pid: u32, thread: u32) -> Result<OwnedFd, TrackerError> {
        let pidfd = pidfd_open(pid)?;
        let memory = File::open(format!("/proc/{pid}/mem")).map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => super::super::failure::untraceable(pid),
            _ => TrackerError::opening(pid, &e),
        })?;
        let gate = syscall_instruction(pid, &memory)?;
        for _ in 0..TRIES {
            let mut stopped = Stopped::seize(pid, thread)?;
            if is_in_sequence(&stopped, &memory) {
                drop(stopped);
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let taken = take(&mut stopped, &pidfd, gate);
            stopped.release()?;
            return taken;
        }
        Err(TrackerError::Refused(format!(
            "thread {thread} of process {pid} is never outside of its restartable sequences"
        )))
    }

    fn take(stopped: &mut Stopped, pidfd: &OwnedFd, gate: u64) -> Result<OwnedFd, TrackerError> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
        let flags = u64::from(flags.cast_unsigned());
        let theirs = stopped.call(gate, libc::SYS_userfaultfd, [flags, 0])?;
        if theirs < 0 {
            let error = errno(theirs);
            return Err(TrackerError::Refused(match error.raw_os_error() {
                Some(libc::ENOSYS) => "the kernel has no userfaultfd".to_owned(),
                Some(libc::EPERM) => {
                    format!("the process may have no userfaultfd ({error}): is it in a sandbox?")
                }
                _ => format!("the process gets no userfaultfd: {error}"),
            }));
        }
        let ours = pidfd_getfd(pidfd, theirs);
        let closed = stopped.call(gate, libc::SYS_close, [theirs.cast_unsigned(), 0])?;
        if closed < 0 {
            // It would outlive us in there, so it must not be used.
            return Err(TrackerError::of("closing the userfaultfd in the process")(
                errno(closed),
            ));
        }
        ours.map_err(TrackerError::of("taking the userfaultfd"))
    }

    fn errno(answer: i64) -> io::Error {
        io::Error::from_raw_os_error(c_int::try_from(-answer).unwrap_or(libc::EINVAL))
    }

    fn pidfd_open(pid: u32) -> Result<OwnedFd, TrackerError> {
        // SAFETY: takes no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        descriptor(fd).map_err(|e| match e.raw_os_error() {
            Some(libc::ESRCH) => TrackerError::ended(pid),
            _ => TrackerError::of("opening a pidfd")(e),
        })
    }

    fn pidfd_getfd(pidfd: &OwnedFd, theirs: i64) -> io::Result<OwnedFd> {
        // SAFETY: takes no memory.
        descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), theirs, 0) })
    }

    fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
        match c_int::try_from(answer) {
            // SAFETY: the kernel has just made it, for nobody else.
            Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// An address in the process where the instruction stands: in the vDSO, else in any code.
    fn syscall_instruction(pid: u32, memory: &File) -> Result<u64, TrackerError> {
        let mut code: Vec<_> = maps::of(pid)?
            .into_iter()
            .filter(|vma| vma.is_executable && vma.name != "[vsyscall]")
            .collect();
        code.sort_by_key(|vma| vma.name != "[vdso]");
        for vma in code {
            let bytes = (vma.end - vma.start).min(SEARCH_BYTES_MAX);
            let mut text = vec![0; usize::try_from(bytes).expect("a few MiB")];
            // Code that cannot be read is not searched.
            let read = memory.read_at(&mut text, vma.start).unwrap_or(0);
            let found = text[..read].windows(2).position(|two| two == SYSCALL);
            if let Some(offset) = found {
                return Ok(vma.start + offset as u64);
            }
        }
        Err(TrackerError::Refused(format!(
            "process {pid} has no instruction for system calls that could be used"
        )))
    }

    /// The thread was stopped within a restartable sequence (rseq(2)): run elsewhere in between, it would be
    /// carried on where it has to begin again.
    fn is_in_sequence(stopped: &Stopped, memory: &File) -> bool {
        let word = |at: u64| {
            let mut bytes = [0; 8];
            memory.read_exact_at(&mut bytes, at).ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        let inside = || {
            let sequence = word(stopped.rseq_area()?.checked_add(8)?)?;
            if sequence == 0 {
                return None;
            }
            let start = word(sequence.checked_add(8)?)?;
            let length = word(sequence.checked_add(16)?)?;
            Some(stopped.registers().rip.wrapping_sub(start) < length)
        };
        inside().unwrap_or(false)
    }
}
