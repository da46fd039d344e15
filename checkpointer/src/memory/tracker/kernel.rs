//! What the kernel wants: numbers and structures of `linux/userfaultfd.h` and `linux/fs.h`, which libc lacks.

use std::ffi::{c_int, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct UffdApi {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct UffdRegister {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct UffdProtect {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct PagemapScan {
    pub(super) size: u64,
    pub(super) flags: u64,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) walk_end: u64,
    pub(super) vec: u64,
    pub(super) vec_len: u64,
    pub(super) max_pages: u64,
    pub(super) category_inverted: u64,
    pub(super) category_mask: u64,
    pub(super) category_anyof_mask: u64,
    pub(super) return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Region {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) categories: u64,
}

/// `struct procmap_query`.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct MapQuery {
    pub(super) size: u64,
    pub(super) query_flags: u64,
    pub(super) query_addr: u64,
    pub(super) vma_start: u64,
    pub(super) vma_end: u64,
    pub(super) vma_flags: u64,
    pub(super) vma_page_size: u64,
    pub(super) vma_offset: u64,
    pub(super) inode: u64,
    pub(super) dev_major: u32,
    pub(super) dev_minor: u32,
    pub(super) vma_name_size: u32,
    pub(super) build_id_size: u32,
    pub(super) vma_name_addr: u64,
    pub(super) build_id_addr: u64,
}

/// `_IOWR` of the generic encoding, which x86 and Arm use.
const fn read_write<T>(group: u8, number: u8) -> c_ulong {
    (3 << 30) | ((size_of::<T>() as c_ulong) << 16) | ((group as c_ulong) << 8) | number as c_ulong
}

pub(super) const UFFDIO_API: c_ulong = read_write::<UffdApi>(0xaa, 0x3f);
pub(super) const UFFDIO_REGISTER: c_ulong = read_write::<UffdRegister>(0xaa, 0);
pub(super) const UFFDIO_WRITEPROTECT: c_ulong = read_write::<UffdProtect>(0xaa, 6);
pub(super) const PAGEMAP_SCAN: c_ulong = read_write::<PagemapScan>(b'f', 16);
pub(super) const PROCMAP_QUERY: c_ulong = read_write::<MapQuery>(b'f', 17);

pub(super) const UFFD_API_VERSION: u64 = 0xaa;
pub(super) const UFFD_USER_MODE_ONLY: c_int = 1;
/// Pages of shared memory can be protected.
pub(super) const FEATURE_WP_SHARED: u64 = 1 << 12;
/// Pages that are not there yet can be protected.
pub(super) const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// A write to a protected page goes on at once, by the kernel alone.
pub(super) const FEATURE_WP_ASYNC: u64 = 1 << 15;
pub(super) const REGISTER_MODE_WP: u64 = 1 << 1;
pub(super) const PROTECT_MODE_WP: u64 = 1;

pub(super) const PAGE_IS_WRITTEN: u64 = 1 << 1;
/// Protect what is told, in the same step.
pub(super) const SCAN_WP_MATCHING: u64 = 1;
/// Fail where a mapping is not watched in this way.
pub(super) const SCAN_CHECK_WPASYNC: u64 = 1 << 1;

pub(super) const MAP_WRITABLE: u64 = 2;
pub(super) const MAP_SHARED: u64 = 8;

/// # Safety
/// `number` is one of the above, `argument` the structure that it was made from, and what that points at is
/// valid for what the call does.
pub(super) unsafe fn ioctl<T>(
    fd: BorrowedFd<'_>,
    number: c_ulong,
    argument: &mut T,
) -> io::Result<usize> {
    // SAFETY: the caller answers for the argument; the descriptor is open.
    let answer = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            number as libc::Ioctl,
            std::ptr::from_mut(argument),
        )
    };
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    //! A wrong number is refused by the kernel as unknown: every tracker would be refused everywhere.
    use super::*;

    #[test]
    fn numbers_are_those_of_the_headers() {
        assert_eq!(UFFDIO_API, 0xc018_aa3f);
        assert_eq!(UFFDIO_REGISTER, 0xc020_aa00);
        assert_eq!(UFFDIO_WRITEPROTECT, 0xc018_aa06);
        assert_eq!(PAGEMAP_SCAN, 0xc060_6610);
        assert_eq!(PROCMAP_QUERY, 0xc068_6611);
    }
}
