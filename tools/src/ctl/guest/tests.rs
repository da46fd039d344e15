//! An operator at 3 a.m. who promotes at the wrong side, or reads what was kept and what was not only from JSON.

use std::path::PathBuf;

use blkback_proto::ctl::{
    Answer, EpochFigures, GuestProtection, GuestReport, PromoteSteps, Response, StepTimes,
};
use blockrep_host::ctl::{EventLog, Handler, Limits, PeerCred, ReplyHandle, Server, ServerConfig};

use super::*;

const PROTOCOL: &str = include_str!("../../../../blkback-proto/PROTOCOL.md");

struct Silent;

impl Handler for Silent {
    fn handle(&mut self, _: Request, _: PeerCred, _: ReplyHandle) {}
}

fn serve(path: PathBuf) -> Server {
    let config = ServerConfig {
        path,
        daemon: "d".into(),
        limits: Limits::default(),
    };
    Server::start(config, EventLog::new().unwrap(), Silent).unwrap()
}

/// The documented answers, in the order of the document.
fn reports() -> Vec<GuestReport> {
    let answers = PROTOCOL
        .lines()
        .filter(|line| line.starts_with(r#"{"ok":{"guest-status""#));
    let reports = answers.map(|line| match Response::from_body(line.as_bytes()).unwrap() {
        Response::Ok(Answer::GuestStatus(report)) => *report,
        other => panic!("{other:?}"),
    });
    reports.collect()
}

/// What stands in the status and not on the page is not seen in the night.
#[test]
fn every_part_of_a_status_is_on_the_page() {
    let reports = reports();
    assert_eq!(reports.len(), 2);
    let page = render::report(&reports[0], 1_700_000_060_123);
    for text in [
        "vm1, primary at a: protected\n",
        "reason    the backup has epoch 42\n",
        "epochs    cut 43, sent 43, whole 42, committed 42, released 42\n",
        "interval  60 ms (adaptive, 25 ms to 200 ms); paused 4.5 % of the time, kept to 5.0 %\n",
        "clock     the guest's is 130 ms behind by its pauses, 4.5 %\n",
        "given up  1 checkpoint, the last: the disks did not answer in 100 ms\n",
        "authority: the file /var/lib/blockrep/vm1.authority\n",
        "in sync   a, b\n",
        "QEMU 10.0.0, process 4712; device state by xen-save: no memory lies outside",
        "uffd: the kernel has it; last scan 90 us\n",
        "protected: the backup acknowledges epochs (/run/blockrep/vm1.sock)\n",
        "holding by relay: epoch 42 is out\n",
        "up to 10.0.0.2:7100 since",
        "last 42 epochs: half within, 99 in 100 within\n",
        "pause        3.1 ms     9.0 ms\n",
        "ours         350 us     1.3 ms\n",
        "released     2.2 ms     7.4 ms\n",
        "on wire    60.0 KiB    1.0 MiB\n",
        "at most 256.0 MiB: staging 256.0 MiB\n",
    ] {
        assert!(page.contains(text), "{text:?} is not in:\n{page}");
    }
    let page = render::report(&reports[1], 1_700_000_060_123);
    for text in [
        "vm1, standby at b: lost\n",
        "next      blockrepctl guest promote vm1 --by-hand, when the guest is known to be off at a\n",
        "promotion the guest goes on from epoch 42\n",
        "would be  epoch 42, whole for 350 ms\n",
        "waiting   hypervisor 4713 waits; copy 3\n",
        "failed    the record cannot be read: permission denied\n",
        "record    none that is known\n",
        "output    not held: others may see",
    ] {
        assert!(page.contains(text), "{text:?} is not in:\n{page}");
    }
}

/// A figure under the wrong name sends the search to the wrong step.
#[test]
fn a_timeline_has_a_name_for_each_column() {
    let us = StepTimes {
        pause: 1,
        stop: 2,
        disk_cut: 3,
        scan: 4,
        copy: 5,
        device_state: 6,
        output_cut: 7,
        cont: 8,
        encode: 9,
        send: 10,
        whole: Some(11),
        ..StepTimes::default()
    };
    let figures = EpochFigures {
        seq: 7,
        epoch: Some(42),
        us,
        dirty_pages: 12,
        given_up: Some("it\nwent".into()),
        ..EpochFigures::default()
    };
    let batch = GuestTimelineAnswer {
        epochs: vec![figures],
        lost: 3,
        ..GuestTimelineAnswer::default()
    };
    let mut out = Vec::new();
    write_batch(&batch, false, true, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[1], "(3 checkpoints no longer kept)");
    let (names, words) = (lines[0].split(' '), lines[2].split(' '));
    let pairs: Vec<String> = names
        .zip(words)
        .map(|(name, word)| format!("{name}={word}"))
        .collect();
    for pair in [
        "seq=7",
        "epoch=42",
        "pause=1",
        "stop=2",
        "disk-cut=3",
        "scan=4",
        "copy=5",
        "devices=6",
        "net-cut=7",
        "start=8",
        "encode=9",
        "send=10",
        "whole=11",
        "committed=-",
        "released=-",
        "pages=12",
        "raw=0",
        "wire=0",
    ] {
        assert!(pairs.iter().any(|have| have == pair), "{pair}: {pairs:?}");
    }
    assert!(lines[2].ends_with("given up: it went"), "{}", lines[2]);
    assert_eq!(lines.len(), 3);
}

/// After a failover it must be read at once where the guest went on from.
#[test]
fn promotion_and_end_are_told_in_one_line() {
    let mut answer = GuestPromoteAnswer {
        epoch: 42,
        lineage: "9f0c".into(),
        duration_us: 14_300,
        steps: PromoteSteps {
            decide_us: 700,
            load_us: 7400,
            ..PromoteSteps::default()
        },
        clock_behind_ms: Some(480),
        ..GuestPromoteAnswer::default()
    };
    assert_eq!(
        promoted(&answer),
        "promoted: the guest goes on from epoch 42 under lineage 9f0c, after 14.3 ms (authority 700 us, disks 0 us, \
         memory 0 us, devices 7.4 ms, start 0 us, network told 0 us); its clock is 480 ms behind"
    );
    (answer.already, answer.note) = (true, "see\nabove".into());
    let text = promoted(&answer);
    assert!(
        text.starts_with("promoted before: the guest went on from"),
        "{text}"
    );
    assert!(text.ends_with("; see above"), "{text}");
    let ended = GuestStopAnswer {
        already: false,
        state: GuestProtection::Open,
        committed: Some(42),
        note: String::new(),
    };
    assert_eq!(
        stopped(&ended),
        "protection ended: the guest is open; the backup's last checkpoint is epoch 42"
    );
}

/// A word for the standby that goes to the primary is refused; one for another guest is not.
#[test]
fn only_a_clear_guest_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let find = |guest: Option<&str>, side: Option<GuestSide>| {
        which::socket(&TargetArgs::default(), guest, side, dir.path())
    };
    let nobody = find(None, None).unwrap_err();
    assert_eq!(nobody.exit, Exit::Unreachable);
    let _disks = [serve(at("vm1.sock")), serve(at("netbuf.sock"))];
    assert_eq!(find(Some("vm1"), None).unwrap_err().exit, Exit::Unreachable);
    let _standby = serve(at("vm1.standby.sock"));
    assert_eq!(find(None, None).unwrap(), at("vm1.standby.sock"));
    // The daemon says that it is the wrong one, and what to do.
    let sides = [Some(GuestSide::Primary), Some(GuestSide::Standby)];
    assert_eq!(
        find(Some("vm1"), sides[0].clone()).unwrap(),
        at("vm1.standby.sock")
    );
    let _primary = serve(at("vm1.checkpointer.sock"));
    assert_eq!(
        find(Some("vm1"), sides[0].clone()).unwrap(),
        at("vm1.checkpointer.sock")
    );
    assert_eq!(
        find(Some("vm1"), sides[1].clone()).unwrap(),
        at("vm1.standby.sock")
    );
    for (guest, side) in [(Some("vm1"), &None), (None, &sides[1])] {
        let unclear = find(guest, side.clone()).unwrap_err();
        assert_eq!(unclear.exit, Exit::Usage);
        assert!(unclear.to_string().contains(".standby.sock"), "{unclear}");
    }
    let other = find(Some("vm2"), None).unwrap_err();
    assert!(
        other
            .to_string()
            .contains("no checkpointer of vm2 runs here; running here: --control")
    );
    assert_eq!(find(Some("../vm1"), None).unwrap_err().exit, Exit::Usage);
}
