//! Handles on the allocations of a [`Pool`]: one that may write, and shared ones that read.
//!
//! Invariants: a [`BufMut`] is the only handle of its allocation; once frozen nobody writes to it
//! any more; the pages go back with the last handle.

use std::fmt;
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::rc::Rc;

use super::pool::{Arena, Head, PAGE_BYTES, Pool};

/// One counted reference to an allocation.
struct Span {
    arena: Rc<Arena>,
    page: u32,
}

impl Span {
    fn head(&self) -> &Head {
        &self.arena.heads[self.page as usize]
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: `page` lies within the arena, so the offset stays inside its mapping.
        unsafe {
            self.arena
                .base
                .as_ptr()
                .add(self.page as usize * PAGE_BYTES)
        }
    }

    fn belongs_to(&self, pool: &Pool) -> bool {
        Rc::ptr_eq(&self.arena, &pool.0)
    }
}

impl Clone for Span {
    fn clone(&self) -> Span {
        let refs = self
            .head()
            .refs
            .get()
            .checked_add(1)
            .expect("a buffer has 4 billion handles");
        self.head().refs.set(refs);
        Span {
            arena: Rc::clone(&self.arena),
            page: self.page,
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let head = self.head();
        let refs = head.refs.get() - 1;
        head.refs.set(refs);
        if refs == 0 {
            self.arena.free(self.page);
        }
    }
}

/// The only handle of a buffer: readable, writable, given by value to whoever works on it.
pub struct BufMut {
    span: Span,
    len: u32,
}

impl BufMut {
    /// The first handle of a fresh allocation; its reference count is one already.
    pub(super) fn new(arena: Rc<Arena>, page: u32, len: u32) -> BufMut {
        BufMut {
            span: Span { arena, page },
            len,
        }
    }

    /// Whole pages behind this buffer, in bytes.
    pub fn capacity(&self) -> usize {
        self.span.head().span_pages.get() as usize * PAGE_BYTES
    }

    /// Changes the length within the capacity; bytes that come into view keep what they held.
    ///
    /// # Panics
    /// When `len` exceeds the capacity.
    pub fn resize(&mut self, len: usize) {
        assert!(len <= self.capacity(), "buffer resized beyond its capacity");
        self.len = len as u32;
    }

    /// Turns the buffer into a shared, read-only one without copying.
    pub fn freeze(self) -> Buf {
        Buf {
            span: self.span,
            offset: 0,
            len: self.len,
        }
    }

    pub(super) fn belongs_to(&self, pool: &Pool) -> bool {
        self.span.belongs_to(pool)
    }
}

impl Deref for BufMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` is within the allocation, the memory is mapped and initialised, and this is
        // the only handle of the allocation.
        unsafe { std::slice::from_raw_parts(self.span.start(), self.len as usize) }
    }
}

impl DerefMut for BufMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; the exclusive borrow of the only handle makes it unique.
        unsafe { std::slice::from_raw_parts_mut(self.span.start(), self.len as usize) }
    }
}

impl fmt::Debug for BufMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufMut(page {}, {} bytes)", self.span.page, self.len)
    }
}

/// A shared read-only view of a buffer or of a part of one.
#[derive(Clone)]
pub struct Buf {
    span: Span,
    /// Of the view, from the start of the allocation.
    offset: u32,
    len: u32,
}

impl Buf {
    /// A view of a part of this view; shares the memory.
    ///
    /// # Panics
    /// When the range does not lie within the view, as slices do.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Buf {
        let begin = match range.start_bound() {
            Bound::Included(&begin) => begin,
            Bound::Excluded(&before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last + 1,
            Bound::Excluded(&end) => end,
            Bound::Unbounded => self.len as usize,
        };
        assert!(
            begin <= end && end <= self.len as usize,
            "slice outside of its buffer"
        );
        Buf {
            span: self.span.clone(),
            offset: self.offset + begin as u32,
            len: (end - begin) as u32,
        }
    }

    pub(super) fn belongs_to(&self, pool: &Pool) -> bool {
        self.span.belongs_to(pool)
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: offset and length were checked against the allocation when the view was made; the
        // memory is initialised, and nothing writes to it while shared handles exist.
        unsafe {
            std::slice::from_raw_parts(
                self.span.start().add(self.offset as usize),
                self.len as usize,
            )
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Buf(page {} + {}, {} bytes)",
            self.span.page, self.offset, self.len
        )
    }
}
