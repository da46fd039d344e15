//! One ledger entry and the survey of a whole ledger: shared by the guest that writes it and by
//! `xtask`, which plants damage into it.
//!
//! Every byte of an entry follows from (run, number), so an entry is checked by making it again and
//! comparing: any changed, missing or foreign byte shows. An entry is two sectors long, so that an
//! entry torn between sectors shows as well.
//!
//! Layout: magic 8 | run u64 LE | number u64 LE | filling to `ENTRY_LEN` (splitmix64 of run, number).

/// Bytes of one entry.
pub(crate) const ENTRY_LEN: usize = 1024;
/// First bytes of every entry.
pub(crate) const MAGIC: [u8; 8] = *b"BRLEDGR1";
/// Bytes before the filling.
pub(crate) const HEAD_LEN: usize = 24;

/// The entry `number` (from 1) of the ledger `run`.
#[must_use]
pub(crate) fn encode(run: u64, number: u64) -> [u8; ENTRY_LEN] {
    let mut entry = [0u8; ENTRY_LEN];
    entry[..8].copy_from_slice(&MAGIC);
    entry[8..16].copy_from_slice(&run.to_le_bytes());
    entry[16..HEAD_LEN].copy_from_slice(&number.to_le_bytes());
    let mut state = run ^ number.rotate_left(32);
    for word in entry[HEAD_LEN..].chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    entry
}

/// What stands in a ledger file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Survey {
    /// Entries 1..=last are all there, each in its place and whole.
    pub(crate) last: u64,
    /// Places after `last` that hold something else than zeros: half entries, wrong entries, and
    /// whole entries behind a gap.
    pub(crate) torn: u64,
    /// Places after `last` that hold only zeros. ext4 may grow a file before the data of an append
    /// that was never synced has arrived, so zeros are damage only where an entry was promised; that
    /// is for whoever knows the promises to decide.
    pub(crate) blank: u64,
}

/// Surveys the bytes of the ledger of `run`.
#[must_use]
pub(crate) fn survey(bytes: &[u8], run: u64) -> Survey {
    let mut found = Survey::default();
    let mut place = 0u64;
    for slot in bytes.chunks(ENTRY_LEN) {
        place += 1;
        if found.last + 1 == place && slot == encode(run, place) {
            found.last = place;
        } else if slot.iter().all(|byte| *byte == 0) {
            found.blank += 1;
        } else {
            found.torn += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(run: u64, count: u64) -> Vec<u8> {
        (1..=count).flat_map(|number| encode(run, number)).collect()
    }

    // A verifier that misses one wrong byte would call a damaged disk sound.
    #[test]
    fn a_flipped_byte_anywhere_ends_the_sound_part() {
        let sound = ledger(7, 3);
        for at in (0..sound.len()).step_by(37) {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x10;
            let found = survey(&bytes, 7);
            assert_eq!(found.last, (at / ENTRY_LEN) as u64, "byte {at}");
            assert!(found.torn >= 1, "byte {at}");
        }
    }

    // A lost sector in the middle with whole entries behind it must not count as a short ledger.
    #[test]
    fn entries_behind_a_gap_are_damage() {
        let mut bytes = ledger(7, 4);
        bytes[ENTRY_LEN..2 * ENTRY_LEN].fill(0);
        assert_eq!(
            survey(&bytes, 7),
            Survey {
                last: 1,
                torn: 2,
                blank: 1
            }
        );
    }

    // ext4 grows a file before unsynced data arrives: zeros at the end alone are no tear.
    #[test]
    fn zeros_at_the_end_are_blank_and_a_half_entry_is_torn() {
        let mut bytes = ledger(7, 2);
        bytes.resize(3 * ENTRY_LEN, 0);
        assert_eq!(
            survey(&bytes, 7),
            Survey {
                last: 2,
                torn: 0,
                blank: 1
            }
        );
        bytes[2 * ENTRY_LEN..2 * ENTRY_LEN + 512].copy_from_slice(&encode(7, 3)[..512]);
        assert_eq!(
            survey(&bytes, 7),
            Survey {
                last: 2,
                torn: 1,
                blank: 0
            }
        );
    }

    // The ledger of an earlier run on the same disk must never pass for this one.
    #[test]
    fn a_ledger_of_another_run_is_refused() {
        assert_eq!(
            survey(&ledger(8, 2), 7),
            Survey {
                last: 0,
                torn: 2,
                blank: 0
            }
        );
    }
}
