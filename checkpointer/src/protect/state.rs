//! What goes with the pages of a checkpoint, as one text of bytes: the authority's record, the constant part of the device
//! state, the state. Each of the first two has its length in front, 8 bytes. What is the same in every checkpoint costs
//! nothing after the first.

/// Record, constant part and state as one.
pub(super) fn framed([record, constant, state]: [&[u8]; 3], out: &mut Vec<u8>) {
    out.clear();
    for part in [record, constant] {
        out.extend_from_slice(&(part.len() as u64).to_le_bytes());
        out.extend_from_slice(part);
    }
    out.extend_from_slice(state);
}

/// Record, constant part and state of what a checkpoint brought.
///
/// # Errors
/// It is none.
pub fn unframed(bytes: &[u8]) -> Result<[&[u8]; 3], String> {
    let (record, rest) = part(bytes)?;
    let (constant, state) = part(rest)?;
    Ok([record, constant, state])
}

fn part(bytes: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let cut = || "device state that is cut short".to_owned();
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(cut)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| cut())?;
    rest.split_at_checked(length).ok_or_else(cut)
}

#[cfg(test)]
mod tests {
    //! A standby that takes a piece of the constant part for a device's state does not come up.
    use super::*;

    #[test]
    fn what_goes_with_the_pages_comes_apart_as_it_was_put_together() {
        let mut out = vec![1, 2, 3];
        let parts: [&[u8]; 3] = [b"record", b"constant", b"state"];
        framed(parts, &mut out);
        assert_eq!(unframed(&out), Ok(parts));
        for end in 0..out.len() - parts[2].len() {
            assert!(unframed(&out[..end]).is_err(), "cut at {end}");
        }
        framed([b"", b"", b""], &mut out);
        assert_eq!(unframed(&out), Ok([&b""[..], &b""[..], &b""[..]]));
        out[8] = 1;
        assert!(unframed(&out).is_err());
        out[15] = 0xff;
        assert!(unframed(&out).is_err());
    }
}
