//! Memory of somebody else that the kernel reads a file into: a guest's, for reads without a copy.
//!
//! It is never a Rust reference: the guest may write to it at any time. Whoever makes one says for how
//! long it stays mapped by what it holds on to.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Stretches of mapped memory, and what keeps them mapped.
pub struct Foreign {
    stretches: Vec<libc::iovec>,
    len: u64,
    _keeps: Arc<dyn Any + Send + Sync>,
}

impl Foreign {
    /// `stretches` in the order in which they are filled; the vector can be had back by
    /// [`Foreign::into_vec`].
    ///
    /// # Safety
    /// Every stretch is mapped, and may be written to by anybody, for as long as `keeps` lives.
    pub unsafe fn new(stretches: Vec<libc::iovec>, keeps: Arc<dyn Any + Send + Sync>) -> Foreign {
        let len = stretches.iter().map(|part| part.iov_len as u64).sum();
        Foreign {
            stretches,
            len,
            _keeps: keeps,
        }
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// No bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The stretches, in order.
    pub fn stretches(&self) -> &[libc::iovec] {
        &self.stretches
    }

    /// The vector, for another one.
    pub fn into_vec(self) -> Vec<libc::iovec> {
        let mut stretches = self.stretches;
        stretches.clear();
        stretches
    }

    pub(super) fn is_aligned(&self, mem_align: usize, block: u64) -> bool {
        self.stretches.iter().all(|part| {
            part.iov_base.addr().is_multiple_of(mem_align)
                && (part.iov_len as u64).is_multiple_of(block)
        })
    }

    /// Lists what is left behind the first `skip` bytes, at most `limit` bytes of it.
    pub(super) fn list(&self, mut skip: u64, mut limit: u64, out: &mut Vec<libc::iovec>) {
        // The kernel takes no more in one call (UIO_MAXIOV).
        const ENTRIES_MAX: usize = 1024;
        out.clear();
        for part in &self.stretches {
            let len = part.iov_len as u64;
            if skip >= len {
                skip -= len;
                continue;
            }
            if limit == 0 || out.len() == ENTRIES_MAX {
                break;
            }
            let take = (len - skip).min(limit);
            out.push(libc::iovec {
                iov_base: part.iov_base.wrapping_byte_add(skip as usize),
                iov_len: take as usize,
            });
            skip = 0;
            limit -= take;
        }
    }
}

impl fmt::Debug for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Foreign({} bytes)", self.len)
    }
}
