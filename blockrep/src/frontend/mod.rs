//! Front ends: how guests reach a volume.

pub mod nbd;
