//! Blobs, packed and unpacked.

use super::PAGE;
use blkback_proto::memory::{BATCH_PAGES_MAX, Blob, Codec};

/// What a blob is packed into; made once.
#[derive(Debug)]
pub(super) struct Packer {
    packed: Vec<u8>,
}

impl Packer {
    pub(super) fn new() -> Self {
        let most = lz4_flex::block::get_maximum_output_size(BATCH_PAGES_MAX * PAGE);
        Self {
            packed: vec![0; most],
        }
    }

    /// Packed where that is wanted and saves a sixteenth, else as it is.
    pub(super) fn pack<'a>(&'a mut self, plain: &'a [u8], wanted: bool) -> Blob<'a> {
        let count = plain.len() / PAGE;
        if wanted && count > 0 {
            let packed = lz4_flex::block::compress_into(plain, &mut self.packed);
            let packed = packed.expect("the buffer is as large as the worst case of a whole batch");
            if packed <= plain.len() / 16 * 15 {
                return Blob {
                    codec: Codec::Lz4,
                    count,
                    bytes: &self.packed[..packed],
                };
            }
        }
        Blob {
            codec: Codec::Raw,
            count,
            bytes: plain,
        }
    }
}

/// All of a blob into `plain`, which becomes as long as it says: a batch at most.
///
/// # Errors
/// It does not come out at that length.
pub(super) fn unpack(blob: &Blob<'_>, plain: &mut Vec<u8>) -> Result<(), String> {
    assert!(blob.count <= BATCH_PAGES_MAX, "checked when it was read");
    plain.resize(blob.count * PAGE, 0);
    match blob.codec {
        Codec::Raw => plain.copy_from_slice(blob.bytes),
        Codec::Zero => plain.fill(0),
        Codec::Lz4 => {
            let length = lz4_flex::block::decompress_into(blob.bytes, plain)
                .map_err(|e| format!("a blob that cannot be unpacked: {e}"))?;
            if length != plain.len() {
                return Err(format!("a blob of {length} bytes for {} pages", blob.count));
            }
        }
    }
    Ok(())
}
