//! Front ends: how guests reach a volume.

pub mod nbd;
pub mod virtio_blk;
