//! After its start the daemon may change the network and nothing else.
//!
//! Capabilities are a thread's: to be called before the first thread is made, which then has no more.

use std::io;

const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const KEPT: u32 = 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW;
/// `_LINUX_CAPABILITY_VERSION_3`, capget(2).
const VERSION: u32 = 0x2008_0522;
/// More than there are; the kernel says which is the last.
const CAPABILITIES: libc::c_ulong = 64;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// Bits 0 to 31, then 32 to 63.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up every capability but `CAP_NET_ADMIN` and `CAP_NET_RAW`, for this process and what it starts,
/// and new privileges by exec.
///
/// # Errors
/// When one of the two is missing, or the kernel refuses.
pub(super) fn drop_others() -> io::Result<()> {
    let mut header = Header {
        version: VERSION,
        pid: 0,
    };
    let mut sets = [Sets::default(); 2];
    // SAFETY: capget(2) writes two structures for this version; libc has no such call.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    check(got)?;
    if sets[0].permitted & KEPT != KEPT {
        let text =
            "CAP_NET_ADMIN and CAP_NET_RAW are needed; run it as root, or as netbuf.service does";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    for capability in 0..CAPABILITIES {
        if u64::from(KEPT) >> capability & 1 == 0 {
            // SAFETY: prctl(2) with numbers. Refused beyond the last one, and without CAP_SETPCAP, where
            // there is nothing to be had by exec either.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        }
    }
    // SAFETY: prctl(2) with numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    sets[0] = Sets {
        effective: KEPT,
        permitted: KEPT,
        inheritable: 0,
    };
    sets[1] = Sets::default();
    // SAFETY: capset(2) reads what capget has written into.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
