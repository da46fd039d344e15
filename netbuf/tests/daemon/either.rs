//! What holds with either mechanism: these tests run with the relay here, and with the plug in a guest whose
//! kernel has one (`cargo xtask net`). One epoch is in flight at a time.

use crate::kinds::{frame as of_kind, kinds};
use crate::namespace::{PATIENCE, ip, until};
use crate::plant::plant;
use crate::site::{Site, devices, in_namespace, mechanism, note, number_of_environment, of_epoch};
use blkback_proto::ctl::Request;
use blockrep_host::ctl::Client;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The guest's frame with a number.
fn numbered(number: u64, bytes: usize) -> Vec<u8> {
    let mut frame = of_kind([0xff; 6], [0x88, 0xb5], bytes);
    frame[14..22].copy_from_slice(&number.to_be_bytes());
    frame
}

fn number_of(frame: &[u8]) -> u64 {
    u64::from_be_bytes(frame[14..22].try_into().unwrap())
}

/// The witness has got nothing that it was not asked for.
#[track_caller]
fn nothing_left(site: &mut Site, when: &str) {
    let frames = site.frames();
    let begins: Vec<_> = frames
        .iter()
        .map(|frame| format!("{:02x?}, {} bytes", &frame[12..14], frame.len()))
        .collect();
    assert!(
        begins.is_empty(),
        "{when}, and these left early: {begins:?}"
    );
}

#[test]
fn every_kind_of_frame_waits_for_its_epoch() {
    in_namespace(|| {
        let mut site = Site::new();
        let devices = ["g0", "g1", "w0", "w1", "s0", "s1", "br0"];
        ip(&devices
            .map(|name| format!("link set {name} mtu 9000"))
            .join("\n"));
        site.start_with_guest(&[]);
        let kinds = kinds();
        for (name, frame) in &kinds {
            site.guest.send(frame);
            assert_eq!(site.witness.receive(), *frame, "{name}: open passes");
        }
        site.cut(1);
        site.release(1);
        plant(&site, "ipv4-only");
        let late = numbered(0, 61);
        let mut carried = 0;
        for epoch in 2..=4 {
            for (_, frame) in &kinds {
                site.guest.send(frame);
            }
            nothing_left(&mut site, "said");
            site.holds(kinds.len() as u64 + carried);
            plant(&site, "early-release");
            nothing_left(&mut site, "held");
            site.cut(epoch);
            site.guest.send(&late);
            site.holds(kinds.len() as u64 + carried + 1);
            nothing_left(&mut site, "cut and not released");
            site.release(epoch);
            if carried == 1 {
                assert_eq!(site.witness.receive(), late, "order");
            }
            for (name, frame) in &kinds {
                assert_eq!(site.witness.receive(), *frame, "{name}: released");
            }
            nothing_left(&mut site, "only the epoch before was released");
            carried = 1;
        }
        // What comes in is never held.
        for (name, frame) in &kinds {
            site.witness.send(frame);
            assert_eq!(site.guest_hears(), *frame, "{name}: inbound");
        }
    });
}

/// 50 frames an epoch of 30 to 1514 bytes, half of them said while the epoch before is on its way.
#[test]
fn a_hundred_thousand_frames_of_two_thousand_epochs() {
    const EPOCHS: u64 = 2000;
    const HALF: u64 = 25;
    in_namespace(|| {
        let mut site = Site::started(&[]);
        let mut lengths = fastrand::Rng::with_seed(7);
        let (mut sent, mut seen) = (0, 0);
        let mut say = |site: &Site, count| {
            for _ in 0..count {
                site.guest.send(&numbered(sent, lengths.usize(30..1515)));
                sent += 1;
            }
            sent
        };
        site.cut(1);
        site.release(1);
        say(&site, HALF);
        for epoch in 2..EPOCHS + 2 {
            say(&site, HALF);
            site.holds(2 * HALF);
            assert!(!site.cut(epoch).limit_reached);
            if epoch == 500 {
                plant(&site, "lost-frame");
            }
            say(&site, HALF);
            site.holds(3 * HALF);
            if epoch % 50 == 0 {
                nothing_left(&mut site, "cut and not released");
            }
            site.release(epoch);
            for _ in 0..2 * HALF {
                let number = number_of(&site.witness.receive());
                assert_eq!(number, seen, "epoch {epoch}: a frame was lost");
                seen += 1;
            }
        }
        assert_eq!(seen, 2 * HALF * EPOCHS);
        nothing_left(&mut site, "of an epoch nobody released");
        let drops = site.status().guests[0].interfaces[0].dropped_frames;
        assert_eq!(drops, Some(0));
    });
}

/// Cuts and releases until the daemon is gone. Frames with a number below `allowed` may leave.
fn drive(site: &Site, mut client: Client, first_epoch: u64, sent: &AtomicU64, allowed: &AtomicU64) {
    for epoch in first_epoch.. {
        let cut = Request::NetCut(of_epoch(epoch));
        if client.request(&cut, PATIENCE).is_err() {
            return;
        }
        // Said before this cut was asked for: of this epoch, or of one before.
        allowed.store(sent.load(Ordering::SeqCst), Ordering::SeqCst);
        // Of the next one.
        for _ in 0..3 {
            site.guest.send(&numbered(sent.load(Ordering::SeqCst), 60));
            sent.fetch_add(1, Ordering::SeqCst);
        }
        let release = Request::NetRelease(of_epoch(epoch));
        if client.request(&release, PATIENCE).is_err() {
            return;
        }
    }
}

/// The witness's new frames are the next ones, in order, and none of `limit` or above.
fn check(site: &mut Site, next: &mut u64, limit: u64, round: u64) {
    for frame in site.frames() {
        let number = number_of(&frame);
        assert!(
            number < limit,
            "round {round}: {number} left before {limit}"
        );
        assert!(number >= *next, "round {round}: {number} after {next}");
        if mechanism() == "plug" {
            assert_eq!(number, *next, "round {round}: a frame is missing");
        }
        *next = number + 1;
    }
}

/// `NETBUF_TEST_KILLS` times, two hundred without it.
#[test]
fn killed_at_random_points_nothing_leaves_early() {
    in_namespace(|| {
        let kills = number_of_environment("NETBUF_TEST_KILLS", 200);
        let mut site = Site::started(&[]);
        let mut random = fastrand::Rng::with_seed(11);
        let (sent, allowed) = (AtomicU64::new(0), AtomicU64::new(0));
        let mut next = 0;
        let mut span_us = 20_000;
        for round in 0..kills {
            let after = Duration::from_micros(random.u64(..span_us));
            let client = site.connect().unwrap();
            let pid = site.pid().cast_signed();
            std::thread::scope(|scope| {
                scope.spawn(|| drive(&site, client, round * 100_000 + 1, &sent, &allowed));
                std::thread::sleep(after);
                // SAFETY: kill(2) with the id of a child that was not waited for.
                assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
            });
            site.kill();
            let limit = allowed.load(Ordering::SeqCst);
            check(&mut site, &mut next, limit, round);
            if round % 3 == 0 {
                site.start_and_kill(Duration::from_micros(random.u64(..20_000)));
                check(&mut site, &mut next, limit, round);
            }
            site.start(&["run", "--mechanism", &mechanism()]);
            assert_eq!(site.state(), "adopted", "round {round}");
            check(&mut site, &mut next, limit, round);
            let asked = Instant::now();
            site.open();
            // Two requests, as an epoch takes: the next kill comes within the next dozen epochs or so.
            span_us = (12 * asked.elapsed().as_micros() as u64).clamp(20_000, 1_000_000);
            let total = sent.load(Ordering::SeqCst);
            check(&mut site, &mut next, total, round);
            if mechanism() == "plug" {
                assert_eq!(next, total, "round {round}: the plug kept all");
            }
            next = total;
            allowed.store(total, Ordering::SeqCst);
            if (round + 1) % 20 == 0 || round + 1 == kills {
                let more = round / 3 + 1;
                note(&format!(
                    "{} of {kills} kills, and {more} while it started; {next} frames",
                    round + 1
                ));
            }
        }
        assert!(next > 3 * kills, "{next} frames only: this proves nothing");
    });
}

#[test]
fn at_the_limit_the_newest_are_dropped_and_the_first_keep_their_order() {
    in_namespace(|| {
        let mut site = Site::started(&["--limit", "128KiB"]);
        site.cut(1);
        for number in 0..200 {
            site.guest.send(&numbered(number, 1514));
        }
        let kept = until("all of them", || {
            let port = &site.status().guests[0].interfaces[0];
            let (held, dropped) = (port.held_frames?, port.dropped_frames?);
            (held + dropped == 200 && dropped > 0).then_some(held)
        });
        until("the event", || {
            let told = |e: &blkback_proto::ctl::Event| e.kind.as_str() == "limit-reached";
            site.events().iter().any(told).then_some(())
        });
        assert!(site.release(1).limit_reached);
        nothing_left(&mut site, "said after the cut");
        site.cut(2);
        site.release(2);
        for number in 0..kept {
            assert_eq!(number_of(&site.witness.receive()), number);
        }
        nothing_left(&mut site, "at the end");
    });
}

#[test]
fn a_device_that_goes_while_it_holds_takes_its_frames_along() {
    in_namespace(|| {
        let mut site = Site::new();
        let before: Vec<String> = devices();
        site.start_with_guest(&[]);
        site.cut(1);
        site.guest.send(&numbered(1, 60));
        site.holds(1);
        ip("link del g1");
        until("the end", || {
            site.status().guests[0].interfaces.is_empty().then_some(())
        });
        nothing_left(&mut site, "at the end");
        site.kill();
        let (code, text) = site.types(&["cleanup"]);
        assert_eq!(code, 0, "{text}");
        let left: Vec<String> = before
            .into_iter()
            .filter(|device| !device.starts_with("g0 ") && !device.starts_with("g1 "))
            .collect();
        assert_eq!(devices(), left);
        nothing_left(&mut site, "at the end");
    });
}
