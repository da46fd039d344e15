//! An estimate that is far off buys the wrong hosts; one that leaves a guest paused or watched does harm before anything is
//! protected.

use super::guest::{Guest, Memory, program};
use checkpointer::hypervisor::qemu::spec::Child as GuestChild;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Pages that the guest writes all the time, in a ring, besides what its processor needs.
const RING: u64 = 64;
/// An estimate of it may be higher by so much.
const FACTOR: f64 = 1.5;

fn command(monitor: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_checkpointer"));
    command
        .arg("estimate")
        .arg("--qmp")
        .arg(monitor)
        .args(words);
    command.stdin(Stdio::null());
    command
}

fn estimate(monitor: &Path, words: &[&str]) -> Output {
    command(monitor, words).output().expect("it runs")
}

fn told(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("it is paused"), "announced: {errors}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn figure(point: &Value, name: &str) -> f64 {
    point[name]
        .as_f64()
        .unwrap_or_else(|| panic!("{name}: {point}"))
}

/// A guest whose monitor is free for another.
struct Counting {
    monitor: PathBuf,
    memory: Memory,
    _child: GuestChild,
    _dir: TempDir,
}

impl Counting {
    fn start(more: &[&str]) -> Option<Self> {
        let program = program("estimate")?;
        let Guest {
            child,
            place,
            memory,
            dir,
            ..
        } = Guest::start(&program, more);
        Some(Self {
            monitor: place.monitor,
            memory,
            _child: child,
            _dir: dir,
        })
    }

    fn goes_on(&self) {
        self.memory.wait_beyond(self.memory.counter());
    }
}

/// Long windows see what is written in all of them, however slow the machine: the ring is through in microseconds.
fn the_ring_is_seen(tracker: &str) {
    let Some(guest) = Counting::start(&[]) else {
        return;
    };
    let words = ["--json", "--seconds", "2", "--interval-ms", "50,100"];
    let output = estimate(
        &guest.monitor,
        &[&words[..], &["--tracker", tracker]].concat(),
    );
    let report = told(&output);
    assert_eq!(report["tracker"], tracker);
    let points = report["intervals"].as_array().expect("intervals");
    assert_eq!(points.len(), 2);
    for point in points {
        let dirty = figure(point, "dirty_pages_p50");
        #[allow(clippy::cast_precision_loss, reason = "a small number")]
        let ring = RING as f64;
        assert!(ring <= dirty && dirty <= FACTOR * ring, "{point}");
        // No window has what was written before it.
        assert!(figure(point, "dirty_pages_p95") <= FACTOR * ring, "{point}");
        // A number in each page, else zeros: differences are a small part of a page.
        let wire = figure(point, "wire_percent");
        assert!(0.0 < wire && wire < 25.0, "{point}");
        assert!(figure(point, "pause_p50_ms") > 0.0);
        assert!(figure(point, "pause_percent") < 100.0);
        let (half, all) = (
            figure(point, "interval_ms") / 2.0,
            figure(point, "latency_ms"),
        );
        assert!(all > half, "{point}");
        assert!(
            figure(point, "backup_mib") >= 64.0,
            "twice the guest: {point}"
        );
    }
    assert_eq!(report["pauses"]["count"], 12);
    guest.goes_on();
}

#[test]
fn a_known_number_of_pages_is_seen_by_userfaultfd() {
    the_ring_is_seen("userfaultfd");
}

#[test]
fn a_known_number_of_pages_is_seen_by_comparing() {
    the_ring_is_seen("compare");
}

fn begin(monitor: &Path) -> Child {
    let mut command = command(monitor, &["--seconds", "600"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.expect("it runs");
    std::thread::sleep(Duration::from_millis(1500));
    child
}

/// Ended by a signal in the middle of it, politely or not: the guest goes on, and can be looked at again.
#[test]
fn a_guest_goes_on_however_an_estimate_ends() {
    let Some(guest) = Counting::start(&[]) else {
        return;
    };
    for signal in ["-INT", "-KILL"] {
        let mut child = begin(&guest.monitor);
        let number = child.id().to_string();
        let sent = Command::new("kill").arg(signal).arg(number).status();
        assert!(sent.expect("kill").success());
        let status = child.wait().expect("it ends");
        assert!(!status.success(), "{signal}: {status}");
        guest.goes_on();
    }
    let words = [
        "--json",
        "--seconds",
        "1",
        "--interval-ms",
        "100",
        "--link-mib-per-s",
        "1000",
    ];
    let report = told(&estimate(&guest.monitor, &words));
    assert_eq!(report["intervals"][0]["link_suffices"], true);
}

/// What stands in the way is told, with what to change, and nothing is done to the guest.
#[test]
fn a_guest_that_cannot_be_protected_is_told_why() {
    let Some(guest) = Counting::start(&[
        "-blockdev",
        "null-co,node-name=null,read-zeroes=on",
        "-device",
        "nvme,drive=null,serial=x,id=nv",
    ]) else {
        return;
    };
    let output = estimate(&guest.monitor, &["--json"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && output.stdout.is_empty(),
        "{errors}"
    );
    assert!(
        errors.contains("cannot be protected") && errors.contains("nv"),
        "{errors}"
    );
    assert!(!errors.contains("it is paused"), "{errors}");
}
