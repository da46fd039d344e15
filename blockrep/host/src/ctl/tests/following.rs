//! Events, kept and streamed.

use super::*;

/// A watcher must see every change, in order, from before and after it came.
#[test]
fn followers_get_kept_and_new_events_in_order() {
    let rig = Rig::new();
    // More than one answer and one turn of the server hold, and nothing published after to wake it.
    for i in 0..200 {
        rig.publish(&format!("old {i}"));
    }
    let (answer, mut stream) = rig.client().follow(0).unwrap();
    let mut seqs: Vec<u64> = answer.events.iter().map(|event| event.seq).collect();
    while seqs.len() < 300 {
        if seqs.len() == 200 {
            for i in 0..100 {
                rig.publish(&format!("new {i}"));
            }
        }
        match stream.next_within(LONG).unwrap().expect("an event") {
            EventBody::Event(event) => seqs.push(event.seq),
            EventBody::Lost(lost) => panic!("lost {}", lost.count),
        }
    }
    assert_eq!(seqs, (1..=300).collect::<Vec<_>>());

    // Without following, page by page.
    let mut client = rig.client();
    let (mut from, mut paged) = (0, 0);
    loop {
        let page = client.events(from).unwrap();
        paged += page.events.len();
        from = page.next_seq;
        if !page.more {
            break;
        }
    }
    assert_eq!((paged, from), (300, 301));
}

/// A watcher that is stopped (Ctrl-Z) must neither block the daemon nor believe it saw all.
#[test]
fn slow_follower_is_told_how_many_events_it_lost() {
    const KEPT: usize = 16;
    const PUBLISHED: u64 = 5000;
    let rig = Rig::with(Limits::default(), KEPT);
    let raw = Raw::greeted(&rig);
    let follow = Request::Events(EventsRequest {
        from_seq: 0,
        follow: true,
    });
    raw.send(&follow.to_packet(1, 2).unwrap());
    assert!(matches!(
        raw.response(2),
        Some(Response::Ok(Answer::Events(_)))
    ));
    for _ in 0..PUBLISHED {
        rig.publish(&"r".repeat(900));
    }
    assert_eq!(
        rig.client()
            .prepare(PrepareRequest::default())
            .unwrap()
            .epoch,
        1
    );

    let (mut next, mut lost) = (1, 0);
    while next <= PUBLISHED {
        let packet = raw.packet().expect("the stream goes on");
        let frame = decode(&packet).unwrap();
        assert_eq!((frame.kind, frame.request_id), (FrameKind::Event, 2));
        match EventBody::from_body(frame.body).unwrap() {
            EventBody::Event(event) => {
                assert_eq!(event.seq, next, "a gap without a word");
                next += 1;
            }
            EventBody::Lost(gap) => {
                lost += gap.count;
                next += gap.count;
                assert_eq!(gap.next_seq, next);
            }
        }
    }
    assert!(
        lost > 0,
        "the socket took everything; the test proves nothing"
    );
}
