//! Random ids: sessions, lineages, uuids.

use std::fmt::Write as _;
use std::io;

/// Which boot of the host this is, as two words; zeros where the kernel does not say.
pub fn boot_id() -> [u64; 2] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let word = |range| {
        let part = digits.get(range);
        part.and_then(|part| u64::from_str_radix(part, 16).ok())
    };
    [word(0..16).unwrap_or(0), word(16..32).unwrap_or(0)]
}

/// 16 random bytes from the kernel.
///
/// # Errors
/// The kernel's; an id that is not random would let two histories pass for one.
pub fn random_id16() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(io::Error::from)?;
    Ok(id)
}

/// 8 random bytes from the kernel.
///
/// # Errors
/// As [`random_id16`].
pub fn random_id8() -> io::Result<[u8; 8]> {
    let mut id = [0; 8];
    getrandom::fill(&mut id).map_err(io::Error::from)?;
    Ok(id)
}

/// Lower-case hex, as ids stand in status, events and logs.
pub fn hex(id: &[u8]) -> String {
    id.iter()
        .fold(String::with_capacity(id.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String does not fail");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sessions with one id would let stale frames of the first pass for the second.
    #[test]
    fn ids_differ() {
        assert_ne!(random_id16().unwrap(), random_id16().unwrap());
        assert_ne!(random_id8().unwrap(), random_id8().unwrap());
    }

    /// A lost leading zero makes an id unfindable in the logs of the other side.
    #[test]
    fn hex_keeps_leading_zeros() {
        assert_eq!(hex(&[0x00, 0x0a, 0xff]), "000aff");
    }
}
