//! Who pauses and who ends: an operator's pause that is undone, or an end that nobody hears, is a guest in a state
//! that nobody wanted.

use crate::guest::{Guest, LIMIT, Order, limits, program, wait_for};
use checkpointer::hypervisor::qemu::ram::Layout;
use checkpointer::hypervisor::qemu::state::Saver;
use checkpointer::hypervisor::qemu::{Error, Event, Qemu, Stopped};
use std::time::{Duration, Instant};

/// The first event that fits; others are passed over.
pub(crate) fn wait_event(qemu: &mut Qemu, fits: impl Fn(&Event) -> bool) -> Event {
    let until = Instant::now() + LIMIT;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let event = qemu.event(left).expect("alive").expect("an event in time");
        if fits(&event) {
            return event;
        }
    }
}

#[test]
fn an_operators_pause_stays() {
    let Some(program) = program("an operator") else {
        return;
    };
    let dir = crate::guest::dir();
    let socket = dir.path().join("operator");
    let chardev = format!("socket,id=op,path={},server=on,wait=off", socket.display());
    let mut guest = Guest::start(
        &program,
        &["-chardev", &chardev, "-mon", "chardev=op,mode=control"],
    );
    let mut operator = Qemu::attach(&socket, limits()).expect("a second monitor");
    assert_eq!(operator.pid(), guest.child.pid());

    let layout = Layout::find(&mut guest.qemu).expect("a layout");
    let mut saver = Saver::choose(&mut guest.qemu, &layout).expect("a way");
    for qemu in [&mut operator, &mut guest.qemu] {
        while qemu.event(Duration::ZERO).expect("alive").is_some() {}
    }
    operator.stop().expect("paused");
    let at = guest.memory.counter();
    // Device state begins to be saved before it is known whose pause it is.
    let stopped = guest.qemu.stop_and(|qemu| saver.begin(qemu));
    assert_eq!(stopped.expect("paused").0, Stopped::Before);
    saver.give_up(&mut guest.qemu).expect("given up");
    let resumed = guest.qemu.cont().expect("left alone");
    assert!(!resumed.is_running && !resumed.was_disturbed);
    assert_eq!(guest.qemu.status().expect("told").word, "paused");
    assert_eq!(guest.memory.counter(), at);
    assert_eq!(
        wait_event(&mut guest.qemu, |_| true),
        Event::Stop,
        "the operator's, told"
    );
    operator.cont().expect("going on");
    guest.memory.wait_beyond(at);
    assert_eq!(wait_event(&mut guest.qemu, |_| true), Event::Resume);

    // Let go by the operator in a pause of ours: what was copied is void.
    assert_eq!(guest.qemu.stop().expect("paused"), Stopped::ByUs);
    let at = guest.memory.counter();
    operator.cont_anyway().expect("going on");
    guest.memory.wait_beyond(at);
    assert!(guest.qemu.cont().expect("going on").was_disturbed);
    assert_eq!(guest.qemu.stop().expect("paused"), Stopped::ByUs);
    assert!(!guest.qemu.cont().expect("going on").was_disturbed);
}

#[test]
fn a_guest_that_resets_and_ends_is_heard() {
    let Some(program) = program("ends") else {
        return;
    };
    let mut guest = Guest::start(&program, &[]);
    guest.memory.order(Order::Reset);
    wait_event(&mut guest.qemu, |event| {
        matches!(event, Event::Reset { guest: true, .. })
    });
    guest.memory.wait_counting(0);
    guest.memory.order(Order::Off);
    let event = wait_event(&mut guest.qemu, |event| {
        matches!(event, Event::Shutdown { .. })
    });
    let off = Event::Shutdown {
        guest: true,
        reason: "guest-shutdown".to_owned(),
    };
    assert_eq!(event, off);
    assert!(guest.child.wait(LIMIT), "QEMU ends with its guest");
    let error = loop {
        match guest.qemu.event(LIMIT) {
            Ok(event) => assert!(event.is_some(), "neither event nor end"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Gone(_)), "{error}");

    let mut guest = Guest::start(&program, &[]);
    guest.qemu.quit().expect("it ends");
    assert!(guest.child.wait(LIMIT));
}

#[test]
fn a_killed_qemu_is_told_at_once() {
    let Some(program) = program("killed") else {
        return;
    };
    let mut guest = Guest::start(&program, &[]);
    guest.child.kill();
    let told = guest.qemu.stop().expect_err("it is dead").to_string();
    assert!(told.contains("QEMU is gone"), "{told}");
    let again = guest.qemu.cont().expect_err("it is dead").to_string();
    assert!(again.contains("QEMU is gone"), "{again}");
    wait_for("its end", || guest.qemu.event(Duration::ZERO).is_err());
}

#[test]
fn a_qemu_that_does_not_start_says_why() {
    let Some(program) = program("bad words") else {
        return;
    };
    let dir = crate::guest::dir();
    let boot = crate::guest::boot_disk(dir.path());
    let spec = crate::guest::spec(&program, &boot, &["-device", "no-such-device"]);
    let place = spec.place(dir.path());
    let mut child = spec
        .start(checkpointer::hypervisor::qemu::spec::Role::Primary, &place)
        .expect("the program runs");
    let told = child.attach(limits()).expect_err("it ends").to_string();
    assert!(told.contains("no-such-device"), "{told}");
}
