//! Why pages cannot be watched, or cannot be any more.

use std::io;
use thiserror::Error;

/// By what is done about it.
#[derive(Debug, Error)]
pub enum TrackerError {
    /// It cannot be done this way here; the next way may work. Says what to change.
    #[error("{0}")]
    Refused(String),
    /// The process has ended, or is not what it was.
    #[error("{0}")]
    Gone(String),
    /// The kernel's, while it was tried to do that.
    #[error("{doing}: {source}")]
    Kernel {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
}

impl TrackerError {
    /// For `map_err`.
    pub(super) fn of(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Kernel { doing, source }
    }

    /// The process has ended.
    pub(super) fn ended(pid: u32) -> Self {
        Self::Gone(format!(
            "process {pid} has ended, or runs another program now"
        ))
    }

    /// Of opening one of its files under /proc.
    pub(super) fn opening(pid: u32, error: &io::Error) -> Self {
        if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) {
            return Self::Gone(format!("there is no process {pid}"));
        }
        Self::Refused(format!(
            "/proc/{pid} cannot be read ({error}); run as root, or as its user with CAP_SYS_PTRACE"
        ))
    }
}

/// Why a process may not be traced, and what to change.
pub(super) fn untraceable(pid: u32) -> TrackerError {
    let tracer = status_of(pid, "TracerPid").unwrap_or(0);
    if tracer != 0 {
        // What is told is a thread.
        let process = status_of(tracer, "Tgid").unwrap_or(tracer);
        return TrackerError::Refused(format!(
            "process {pid} is traced by process {process} already (a debugger, strace); end that first"
        ));
    }
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let yama = match scope.trim() {
        "1" | "2" => ", or set kernel.yama.ptrace_scope to 0 while it is attached",
        "3" => "; kernel.yama.ptrace_scope is 3, which forbids it to everybody until the next boot",
        _ => "",
    };
    TrackerError::Refused(format!(
        "ptrace of process {pid} is forbidden; run as root or with CAP_SYS_PTRACE{yama}"
    ))
}

fn status_of(pid: u32, what: &str) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(what))?;
    line.trim_start_matches(':').trim().parse().ok()
}
