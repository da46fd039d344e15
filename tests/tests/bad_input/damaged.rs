//! A journal with a bad record: refused, suspect or dropped as the recovery table says, never
//! served as if it were whole.

use super::{LIMIT, code, ends_with, refused, small};
use blkback_proto::ids::Epoch;
use blkback_proto::meta::{SLOT_BYTES, VolumeMeta, newest, slot_offset};
use blockrep_tests::harness::Pair;
use blockrep_tests::journal::{Found, records};
use blockrep_tests::programs::{Load, copy_tree};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// A stopped backup with a backlog: epochs 1 to `sealed` whole, then writes without a seal.
struct Stopped {
    _dir: tempfile::TempDir,
    pair: Pair,
    load: Load,
    sealed: Epoch,
    acknowledged: Epoch,
}

fn journal(pair: &Pair) -> std::path::PathBuf {
    pair.path("b.state").join("journal/journal-0")
}

/// The records recovery starts from: those at and behind the tail.
fn backlog(pair: &Pair) -> Vec<Found> {
    let bytes = fs::read(pair.path("b.state").join("volume-0.meta")).unwrap();
    let slot = |index: u64| {
        let at = usize::try_from(slot_offset(index)).unwrap();
        VolumeMeta::decode(&bytes[at..at + SLOT_BYTES]).ok()
    };
    let meta = newest([slot(0), slot(1)], |m| m.generation).unwrap();
    let mut all = records(&journal(pair)).unwrap();
    all.retain(|r| r.header.record_seq >= meta.tail_record_seq);
    assert_eq!(all[0].header.session, meta.tail_session);
    all
}

fn stopped() -> Stopped {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = small(dir.path());
    pair.primary_flags = ["--epoch", "manual", "--ack", "local"]
        .map(String::from)
        .to_vec();
    let slow = ["--throttle-apply", "64KiB/s"].map(String::from);
    pair.backup_flags.extend(slow);
    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    let end = Instant::now() + LIMIT;
    while pair.status("a").unwrap()["group"]["state"] != "protected" {
        // Nothing cuts by itself.
        let _ = pair.ctl("a", &["cut"]).unwrap();
        assert!(Instant::now() < end, "{}", pair.status("a").unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    // Something is applied, so that the end of the first sync stands in the image.
    let first = Load::plain(&pair, "first", "a.img", &["--writes", "1", "--span", "4k"]);
    assert_eq!(first.run(LIMIT).unwrap().code, 0);
    let cut = pair.ctl_json("a", &["cut", "--wait"]).unwrap();
    while pair.status("b").unwrap()["epochs"]["applied"].as_u64() < cut["epoch"].as_u64() {
        assert!(Instant::now() < end, "nothing is applied");
        // An empty epoch carries the commit.
        let _ = pair.ctl("a", &["cut"]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let load = Load::new(
        &pair,
        "load",
        "a.img",
        &["--writes", "600", "--rate", "600"],
    );
    let ended = load.run(LIMIT).unwrap();
    assert_eq!(ended.code, 0, "{}", ended.text);
    let cut = pair.ctl_json("a", &["cut", "--wait"]).unwrap();
    assert_eq!(cut["committed"], true, "{cut}");
    // Writes of an epoch that is never cut: the tail.
    let tail = Load::plain(&pair, "tail", "a.img", &["--writes", "20"]);
    assert_eq!(tail.run(LIMIT).unwrap().code, 0);
    let sealed = |all: &[Found]| {
        all.iter()
            .filter(|r| r.is_seal())
            .map(|r| r.header.epoch)
            .max()
    };
    loop {
        let all = backlog(&pair);
        if all.last().map(|r| r.header.epoch) > sealed(&all) {
            break;
        }
        assert!(Instant::now() < end, "no tail arrives");
        std::thread::sleep(Duration::from_millis(20));
    }
    backup.kill();
    primary.kill();
    let all = backlog(&pair);
    let marks = |r: &Found| r.header.durable.max(r.header.committed);
    Stopped {
        _dir: dir,
        sealed: sealed(&all).unwrap(),
        acknowledged: all.iter().map(marks).max().unwrap(),
        load,
        pair,
    }
}

impl Stopped {
    /// A copy to damage.
    fn copy(&self, name: &str) -> Pair {
        let mut pair = Pair::new(&self.pair.path(name), self.pair.size_bytes).unwrap();
        for file in ["b.img", "b.state"] {
            let to = pair.path(file);
            let _ = fs::remove_file(&to);
            copy_tree(&self.pair.path(file), &to).unwrap();
        }
        pair.backup_flags.clone_from(&self.pair.backup_flags);
        // Another file, and the same bytes.
        pair.backup_flags.push("--same-image".to_owned());
        pair
    }

    /// Promotes the copy and judges what it serves.
    fn promotes_at(&self, pair: &Pair, flags: &[&str], epoch: Epoch) {
        let args: Vec<&str> = ["promote"].iter().chain(flags).copied().collect();
        let promoted = pair.ctl_json("b", &args).unwrap();
        assert_eq!(promoted["epoch"], epoch.0, "{promoted}");
        self.load.check(pair, "b.img", "local", epoch.0).unwrap();
    }
}

/// Everything of a directory tree but locks, to see that nothing was changed.
pub(crate) fn contents(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else if path.file_name().unwrap() != "lock" {
            let bytes = fs::read(&path).unwrap();
            all.push((path, bytes));
        }
    }
    all.sort();
    all
}

fn is_refused_at(pair: &Pair, bad: &Found) {
    let before = contents(&pair.path("b.state"));
    let place = bad.place.to_string();
    let words = [
        "journal is damaged at",
        place.as_str(),
        "nothing was changed",
        "while the primary lives, move the state directory away (mv ",
        "`blockrepctl journal verify ",
    ];
    refused(&mut pair.backup_command().unwrap(), code::STORE, &words);
    assert!(
        before == contents(&pair.path("b.state")),
        "something was changed"
    );
}

/// Rot and torn writes at every kind of place: an acknowledged epoch must never be missing without
/// a word, and never be a reason to refuse what nobody was told of.
#[test]
fn bad_records_are_decided_by_the_table() {
    let stopped = stopped();
    assert!(
        stopped.acknowledged >= stopped.sealed,
        "the tail tells of the last seal"
    );
    let whole = backlog(&stopped.pair);
    let last = |r: &&Found| r.header.epoch == stopped.sealed && r.has_payload();
    let at = |find: &Found| {
        let seq = find.header.record_seq;
        move |pair: &Pair| {
            let all = backlog(pair);
            all.into_iter()
                .find(|r| r.header.record_seq == seq)
                .unwrap()
        }
    };

    // As it is: the tail is dropped, the last sealed epoch serves.
    let pair = stopped.copy("whole");
    let _backup = pair.start_backup().unwrap();
    stopped.promotes_at(&pair, &[], stopped.sealed);

    // Head, middle, last sealed epoch and its seal: all of them were acknowledged.
    let middle = &whole[whole.len() / 2];
    let first_data = whole
        .iter()
        .find(|r| r.has_payload())
        .expect("there is data");
    let last_data = whole.iter().find(last).expect("the last epoch has data");
    let seal = |r: &&Found| r.is_seal() && r.header.epoch == stopped.sealed;
    let last_seal = whole.iter().find(seal).expect("the last epoch has a seal");
    for (name, record, byte) in [
        ("head", &whole[0], 4096 + 7),
        ("first-data", first_data, 4096 + 7),
        ("middle", middle, 33),
        ("last", last_data, 4096 + 100),
        ("seal", last_seal, 70),
    ] {
        let pair = stopped.copy(name);
        let bad = at(record)(&pair);
        bad.flip(if bad.has_payload() { byte } else { byte % 4096 })
            .unwrap();
        is_refused_at(&pair, &bad);
    }

    // The tail: nobody was told of it.
    let pair = stopped.copy("tail");
    at(whole.last().unwrap())(&pair).flip(10).unwrap();
    let _backup = pair.start_backup().unwrap();
    stopped.promotes_at(&pair, &[], stopped.sealed);
}

/// The last sealed epoch is damaged and nothing behind it says whether it was acknowledged: torn in
/// a power cut, or rotten. An operator decides, in words.
#[test]
fn a_damaged_last_epoch_takes_an_operators_word() {
    let stopped = stopped();
    let pair = stopped.copy("suspect");
    for record in backlog(&pair) {
        if record.header.epoch > stopped.sealed || record.header.committed >= stopped.sealed {
            record.erase().unwrap();
        }
    }
    let all = backlog(&pair);
    let bad = all
        .iter()
        .find(|r| r.header.epoch == stopped.sealed && r.has_payload())
        .expect("the last epoch has data");
    bad.flip(5000).unwrap();
    let before = all
        .iter()
        .filter(|r| r.is_seal() && r.header.epoch < stopped.sealed)
        .map(|r| r.header.epoch)
        .max()
        .expect("there are more epochs");
    let mut backup = pair.start_backup().unwrap();
    let status = pair.status("b").unwrap();
    assert_eq!(status["group"]["state"], "suspect", "{status}");
    let reason = status["group"]["reason"].as_str().unwrap();
    assert!(
        reason.contains(&format!("above epoch {before}")),
        "{reason}"
    );
    let out = pair.ctl("b", &["promote"]).unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(4), "{said}");
    assert!(
        said.contains("--accept-suspect") && said.lines().count() == 1,
        "{said}"
    );
    let events = pair.ctl("b", &["events"]).unwrap();
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    let line = events.lines().find(|line| line.contains("journal-damage"));
    assert!(line.unwrap().contains(&format!("above epoch {before}")));
    stopped.promotes_at(&pair, &["--accept-suspect"], before);
    // An acknowledged flush is gone: it says so wherever it is looked for, and after a restart.
    let lost = "dropped: what was written and flushed in";
    let log = fs::read_to_string(&backup.log).unwrap();
    let warned = |line: &str| line.contains("WARN") && line.contains(lost);
    assert!(log.lines().any(warned), "{log}");
    for _ in 0..2 {
        let status = pair.status("b").unwrap();
        let loss = status["output"]["possible_loss"].as_str().unwrap();
        assert!(loss.contains(lost), "{loss}");
        ends_with(&mut backup, code::OK);
        backup = pair.start_backup().unwrap();
    }
    let again = pair.ctl("b", &["promote"]).unwrap();
    assert!(String::from_utf8_lossy(&again.stdout).starts_with("promoted before"));
    let events = pair.ctl("b", &["events"]).unwrap();
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    assert!(
        !events.contains("  promoted: serves"),
        "told twice: {events}"
    );
}
