//! Figures of this machine, for people: `cargo test --release -p checkpointer --test tracker -- --ignored figures
//! --nocapture`. Nothing here can fail for being slow.

use crate::child::{Do, TOOK_NS, Watchee};
use crate::has;
use crate::shadow::Shadow;
use checkpointer::memory::tracker::{Kind, inject};
use std::time::{Duration, Instant};

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Median and greatest.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let last = times.len() - 1;
    format!("{:.3} ms, max {:.3}", ms(times[last / 2]), ms(times[last]))
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let since = Instant::now();
    let told = work();
    (told, since.elapsed())
}

#[test]
#[ignore = "figures, not a test"]
fn figures() {
    for (mib, kind) in [
        (256, Kind::Userfaultfd),
        (1024, Kind::Userfaultfd),
        (256, Kind::SoftDirty),
        (256, Kind::Compare),
    ] {
        let it = Watchee::start(mib * 256, "0");
        // All of it is there.
        it.order(Do::Write, 1);
        it.order(Do::Write, 1);
        let bare = it.control.get(TOOK_NS);
        let pid = it.pid();
        let tried = Shadow::attach(pid, &it.ram(), kind);
        if !has(kind, &tried) {
            continue;
        }
        drop(tried);
        println!("{mib} MiB, {}", kind.word());
        if kind == Kind::Userfaultfd {
            let attach = || timed(|| inject::userfaultfd(pid, pid).expect("attached")).1;
            println!(
                "  one system call injected: {}",
                spread((0..50).map(|_| attach()).collect())
            );
        }
        let mut shadow = Shadow::attach(pid, &it.ram(), kind).expect("attached");
        shadow.first_copy();
        let arm = timed(|| shadow.tracker.arm(0, it.pages).expect("armed")).1;
        println!("  armed in one piece, again: {:.3} ms", ms(arm));
        let all = it.pages;
        it.order(Do::Write, 1);
        let written = it.control.get(TOOK_NS);
        let first = (written.saturating_sub(bare)) / all;
        println!(
            "  first write to a protected page: {first} ns more than {} ns",
            bare / all
        );
        let (dirty, scan) = timed(|| {
            shadow.tracker.scan(&mut shadow.dirty).expect("scanned");
            shadow.dirty.count()
        });
        println!(
            "  scan with all {dirty} written (which arms them): {:.3} ms",
            ms(scan)
        );
        let mut scans = Vec::new();
        for _ in 0..200 {
            shadow.dirty.clear();
            scans.push(timed(|| shadow.tracker.scan(&mut shadow.dirty).expect("scanned")).1);
        }
        println!("  scan, idle: {}", spread(scans));
        for pages in [100, 1000, 2000, 2001, 8000] {
            let (mut scans, mut copies, mut both, mut dirty) = (vec![], vec![], vec![], 0);
            for n in 0..50 {
                it.order(Do::Scatter, pages + n % 2);
                shadow.dirty.clear();
                let scan = timed(|| shadow.tracker.scan(&mut shadow.dirty).expect("scanned")).1;
                let copy = timed(|| shadow.staging.copy(&shadow.mapping, &shadow.dirty)).1;
                dirty = shadow.dirty.count();
                scans.push(scan);
                copies.push(copy);
                both.push(scan + copy);
            }
            println!(
                "  {dirty} scattered pages: scan {}; copy {}; both {}",
                spread(scans),
                spread(copies),
                spread(both)
            );
        }
    }
}
