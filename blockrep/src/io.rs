//! What the pure parts ask of storage and memory.
//!
//! An operation takes its buffer by value and the completion gives it back, so nothing points at
//! memory in flight. The reactor of a daemon and the disks of the simulator both carry these out.

use std::fmt;

/// Where the buffers of an engine come from.
///
/// Two kinds: `BufMut` belongs to one owner and is filled; frozen it becomes `Buf`, which is
/// shared and cheap to clone.
pub trait Memory {
    /// Shared, immutable bytes.
    type Buf: Clone + AsRef<[u8]>;
    /// Bytes with one owner.
    type BufMut: AsRef<[u8]> + AsMut<[u8]>;

    /// A buffer of exactly that length; `None` when the pool is used up for now.
    fn alloc(&mut self, length: usize) -> Option<Self::BufMut>;
    /// Makes a buffer shareable.
    fn freeze(&mut self, buf: Self::BufMut) -> Self::Buf;
    /// Length of a buffer in bytes; it may be memory that only the kernel fills.
    fn length_of(buf: &Self::BufMut) -> u64 {
        buf.as_ref().len() as u64
    }
    /// A part of a shared buffer.
    fn slice(&mut self, buf: &Self::Buf, start: usize, length: usize) -> Self::Buf;
}

/// A file of a volume or group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The volume's image.
    Image,
    /// The journal segment file of that index.
    Segment(u32),
    /// The two slots of the volume's metadata.
    VolumeMeta,
    /// The two slots of the group's metadata.
    GroupMeta,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image => f.write_str("image"),
            Self::Segment(index) => write!(f, "journal segment file {index}"),
            Self::VolumeMeta => f.write_str("volume metadata"),
            Self::GroupMeta => f.write_str("group metadata"),
        }
    }
}

/// Buffers of one write, one behind the other.
#[derive(Clone, Debug)]
pub enum Bufs<B> {
    /// The one of a guest's write: no vector is made for it.
    One(B),
    /// Several.
    Many(Vec<B>),
}

impl<B> Bufs<B> {
    /// All of them, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[B] {
        match self {
            Self::One(buf) => std::slice::from_ref(buf),
            Self::Many(bufs) => bufs,
        }
    }
}

impl<B> From<Vec<B>> for Bufs<B> {
    fn from(bufs: Vec<B>) -> Self {
        Self::Many(bufs)
    }
}

/// One storage operation. Offsets and lengths are multiples of 512 bytes.
pub enum Op<M: Memory> {
    /// Fills the buffer.
    Read {
        /// File.
        target: Target,
        /// Byte offset.
        offset: u64,
        /// Filled in whole.
        buf: M::BufMut,
    },
    /// Writes the buffers one behind the other.
    Write {
        /// File.
        target: Target,
        /// Byte offset.
        offset: u64,
        /// What to write.
        bufs: Bufs<M::Buf>,
    },
    /// Makes every completed write of the file durable (fdatasync).
    Sync {
        /// File.
        target: Target,
    },
    /// Zeroes a range of the image.
    Zero {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// Gives a range of the image back; it reads as zeros from then on.
    Discard {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
}

impl<M: Memory> fmt::Debug for Op<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read {
                target,
                offset,
                buf,
            } => {
                write!(f, "read {target} {offset}+{}", M::length_of(buf))
            }
            Self::Write {
                target,
                offset,
                bufs,
            } => {
                let length: usize = bufs.as_slice().iter().map(|b| b.as_ref().len()).sum();
                write!(f, "write {target} {offset}+{length}")
            }
            Self::Sync { target } => write!(f, "sync {target}"),
            Self::Zero { offset, length } => write!(f, "zero {offset}+{length}"),
            Self::Discard { offset, length } => write!(f, "discard {offset}+{length}"),
        }
    }
}

/// Why an operation failed: an errno of the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", errno_words(*errno))]
pub struct IoError {
    /// As in errno(3).
    pub errno: i32,
}

/// The system's words for an errno, without its number.
fn errno_words(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let end = text.rfind(" (os error ").unwrap_or(text.len());
    text[..end].to_owned()
}

/// Number an engine gives an operation; the completion carries it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IoId(pub u64);

/// The end of an operation.
pub struct Done<M: Memory> {
    /// Which one.
    pub id: IoId,
    /// How it ended; a write or sync that failed is final for its file.
    pub result: Result<(), IoError>,
    /// The buffer of a read, filled if it succeeded.
    pub buf: Option<M::BufMut>,
}

impl<M: Memory> fmt::Debug for Done<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "done {} {:?}", self.id.0, self.result)
    }
}

/// Number a front end gives a request; the reply carries it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What a guest asks of a volume. Ranges are inside the volume and multiples of 512 bytes: the
/// front end has checked that.
pub enum Request<M: Memory> {
    /// Read into the buffer.
    Read {
        /// Byte offset.
        offset: u64,
        /// Filled in whole.
        buf: M::BufMut,
    },
    /// Write the buffer.
    Write {
        /// Byte offset.
        offset: u64,
        /// At most [`blkback_proto::record::PAYLOAD_BYTES_MAX`] bytes.
        buf: M::Buf,
        /// Answer only when the write would survive.
        fua: bool,
    },
    /// Zero a range.
    Zero {
        /// Byte offset.
        offset: u64,
        /// At most [`blkback_proto::record::RANGE_BYTES_MAX`] bytes.
        length: u64,
        /// The range may be given back to the storage.
        discard: bool,
        /// Answer only when the write would survive.
        fua: bool,
    },
    /// Answer only when every write answered before would survive.
    Flush,
}

impl<M: Memory> fmt::Debug for Request<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { offset, buf } => write!(f, "read {offset}+{}", M::length_of(buf)),
            Self::Write { offset, buf, fua } => {
                write!(f, "write {offset}+{} fua {fua}", buf.as_ref().len())
            }
            Self::Zero {
                offset,
                length,
                discard,
                fua,
            } => {
                write!(f, "zero {offset}+{length} discard {discard} fua {fua}")
            }
            Self::Flush => f.write_str("flush"),
        }
    }
}

/// The answer to a request.
pub struct Reply<M: Memory> {
    /// Which request.
    pub id: RequestId,
    /// How it ended.
    pub result: Result<(), IoError>,
    /// The buffer of a read, filled if it succeeded.
    pub buf: Option<M::BufMut>,
}

impl<M: Memory> fmt::Debug for Reply<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reply {} {:?}", self.id.0, self.result)
    }
}

/// Plain heap memory with a stated limit: for the simulator and tests.
#[derive(Debug)]
pub struct HeapMemory {
    limit: usize,
    used: std::rc::Rc<std::cell::Cell<usize>>,
}

/// Bytes of [`HeapMemory`] with one owner.
#[derive(Debug)]
pub struct HeapBufMut {
    bytes: Vec<u8>,
    used: std::rc::Rc<std::cell::Cell<usize>>,
}

/// Shared bytes of [`HeapMemory`].
#[derive(Clone, Debug)]
pub struct HeapBuf {
    whole: std::rc::Rc<HeapBufMut>,
    start: usize,
    length: usize,
}

impl HeapMemory {
    /// Memory of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            used: std::rc::Rc::default(),
        }
    }

    /// Bytes handed out now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.get()
    }
}

impl Drop for HeapBufMut {
    fn drop(&mut self) {
        self.used.set(self.used.get() - self.bytes.len());
    }
}

impl AsRef<[u8]> for HeapBufMut {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsMut<[u8]> for HeapBufMut {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for HeapBuf {
    fn as_ref(&self) -> &[u8] {
        &self.whole.bytes[self.start..self.start + self.length]
    }
}

impl Memory for HeapMemory {
    type Buf = HeapBuf;
    type BufMut = HeapBufMut;

    fn alloc(&mut self, length: usize) -> Option<HeapBufMut> {
        let used = self.used.get().checked_add(length)?;
        if used > self.limit {
            return None;
        }
        self.used.set(used);
        Some(HeapBufMut {
            bytes: vec![0; length],
            used: self.used.clone(),
        })
    }

    fn freeze(&mut self, buf: HeapBufMut) -> HeapBuf {
        let length = buf.bytes.len();
        HeapBuf {
            whole: std::rc::Rc::new(buf),
            start: 0,
            length,
        }
    }

    fn slice(&mut self, buf: &HeapBuf, start: usize, length: usize) -> HeapBuf {
        assert!(start + length <= buf.length);
        HeapBuf {
            whole: buf.whole.clone(),
            start: buf.start + start,
            length,
        }
    }
}
