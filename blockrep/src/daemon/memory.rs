//! The reactor's pool as the memory of an engine.

use crate::io::Memory;
use crate::reactor::{Buf, BufMut, Foreign, PAGE_BYTES, Pool};

/// The pool of the I/O thread.
#[derive(Clone)]
pub(super) struct PoolMemory(pub(super) Pool);

impl Memory for PoolMemory {
    type Buf = PoolBuf;
    type BufMut = PoolBufMut;

    fn alloc(&mut self, length: usize) -> Option<PoolBufMut> {
        self.0.alloc(length).map(PoolBufMut::Own)
    }

    fn freeze(&mut self, buf: PoolBufMut) -> PoolBuf {
        PoolBuf(buf.into_own().freeze())
    }

    fn length_of(buf: &PoolBufMut) -> u64 {
        match buf {
            PoolBufMut::Own(buf) => buf.len() as u64,
            PoolBufMut::Guest(memory) => memory.len(),
        }
    }

    fn slice(&mut self, buf: &PoolBuf, start: usize, length: usize) -> PoolBuf {
        PoolBuf(buf.0.slice(start..start + length))
    }
}

impl PoolMemory {
    /// Memory for work that comes from outside: leaves the engine's reserve alone.
    pub(super) fn alloc_outside(&self, length: usize) -> Option<BufMut> {
        let stats = self.0.stats();
        let free = (stats.pages_total - stats.pages_used) as usize * PAGE_BYTES;
        if free < length + super::ENGINE_RESERVE_BYTES {
            return None;
        }
        self.0.alloc(length)
    }
}

/// Shared bytes of the pool.
#[derive(Clone, Debug)]
pub(super) struct PoolBuf(pub(super) Buf);

/// Bytes with one owner.
#[derive(Debug)]
pub(super) enum PoolBufMut {
    /// Of the pool.
    Own(BufMut),
    /// A guest's, for a read of the image that nobody here looks at: only the kernel fills it.
    Guest(Foreign),
}

impl PoolBufMut {
    /// The buffer of the pool.
    ///
    /// # Panics
    /// When it is a guest's memory.
    pub(super) fn into_own(self) -> BufMut {
        match self {
            Self::Own(buf) => buf,
            Self::Guest(_) => unreachable!("{NOT_OURS}"),
        }
    }
}

/// Guest memory is handed to engines that pass reads on to the image, and to no others.
const NOT_OURS: &str = "nobody but the kernel touches a guest's memory";

impl AsRef<[u8]> for PoolBuf {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for PoolBufMut {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Own(buf) => buf,
            Self::Guest(_) => unreachable!("{NOT_OURS}"),
        }
    }
}

impl AsMut<[u8]> for PoolBufMut {
    fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Own(buf) => buf,
            Self::Guest(_) => unreachable!("{NOT_OURS}"),
        }
    }
}
