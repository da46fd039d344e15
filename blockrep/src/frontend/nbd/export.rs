//! What is served under which name.

use super::consts::*;

/// Unit of every request: offsets and lengths are multiples of this, in bytes.
pub const MIN_BLOCK_BYTES: u32 = 512;

/// Preferred block size where none is set, in bytes.
const DEFAULT_PREFERRED_BLOCK_BYTES: u32 = 4096;

/// Optional abilities of an export, advertised to clients as transmission flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// FLUSH makes completed writes durable.
    pub flush: bool,
    /// A request with FUA is answered only when durable.
    pub fua: bool,
    /// TRIM discards.
    pub trim: bool,
    /// WRITE_ZEROES, with and without holes.
    pub write_zeroes: bool,
    /// WRITE_ZEROES may be asked to fail instead of being slow; only with `write_zeroes`.
    pub fast_zero: bool,
    /// FLUSH and FUA on one connection cover completed writes of every connection.
    pub multi_conn: bool,
    /// Medium rotates.
    pub rotational: bool,
}

/// Why an export cannot be described to NBD clients.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Empty, longer than [`NBD_MAX_STRING`] bytes, or with a NUL in it.
    #[error("an export name has 1 to {NBD_MAX_STRING} bytes and no NUL; this one has {bytes}")]
    Name {
        /// Length of the name in bytes.
        bytes: usize,
    },
    /// Longer than [`NBD_MAX_STRING`] bytes, or with a NUL in it.
    #[error("a description has at most {NBD_MAX_STRING} bytes and no NUL; this one has {bytes}")]
    Description {
        /// Length of the description in bytes.
        bytes: usize,
    },
    /// Not a multiple of [`MIN_BLOCK_BYTES`], or beyond what clients can count (2^63 - 1).
    #[error("an export's size is a multiple of {MIN_BLOCK_BYTES} below 2^63, not {size_bytes}")]
    Size {
        /// The refused size.
        size_bytes: u64,
    },
    /// Not a power of two between [`MIN_BLOCK_BYTES`] and 64 KiB.
    #[error("a preferred block size is a power of two from 512 to 65536, not {bytes}")]
    PreferredBlock {
        /// The refused block size.
        bytes: u32,
    },
}

/// One export as a client sees it. Fixed for a connection once it has entered transmission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    name: String,
    description: String,
    size_bytes: u64,
    preferred_block_bytes: u32,
    /// Abilities to advertise.
    pub features: Features,
    /// Refuses WRITE, TRIM and WRITE_ZEROES.
    pub read_only: bool,
}

impl ExportInfo {
    /// An export of `size_bytes`, writable, with no optional features.
    pub fn new(name: impl Into<String>, size_bytes: u64) -> Result<ExportInfo, ExportError> {
        let name = name.into();
        if name.is_empty() || !is_protocol_string(&name) {
            return Err(ExportError::Name { bytes: name.len() });
        }
        if !size_bytes.is_multiple_of(u64::from(MIN_BLOCK_BYTES))
            || i64::try_from(size_bytes).is_err()
        {
            return Err(ExportError::Size { size_bytes });
        }
        Ok(ExportInfo {
            name,
            description: String::new(),
            size_bytes,
            preferred_block_bytes: DEFAULT_PREFERRED_BLOCK_BYTES,
            features: Features::default(),
            read_only: false,
        })
    }

    /// The same export with a text for humans.
    pub fn with_description(mut self, text: impl Into<String>) -> Result<ExportInfo, ExportError> {
        self.description = text.into();
        if !is_protocol_string(&self.description) {
            return Err(ExportError::Description {
                bytes: self.description.len(),
            });
        }
        Ok(self)
    }

    /// The same export with another preferred block size, in bytes.
    pub fn with_preferred_block(mut self, bytes: u32) -> Result<ExportInfo, ExportError> {
        if !bytes.is_power_of_two() || !(MIN_BLOCK_BYTES..=1 << 16).contains(&bytes) {
            return Err(ExportError::PreferredBlock { bytes });
        }
        self.preferred_block_bytes = bytes;
        Ok(self)
    }

    /// Canonical name, never empty.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Text for humans, may be empty.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Size, a multiple of [`MIN_BLOCK_BYTES`].
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Block size from which requests are efficient, in bytes.
    pub fn preferred_block_bytes(&self) -> u32 {
        self.preferred_block_bytes
    }

    /// The flags a client is told with the size. `structured`: structured replies were
    /// negotiated, without which DF must not be offered.
    pub fn transmission_flags(&self, structured: bool) -> u16 {
        let Features {
            flush,
            fua,
            trim,
            write_zeroes,
            fast_zero,
            multi_conn,
            rotational,
        } = self.features;
        let writable = !self.read_only;
        [
            (true, NBD_FLAG_HAS_FLAGS),
            (self.read_only, NBD_FLAG_READ_ONLY),
            (flush, NBD_FLAG_SEND_FLUSH),
            (fua, NBD_FLAG_SEND_FUA),
            (rotational, NBD_FLAG_ROTATIONAL),
            (trim && writable, NBD_FLAG_SEND_TRIM),
            (write_zeroes && writable, NBD_FLAG_SEND_WRITE_ZEROES),
            (structured, NBD_FLAG_SEND_DF),
            (multi_conn, NBD_FLAG_CAN_MULTI_CONN),
            (
                fast_zero && write_zeroes && writable,
                NBD_FLAG_SEND_FAST_ZERO,
            ),
        ]
        .into_iter()
        .filter(|(set, _)| *set)
        .fold(0, |flags, (_, flag)| flags | flag)
    }
}

/// The exports a server offers. Asked during negotiation only.
pub trait ExportTable {
    /// The export of that name; the empty name asks for the first one.
    fn find(&self, name: &str) -> Option<ExportInfo>;

    /// Shows every export in order.
    fn for_each(&self, show: &mut dyn FnMut(&ExportInfo));
}

impl ExportTable for &[ExportInfo] {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        self.iter()
            .find(|export| name.is_empty() || export.name() == name)
            .cloned()
    }

    fn for_each(&self, show: &mut dyn FnMut(&ExportInfo)) {
        self.iter().for_each(show);
    }
}

impl ExportTable for Vec<ExportInfo> {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        (&self.as_slice()).find(name)
    }

    fn for_each(&self, show: &mut dyn FnMut(&ExportInfo)) {
        self.iter().for_each(show);
    }
}

/// The document's rule for strings: UTF-8, at most 4096 bytes, no NUL.
fn is_protocol_string(text: &str) -> bool {
    text.len() <= NBD_MAX_STRING && !text.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume whose description breaks the protocol would be found out by a client, not here.
    #[test]
    fn bad_descriptions_of_an_export_are_refused() {
        assert_eq!(
            ExportInfo::new("", 512),
            Err(ExportError::Name { bytes: 0 })
        );
        assert_eq!(
            ExportInfo::new("a\0b", 512),
            Err(ExportError::Name { bytes: 3 })
        );
        let long = "n".repeat(4097);
        assert_eq!(
            ExportInfo::new(&*long, 512),
            Err(ExportError::Name { bytes: 4097 })
        );
        assert!(ExportInfo::new(&long[..4096], 512).is_ok());
        for size_bytes in [1, 511, 513, 1 << 63] {
            assert_eq!(
                ExportInfo::new("a", size_bytes),
                Err(ExportError::Size { size_bytes })
            );
        }
        let good = ExportInfo::new("a", 512).expect("a good export");
        assert_eq!(
            good.clone().with_description(long),
            Err(ExportError::Description { bytes: 4097 })
        );
        for bytes in [0, 256, 1000, 1 << 17] {
            let refused = good.clone().with_preferred_block(bytes);
            assert_eq!(refused, Err(ExportError::PreferredBlock { bytes }));
        }
    }

    /// A read-only export that offers TRIM invites the guest to an error at run time.
    #[test]
    fn read_only_takes_the_writing_features_back() {
        let mut export = ExportInfo::new("a", 512).expect("a good export");
        export.features = Features {
            flush: true,
            fua: true,
            trim: true,
            write_zeroes: true,
            fast_zero: true,
            multi_conn: true,
            rotational: true,
        };
        assert_eq!(export.transmission_flags(true), 0b1001_1111_1101);
        assert_eq!(export.transmission_flags(false), 0b1001_0111_1101);
        export.read_only = true;
        assert_eq!(export.transmission_flags(false), 0b0001_0001_1111);
        export.read_only = false;
        export.features.write_zeroes = false;
        assert_eq!(export.transmission_flags(false), 0b0001_0011_1101);
    }

    /// A client that gives no name would get no disk, or the wrong one of two.
    #[test]
    fn the_empty_name_is_the_first_export() {
        let table = vec![
            ExportInfo::new("first", 512).expect("a good export"),
            ExportInfo::new("second", 1024).expect("a good export"),
        ];
        assert_eq!(table.find("").map(|e| e.size_bytes()), Some(512));
        assert_eq!(table.find("second").map(|e| e.size_bytes()), Some(1024));
        assert_eq!(table.find("third"), None);
        assert_eq!(Vec::new().find(""), None);
    }
}
