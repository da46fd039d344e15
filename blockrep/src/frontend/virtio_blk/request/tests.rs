//! Requests as drivers lay them out, and as a hostile one might.

use super::*;
use proptest::prelude::*;

const SIZE: u64 = 1 << 20;
const LIMITS: Limits = Limits {
    size_bytes: SIZE,
    is_read_only: false,
};
const STATUS: u64 = 0x9000;

fn descriptor(address: u64, length: u32, is_writable: bool) -> Descriptor {
    Descriptor {
        address,
        length,
        is_writable,
        has_next: false,
    }
}

/// Guest memory whose bytes at 0x1000 are the header, at 0x2000 ranges.
fn memory(
    kind: u32,
    sector: u64,
    ranges: &[(u64, u32, u32)],
) -> impl FnMut(u64, &mut [u8]) -> bool {
    let mut bytes = vec![0; 0x3000];
    bytes[0x1000..0x1004].copy_from_slice(&kind.to_le_bytes());
    bytes[0x1008..0x1010].copy_from_slice(&sector.to_le_bytes());
    for (at, (sector, sectors, flags)) in ranges.iter().enumerate() {
        let at = 0x2000 + at * 16;
        bytes[at..at + 8].copy_from_slice(&sector.to_le_bytes());
        bytes[at + 8..at + 12].copy_from_slice(&sectors.to_le_bytes());
        bytes[at + 12..at + 16].copy_from_slice(&flags.to_le_bytes());
    }
    move |address, out| {
        let Ok(at) = usize::try_from(address) else {
            return false;
        };
        match bytes.get(at..at.saturating_add(out.len())) {
            Some(from) => {
                out.copy_from_slice(from);
                true
            }
            None => false,
        }
    }
}

fn ask(
    kind: u32,
    sector: u64,
    ranges: &[(u64, u32, u32)],
    middle: &[Descriptor],
) -> Result<Parsed, Mistake> {
    let head = descriptor(0x1000, 16, false);
    let status = descriptor(STATUS, 1, true);
    let chain = [head].into_iter().chain(middle.iter().copied());
    parse(
        chain.chain([status]),
        LIMITS,
        &mut Spare::default(),
        &mut memory(kind, sector, ranges),
    )
}

fn answer(result: Result<Parsed, Mistake>) -> Status {
    match result {
        Err(Mistake::Answer { status, answer, .. }) => {
            assert_eq!(status, STATUS);
            answer
        }
        other => panic!("{other:?}"),
    }
}

/// Linux puts header, data and status into descriptors of their own.
#[test]
fn reads_and_writes_as_linux_sends_them() {
    let data = [
        descriptor(0x4000, 4096, true),
        descriptor(0x8000, 512, true),
    ];
    let parsed = ask(TYPE_IN, 8, &[], &data).unwrap();
    let length = 4608;
    assert_eq!(
        parsed.ask,
        Ask::Read {
            offset: 4096,
            length
        }
    );
    assert_eq!(parsed.data.len(), 2);
    assert_eq!(parsed.status, STATUS);
    let data = [descriptor(0x4000, 512, false)];
    let parsed = ask(TYPE_OUT, 2047, &[], &data).unwrap();
    let (offset, length) = (SIZE - 512, 512);
    assert_eq!(parsed.ask, Ask::Write { offset, length });
    assert_eq!(ask(TYPE_FLUSH, 0, &[], &[]).unwrap().ask, Ask::Flush);
}

/// The specification leaves it to the driver how a request is cut into descriptors.
#[test]
fn any_cut_into_descriptors_is_the_same_request() {
    let chain = [
        descriptor(0x1000, 5, false),
        descriptor(0x1005, 0, false),
        descriptor(0x1005, 11, false),
        descriptor(0x4000, 513, true),
    ];
    let read = &mut memory(TYPE_IN, 1, &[]);
    let parsed = parse(chain.into_iter(), LIMITS, &mut Spare::default(), read).unwrap();
    let length = 512;
    assert_eq!(
        parsed.ask,
        Ask::Read {
            offset: 512,
            length
        }
    );
    assert_eq!(parsed.status, 0x4000 + 512);
    let address = 0x4000;
    assert_eq!(
        parsed.data,
        [Segment {
            address,
            length: 512
        }]
    );
}

#[test]
fn ranges_are_read_and_bounded() {
    let list = [descriptor(0x2000, 32, false)];
    let parsed = ask(TYPE_WRITE_ZEROES, 0, &[(0, 8, 1), (16, 2, 0)], &list).unwrap();
    let Ask::Zero(ranges) = parsed.ask else {
        panic!("zeroes")
    };
    assert_eq!((ranges[0].length, ranges[0].discard), (4096, true));
    assert_eq!((ranges[1].offset, ranges[1].discard), (8192, false));
    let one = [descriptor(0x2000, 16, false)];
    let discard = |range| answer(ask(TYPE_DISCARD, 0, &[range], &one));
    assert_eq!(discard((0, 8, 1)), Status::Unsupported);
    assert_eq!(discard((2047, 2, 0)), Status::IoError);
    assert_eq!(discard((u64::MAX / 512, u32::MAX, 0)), Status::IoError);
    let odd = [descriptor(0x2000, 17, false)];
    assert_eq!(answer(ask(TYPE_DISCARD, 0, &[], &odd)), Status::IoError);
}

/// Everything here comes from the guest, and the daemon serves others, too.
#[test]
fn mistakes_are_answered() {
    let write = [descriptor(0x4000, 512, false)];
    let read = [descriptor(0x4000, 512, true)];
    assert_eq!(answer(ask(99, 0, &[], &[])), Status::Unsupported);
    for (kind, sector, middle) in [
        (TYPE_OUT, 2048, &write[..]),
        (TYPE_OUT, u64::MAX, &write[..]),
        (TYPE_IN, 0, &write[..]),
        (TYPE_OUT, 0, &read[..]),
        (TYPE_OUT, 0, &[][..]),
        (TYPE_IN, 0, &[descriptor(0x4000, 100, true)][..]),
        (TYPE_GET_ID, 0, &[descriptor(0x4000, 19, true)][..]),
    ] {
        assert_eq!(answer(ask(kind, sector, &[], middle)), Status::IoError);
    }
    let no_status = [descriptor(0x1000, 16, false)];
    let result = parse(
        no_status.into_iter(),
        LIMITS,
        &mut Spare::default(),
        &mut memory(0, 0, &[]),
    );
    assert_eq!(result, Err(Mistake::NoStatus));
    let unreadable = [
        descriptor(u64::MAX - 4, 16, false),
        descriptor(STATUS, 1, true),
    ];
    let result = parse(
        unreadable.into_iter(),
        LIMITS,
        &mut Spare::default(),
        &mut memory(0, 0, &[]),
    );
    assert_eq!(answer(result), Status::IoError);
    let endless = (0..).map(|_| descriptor(STATUS, 1, true));
    let result = parse(
        endless,
        LIMITS,
        &mut Spare::default(),
        &mut memory(TYPE_FLUSH, 0, &[]),
    );
    assert_eq!(answer(result), Status::IoError);
}

#[test]
fn a_read_only_disk_takes_no_writes() {
    let limits = Limits {
        is_read_only: true,
        ..LIMITS
    };
    let chain = [
        descriptor(0x1000, 16, false),
        descriptor(0x4000, 512, false),
        descriptor(STATUS, 1, true),
    ];
    let result = parse(
        chain.into_iter(),
        limits,
        &mut Spare::default(),
        &mut memory(TYPE_OUT, 0, &[]),
    );
    assert_eq!(answer(result), Status::IoError);
}

proptest! {
    /// Whatever stands in the chain: no panic, and what is accepted lies on the disk and fits its data.
    #[test]
    fn accepted_requests_are_sound(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..4096, any::<u64>()],
        chain in prop::collection::vec(
            (prop_oneof![0x1000u64..0x3000, any::<u64>()], prop_oneof![0u32..2048, any::<u32>()],
             any::<bool>(), prop::bool::weighted(0.05)), 0..20),
    ) {
        let head = descriptor(0x1000, 16, false);
        let rest = chain.into_iter().map(|(address, length, is_writable, has_next)| Descriptor {
            address, length, is_writable, has_next,
        });
        let mut read = memory(kind, sector, &[(1, 2, 0), (4, 4, 1)]);
        if let Ok(parsed) = parse([head].into_iter().chain(rest), LIMITS, &mut Spare::default(), &mut read) {
            match parsed.ask {
                Ask::Read { offset, length } | Ask::Write { offset, length } => {
                    prop_assert!(offset + length <= SIZE && length % 512 == 0 && length > 0);
                    prop_assert_eq!(total(&parsed.data), length);
                }
                Ask::Zero(ranges) => {
                    prop_assert!(ranges.iter().all(|r| r.offset + r.length <= SIZE && r.length > 0));
                }
                Ask::GetId => prop_assert!(total(&parsed.data) >= ID_BYTES),
                Ask::Flush => {}
            }
        }
    }
}
