//! Write protection by userfaultfd that the kernel lifts by itself at the first write, and one call that tells what
//! was lifted and protects it anew, in one step under the page tables' locks: exact, whatever runs meanwhile.
//!
//! The process is asked once for a userfaultfd ([`inject`](super::inject)); after that it is left alone. The only
//! descriptor is ours: closed, by [`disarm`](Tracker::disarm) or by our death, all protection is lifted.
//!
//! Needs Linux 6.7. Protection is by pages of 4 KiB, so huge pages are split as they are armed.

use super::kernel::{self, PagemapScan, Region, UffdApi, UffdProtect, UffdRegister};
use super::maps::Maps;
use super::{Kind, Pages, Tracker, TrackerError, Watched, inject};
use crate::memory::PAGE_BYTES;
use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

/// Runs of written pages that one call can tell; 96 KiB of them.
const REGIONS: usize = 4096;
/// How often protecting is tried while the process changes its mappings.
const TRIES: usize = 1000;
const FEATURES: u64 =
    kernel::FEATURE_WP_ASYNC | kernel::FEATURE_WP_UNPOPULATED | kernel::FEATURE_WP_SHARED;

/// The pages of one process, watched.
#[derive(Debug)]
pub(super) struct Uffd {
    pid: u32,
    /// None after [`disarm`](Tracker::disarm).
    uffd: Option<OwnedFd>,
    pagemap: File,
    maps: Maps,
    watched: Vec<Watched>,
    regions: Vec<Region>,
}

impl Uffd {
    pub(super) fn attach(pid: u32, watched: &[Watched]) -> Result<Self, TrackerError> {
        // Before the process is stopped for nothing.
        probe()?;
        let maps = Maps::of(pid, watched)?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))
            .map_err(|e| TrackerError::opening(pid, &e))?;
        let uffd = inject::userfaultfd(pid, pid)?;
        enable(&uffd).map_err(TrackerError::of("setting up the userfaultfd"))?;
        for part in watched {
            let mut register = UffdRegister {
                start: part.address,
                len: part.pages * PAGE_BYTES,
                mode: kernel::REGISTER_MODE_WP,
                ioctls: 0,
            };
            // SAFETY: number and structure belong together; the addresses are the other process's.
            unsafe { kernel::ioctl(uffd.as_fd(), kernel::UFFDIO_REGISTER, &mut register) }
                .map_err(|e| refused(pid, e))?;
        }
        Ok(Self {
            pid,
            uffd: Some(uffd),
            pagemap,
            maps,
            watched: watched.to_vec(),
            regions: vec![Region::default(); REGIONS],
        })
    }

    fn protect(&self, start: u64, len: u64) -> Result<(), TrackerError> {
        let uffd = self.uffd.as_ref().ok_or_else(disarmed)?;
        for _ in 0..TRIES {
            let mut protect = UffdProtect {
                start,
                len,
                mode: kernel::PROTECT_MODE_WP,
            };
            // SAFETY: number and structure belong together; the addresses are the other process's.
            let done =
                unsafe { kernel::ioctl(uffd.as_fd(), kernel::UFFDIO_WRITEPROTECT, &mut protect) };
            match done {
                Ok(_) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => std::thread::yield_now(),
                Err(e) => return Err(self.told("protecting pages", e)),
            }
        }
        Err(TrackerError::Kernel {
            doing: "protecting pages",
            source: io::Error::from_raw_os_error(libc::EAGAIN),
        })
    }

    fn scan_part(&mut self, part: Watched, dirty: &mut Pages) -> Result<(), TrackerError> {
        let end = part.address + part.pages * PAGE_BYTES;
        let mut from = part.address;
        while from < end {
            let mut scan = PagemapScan {
                size: size_of::<PagemapScan>() as u64,
                flags: kernel::SCAN_WP_MATCHING | kernel::SCAN_CHECK_WPASYNC,
                start: from,
                end,
                walk_end: 0,
                vec: self.regions.as_mut_ptr() as u64,
                vec_len: self.regions.len() as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: kernel::PAGE_IS_WRITTEN,
                category_anyof_mask: 0,
                return_mask: kernel::PAGE_IS_WRITTEN,
            };
            // SAFETY: number and structure belong together; `vec` is `vec_len` regions of ours.
            let told =
                unsafe { kernel::ioctl(self.pagemap.as_fd(), kernel::PAGEMAP_SCAN, &mut scan) };
            let count = told.map_err(|e| self.told("asking for written pages", e))?;
            for region in &self.regions[..count] {
                let first = part.first_page + (region.start - part.address) / PAGE_BYTES;
                dirty.insert_run(first, (region.end - region.start) / PAGE_BYTES);
            }
            // A full vector ends the walk early; what lies behind is neither told nor protected yet.
            if scan.walk_end <= from {
                return Err(TrackerError::Kernel {
                    doing: "asking for written pages",
                    source: io::Error::other("the kernel does not get on"),
                });
            }
            from = scan.walk_end;
        }
        Ok(())
    }

    fn told(&self, doing: &'static str, error: io::Error) -> TrackerError {
        match error.raw_os_error() {
            Some(libc::ESRCH) => TrackerError::ended(self.pid),
            Some(libc::ENOENT | libc::EPERM) => TrackerError::Gone(format!(
                "process {} has mapped the guest's memory anew, and what it wrote is not known",
                self.pid
            )),
            _ => TrackerError::of(doing)(error),
        }
    }
}

impl Tracker for Uffd {
    fn kind(&self) -> Kind {
        Kind::Userfaultfd
    }

    fn arm(&mut self, first: u64, count: u64) -> Result<(), TrackerError> {
        for part in &self.watched {
            let from = first.max(part.first_page);
            let to = first
                .saturating_add(count)
                .min(part.first_page + part.pages);
            if from < to {
                let start = part.address + (from - part.first_page) * PAGE_BYTES;
                self.protect(start, (to - from) * PAGE_BYTES)?;
            }
        }
        Ok(())
    }

    fn copied(&mut self, _first: u64, _bytes: &[u8]) {}

    fn scan(&mut self, dirty: &mut Pages) -> Result<(), TrackerError> {
        if self.uffd.is_none() {
            return Err(disarmed());
        }
        for part in 0..self.watched.len() {
            self.scan_part(self.watched[part], dirty)?;
        }
        // What is mapped and watched now was so all the time: a mapping that is made anew is not watched.
        self.maps.check()
    }

    fn disarm(&mut self) -> Result<(), TrackerError> {
        // The kernel lifts all protection before this returns; there is no other descriptor.
        self.uffd = None;
        Ok(())
    }
}

fn disarmed() -> TrackerError {
    TrackerError::Gone("nothing is watched any more".to_owned())
}

/// Whether this kernel has all that is needed, tried on ourselves.
fn probe() -> Result<(), TrackerError> {
    let flags = libc::O_CLOEXEC | kernel::UFFD_USER_MODE_ONLY;
    // SAFETY: takes no memory.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let old = |e: io::Error| {
        TrackerError::Refused(format!(
            "the kernel has no asynchronous write protection ({e}); Linux 6.7 with CONFIG_USERFAULTFD has"
        ))
    };
    let fd = match c_int::try_from(fd) {
        // SAFETY: the kernel has just made it, for nobody else.
        Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
        _ => return Err(old(io::Error::last_os_error())),
    };
    enable(&fd).map_err(old)?;
    let pagemap = File::open("/proc/self/pagemap").map_err(old)?;
    let mut scan = PagemapScan {
        size: size_of::<PagemapScan>() as u64,
        flags: 0,
        start: 0,
        end: 0,
        walk_end: 0,
        vec: 0,
        vec_len: 0,
        max_pages: 0,
        category_inverted: 0,
        category_mask: kernel::PAGE_IS_WRITTEN,
        category_anyof_mask: 0,
        return_mask: kernel::PAGE_IS_WRITTEN,
    };
    // SAFETY: number and structure belong together; no pages are asked for, and none are told.
    unsafe { kernel::ioctl(pagemap.as_fd(), kernel::PAGEMAP_SCAN, &mut scan) }.map_err(old)?;
    Ok(())
}

fn enable(uffd: &OwnedFd) -> io::Result<()> {
    let mut api = UffdApi {
        api: kernel::UFFD_API_VERSION,
        features: FEATURES,
        ioctls: 0,
    };
    // SAFETY: number and structure belong together.
    unsafe { kernel::ioctl(uffd.as_fd(), kernel::UFFDIO_API, &mut api) }.map(drop)
}

fn refused(pid: u32, error: io::Error) -> TrackerError {
    match error.raw_os_error() {
        Some(libc::EBUSY) => TrackerError::Refused(format!(
            "the guest's memory in process {pid} is watched already: by another checkpointer, or by the process \
             itself (postcopy, background snapshots)"
        )),
        Some(libc::ESRCH) => TrackerError::ended(pid),
        Some(libc::EINVAL) => TrackerError::Refused(format!(
            "the guest's memory in process {pid} is of a kind that cannot be watched; shared memory \
             (/dev/shm, a memfd) can"
        )),
        _ => TrackerError::of("watching the guest's memory")(error),
    }
}
