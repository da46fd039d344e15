//! Whether packing pays: measured, per session. Pure.
//!
//! It pays while the time it takes is less than the time that the bytes it saves would take on the wire. Both
//! are followed as they change; where it does not pay, an epoch is packed now and then all the same, to see.

/// When blobs are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    Never,
    Always,
    /// While it pays.
    #[default]
    Measured,
}

/// Epochs from one try to the next while it does not pay.
const TRY_EVERY: u32 = 64;
/// Fewer bytes say nothing about how fast something is.
const BYTES_MIN: u64 = 64 << 10;

/// See the module. Rates are nanoseconds for 1024 bytes.
#[derive(Debug, Clone)]
pub struct Gain {
    packing: Packing,
    /// Of what goes into the packer.
    pack_ns: Option<u64>,
    /// Of the wire.
    wire_ns: Option<u64>,
    /// What is left of 1024 bytes.
    left: u64,
    until_try: u32,
}

impl Gain {
    #[must_use]
    pub fn new(packing: Packing) -> Self {
        Self {
            packing,
            pack_ns: None,
            wire_ns: None,
            left: 512,
            until_try: TRY_EVERY,
        }
    }

    /// For the next epoch.
    pub fn packs(&mut self) -> bool {
        match (self.packing, self.pack_ns, self.wire_ns) {
            (Packing::Never, ..) => false,
            (Packing::Always, ..) | (_, None, _) | (_, _, None) => true,
            (_, Some(pack_ns), Some(wire_ns)) => {
                if pack_ns.saturating_mul(1024) <= wire_ns.saturating_mul(1024 - self.left) {
                    return true;
                }
                self.until_try = self.until_try.checked_sub(1).unwrap_or(TRY_EVERY);
                self.until_try == 0
            }
        }
    }

    /// An epoch was packed.
    pub fn packed(&mut self, plain_bytes: u64, packed_bytes: u64, took_ns: u64) {
        if plain_bytes >= BYTES_MIN {
            self.left = (packed_bytes.saturating_mul(1024) / plain_bytes).min(1024);
            follow(&mut self.pack_ns, took_ns, plain_bytes);
        }
    }

    /// An epoch is whole at the backup, so long after it was begun to be sent.
    pub fn sent(&mut self, wire_bytes: u64, took_ns: u64) {
        if wire_bytes >= BYTES_MIN {
            follow(&mut self.wire_ns, took_ns, wire_bytes);
        }
    }
}

/// An eighth of the way to what was measured.
fn follow(rate: &mut Option<u64>, took_ns: u64, bytes: u64) {
    let now = took_ns.saturating_mul(1024) / bytes;
    *rate = Some(match *rate {
        Some(before) => (before.saturating_mul(7).saturating_add(now)) / 8,
        None => now,
    });
}

#[cfg(test)]
mod tests {
    //! Packing on a fast wire makes every epoch late; none on a slow wire does too.
    use super::*;

    #[test]
    fn packs_while_it_pays_and_tries_again() {
        let mut gain = Gain::new(Packing::Measured);
        assert!(gain.packs(), "nothing is known yet");
        // 2 ns a byte to pack, half is saved: 10 ns a byte on the wire pays, 1 ns does not.
        gain.packed(1 << 20, 1 << 19, 2 << 20);
        gain.sent(1 << 20, 10 << 20);
        assert!(gain.packs());
        for _ in 0..100 {
            gain.sent(1 << 20, 1 << 20);
        }
        let packed = (0..1000).filter(|_| gain.packs()).count();
        assert!((10..30).contains(&packed), "{packed} of 1000");
        for _ in 0..100 {
            gain.sent(1 << 20, 10 << 20);
        }
        assert!(gain.packs());
        gain.packed(1 << 20, 1 << 20, 2 << 20);
        assert!(!gain.packs(), "nothing is saved");
        assert!(!Gain::new(Packing::Never).packs());
        let mut always = Gain::new(Packing::Always);
        always.packed(1 << 20, 1 << 20, u64::MAX);
        always.sent(1 << 20, 1);
        assert!(always.packs());
    }
}
