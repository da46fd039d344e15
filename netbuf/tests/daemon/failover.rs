//! What could go wrong: after a failover a client waits for its own back-off although the guest runs again, since
//! what it said again meanwhile went to the dead host, or nobody kept it.
//!
//! ```text
//!   client w1 ══ w0 ─ bridge ─┬─ pa  tap of the dead primary
//!                             └─ pb  tap of the standby, which the daemon has; nobody reads it until the guest runs
//! ```
//! [`gaps`] measures what a client of real TCP sees; it asserts on no time:
//! `cargo test -p netbuf --test daemon failover -- --ignored --nocapture`.

use crate::namespace::{Room, ip, until};
use crate::packets::{bare_ack, is_tcp, unreachable};
use crate::site::{Site, in_namespace, mechanism, note};
use crate::tap::Tap;
use blkback_proto::ctl::{NetAnnounceRequest, NetStation, Request};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const GUEST: [u8; 6] = [2, 0, 0, 0xaa, 0xbb, 0xcc];
const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 0x11];

fn announce() -> Request {
    Request::NetAnnounce(NetAnnounceRequest {
        guest: "vm1".into(),
        stations: vec![NetStation {
            interface: None,
            mac: "02:00:00:aa:bb:cc".into(),
            addresses: vec!["10.7.0.2".into()],
            vlan: None,
        }],
    })
}

/// Bridge, both taps, and the daemon, which has the standby's: open, and nothing runs there.
fn standby() -> Option<(Site, Tap, Tap)> {
    let mut site = Site::new();
    let (Some(primary), Some(standby)) = (Tap::new("pa"), Tap::new("pb")) else {
        eprintln!("skipped: needs /dev/net/tun");
        return None;
    };
    ip("link set pa master br0\nlink set pb master br0\nlink set pa up\nlink set pb up");
    let mechanism = mechanism();
    site.start(&["run", "--mechanism", &mechanism, "--attach", "vm1=pb"]);
    crate::namespace::settled();
    assert_eq!(site.state(), "open");
    Some((site, primary, standby))
}

fn to_guest(mark: u8) -> Vec<u8> {
    let mut frame = GUEST.to_vec();
    frame.extend(CLIENT);
    frame.extend([0x88, 0xb5]);
    frame.resize(60, mark);
    frame
}

fn mark_of(frame: &[u8]) -> Option<u8> {
    (frame.len() == 60 && frame[..6] == GUEST && frame[12..14] == [0x88, 0xb5]).then(|| frame[20])
}

/// The marks that wait there, until one of them is `last`.
fn marks_until(tap: &Tap, last: u8) -> Vec<u8> {
    let mut marks = Vec::new();
    until("the frame", || {
        let more = std::iter::from_fn(|| tap.next());
        marks.extend(more.filter_map(|frame| mark_of(&frame)));
        marks.contains(&last).then_some(())
    });
    marks
}

/// What the checkpointer does: it announces as soon as the authority has decided, then loads the guest.
#[test]
fn frames_for_a_guest_that_does_not_run_yet_wait_in_its_tap() {
    in_namespace(|| {
        let Some((site, primary, standby)) = standby() else {
            return;
        };
        // The bridge learns that the guest is behind the primary's port.
        let mut said = CLIENT.to_vec();
        said.extend(GUEST);
        said.extend([0x88, 0xb5]);
        said.resize(60, 0);
        primary.say(&said);
        while site.witness.receive()[..12] != said[..12] {}
        site.witness.send(&to_guest(1));
        assert_eq!(marks_until(&primary, 1), [1]);
        site.done(&announce());
        until("the first round", || {
            (site.status().guests[0].announcements_left < 5).then_some(())
        });
        for mark in 2..=4 {
            site.witness.send(&to_guest(mark));
        }
        // In their order, none lost, and not the one from before.
        assert_eq!(marks_until(&standby, 4), [2, 3, 4]);
        let others = std::iter::from_fn(|| primary.next());
        assert_eq!(others.filter_map(|frame| mark_of(&frame)).count(), 0);
    });
}

/// A tap that nobody reads is full after some hundred broadcasts, and what comes then is lost; so it is down until
/// the authority has decided.
#[test]
fn a_tap_that_was_down_while_the_standby_waited_has_room() {
    in_namespace(|| {
        let Some((site, _primary, standby)) = standby() else {
            return;
        };
        ip("link set pb down");
        let broadcast = crate::site::frame(9);
        (0..2000).for_each(|_| site.guest.send(&broadcast));
        // The last of them is through the bridge.
        (0..2000).for_each(|_| drop(site.witness.receive()));
        ip("link set pb up");
        crate::namespace::settled();
        until("a frame that comes through", || {
            site.done(&announce());
            site.witness.send(&to_guest(5));
            std::thread::sleep(Duration::from_millis(5));
            let heard: Vec<_> = std::iter::from_fn(|| standby.next()).collect();
            assert!(
                !heard.contains(&broadcast),
                "it kept what came while it was down"
            );
            heard
                .iter()
                .any(|frame| mark_of(frame) == Some(5))
                .then_some(())
        });
    });
}

/// What is done for the client, beside that the guest runs again.
#[derive(Clone, Copy, PartialEq)]
enum Nudge {
    Nothing,
    /// The guest says its last acknowledgement three times.
    DuplicateAcks,
    /// As many ICMP host unreachable, for the frame of the client that was seen last.
    Unreachable(usize),
}

#[derive(Clone, Copy)]
struct Story {
    name: &'static str,
    /// The switch sees that the primary is dead, and floods; or it does not.
    port_goes_down: bool,
    /// After the failure; otherwise when the guest runs.
    announced_ms: Option<u64>,
    /// Broadcasts that came while the standby waited.
    crowd: usize,
    /// Its tap is down until it is announced.
    down_before: bool,
    /// What comes to the standby during the outage is not kept.
    lost: bool,
    nudge: Nudge,
}

const PLAIN: Story = Story {
    name: "switch does not notice; announced when the guest runs",
    port_goes_down: false,
    announced_ms: None,
    crowd: 0,
    down_before: false,
    lost: false,
    nudge: Nudge::Nothing,
};

const STORIES: [Story; 10] = [
    PLAIN,
    Story {
        name: "the same, announced 100 ms after the failure",
        announced_ms: Some(100),
        ..PLAIN
    },
    Story {
        name: "the same after 250 ms",
        announced_ms: Some(250),
        ..PLAIN
    },
    Story {
        name: "the same after 100 ms, 2000 broadcasts wait in the tap",
        announced_ms: Some(100),
        crowd: 2000,
        ..PLAIN
    },
    Story {
        name: "the same with the tap down until the announcement",
        announced_ms: Some(100),
        crowd: 2000,
        down_before: true,
        ..PLAIN
    },
    Story {
        name: "the port goes down, the switch floods",
        port_goes_down: true,
        ..PLAIN
    },
    Story {
        name: "nothing kept in the outage; 3 duplicate acknowledgements",
        port_goes_down: true,
        lost: true,
        nudge: Nudge::DuplicateAcks,
        ..PLAIN
    },
    Story {
        name: "nothing kept in the outage",
        port_goes_down: true,
        lost: true,
        ..PLAIN
    },
    Story {
        name: "nothing kept in the outage; 1 ICMP for a frame seen",
        port_goes_down: true,
        lost: true,
        nudge: Nudge::Unreachable(1),
        ..PLAIN
    },
    Story {
        name: "nothing kept in the outage; 4 ICMP for a frame seen",
        port_goes_down: true,
        lost: true,
        nudge: Nudge::Unreachable(4),
        ..PLAIN
    },
];

const AT_PRIMARY: u8 = 0;
/// Deaf already; what it has said is still on its way.
const DYING: u8 = 1;
const OUTAGE: u8 = 2;
const AT_STANDBY: u8 = 3;
const OVER: u8 = 4;

/// Stands for the hypervisors: carries frames between the guest's stack and the tap of the host where it runs.
struct Hypervisors {
    guest: Tap,
    primary: Tap,
    standby: Tap,
    story: Story,
    phase: Arc<AtomicU8>,
    /// The client's, seen in the outage.
    seen: Option<Vec<u8>>,
    /// The guest's.
    said: Option<Vec<u8>>,
}

impl Hypervisors {
    fn run(mut self) {
        let mut was = AT_PRIMARY;
        loop {
            let phase = self.phase.load(Ordering::SeqCst);
            if phase == AT_STANDBY && was != AT_STANDBY {
                self.nudge();
            }
            was = phase;
            match phase {
                AT_PRIMARY => {
                    self.wait([&self.guest, &self.primary]);
                    self.carry(true, true);
                }
                DYING => self.carry(true, false),
                OUTAGE => {
                    while self.guest.next().is_some() {}
                    if self.story.lost {
                        let heard: Vec<_> = std::iter::from_fn(|| self.standby.next()).collect();
                        let mut of_client = heard.into_iter().filter(|frame| is_tcp(frame));
                        self.seen = of_client.next_back().or(self.seen.take());
                    }
                    std::thread::sleep(Duration::from_micros(500));
                }
                AT_STANDBY => {
                    self.wait([&self.guest, &self.standby]);
                    self.carry(false, true);
                }
                _ => return,
            }
        }
    }

    fn wait(&self, taps: [&Tap; 2]) {
        let mut polled = taps.map(|tap| libc::pollfd {
            fd: tap.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: two pollfds that live through the call.
        unsafe { libc::poll(polled.as_mut_ptr(), 2, 1) };
    }

    fn carry(&mut self, at_primary: bool, hears: bool) {
        let host = match at_primary {
            true => &self.primary,
            false => &self.standby,
        };
        while let Some(frame) = self.guest.next() {
            host.say(&frame);
            if is_tcp(&frame) {
                self.said = Some(frame);
            }
        }
        if hears {
            while let Some(frame) = host.next() {
                self.guest.say(&frame);
            }
        }
    }

    fn nudge(&self) {
        match (self.story.nudge, &self.said, &self.seen) {
            (Nudge::DuplicateAcks, Some(said), _) => {
                (0..3).for_each(|_| self.standby.say(&bare_ack(said)));
            }
            (Nudge::Unreachable(times), _, Some(seen)) => {
                (0..times).for_each(|_| self.standby.say(&unreachable(seen)));
            }
            (Nudge::Unreachable(_), _, None) => note("no frame of the client was seen"),
            _ => (),
        }
    }
}

/// Asks, and waits for each answer, until it is over; the longest wait.
fn client(mut stream: TcpStream, over: &AtomicBool) -> Duration {
    stream.set_nodelay(true).unwrap();
    stream
        .set_read_timeout(Some(crate::namespace::PATIENCE))
        .unwrap();
    let mut longest = Duration::ZERO;
    while !over.load(Ordering::SeqCst) {
        let asked = Instant::now();
        stream.write_all(&[1; 64]).unwrap();
        stream.read_exact(&mut [0; 64]).unwrap();
        longest = longest.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
    longest
}

fn echo(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_nodelay(true).unwrap();
    let mut request = [0; 64];
    while stream.read_exact(&mut request).is_ok() {
        stream.write_all(&request).unwrap();
    }
}

/// Guest and client in hosts of their own, with addresses; each knows the other's.
fn hosts() -> (Room, Arc<Room>, Tap) {
    let (guest, far) = (Room::new(), Arc::new(Room::new()));
    ip(&format!("link set w1 netns {}", far.thread));
    far.run(|| {
        ip("link set lo up\nlink set w1 address 02:00:00:00:00:11\naddr add 10.7.0.1/24 dev w1\nlink set w1 up\n\
            neigh replace 10.7.0.2 lladdr 02:00:00:aa:bb:cc dev w1 nud permanent");
    });
    let tap = guest.run(|| {
        let tap = Tap::new("e0").unwrap();
        ip("link set lo up\nlink set e0 address 02:00:00:aa:bb:cc\naddr add 10.7.0.2/24 dev e0\nlink set e0 up\n\
            neigh replace 10.7.0.1 lladdr 02:00:00:00:00:11 dev e0 nud permanent");
        tap
    });
    crate::namespace::settled();
    (guest, far, tap)
}

/// The gap that a client saw.
fn tell(story: Story, outage: Duration) -> Option<Duration> {
    let (site, primary, standby) = standby()?;
    let (guest_host, far, guest) = hosts();
    if story.down_before {
        ip("link set pb down");
    }
    if story.crowd > 0 {
        let broadcast = crate::site::frame(9);
        (0..story.crowd).for_each(|_| site.guest.send(&broadcast));
    }
    let phase = Arc::new(AtomicU8::new(AT_PRIMARY));
    let hypervisors = Hypervisors {
        guest,
        primary,
        standby,
        story,
        phase: Arc::clone(&phase),
        seen: None,
        said: None,
    };
    let carrier = std::thread::spawn(move || hypervisors.run());
    let listener = guest_host.run(|| TcpListener::bind("10.7.0.2:7").unwrap());
    let server = std::thread::spawn(move || echo(&listener));
    let over = Arc::new(AtomicBool::new(false));
    let stream = far.run(|| TcpStream::connect("10.7.0.2:7").unwrap());
    let until_over = Arc::clone(&over);
    let asking = std::thread::spawn(move || client(stream, &until_over));
    // The client comes to know how long an answer takes.
    std::thread::sleep(Duration::from_millis(400));
    let failed = Instant::now();
    phase.store(DYING, Ordering::SeqCst);
    // What it has heard it answers: a guest that is rolled back has not heard what it could not answer.
    std::thread::sleep(Duration::from_millis(20));
    phase.store(OUTAGE, Ordering::SeqCst);
    if story.port_goes_down {
        ip("link set pa down");
    }
    let wait_for = |at: Duration| std::thread::sleep(at.saturating_sub(failed.elapsed()));
    if let Some(at) = story.announced_ms {
        wait_for(Duration::from_millis(at));
        if story.down_before {
            ip("link set pb up");
        }
        site.done(&announce());
    }
    wait_for(outage);
    phase.store(AT_STANDBY, Ordering::SeqCst);
    if story.announced_ms.is_none() {
        site.done(&announce());
    }
    std::thread::sleep(outage + Duration::from_millis(300));
    over.store(true, Ordering::SeqCst);
    let longest = asking.join().unwrap();
    phase.store(OVER, Ordering::SeqCst);
    carrier.join().unwrap();
    // Its client is gone, and so is its own tap.
    drop(server);
    Some(longest)
}

#[test]
#[ignore = "a measurement"]
fn gaps() {
    let table = Arc::new(Mutex::new(Vec::new()));
    for story in STORIES {
        let mut cells = Vec::new();
        for outage_ms in [300, 450, 700, 950] {
            let found = Arc::clone(&table);
            in_namespace(move || {
                let outage = Duration::from_millis(outage_ms);
                let gap = tell(story, outage);
                found.lock().unwrap().extend(gap);
            });
            let gap = table.lock().unwrap().pop();
            cells.extend(gap.map(|gap| format!("{outage_ms} -> {} ms", gap.as_millis())));
        }
        note(&format!("{}: {}", story.name, cells.join(", ")));
    }
}
