//! Requests and their answers.

use super::*;

/// The plain way: a tool asks, the daemon answers, now or later from another thread.
#[test]
fn requests_are_answered_now_and_later() {
    let rig = Rig::new();
    let mut client = rig.client();
    assert_eq!(client.hello().daemon, "test 1");
    assert_eq!(client.hello().pid, std::process::id());
    assert_eq!(
        client
            .prepare(PrepareRequest { epoch: Some(5) })
            .unwrap()
            .epoch,
        5
    );

    let waiting = std::thread::spawn(move || client.cut(CutRequest::default()));
    let (request, peer, reply) = rig.kept.recv_timeout(LONG).unwrap();
    assert_eq!(request, Request::Cut(CutRequest::default()));
    assert_eq!(peer.pid, std::process::id());
    assert_eq!(peer.uid, rustix::process::getuid().as_raw());
    assert_eq!(reply.request_name(), "cut");
    // Another client is served while the first one waits.
    assert_eq!(
        rig.client()
            .prepare(PrepareRequest::default())
            .unwrap()
            .epoch,
        1
    );
    reply.ok(Answer::Cut(CutAnswer {
        epoch: 7,
        committed: true,
        ..CutAnswer::default()
    }));
    assert_eq!(
        waiting.join().unwrap().unwrap(),
        CutAnswer {
            epoch: 7,
            committed: true,
            ..CutAnswer::default()
        }
    );
}

/// Answers are matched by id, not by order: a promote must not be taken for a cut.
#[test]
fn pipelined_answers_carry_the_id_of_their_request() {
    let rig = Rig::new();
    let raw = Raw::greeted(&rig);
    raw.send(
        &Request::Cut(CutRequest::default())
            .to_packet(1, 10)
            .unwrap(),
    );
    raw.send(&prepare(3).to_packet(1, 11).unwrap());
    let expected = Response::Ok(Answer::Prepare(PrepareAnswer { epoch: 3 }));
    assert_eq!(raw.response(11), Some(expected));
    let (_, _, reply) = rig.kept.recv_timeout(LONG).unwrap();
    reply.error(ErrorCode::NoBackup, "no backup\nis connected");
    assert_eq!(raw.error(10), ErrorCode::NoBackup);
}

/// A daemon thread that dies with a request in hand must not leave the operator waiting.
#[test]
fn dropped_reply_handle_is_an_internal_error() {
    let rig = Rig::new();
    let error = rig.client().promote(PromoteRequest::default()).unwrap_err();
    let ClientError::Daemon(reply) = &error else {
        panic!("{error}")
    };
    assert_eq!(reply.code, ErrorCode::Internal);
    assert!(reply.message.contains("\"promote\""), "{}", reply.message);
}

/// A tool killed while it waits must not take the daemon with it.
#[test]
fn answer_for_a_client_that_has_gone_is_dropped() {
    let rig = Rig::new();
    let raw = Raw::greeted(&rig);
    raw.send(&Request::Cut(CutRequest::default()).to_packet(1, 2).unwrap());
    let (_, _, reply) = rig.kept.recv_timeout(LONG).unwrap();
    drop(raw);
    reply.ok(Answer::Cut(CutAnswer {
        epoch: 1,
        committed: false,
        ..CutAnswer::default()
    }));
    assert_eq!(
        rig.client()
            .prepare(PrepareRequest::default())
            .unwrap()
            .epoch,
        1
    );
}

/// An answer longer than a packet arrives whole.
#[test]
fn long_answers_arrive_whole() {
    let rig = Rig::new();
    let error = rig.client().status().unwrap_err();
    let ClientError::Daemon(reply) = error else {
        panic!("{error}")
    };
    assert_eq!(reply.message.len(), 100_000);
}

/// A late answer to a request that was given up must not be taken for the next one's.
#[test]
fn late_answers_are_passed_over() {
    let rig = Rig::new();
    let mut client = rig.client();
    let cut = Request::Cut(CutRequest::default());
    let error = client.request(&cut, Duration::from_millis(20)).unwrap_err();
    assert!(
        matches!(error, ClientError::TimedOut { request: "cut", .. }),
        "{error}"
    );
    let (_, _, reply) = rig.kept.recv_timeout(LONG).unwrap();
    reply.ok(Answer::Cut(CutAnswer {
        epoch: 1,
        committed: false,
        ..CutAnswer::default()
    }));
    assert_eq!(
        client
            .prepare(PrepareRequest { epoch: Some(8) })
            .unwrap()
            .epoch,
        8
    );
    let json = client.request_json(&prepare(9), LONG).unwrap();
    assert_eq!(json, serde_json::json!({ "epoch": 9 }));
}
