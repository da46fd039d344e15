//! The reactor's pool as the memory of an engine.

use crate::io::Memory;
use crate::reactor::{Buf, BufMut, PAGE_BYTES, Pool};

/// The pool of the I/O thread.
#[derive(Clone)]
pub(super) struct PoolMemory(pub(super) Pool);

impl Memory for PoolMemory {
    type Buf = PoolBuf;
    type BufMut = PoolBufMut;

    fn alloc(&mut self, length: usize) -> Option<PoolBufMut> {
        self.0.alloc(length).map(PoolBufMut)
    }

    fn freeze(&mut self, buf: PoolBufMut) -> PoolBuf {
        PoolBuf(buf.0.freeze())
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

/// Bytes of the pool with one owner.
#[derive(Debug)]
pub(super) struct PoolBufMut(pub(super) BufMut);

impl AsRef<[u8]> for PoolBuf {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for PoolBufMut {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for PoolBufMut {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
