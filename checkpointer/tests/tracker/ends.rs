//! Ends: of the tracker, of the process, and of the mapping that was watched.

use crate::child::{Do, WRITES, Watchee, again, until};
use crate::has;
use crate::shadow::Shadow;
use checkpointer::memory::tracker::{Kind, TrackerError};
use std::time::Duration;

const TARGET: &str = "CHECKPOINTER_TEST_TRACKER";

/// Whether the kernel watches writes to the process's memory.
fn is_watched(it: &Watchee) -> bool {
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", it.pid())).expect("it lives");
    let name = it.file();
    let name = name.to_str().expect("a name");
    let ram = smaps.split_once(name).expect("its memory").1;
    let flags = ram
        .lines()
        .find(|line| line.starts_with("VmFlags"))
        .expect("flags");
    flags.split_ascii_whitespace().any(|flag| flag == "uw")
}

/// Does nothing but where it was started as a tracker.
#[test]
fn the_tracker_process() {
    let Ok(told) = std::env::var(TARGET) else {
        return;
    };
    let words: Vec<&str> = told.split(' ').collect();
    let ram = crate::child::ram(words[1].as_ref(), words[2].parse().expect("pages"));
    let pid = words[0].parse().expect("a process");
    let mut shadow = Shadow::attach(pid, &ram, Kind::Userfaultfd).expect("attached");
    shadow.first_copy();
    std::fs::write(words[3], "armed").expect("told");
    loop {
        shadow.follow();
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Killed in the middle of its work, it leaves nothing behind.
#[test]
fn a_tracker_that_is_killed_leaves_the_process_free() {
    let mut it = Watchee::start(512, "2");
    let tried = Shadow::attach(it.pid(), &it.ram(), Kind::Userfaultfd);
    if !has(Kind::Userfaultfd, &tried) {
        return;
    }
    drop(tried);
    for _ in 0..5 {
        assert!(!is_watched(&it));
        let armed = it.file().with_file_name("armed");
        let mut command = again("ends::the_tracker_process");
        let words = [
            it.pid().to_string(),
            it.file().display().to_string(),
            it.pages.to_string(),
            armed.display().to_string(),
        ];
        let mut tracker = command
            .env(TARGET, words.join(" "))
            .spawn()
            .expect("started");
        until("it is armed", || armed.exists());
        assert!(is_watched(&it));
        std::thread::sleep(Duration::from_millis(20));
        tracker.kill().expect("killed");
        tracker.wait().expect("waited");
        std::fs::remove_file(&armed).expect("removed");
        until("nothing is watched", || !is_watched(&it));
        let then = it.control.get(WRITES);
        until("it writes on", || it.control.get(WRITES) > then + 1000);
        it.check();
    }
    // And it can be watched again, by whoever comes next.
    let mut shadow = Shadow::attach(it.pid(), &it.ram(), Kind::Userfaultfd).expect("attached");
    let second = Shadow::attach(it.pid(), &it.ram(), Kind::Userfaultfd);
    let refused = second.expect_err("one at a time").to_string();
    assert!(refused.contains("watched already"), "{refused}");
    shadow.first_copy();
    it.stop();
    shadow.follow();
    assert_eq!(shadow.differing(), None);
    it.go_on();
    shadow.tracker.disarm().expect("disarmed");
    assert!(!is_watched(&it));
    let after = shadow.tracker.scan(&mut shadow.dirty);
    assert!(matches!(after, Err(TrackerError::Gone(_))), "{after:?}");
}

/// The process forks, and is followed on; or changes what is watched, which is told.
#[test]
fn what_becomes_of_the_process_is_told() {
    for kind in [Kind::Userfaultfd, Kind::SoftDirty] {
        for what in [
            Some(Do::Fork),
            Some(Do::Unmap),
            Some(Do::Remap),
            Some(Do::Exec),
            None,
        ] {
            let mut it = Watchee::start(64, "0");
            let tried = Shadow::attach(it.pid(), &it.ram(), kind);
            if !has(kind, &tried) {
                break;
            }
            let mut shadow = tried.expect("attached");
            shadow.first_copy();
            shadow.follow();
            match what {
                Some(what) => it.order(what, 0),
                None => it.kill(),
            }
            // A mapping of the same memory in the same place is as good as the first one, to soft-dirty bits.
            if what == Some(Do::Fork) || (kind, what) == (Kind::SoftDirty, Some(Do::Remap)) {
                assert!(shadow.follow() >= 1);
                assert_eq!(shadow.differing(), None);
                continue;
            }
            let told = shadow.tracker.scan(&mut shadow.dirty);
            let Err(TrackerError::Gone(why)) = told else {
                panic!("{kind:?}, {what:?}: {told:?}");
            };
            println!("{}, {what:?}: {why}", kind.word());
        }
    }
}
