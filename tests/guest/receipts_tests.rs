//! A flaw here would let a lost or changed transaction pass for a sound one at both ends at once.

use super::*;

fn request() -> Request {
    Request {
        kind: APPEND,
        number: 7,
        nonce: u64::MAX,
        payload: b"some bytes, of no multiple of eight".to_vec(),
    }
}

// The table is made at compile time by code of our own.
#[test]
fn the_crc_is_the_one_everybody_has() {
    assert_eq!(crc32(&[b"1234", b"56789"]), 0xcbf4_3926);
}

#[test]
fn frames_come_back_and_a_flipped_bit_shows() {
    let request = request();
    let frame = request.encode();
    let head = frame.first_chunk().expect("a head");
    assert_eq!(Request::frame_len(head), Ok(frame.len()));
    assert_eq!(Request::decode(&frame), Ok(request));
    let answer = Answer {
        kind: READ,
        number: 1,
        nonce: 2,
        position: 3,
        chain: 4,
        chain_disk: 5,
        monotonic_ns: 6,
        real_ns: 7,
        flags: DIFFERS | AHEAD,
        payload: vec![9; 100],
    };
    let bytes = answer.encode();
    let head = bytes.first_chunk().expect("a head");
    assert_eq!(Answer::frame_len(head), Ok(bytes.len()));
    assert_eq!(Answer::decode(&bytes), Ok(answer));
    for at in 0..frame.len() * 8 {
        let mut torn = frame.clone();
        torn[at / 8] ^= 1 << (at % 8);
        let magic = torn.first_chunk().map(Request::frame_len);
        let is_found = magic.is_some_and(|length| length != Ok(frame.len()));
        assert!(is_found || Request::decode(&torn).is_err(), "bit {at}");
    }
}

// A record that is torn between sectors, or stands in another's place, must not count.
#[test]
fn records_come_back_and_each_bit_and_place_is_in_the_chain() {
    let record = Record::after(beginning(1), 1, 1, &request());
    let place = record.encode();
    assert_eq!(place.len(), RECORD_LEN);
    assert_eq!(Record::decode(&place), Ok(record.clone()));
    for at in 0..(RECORD_HEAD + record.payload.len()) * 8 {
        let mut torn = place.clone();
        torn[at / 8] ^= 1 << (at % 8);
        assert!(Record::decode(&torn).is_err(), "bit {at}");
    }
    assert!(Record::decode(&[0; RECORD_LEN]).is_err());
    let chain = |change: fn(&mut Record)| {
        let mut other = record.clone();
        change(&mut other);
        other.chained(beginning(1))
    };
    for change in [
        |r: &mut Record| r.position = 2,
        |r: &mut Record| r.number = 8,
        |r: &mut Record| r.nonce = 0,
        |r: &mut Record| r.payload[34] ^= 1,
        |r: &mut Record| r.payload.push(0),
    ] {
        assert_ne!(chain(change), record.chain);
    }
    assert_ne!(record.chained(beginning(2)), record.chain);
}

// A length from the wire is bounded before anything is allocated for it.
#[test]
fn a_frame_that_says_it_is_huge_is_refused() {
    let mut frame = request().encode();
    frame[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
    let head = frame.first_chunk().expect("a head");
    assert!(Request::frame_len(head).is_err());
}
