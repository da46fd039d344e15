//! What the kernel says of a process: time, writes, memory.

use crate::harness::Process;
use anyhow::{Context, Result};

/// Counters of a process since it began.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counters {
    /// User and system time in microseconds; the kernel counts in steps of 10 ms or so.
    pub(super) cpu_us: u64,
    /// Bytes it caused to be written to disks.
    pub(super) written_bytes: u64,
}

/// Reads them.
///
/// # Errors
/// The process is gone, or its `/proc` files are not readable.
pub(super) fn counters(process: &Process) -> Result<Counters> {
    let dir = format!("/proc/{}", process.pid());
    let stat = std::fs::read_to_string(format!("{dir}/stat"))
        .with_context(|| format!("{} is gone", process.name))?;
    let io = std::fs::read_to_string(format!("{dir}/io"))
        .with_context(|| format!("{} is gone", process.name))?;
    // SAFETY: sysconf touches no memory of ours.
    let ticks = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) })?.max(1);
    Ok(Counters {
        cpu_us: cpu_ticks(&stat).context("/proc/PID/stat")? * 1_000_000 / ticks,
        written_bytes: labelled(&io, "write_bytes:").context("/proc/PID/io")?,
    })
}

/// Resident memory in bytes.
///
/// # Errors
/// The process is gone.
pub(super) fn resident_bytes(process: &Process) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()))
        .with_context(|| format!("{} is gone", process.name))?;
    Ok(labelled(&status, "VmRSS:").context("/proc/PID/status")? * 1024)
}

/// User and system time; the name before them may hold anything, spaces included.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let after = &stat[stat.rfind(')')? + 1..];
    let mut fields = after.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn labelled(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(label))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields counted from the wrong end give figures that look right.
    #[test]
    fn fields_are_found() {
        let stat = "17 (a b) c) S 1 17 17 0 -1 4194560 1 2 3 4 70 30 9 9 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), Some(100));
        assert_eq!(
            labelled("rchar: 5\nwrite_bytes: 8192\n", "write_bytes:"),
            Some(8192)
        );
        assert_eq!(
            labelled("VmHWM:\t 9 kB\nVmRSS:\t   12 kB\n", "VmRSS:"),
            Some(12)
        );
        assert_eq!(labelled("", "VmRSS:"), None);
    }
}
