//! System calls of a thread of this process, counted by the kernel.

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;

/// `PERF_TYPE_TRACEPOINT` of `perf_event_open(2)`.
const TRACEPOINT: u64 = 2;
/// `PERF_ATTR_SIZE_VER0`: the attributes up to `config1`.
const ATTR_BYTES: u64 = 64;
const CLOEXEC: u64 = 8;

/// A counter that runs.
pub(crate) struct Calls(File);

impl Calls {
    /// Of the thread with that name, from now on; or why they cannot be counted.
    pub(crate) fn of_thread(name: &str) -> Result<Self, String> {
        let id = tracepoint()?;
        let thread = thread_id(name).ok_or_else(|| format!("no thread {name}"))?;
        let attr: [u64; 8] = [TRACEPOINT | ATTR_BYTES << 32, id, 0, 0, 0, 0, 0, 0];
        // SAFETY: the attributes are as long as they say and outlive the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                attr.as_ptr(),
                thread,
                -1,
                -1,
                CLOEXEC,
            )
        };
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            return Err(format!("perf_event_open: {error}"));
        }
        let fd = i32::try_from(fd).expect("descriptors are small");
        // SAFETY: just made, and nobody else's.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Those made meanwhile.
    pub(crate) fn during(&mut self, work: impl FnOnce()) -> u64 {
        let before = self.read();
        work();
        self.read() - before
    }

    fn read(&mut self) -> u64 {
        let mut count = [0; 8];
        self.0.read_exact(&mut count).unwrap();
        #[expect(clippy::host_endian_bytes, reason = "the kernel of this host wrote it")]
        u64::from_ne_bytes(count)
    }
}

/// Number of the kernel's tracepoint at which every system call passes.
fn tracepoint() -> Result<u64, String> {
    let mut said = String::new();
    for root in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
        match std::fs::read_to_string(format!("{root}/events/raw_syscalls/sys_enter/id")) {
            Ok(text) => return text.trim().parse().map_err(|_| format!("an id: {text}")),
            Err(error) => said = format!("{root}: {error}"),
        }
    }
    Err(said)
}

fn thread_id(name: &str) -> Option<i64> {
    std::fs::read_dir("/proc/self/task")
        .ok()?
        .flatten()
        .find(|task| {
            std::fs::read_to_string(task.path().join("comm"))
                .is_ok_and(|comm| comm.trim_end() == name)
        })
        .and_then(|task| task.file_name().to_str()?.parse().ok())
}
