//! A length that a peer says, taken as it comes, is memory that is gone; a timeout in the middle of a frame that
//! loses bytes is a session that breaks when the network is slow.

use super::decoder::{DecodeError, Decoder, Newest};
use super::frames::FrameReader;
use super::pack::{Packer, unpack};
use super::pages::{SentPages, differing_words, is_zero};
use super::sender::Pace;
use super::*;
use crate::memory::store::StoreError;
use blkback_proto::ids::{Epoch, LineageId, SessionId};
use blkback_proto::memory::{Begin, Blob, Codec, Encoding, Entry, Frame, StateKind};
use std::io::{self, Read};
use std::time::{Duration, Instant};

#[test]
fn blobs_come_out_as_they_went_in_or_not_at_all() {
    let mut random = fastrand::Rng::with_seed(3);
    let (mut packer, mut plain) = (Packer::new(), Vec::new());
    for count in [1, 2, 9, 256] {
        let mut bytes = vec![0; count * PAGE];
        for _ in 0..count * 20 {
            let at = random.usize(0..bytes.len());
            bytes[at] = random.u8(..);
        }
        let blob = packer.pack(&bytes, true);
        assert_eq!(blob.codec, Codec::Lz4);
        unpack(&blob, &mut plain).expect("as it was packed");
        assert!(plain == bytes);
        // One page more or less than there is in it.
        for wrong in [count - 1, count + 1] {
            let wrong = Blob {
                count: wrong,
                ..blob
            };
            assert!(wrong.count > 256 || unpack(&wrong, &mut plain).is_err());
        }
        for _ in 0..200 {
            let mut bad = blob.bytes.to_vec();
            let at = random.usize(0..bad.len());
            bad[at] ^= 1 << random.u8(0..8);
            let bad = Blob {
                bytes: &bad,
                ..blob
            };
            // Whatever comes out, it is as long as it says: checksums find the rest.
            if unpack(&bad, &mut plain).is_ok() {
                assert_eq!(plain.len(), count * PAGE);
            }
        }
        random.fill(&mut bytes);
        assert_eq!(
            packer.pack(&bytes, true).codec,
            Codec::Raw,
            "nothing is gained"
        );
    }
    assert_eq!(packer.pack(&[], true).codec, Codec::Raw);
}

#[test]
fn pages_are_told_apart() {
    let (zero, mut page) = (vec![0; PAGE], vec![0; PAGE]);
    for at in [0, 63, 64, PAGE - 1] {
        page.fill(0);
        assert!(is_zero(&page));
        page[at] = 1;
        assert!(!is_zero(&page), "byte {at}");
        assert_eq!(differing_words(&page, &zero), 1);
    }
    let mut sent = SentPages::new(4 * (PAGE + 8));
    sent.put(1, &page);
    assert_eq!(sent.get(1), Some(&page[..]));
    assert_eq!(sent.get(5), None, "the same place, another page");
    sent.put(5, &zero);
    assert_eq!((sent.get(1), sent.get(5)), (None, Some(&zero[..])));
    sent.clear();
    assert_eq!(sent.get(5), None);
    let mut none = SentPages::new(100);
    none.put(1, &page);
    assert_eq!(none.get(1), None);
}

/// One byte at a time, with a timeout before each.
struct Slow(Vec<u8>, bool);

impl Read for Slow {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.0.is_empty() {
            return Ok(0);
        }
        out[0] = self.0.remove(0);
        Ok(1)
    }
}

#[test]
fn a_slow_wire_loses_nothing() {
    let mut bytes = Vec::new();
    let bye = Frame::Bye {
        text: "over".to_owned(),
    };
    Frame::Ping(5).encode(SessionId(1), &mut bytes);
    bye.encode(SessionId(1), &mut bytes);
    let mut reader = FrameReader::new(Slow(bytes.clone(), false));
    let (mut frames, mut quiet) = (Vec::new(), 0);
    let end = loop {
        match reader.read() {
            Ok(Some((frame, _))) => {
                let mut bytes = Vec::new();
                frame.encode(SessionId(1), &mut bytes);
                frames.push(bytes);
            }
            Ok(None) => quiet += 1,
            Err(lost) => break lost,
        }
    };
    assert!(matches!(end, LinkLost::Closed));
    assert_eq!((frames.concat(), quiet), (bytes.clone(), bytes.len() + 1));
    let mut reader = FrameReader::new(
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n......................................"[..],
    );
    assert!(matches!(reader.read(), Err(LinkLost::Protocol(_))));
}

#[test]
fn a_limit_is_kept_over_time() {
    let begun = Instant::now();
    let mut pace = Pace::new(1000);
    assert_eq!(pace.wait(500, begun), Duration::from_millis(500));
    assert_eq!(pace.wait(500, begun), Duration::from_secs(1));
    // Idle for long: nothing is made up for.
    let later = begun + Duration::from_secs(60);
    assert_eq!(pace.wait(100, later), Duration::from_millis(100));
    assert_eq!(Pace::new(0).wait(1 << 40, begun), Duration::ZERO);
}

/// Has ones everywhere.
struct Ones;

impl Newest for Ones {
    fn newest(&self, _: u64, out: &mut [u8]) -> Result<(), StoreError> {
        out.fill(1);
        Ok(())
    }
}

#[test]
fn a_difference_to_what_did_not_come_is_refused() {
    let begin = Begin {
        epoch: Epoch(1),
        lineage: LineageId::NONE,
        page_count: 2,
        state_bytes: 0,
        state_kind: StateKind::Migrate,
    };
    let nothing = Blob {
        codec: Codec::Raw,
        count: 0,
        bytes: &[],
    };
    let entry = |page, encoding| Entry {
        page,
        crc: crc32fast::hash(&[1; PAGE]),
        encoding,
    };
    let refused = |decoder: &mut Decoder, entries: &[Entry], blob| match decoder
        .pages(entries, blob, &Ones)
    {
        Err(DecodeError::Peer(text)) => text,
        other => panic!("{other:?}"),
    };
    let mut decoder = Decoder::new(4, 10);
    let same = entry(3, Encoding::Same);
    assert!(refused(&mut decoder, &[same], &nothing).contains("outside"));
    decoder.begin(&begin).expect("it is");
    assert!(refused(&mut decoder, &[same], &nothing).contains("did not come"));

    let mut decoder = Decoder::new(4, 10);
    let ones = Blob {
        count: 1,
        bytes: &[1; PAGE],
        ..nothing
    };
    decoder.copy(3, same.crc, &ones).expect("a page");
    assert!(
        decoder.copy(10, same.crc, &ones).is_err(),
        "behind the last page"
    );
    assert!(decoder.copy(2, 7, &ones).is_err(), "another checksum");
    decoder.begin(&begin).expect("it is");
    assert!(decoder.begin(&begin).is_err(), "in an epoch");
    assert!(decoder.copy(3, same.crc, &ones).is_err(), "in an epoch");
    decoder.pages(&[same], &nothing, &Ones).expect("it came");
    assert!(refused(&mut decoder, &[entry(10, Encoding::Full)], &ones).contains("of 10"));
    assert!(refused(&mut decoder, &[same], &nothing).contains("more pages"));
    let many = Begin {
        page_count: 11,
        ..begin
    };
    assert!(Decoder::new(4, 10).begin(&many).is_err());
}
