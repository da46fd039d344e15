//! Status and events tell whether a guest is there, and whether a queue of it was given up.
//!
//! What goes wrong without it: a guest hangs on a queue that nobody serves any more, and the operator
//! sees a healthy, protected disk.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod guest;

use blkback_proto::ctl::{Event, EventKind, GuestState, GuestStatus};
use blockrep_host::ctl::Client;
use guest::daemon::Daemon;
use guest::memory::LOW_BYTES;
use guest::{Ask, ENTRIES, EVENT_IDX, FLUSH_ALL, Guest};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

fn status(client: &mut Client) -> GuestStatus {
    client.status().unwrap().volumes.remove(0).guest.unwrap()
}

/// The status once it is in that state with that many queues.
fn wait_for(client: &mut Client, state: &GuestState, queues_running: u32) -> GuestStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = status(client);
        if (&now.stated.state, now.queues_running) == (state, queues_running) {
            return now;
        }
        assert!(Instant::now() < deadline, "{now:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Changes of the guest from an event on, and the number of the next.
fn changes(client: &mut Client, from: &mut u64) -> Vec<(String, Event)> {
    let answer = client.events(*from).unwrap();
    *from = answer.next_seq;
    let of_guest = |event: &Event| event.kind == EventKind::GuestState;
    let change = |event: Event| {
        let states = (event.old_state.as_deref(), event.new_state.as_deref());
        let (Some(old), Some(new)) = states else {
            panic!("{event:?}");
        };
        (format!("{old} -> {new}"), event)
    };
    let events = answer.events.into_iter().filter(of_guest);
    events.map(change).collect()
}

#[test]
fn a_guest_that_comes_breaks_a_queue_recovers_and_goes_is_told_of() {
    let daemon = Daemon::start(1, "");
    let mut client = daemon.client();
    let mut from = 0;
    let waiting = wait_for(&mut client, &GuestState::Waiting, 0);
    assert_eq!(waiting.stated.reason, "no VMM has connected yet");
    assert!(changes(&mut client, &mut from).is_empty());

    let mut guest = Guest::connect(&daemon.socket(), EVENT_IDX);
    let connected = wait_for(&mut client, &GuestState::Connected, 1);
    assert_eq!(connected.features, ["event-idx", "flush"]);
    assert!(connected.stated.since_unix_ms >= waiting.stated.since_unix_ms);
    let told = changes(&mut client, &mut from);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, "waiting -> connected");
    assert_eq!(told[0].1.detail["volume"], "a.img");

    // A paused guest is no event.
    guest.ask(&Ask::new(FLUSH_ALL, 0, &[])).unwrap();
    guest.finish();
    let base = guest.stop();
    let paused = wait_for(&mut client, &GuestState::Connected, 0);
    assert!(paused.stated.reason.contains("no queue runs"), "{paused:?}");
    guest.start(base);
    wait_for(&mut client, &GuestState::Connected, 1);
    assert!(changes(&mut client, &mut from).is_empty());

    let mut place = base;
    for why in ["head 600 of 512 entries", "1000 requests in 512 entries"] {
        if why.starts_with("head") {
            guest.announce(ENTRIES + 88);
        } else {
            guest.skip_to(place.wrapping_add(1000));
        }
        guest.kick();
        let broken = wait_for(&mut client, &GuestState::Broken, 0);
        let reason = broken.stated.reason;
        assert!(
            reason.contains("queue 0") && reason.contains(why),
            "{reason}"
        );
        let told = changes(&mut client, &mut from);
        assert_eq!(told.len(), 1);
        let (change, event) = &told[0];
        assert_eq!(change, "connected -> broken");
        assert!(event.reason.contains(why) && event.next.contains("resets"));

        // The driver resets the queue, and begins anew where it was before.
        guest.stop();
        wait_for(&mut client, &GuestState::Connected, 0);
        guest.skip_to(place);
        guest.start(place);
        guest.ask(&Ask::new(FLUSH_ALL, 0, &[])).unwrap();
        guest.finish();
        place = place.wrapping_add(1);
        let told = changes(&mut client, &mut from);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].0, "broken -> connected");
    }

    drop(guest);
    let gone = wait_for(&mut client, &GuestState::Waiting, 0);
    assert_eq!(gone.stated.reason, "the VMM closed the connection");
    assert!(gone.features.is_empty());
    assert_eq!(changes(&mut client, &mut from)[0].0, "connected -> waiting");
}

/// A queue that does not lie in the guest's memory never starts: the same, from the beginning.
#[test]
fn a_queue_outside_of_the_memory_is_told_of() {
    let daemon = Daemon::start(1, "");
    let mut client = daemon.client();
    let mut guest = Guest::connect(&daemon.socket(), 0);
    guest.stop();
    guest.start_at(0, LOW_BYTES - 16);
    let broken = wait_for(&mut client, &GuestState::Broken, 0);
    let reason = broken.stated.reason;
    assert!(
        reason.contains("does not lie in the guest's memory"),
        "{reason}"
    );
    guest.stop();
    guest.start(0);
    wait_for(&mut client, &GuestState::Connected, 1);
}
