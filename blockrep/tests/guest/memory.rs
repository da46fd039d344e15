//! Memory of a guest: one shared file, mapped low and high in its address space.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// Low memory begins at 0.
pub(crate) const LOW_BYTES: u64 = 4 << 20;
/// Where the rest lies.
pub(crate) const HIGH: u64 = 1 << 30;
pub(crate) const HIGH_BYTES: u64 = 4 << 20;
const BYTES: usize = (LOW_BYTES + HIGH_BYTES) as usize;
const PAGE: usize = 4096;

/// What disk and guest share, and what of it the guest wrote.
pub(crate) struct Memory {
    file: OwnedFd,
    base: NonNull<u8>,
    shadow: Vec<u8>,
}

impl Memory {
    pub(crate) fn new() -> Self {
        // SAFETY: a constant name; the result is looked at.
        let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: just made, and nobody else's.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an open file of ours, and a fresh mapping of it.
        let base = unsafe {
            assert_eq!(libc::ftruncate(fd, BYTES as libc::off_t), 0);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), BYTES, access, libc::MAP_SHARED, fd, 0)
        };
        assert_ne!(base, libc::MAP_FAILED);
        Self {
            file,
            base: NonNull::new(base.cast()).unwrap(),
            shadow: vec![0; BYTES],
        }
    }

    pub(crate) fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Where in the file an address lies.
    pub(crate) fn offset(address: u64) -> Option<usize> {
        match address {
            0..LOW_BYTES => Some(address as usize),
            HIGH.. if address - HIGH < HIGH_BYTES => Some((LOW_BYTES + address - HIGH) as usize),
            _ => None,
        }
    }

    /// Number of the guest's page at a place in the file.
    fn page_at(offset: usize) -> u64 {
        let offset = offset as u64;
        let address = match offset {
            0..LOW_BYTES => offset,
            _ => HIGH + offset - LOW_BYTES,
        };
        address / PAGE as u64
    }

    /// The address in this process.
    pub(crate) fn host(&self, address: u64) -> *mut u8 {
        let offset = Self::offset(address).expect("an address of the guest");
        // SAFETY: inside of the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// The guest writes.
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) {
        let offset = Self::offset(address).expect("an address of the guest");
        self.shadow[offset..offset + bytes.len()].copy_from_slice(bytes);
        // SAFETY: inside of the mapping, as the shadow has shown; nothing borrows it.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.host(address), bytes.len());
        }
    }

    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) {
        let offset = Self::offset(address).expect("an address of the guest");
        assert!(offset + bytes.len() <= BYTES);
        // SAFETY: inside of the mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(self.host(address), bytes.as_mut_ptr(), bytes.len());
        }
    }

    fn index(&self, address: u64) -> &AtomicU16 {
        // SAFETY: an even address inside of the mapping, which both sides use atomically.
        unsafe { AtomicU16::from_ptr(self.host(address).cast()) }
    }

    pub(crate) fn read_index(&self, address: u64) -> u16 {
        self.index(address).load(Ordering::Acquire)
    }

    pub(crate) fn write_index(&mut self, address: u64, index: u16) {
        let offset = Self::offset(address).expect("an address of the guest");
        self.shadow[offset..offset + 2].copy_from_slice(&index.to_le_bytes());
        self.index(address).store(index, Ordering::Release);
    }

    /// Numbers of the pages that somebody else wrote since the last call.
    pub(crate) fn changed(&mut self) -> Vec<u64> {
        let mut now = vec![0; BYTES];
        // SAFETY: the whole mapping.
        unsafe { std::ptr::copy_nonoverlapping(self.base.as_ptr(), now.as_mut_ptr(), BYTES) };
        let pages = now.chunks(PAGE).zip(self.shadow.chunks(PAGE)).enumerate();
        let changed = pages
            .filter(|(_, (now, known))| now != known)
            .map(|(page, _)| Self::page_at(page * PAGE))
            .collect();
        self.shadow = now;
        changed
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), BYTES) };
    }
}
