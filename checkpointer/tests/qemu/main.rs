//! A real QEMU: what is saved of a guest must run on at a standby, whatever the guest, an operator or QEMU does.
//!
//! A state that does not load is found out at failover, when the guest is gone already. So every way of saving is
//! loaded here, counted on, and rebooted.

mod findings;
mod guest;
mod hostile;
mod layouts;
mod turns;

use checkpointer::hypervisor::qemu::ram::Layout;
use checkpointer::hypervisor::qemu::standby::Standby;
use checkpointer::hypervisor::qemu::state::{Kind, Saver};
use checkpointer::hypervisor::qemu::{Event, Stopped};
use guest::{Guest, Order, limits, program};
use std::time::{Duration, Instant};

const ROUNDS: usize = 50;

fn saver(guest: &mut Guest, kind: Kind) -> Saver {
    let layout = Layout::find(&mut guest.qemu).expect("a layout");
    let mut saver = Saver::choose(&mut guest.qemu, &layout).expect("a way");
    assert_eq!(saver.kind(), Kind::Devices, "{}", saver.why());
    if kind == Kind::Whole {
        saver.use_whole("a test wants it".to_owned());
    }
    saver
}

/// Median and 99th percentile, for people.
fn told(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    format!("{:.2}/{:.2}", at(50), at(99))
}

fn pause_again_and_again(kind: Kind) {
    let Some(program) = program("pauses") else {
        return;
    };
    let mut guest = Guest::start(&program, &[]);
    let mut saver = saver(&mut guest, kind);
    guest.memory.order(Order::Idle);
    let (mut stop, mut save, mut cont) = (Vec::new(), Vec::new(), Vec::new());
    let mut bytes = Vec::new();
    for _ in 0..ROUNDS {
        saver.prepare(&mut guest.qemu).expect("prepared");
        let begun = Instant::now();
        let follows = saver.may_follow();
        assert_eq!(follows, kind == Kind::Devices);
        let stopped = guest.qemu.stop_and(|qemu| match follows {
            true => saver.begin(qemu),
            false => Ok(()),
        });
        let (stopped, saving) = stopped.expect("paused");
        assert_eq!(stopped, Stopped::ByUs);
        saving.expect("begun");
        stop.push(begun.elapsed());
        let at = guest.memory.counter();
        let begun = Instant::now();
        if !saver.is_begun() {
            saver.begin(&mut guest.qemu).expect("begun");
        }
        saver.finish(&mut guest.qemu, &mut bytes).expect("saved");
        save.push(begun.elapsed());
        assert_eq!(guest.memory.counter(), at, "it runs in the pause");
        let begun = Instant::now();
        let resumed = guest.qemu.cont().expect("going on");
        cont.push(begun.elapsed());
        saver.settle(&mut guest.qemu);
        assert!(resumed.is_running && !resumed.was_disturbed);
        guest.memory.wait_beyond(at);
    }
    println!(
        "{kind:?}, {} bytes, p50/p99 of {ROUNDS} in ms: stop {}, state {}, cont {}",
        bytes.len(),
        told(stop),
        told(save),
        told(cont)
    );
    // Our own turns are no news to anybody.
    while let Some(event) = guest.qemu.event(Duration::ZERO).expect("alive") {
        assert!(!matches!(event, Event::Stop | Event::Resume), "{event:?}");
    }
    let settings = guest
        .qemu
        .qmp()
        .run("query-migrate-capabilities", None, limits().ask);
    let settings = settings.expect("an answer");
    let mut all = settings.as_array().expect("a list").iter();
    let shared = all.find(|one| one["capability"] == "x-ignore-shared");
    assert_eq!(
        shared.expect("it has it")["state"],
        false,
        "an operator's migration would lose memory"
    );
}

#[test]
fn the_devices_alone_fifty_times() {
    pause_again_and_again(Kind::Devices);
}

#[test]
fn all_of_it_fifty_times() {
    pause_again_and_again(Kind::Whole);
}

fn failover(kind: Kind) {
    let Some(program) = program("failover") else {
        return;
    };
    let mut guest = Guest::start(&program, &[]);
    let mut saver = saver(&mut guest, kind);
    let place = guest.standby_place();
    let mut standby = Standby::start(&guest.spec, &place, limits()).expect("a standby");
    guest.qemu.stop().expect("paused");
    let mut state = Vec::new();
    saver.save(&mut guest.qemu, &mut state).expect("saved");
    let at = guest.memory.counter();
    guest.copy_memory(&place);
    guest.qemu.cont().expect("going on");
    guest.memory.wait_beyond(at);
    guest.child.kill();

    standby.check().expect("it waits");
    let memory = guest::Memory::open(&place.memory);
    assert_eq!(memory.counter(), at, "it ran before it was told to");
    let times = standby
        .take_over(saver.constant(), &state)
        .expect("taken over");
    memory.wait_beyond(at);
    println!(
        "{kind:?}: load {:.2} ms, cont {:.2} ms",
        times.load.as_secs_f64() * 1e3,
        times.cont.as_secs_f64() * 1e3
    );
    // With the firmware of the state: a standby has none of its own.
    let (mut qemu, _child) = standby.into_parts();
    memory.order(Order::Reset);
    turns::wait_event(&mut qemu, |event| {
        matches!(event, Event::Reset { guest: true, .. })
    });
    memory.wait_counting(at.max(1));
}

#[test]
fn a_standby_goes_on_with_the_devices_alone() {
    failover(Kind::Devices);
}

#[test]
fn a_standby_goes_on_with_all_of_it() {
    failover(Kind::Whole);
}

/// The guest of the state has a device more.
#[test]
fn a_standby_of_another_shape_refuses() {
    let Some(program) = program("another shape") else {
        return;
    };
    let mut guest = Guest::start(&program, &["-device", "virtio-rng-pci"]);
    let mut saver = saver(&mut guest, Kind::Devices);
    let other = guest::spec(&program, &guest.dir.path().join("boot"), &[]);
    let place = guest.standby_place();
    let mut standby = Standby::start(&other, &place, limits()).expect("a standby");
    guest.qemu.stop().expect("paused");
    let mut state = Vec::new();
    saver.save(&mut guest.qemu, &mut state).expect("saved");
    guest.copy_memory(&place);
    let told = standby
        .take_over(saver.constant(), &state)
        .expect_err("it fits not");
    let told = told.to_string();
    assert!(told.contains("virtio-rng"), "{told}");
    println!("refused: {told}");
}

#[test]
fn memory_that_changes_outside_the_file_travels_each_time() {
    let Some(program) = program("a screen") else {
        return;
    };
    let mut guest = Guest::start(&program, &["-device", "VGA"]);
    let layout = Layout::find(&mut guest.qemu).expect("a layout");
    let saver = Saver::choose(&mut guest.qemu, &layout).expect("a way");
    assert_eq!(saver.kind(), Kind::Whole);
    assert!(saver.why().contains("vga.vram"), "{}", saver.why());
    assert!(saver.constant().is_empty());
    let at = guest.memory.counter();
    guest.memory.wait_beyond(at);
}
