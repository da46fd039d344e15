//! Body of a fuzz target: rings of a guest, most of them as a driver makes them.
//!
//! A plain function, so that a fuzzer, a test by seed and a saved input can all call it. The bytes are
//! choices: which requests, how they are cut into descriptors, what is wrong with some of them, and which
//! bit of the rings is flipped, if one is. They go the way of the daemon: out of the ring by
//! [`virtio_queue`], through [`Chain`] into [`parse`].

mod driver;

use super::chain::Chain;
use super::request::{Ask, Descriptor, Limits, Mistake, Range, Segment, Spare, Status, parse};
use super::{RANGES_MAX, SEGMENTS_MAX};
use driver::{Driver, Expected};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Of the volume.
const SIZE_BYTES: u64 = 1 << 20;
/// Of the ring.
const ENTRIES: u16 = 64;
const TABLE: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Headers, ranges and tables of their own stand from here on.
const FREE: u64 = 0x3000;
const MEMORY_BYTES: u64 = 0x2_0000;
/// Requests in one ring.
const REQUESTS_MAX: usize = 4;
/// Descriptors of a request at most: of the ring, and of one table of its own.
const WALK_MAX: usize = ENTRIES as usize + SEGMENTS_MAX as usize + 2;
/// What reading one request may take of the guest's memory: every descriptor, header, ranges.
const READ_BYTES_MAX: usize = (WALK_MAX + 1 + RANGES_MAX as usize + 1) * 16;

/// What a ring brought up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Requests that were read exactly as they were meant.
    pub exact: u32,
    /// Requests that were refused as they have to be.
    pub refused: u32,
    /// Requests of rings in which a bit was flipped.
    pub flipped: u32,
}

/// Numbers out of the fuzzer's bytes; zeros when there are none left.
#[derive(Debug)]
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// Less than `bound`, which is small.
    fn below(&mut self, bound: u64) -> u64 {
        u64::from(u16::from_le_bytes([self.byte(), self.byte()])) % bound
    }

    /// Never, when there are no bytes left.
    fn is_one_in(&mut self, count: u64) -> bool {
        self.below(count) == count - 1
    }
}

/// What the parser made of a chain, in a form of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Request {
        ask: Ask,
        data: Vec<Segment>,
        status: u64,
    },
    Refused(u64, Status),
    NoStatus,
}

/// Reads `data` as choices; see above. Panics when an invariant of the module is broken.
#[must_use]
pub fn any_bytes(data: &[u8]) -> Met {
    let mut choices = Choices::new(data);
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)])
        .expect("memory of the host");
    let mut driver = Driver::new(&memory);
    let count = choices.below(REQUESTS_MAX as u64) + 1;
    let expected: Vec<(u16, Expected)> = (0..count)
        .map_while(|_| driver.place(&mut choices))
        .collect();
    let is_flipped = choices.is_one_in(4);
    if is_flipped {
        driver.flip(&mut choices);
    }
    let mut queue = queue();
    let mut met = Met::default();
    // As the daemon does: at most as many as the ring has, and a head that is none ends it.
    for _ in 0..ENTRIES {
        let chain = queue.pop_descriptor_chain(&memory);
        let Some(head) = chain.map(|c| c.head_index()).filter(|h| *h < ENTRIES) else {
            break;
        };
        let seen = read_request(&memory, head);
        check_sound(&seen);
        if is_flipped {
            met.flipped += 1;
            continue;
        }
        let at = (met.exact + met.refused) as usize;
        let (expected_head, wanted) = &expected[at];
        assert_eq!(head, *expected_head);
        if check_exact(&seen, wanted) {
            met.exact += 1;
        } else {
            met.refused += 1;
        }
    }
    let all = (met.exact + met.refused) as usize;
    assert!(
        is_flipped || all == expected.len(),
        "requests are left in the ring"
    );
    met
}

fn queue() -> Queue {
    let mut queue = Queue::new(ENTRIES).expect("a power of two");
    let low = |address: u64| u32::try_from(address).ok();
    queue.set_desc_table_address(low(TABLE), Some(0));
    queue.set_avail_ring_address(low(AVAIL), Some(0));
    queue.set_used_ring_address(low(USED), Some(0));
    queue.set_ready(true);
    queue
}

/// One request, the way of the daemon.
fn read_request(memory: &GuestMemoryMmap<()>, head: u16) -> Seen {
    let mut bytes = 0;
    let mut read = |address: u64, out: &mut [u8]| {
        bytes += out.len();
        memory.read_slice(out, GuestAddress(address)).is_ok()
    };
    let walk: Vec<Descriptor> = Chain::new(TABLE, ENTRIES, head, &mut read).collect();
    assert!(walk.len() <= WALK_MAX, "a walk without a bound");
    let limits = Limits {
        size_bytes: SIZE_BYTES,
        is_read_only: false,
    };
    let seen = match parse(walk.into_iter(), limits, &mut Spare::default(), &mut read) {
        Ok(parsed) => Seen::Request {
            ask: parsed.ask.clone(),
            data: joined(parsed.data.iter().copied()),
            status: parsed.status,
        },
        Err(Mistake::NoStatus) => Seen::NoStatus,
        Err(Mistake::Answer { status, answer, .. }) => Seen::Refused(status, answer),
    };
    assert!(bytes <= READ_BYTES_MAX, "reads of memory without a bound");
    seen
}

/// The same memory in as few segments as can be: how it was cut means nothing.
fn joined(segments: impl Iterator<Item = Segment>) -> Vec<Segment> {
    let mut joined: Vec<Segment> = Vec::new();
    for segment in segments.filter(|segment| segment.length > 0) {
        match joined.last_mut() {
            Some(last)
                if last.address.checked_add(last.length.into()) == Some(segment.address)
                    && last.length.checked_add(segment.length).is_some() =>
            {
                last.length += segment.length;
            }
            _ => joined.push(segment),
        }
    }
    joined
}

/// What holds for every request, whatever the guest's memory says.
fn check_sound(seen: &Seen) {
    let Seen::Request { ask, data, .. } = seen else {
        let is_failure = !matches!(seen, Seen::Refused(_, Status::Ok));
        assert!(is_failure, "refused, and told that all is well");
        return;
    };
    assert!(
        data.len() <= SEGMENTS_MAX as usize + 2,
        "segments without a bound"
    );
    let total: u64 = data.iter().map(|segment| u64::from(segment.length)).sum();
    let is_inside = |offset: u64, length: u64| {
        let end = offset.checked_add(length);
        let is_whole = offset.is_multiple_of(512) && length.is_multiple_of(512);
        length > 0 && is_whole && end.is_some_and(|end| end <= SIZE_BYTES)
    };
    match ask {
        Ask::Read { offset, length } | Ask::Write { offset, length } => {
            assert!(is_inside(*offset, *length), "{ask:?}");
            assert_eq!(total, *length);
        }
        Ask::Zero(ranges) => {
            assert!(!ranges.is_empty() && ranges.len() <= RANGES_MAX as usize);
            let mut ranges = ranges.iter();
            assert!(
                ranges.all(|r: &Range| is_inside(r.offset, r.length)),
                "{ask:?}"
            );
        }
        Ask::GetId => assert!(total >= super::request::ID_BYTES),
        Ask::Flush => {}
    }
}

/// Whether the request was to be carried out; panics if it was read as another one.
fn check_exact(seen: &Seen, expected: &Expected) -> bool {
    match expected {
        Expected::Request { ask, data, status } => {
            let wanted = Seen::Request {
                ask: ask.clone(),
                data: joined(data.iter().copied()),
                status: *status,
            };
            assert_eq!(*seen, wanted);
            true
        }
        Expected::Refused { status, answer } => {
            let Seen::Refused(at, said) = seen else {
                panic!("{seen:?}, and not refused with {answer:?}");
            };
            assert_eq!(said, answer, "{seen:?}");
            assert!(status.is_none_or(|status| status == *at), "{seen:?}");
            false
        }
        Expected::NoStatus => {
            assert_eq!(*seen, Seen::NoStatus);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Names the seed when it fails.
    struct Told(u64);

    impl Drop for Told {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("seed {}", self.0);
            }
        }
    }

    /// Random bytes alone hardly ever make a request: a parser that misreads good ones would pass.
    #[test]
    fn rings_that_are_mostly_valid_by_seed() {
        let mut all = Met::default();
        for seed in 0..20_000 {
            let _told = Told(seed);
            let mut random = fastrand::Rng::with_seed(seed);
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(512).collect();
            let met = any_bytes(&bytes);
            all.exact += met.exact;
            all.refused += met.refused;
            all.flipped += met.flipped;
        }
        assert!(all.exact > 20_000 && all.refused > 2_000, "{all:?}");
        assert!(
            all.flipped > 5_000 && all.exact > 3 * all.refused,
            "{all:?}"
        );
    }

    proptest! {
        /// Any choices at all.
        #[test]
        fn rings_of_any_choices(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = any_bytes(&data);
        }
    }
}
