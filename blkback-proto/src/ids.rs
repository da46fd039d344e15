//! Identities and counters that must not be mixed up with one another.
//!
//! Uuids and lineage ids are 16 random bytes, a session id is 8; none of them carries a meaning.
//! Whoever makes one takes the bytes from the operating system; this crate has no randomness.

use std::fmt;
use std::str::FromStr;

/// Smallest addressable piece of a volume, in bytes; every offset and length is a multiple of it.
pub const UNIT_BYTES: u64 = 512;

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// All zero: "none yet".
            pub const NONE: Self = Self([0; 16]);

            /// True for the value that stands for "none yet".
            #[must_use]
            pub fn is_none(&self) -> bool {
                *self == Self::NONE
            }
        }

        impl fmt::Display for $name {
            /// 32 hexadecimal digits in the grouping of a uuid.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (i, byte) in self.0.iter().enumerate() {
                    if matches!(i, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = IdParseError;

            fn from_str(text: &str) -> Result<Self, IdParseError> {
                let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
                if digits.len() != 32 {
                    return Err(IdParseError);
                }
                let mut id = [0u8; 16];
                for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
                    let pair = std::str::from_utf8(pair).map_err(|_| IdParseError)?;
                    *byte = u8::from_str_radix(pair, 16).map_err(|_| IdParseError)?;
                }
                Ok(Self(id))
            }
        }
    };
}

id128! {
    /// A group: the volumes of one virtual machine, cut and committed together.
    GroupUuid
}
id128! {
    /// One volume of a group.
    VolumeUuid
}
id128! {
    /// One stretch of history written by one primary.
    LineageId
}

/// The text is not 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 32 hexadecimal digits, with or without dashes")]
pub struct IdParseError;

/// One connection between a primary and a backup; random, never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Number of an epoch of a group; the first is 1, 0 means "none yet".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(pub u64);

impl Epoch {
    /// No epoch yet.
    pub const NONE: Self = Self(0);

    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(
            self.0
                .checked_add(1)
                .expect("2^64 epochs outlast any volume"),
        )
    }

    /// The epoch before this one; [`Epoch::NONE`] stays.
    #[must_use]
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Where a record or a payload stands in a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Place {
    /// Serial of the segment; serial `s` lives in segment file `s % segment_count`.
    pub serial: u64,
    /// Byte offset inside the segment.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {} offset {}", self.serial, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An id printed in a log must be usable on a command line.
    #[test]
    fn ids_round_trip_as_text() {
        let id = LineageId([0x12, 0x34, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0xfe, 0xff]);
        assert_eq!(id.to_string(), "12340001-0203-0405-0607-08090a0bfeff");
        assert_eq!(id.to_string().parse::<LineageId>(), Ok(id));
        assert!("12".parse::<LineageId>().is_err());
        assert!(
            "zz340001-0203-0405-0607-08090a0bfeff"
                .parse::<LineageId>()
                .is_err()
        );
        assert!(
            "é2340001020304050607 8090a0bfeff"
                .parse::<LineageId>()
                .is_err()
        );
    }
}
