//! What goes with the pages of a checkpoint, as one text of bytes: the authority's record, the constant part of the device
//! state, the guest's time, the state. Each of the first three has its length in front, 8 bytes. What is the same in
//! every checkpoint costs nothing after the first.

/// When the guest was stopped for a checkpoint, and how long it had stood still before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moment {
    /// By the clock of the primary's host.
    pub unix_ms: u64,
    /// In all pauses before, since its protection began.
    pub paused_ms: u64,
}

impl Moment {
    fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.unix_ms.to_le_bytes());
        bytes[8..].copy_from_slice(&self.paused_ms.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (unix_ms, rest) = bytes.split_first_chunk::<8>()?;
        Some(Self {
            unix_ms: u64::from_le_bytes(*unix_ms),
            paused_ms: u64::from_le_bytes(rest.try_into().ok()?),
        })
    }

    /// How far the guest's clock is behind when it goes on at `now_unix_ms`, by the clock of that host, and words for
    /// people. Nothing where that host's clock is behind the primary's.
    #[must_use]
    pub fn behind(self, now_unix_ms: u64) -> (Option<u64>, String) {
        let Some(gap_ms) = now_unix_ms.checked_sub(self.unix_ms) else {
            let text = format!(
                "how far the guest's clock is behind is not known: this host's clock is at least {} ms behind the primary's.",
                self.unix_ms - now_unix_ms
            );
            return (None, text);
        };
        let text = format!(
            "Of what its clock is behind, {gap_ms} ms are since the cut, by both hosts' clocks, and {} ms by the pauses before, \
             as far as nothing in the guest has set it right.",
            self.paused_ms
        );
        (Some(gap_ms.saturating_add(self.paused_ms)), text)
    }
}

/// The parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    /// The authority's.
    pub record: &'a [u8],
    /// Of the device state.
    pub constant: &'a [u8],
    /// The guest's time.
    pub moment: Moment,
    /// The device state.
    pub state: &'a [u8],
}

/// All parts as one.
pub(super) fn framed(parts: Parts<'_>, out: &mut Vec<u8>) {
    out.clear();
    for part in [parts.record, parts.constant, &parts.moment.encode()] {
        out.extend_from_slice(&(part.len() as u64).to_le_bytes());
        out.extend_from_slice(part);
    }
    out.extend_from_slice(parts.state);
}

/// The parts of what a checkpoint brought.
///
/// # Errors
/// It is none.
pub fn unframed(bytes: &[u8]) -> Result<Parts<'_>, String> {
    let (record, rest) = part(bytes)?;
    let (constant, rest) = part(rest)?;
    let (moment, state) = part(rest)?;
    let moment = Moment::decode(moment).ok_or("device state without the guest's time")?;
    Ok(Parts {
        record,
        constant,
        moment,
        state,
    })
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
        let parts = Parts {
            record: b"record",
            constant: b"constant",
            moment: Moment {
                unix_ms: 1_700_000_000_000,
                paused_ms: 17,
            },
            state: b"state",
        };
        framed(parts, &mut out);
        assert_eq!(unframed(&out), Ok(parts));
        for end in 0..out.len() - parts.state.len() {
            assert!(unframed(&out[..end]).is_err(), "cut at {end}");
        }
        let empty = Parts {
            record: b"",
            constant: b"",
            moment: Moment::default(),
            state: b"",
        };
        framed(empty, &mut out);
        assert_eq!(unframed(&out), Ok(empty));
        out[8] = 1;
        assert!(unframed(&out).is_err());
        out[15] = 0xff;
        assert!(unframed(&out).is_err());
    }

    // An operator who is told too little does not look at the guest's clock.
    #[test]
    fn the_clock_is_behind_by_pauses_and_outage() {
        let moment = Moment {
            unix_ms: 10_000,
            paused_ms: 300,
        };
        let (behind, text) = moment.behind(10_450);
        assert_eq!(behind, Some(750));
        assert!(text.contains("450 ms") && text.contains("300 ms"), "{text}");
        let (behind, text) = moment.behind(9_990);
        assert!(
            behind.is_none() && text.contains("at least 10 ms"),
            "{text}"
        );
    }
}
