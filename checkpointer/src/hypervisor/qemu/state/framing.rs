//! As much of QEMU's migration stream as is needed to cut it in two and put it together again.
//!
//! ```text
//!  by migrate:                 QEVM 3 │ configuration │ ram: setup, parts, end │ device … device │ 0 │ 6 description
//!  by xen-save-devices-state:  QEVM 3 │                                          device … device │ 0
//!  loaded at a standby:        ├─────── constant part, taken once ────────────┤├─ of the epoch ──┤   6 {}
//! ```
//!
//! Source: QEMU 7.2, `migration/savevm.c` and `migration/ram.c`. Numbers are big-endian.

use super::Kind;

/// `QEVM` and version 3.
const HEAD: [u8; 8] = *b"QEVM\0\0\0\x03";
const START: u8 = 0x01;
const PART: u8 = 0x02;
const END: u8 = 0x03;
const FULL: u8 = 0x04;
const FOOTER: u8 = 0x7e;
/// A description of the stream, `{}`: QEMU reads past it, and grumbles where there is none.
const DESCRIPTION: [u8; 7] = *b"\x06\0\0\0\x02{}";
/// The configuration before the first section: the machine's name and a few switches.
const CONFIGURATION_BYTES_MAX: usize = 64 << 10;
/// Section header of the guest's memory, behind kind and number: name, instance 0, version 4.
const RAM: [u8; 12] = *b"\x03ram\0\0\0\0\0\0\0\x04";
/// The smallest that could be a machine.
const BYTES_MIN: usize = 256;

const ZERO: u64 = 0x02;
const SIZES: u64 = 0x04;
const PAGE: u64 = 0x08;
const STOP: u64 = 0x10;
const SAME_BLOCK: u64 = 0x20;
const FLAGS: u64 = 0xfff;
const TARGET_PAGE_BYTES: usize = 4096;

/// Whether it could be the whole state of a machine.
///
/// # Errors
/// Why not.
pub(super) fn plausible(kind: Kind, bytes: &[u8]) -> Result<(), String> {
    if bytes.len() < BYTES_MIN {
        return Err(format!("{} bytes are no machine", bytes.len()));
    }
    if !bytes.starts_with(&HEAD) {
        return Err("it does not begin as QEMU's do".to_owned());
    }
    let last = bytes[bytes.len() - 1];
    let is_whole = match kind {
        Kind::Devices => bytes[HEAD.len()] == FULL && last == 0,
        Kind::Whole => last == b'}' || last == 0,
    };
    if is_whole {
        Ok(())
    } else {
        Err("it does not end as QEMU's do".to_owned())
    }
}

/// Everything of a migration stream before its first device.
///
/// `devices` is the same guest's state as saved without: its first device says where that is.
///
/// # Errors
/// A stream of another shape, in words.
pub(super) fn constant_part<'a>(whole: &'a [u8], devices: &[u8]) -> Result<&'a [u8], String> {
    let first = Cut {
        bytes: devices,
        at: HEAD.len(),
    };
    let first = first.section()?;
    let limit = whole.len().min(CONFIGURATION_BYTES_MAX);
    let ram = whole[..limit]
        .windows(RAM.len())
        .position(|bytes| bytes == RAM);
    let begin = ram.and_then(|at| at.checked_sub(5));
    let Some(begin) = begin.filter(|at| *at >= HEAD.len() && whole[*at] == START) else {
        return Err("a migration stream without the guest's memory".to_owned());
    };
    let mut cut = Cut {
        bytes: whole,
        at: begin,
    };
    let number = cut.bytes_of(5)?[1..].to_vec();
    cut.bytes_of(RAM.len())?;
    cut.memory()?;
    loop {
        if cut.peek() == Some(FOOTER) {
            cut.bytes_of(5)?;
        }
        match cut.peek() {
            Some(PART | END) if cut.bytes[cut.at + 1..].starts_with(&number) => {
                cut.bytes_of(5)?;
                cut.memory()?;
            }
            Some(FULL) => break,
            other => return Err(format!("a migration stream with a part of kind {other:?}")),
        }
    }
    if cut.section()? != first {
        return Err("the two ways save other devices".to_owned());
    }
    Ok(&whole[..cut.at])
}

/// What is loaded: parts that lie one behind the other.
///
/// # Errors
/// What is no state.
pub(in super::super) fn stream<'a>(
    constant: &'a [u8],
    state: &'a [u8],
) -> Result<[&'a [u8]; 3], String> {
    let kind = if constant.is_empty() {
        Kind::Whole
    } else {
        Kind::Devices
    };
    plausible(kind, state)?;
    if constant.is_empty() {
        return Ok([state, &[], &[]]);
    }
    if !constant.starts_with(&HEAD) {
        return Err("the constant part does not begin as QEMU's do".to_owned());
    }
    Ok([constant, &state[HEAD.len()..], &DESCRIPTION])
}

#[derive(Clone, Copy)]
struct Cut<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cut<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn bytes_of(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count);
        let got = end.and_then(|end| self.bytes.get(self.at..end));
        let got = got.ok_or("a migration stream that ends within its memory")?;
        self.at += count;
        Ok(got)
    }

    fn number(&mut self) -> Result<u64, String> {
        let bytes = self.bytes_of(8)?.try_into().expect("eight of them");
        Ok(u64::from_be_bytes(bytes))
    }

    /// A byte that tells the length, and that many.
    fn name(&mut self) -> Result<&'a [u8], String> {
        let length = self.bytes_of(1)?[0];
        self.bytes_of(usize::from(length))
    }

    /// Header of a device that is here: kind, number, name, instance, version. Stays where it is.
    fn section(mut self) -> Result<&'a [u8], String> {
        let from = self.at;
        if self.bytes_of(5)?[0] != FULL {
            return Err("no device where one should be".to_owned());
        }
        self.name()?;
        self.bytes_of(8)?;
        Ok(&self.bytes[from..self.at])
    }

    /// Skips the guest's memory up to the end of a part.
    fn memory(&mut self) -> Result<(), String> {
        loop {
            let head = self.number()?;
            match head & FLAGS {
                STOP => return Ok(()),
                SIZES => {
                    let mut left = head & !FLAGS;
                    while left > 0 {
                        self.name()?;
                        let size = self.number()?;
                        // Its address, which is there because shared memory is left out.
                        self.number()?;
                        left = left
                            .checked_sub(size)
                            .filter(|_| size > 0)
                            .ok_or("a migration stream with wrong sizes of memory")?;
                    }
                }
                flags => {
                    if flags & SAME_BLOCK == 0 {
                        self.name()?;
                    }
                    match flags & !SAME_BLOCK {
                        ZERO => self.bytes_of(1)?,
                        PAGE => self.bytes_of(TARGET_PAGE_BYTES)?,
                        _ => return Err(format!("memory in a migration stream as {flags:#x}")),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    //! A cut at the wrong place is a state that no standby loads, found out at failover.
    use super::*;

    fn device(name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![FULL, 0, 0, 0, 9, u8::try_from(name.len()).expect("short")];
        bytes.extend(name);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0x5a; 300]);
        bytes
    }

    fn block(name: &[u8], size: u64) -> Vec<u8> {
        let mut bytes = vec![u8::try_from(name.len()).expect("short")];
        bytes.extend(name);
        bytes.extend(size.to_be_bytes());
        bytes.extend(0u64.to_be_bytes());
        bytes
    }

    /// Two blocks, one zero and one full page, in one part and an end.
    fn whole() -> (Vec<u8>, usize) {
        let mut bytes = HEAD.to_vec();
        bytes.extend(b"\x07\0\0\0\x0apc-q35-7.2");
        bytes.extend([START, 0, 0, 0, 2]);
        bytes.extend(RAM);
        bytes.extend((0x3000 | SIZES).to_be_bytes());
        bytes.extend(block(b"ram", 0x1000));
        bytes.extend(block(b"pc.bios", 0x2000));
        bytes.extend(STOP.to_be_bytes());
        bytes.extend([FOOTER, 0, 0, 0, 2]);
        bytes.extend([PART, 0, 0, 0, 2]);
        bytes.extend(ZERO.to_be_bytes());
        bytes.extend(b"\x07pc.bios\0");
        bytes.extend((0x1000 | PAGE | SAME_BLOCK).to_be_bytes());
        // A page that looks like a device.
        bytes.extend([FULL; TARGET_PAGE_BYTES]);
        bytes.extend(STOP.to_be_bytes());
        bytes.extend([FOOTER, 0, 0, 0, 2]);
        bytes.extend([END, 0, 0, 0, 2]);
        bytes.extend(STOP.to_be_bytes());
        bytes.extend([FOOTER, 0, 0, 0, 2]);
        let at = bytes.len();
        bytes.extend(device(b"timer"));
        bytes.extend([0, 6, 0, 0, 0, 2]);
        bytes.extend(b"{}");
        (bytes, at)
    }

    fn devices(name: &[u8]) -> Vec<u8> {
        let mut bytes = HEAD.to_vec();
        bytes.extend(device(name));
        bytes.push(0);
        bytes
    }

    #[test]
    fn the_cut_is_before_the_first_device() {
        let (whole, at) = whole();
        let state = devices(b"timer");
        let constant = constant_part(&whole, &state).expect("a cut");
        assert_eq!(constant.len(), at);
        let joined = stream(constant, &state).expect("parts").concat();
        assert_eq!(joined, whole);
        assert_eq!(stream(&[], &whole).expect("one part").concat(), whole);
    }

    #[test]
    fn other_shapes_are_refused() {
        let (whole, at) = whole();
        let told = constant_part(&whole, &devices(b"cpu")).expect_err("another device first");
        assert!(told.contains("other devices"), "{told}");
        let state = devices(b"timer");
        for end in 0..at {
            assert!(
                constant_part(&whole[..end], &state).is_err(),
                "cut at {end}"
            );
        }
        assert!(constant_part(&whole, &state[..12]).is_err());
        let mut odd = whole.clone();
        // Memory in a way that was not asked for.
        let zero = odd.windows(8).position(|bytes| bytes == ZERO.to_be_bytes());
        odd[zero.expect("a zero page") + 7] = 0x40;
        assert!(constant_part(&odd, &state).is_err());
    }

    #[test]
    fn half_a_state_is_none() {
        let state = devices(b"timer");
        assert_eq!(plausible(Kind::Devices, &state), Ok(()));
        assert!(plausible(Kind::Devices, &state[..state.len() - 1]).is_err());
        assert!(plausible(Kind::Whole, &state[..100]).is_err());
        assert!(plausible(Kind::Whole, &[0; 1000]).is_err());
        assert!(stream(b"else", &state).is_err());
    }
}
