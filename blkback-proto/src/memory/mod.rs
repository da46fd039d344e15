//! A guest's memory on its way to the backup, version 1 (MEMORY.md).
//!
//! One TCP connection per guest, opened by the primary. Frames have the header of the disk link
//! ([`crate::link`]) with a magic of their own. What stands in the backup's shared memory is in
//! [`kept`].
//!
//! ```text
//! primary                                     backup
//!   HELLO (versions, guest, shape)         ->
//!                                          <-  WELCOME (copy and epoch it has) or REFUSE (why)
//!   COPY_START, COPY …                     ->      only where it has no copy to go on from
//!   BEGIN n, PAGES …, STATE …, END n       ->
//!                                          <-  WHOLE n
//!                                          <-  COMMITTED n
//!   END_OF_GUEST n                         ->
//!   PING                                  <->  PONG
//!   BYE (why)                             <->
//!   HAND_OVER (why)                        ->
//! ```
//!
//! The frame header, HELLO and REFUSE are the same in every version, so that any two versions can at
//! least refuse each other in words.

mod frame;
mod hello;
pub mod kept;
#[cfg(test)]
mod tests;

pub use frame::{Begin, Blob, Codec, Encoding, Entry, Frame, peek_body_bytes};
pub use hello::{Block, Hello, RefuseCode, StateKind, Welcome};

/// First bytes of every frame.
pub const FRAME_MAGIC: [u8; 8] = *b"BRMEMRY1";
/// Size of a frame without its body, in bytes.
pub const FRAME_BYTES: usize = crate::link::FRAME_BYTES;
/// Lowest version this program speaks.
pub const VERSION_MIN: u16 = 1;
/// Highest version this program speaks.
pub const VERSION_MAX: u16 = 1;
/// A page, in bytes; a piece of device state is as large.
pub const PAGE_BYTES: usize = 4096;
/// Most pages in one frame.
pub const BATCH_PAGES_MAX: usize = 256;
/// An entry of PAGES, in bytes.
pub const ENTRY_BYTES: usize = 12;
/// Largest body of a frame, in bytes.
pub const BODY_BYTES_MAX: usize = BATCH_PAGES_MAX * (ENTRY_BYTES + PAGE_BYTES);
/// Most RAM blocks of a guest.
pub const BLOCKS_MAX: usize = 64;
/// Most memory of a guest, in bytes: page numbers are 32 bits.
pub const RAM_BYTES_MAX: u64 = 1 << 44;
/// Largest device state, in bytes.
pub const STATE_BYTES_MAX: u64 = 64 << 20;
/// Longest name of a guest or of a RAM block, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest description of the machine, in bytes.
pub const MACHINE_BYTES_MAX: usize = 256;
/// Size of an epoch's digest, in bytes.
pub const DIGEST_BYTES: usize = 32;

/// A rule of the protocol that bytes break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// Not a frame of this protocol.
    #[error("not a frame of blockrep's memory link")]
    Magic,
    /// Fewer bytes than the frame says.
    #[error("frame is cut short")]
    Short,
    /// Longer than any frame may be.
    #[error("frame body of {0} bytes, {BODY_BYTES_MAX} are allowed")]
    Long(u32),
    /// Damaged.
    #[error("frame checksum does not match")]
    Crc,
    /// Unknown kind.
    #[error("unknown frame kind {0}")]
    Kind(u16),
    /// A field has no meaning.
    #[error("field {0} is out of bounds")]
    Field(&'static str),
    /// Something kept is of a version that this program does not know.
    #[error("version {0} is not known")]
    Version(u16),
}
