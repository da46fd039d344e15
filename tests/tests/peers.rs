//! Programs of other projects against both daemons: fio, nbdinfo, nbdcopy, qemu-img, qemu-io.
//!
//! A program that is not installed skips its test and says so; with `BLOCKREP_REQUIRE_PEERS` set it
//! fails instead.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use blockrep_tests::harness::{Pair, Process, free_port};
use blockrep_tests::programs::{Ended, done, peer, run};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const SIZE: u64 = 32 << 20;

/// A protected pair whose backup applies so slowly that its reads come from the journal.
struct Hosts {
    pair: Pair,
    primary: Process,
    _backup: Process,
}

impl Hosts {
    fn start(dir: &Path, prepare: impl FnOnce(&mut Pair)) -> Self {
        let mut pair = Pair::new(dir, SIZE).unwrap();
        pair.backup_flags
            .extend(["--throttle-apply", "1MB/s"].map(String::from));
        pair.primary_flags = ["--epoch", "20ms", "--ack", "flush"]
            .map(String::from)
            .to_vec();
        prepare(&mut pair);
        let backup = pair.start_backup().unwrap();
        let primary = pair.start_primary().unwrap();
        pair.wait_state("a", "protected", LIMIT).unwrap();
        Self {
            pair,
            primary,
            _backup: backup,
        }
    }

    /// Everything written so far is committed; gives the epoch.
    fn quiesce(&self) -> u64 {
        let cut = self.pair.ctl_json("a", &["cut", "--wait"]).unwrap();
        assert_eq!(cut["committed"], true, "{cut}");
        cut["epoch"].as_u64().unwrap()
    }

    /// The primary dies, the backup takes over.
    fn fail_over(&mut self, at_least: u64) {
        self.primary.kill();
        self.pair
            .wait_state("b", "waiting-for-primary", LIMIT)
            .unwrap();
        let promoted = self.pair.ctl_json("b", &["promote"]).unwrap();
        assert!(
            promoted["epoch"].as_u64().unwrap() >= at_least,
            "{promoted}"
        );
    }

    /// The export of a host as an NBD URI.
    fn uri(&self, host: &str) -> String {
        let address = self.pair.nbd(host);
        match address.split_once(':') {
            Some(("unix", path)) => format!("nbd+unix:///{host}.img?socket={path}"),
            Some((_, address)) => format!("nbd://{address}/{host}.img"),
            None => unreachable!("addresses have a kind"),
        }
    }
}

/// One fio job per block size, each in a region of its own.
fn fio(program: &Path, uri: &str, dir: &Path, more: &[&str]) -> String {
    let mut command = Command::new(program);
    command.current_dir(dir).args([
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--rw=randwrite",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--randseed=4711",
        "--iodepth=16",
        "--fsync=64",
    ]);
    command.args(more);
    for (bs, offset, size) in [
        ("512", "0", "1m"),
        ("4k", "1m", "6m"),
        ("64k", "8m", "8m"),
        ("1m", "16m", "8m"),
    ] {
        let name = format!("--name=bs{bs}");
        let rest = [("bs", bs), ("offset", offset), ("size", size)];
        command.arg(name);
        command.args(rest.map(|(key, value)| format!("--{key}={value}")));
    }
    done(&mut command, LIMIT).unwrap()
}

fn qemu_io(uri: &str, commands: &[&str]) -> Option<Ended> {
    let mut command = Command::new(peer("qemu-io")?);
    command.args(["-f", "raw"]);
    for text in commands {
        command.args(["-c", text]);
    }
    Some(run(command.arg(uri), LIMIT).unwrap())
}

/// Writes verified by a program that knows nothing of us: on the promoted side every block must be
/// the one fio wrote last.
#[test]
fn fio_verifies_on_the_promoted_side() {
    let Some(program) = peer("fio") else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut hosts = Hosts::start(dir.path(), |_| {});
    fio(&program, &hosts.uri("a"), dir.path(), &["--do_verify=0"]);
    // A region that was written and then trimmed reads as zeros on both sides.
    let written = qemu_io(&hosts.uri("a"), &["write -P 0xab 24m 2m", "flush"]);
    let mut trim = Command::new(&program);
    trim.current_dir(dir.path()).args([
        "--ioengine=nbd",
        &format!("--uri={}", hosts.uri("a")),
        "--name=trim",
        "--rw=trim",
        "--bs=64k",
        "--offset=24m",
        "--size=2m",
    ]);
    done(&mut trim, LIMIT).unwrap();
    let epoch = hosts.quiesce();
    hosts.fail_over(epoch);
    fio(&program, &hosts.uri("b"), dir.path(), &["--verify_only=1"]);
    if let Some(written) = written {
        assert_eq!(written.code, 0, "{}", written.text);
        let read = qemu_io(&hosts.uri("b"), &["read -P 0 24m 2m"]).unwrap();
        assert_eq!(read.code, 0, "{}", read.text);
    }
    // The check checks: a block that is not fio's must be found.
    if qemu_io(&hosts.uri("b"), &["write -P 0x11 2m 4k"]).is_some() {
        let mut command = Command::new(&program);
        command.current_dir(dir.path()).args([
            "--ioengine=nbd",
            &format!("--uri={}", hosts.uri("b")),
            "--name=bs4k",
            "--rw=randwrite",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_only=1",
            "--randseed=4711",
            "--bs=4k",
            "--offset=1m",
            "--size=6m",
        ]);
        assert_ne!(run(&mut command, LIMIT).unwrap().code, 0);
    }
}

/// What clients decide by: a wrong size or flag makes them corrupt data or lose speed.
#[test]
fn nbdinfo_reads_what_both_sides_promise() {
    let Some(program) = peer("nbdinfo") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let ports = [free_port().unwrap(), free_port().unwrap()];
    for tcp in [None, Some(ports)] {
        let dir = dir.path().join(if tcp.is_some() { "tcp" } else { "unix" });
        let hosts = Hosts::start(&dir, |pair| pair.nbd_ports = tcp);
        for host in ["a", "b"] {
            let uri = hosts.uri(host);
            let text = done(Command::new(&program).args(["--json", &uri]), LIMIT).unwrap();
            let info: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(info["protocol"], "newstyle-fixed", "{text}");
            assert_eq!(info["structured"], true, "{text}");
            let export = &info["exports"][0];
            assert_eq!(export["export-size"], SIZE, "{text}");
            assert_eq!(export["block_size_minimum"], 512, "{text}");
            for (key, wanted) in [
                ("is_read_only", false),
                ("can_flush", true),
                ("can_fua", true),
                ("can_trim", true),
                ("can_zero", true),
                ("can_multi_conn", true),
            ] {
                assert_eq!(export[key], wanted, "{key}: {text}");
            }
            let list = done(
                Command::new(&program).args(["--list", "--json", &uri]),
                LIMIT,
            )
            .unwrap();
            assert!(list.contains(&format!("{host}.img")), "{list}");
            let wrong = uri.replace(".img", ".gmi");
            let mut command = Command::new(&program);
            assert_ne!(run(command.arg(wrong), LIMIT).unwrap().code, 0);
        }
    }
}

fn image(dir: &Path) -> PathBuf {
    let path = dir.join("source.img");
    let mut rng = fastrand::Rng::with_seed(42);
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    // Data and holes: both kinds of request are used.
    for chunk in bytes.chunks_mut(192 << 10).step_by(2) {
        rng.fill(chunk);
    }
    fs::write(&path, bytes).unwrap();
    path
}

/// A disk copied in, failed over, and copied out: every byte of it.
#[test]
fn nbdcopy_in_and_out_through_a_failover() {
    let Some(program) = peer("nbdcopy") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut hosts = Hosts::start(dir.path(), |_| {});
    let (source, copied) = (image(dir.path()), dir.path().join("copied.img"));
    let mut command = Command::new(&program);
    command.args(["--flush", "--connections=4"]).arg(&source);
    done(command.arg(hosts.uri("a")), LIMIT).unwrap();
    let epoch = hosts.quiesce();
    hosts.fail_over(epoch);
    let mut command = Command::new(&program);
    command.arg(hosts.uri("b")).arg(&copied);
    done(&mut command, LIMIT).unwrap();
    let same = fs::read(&source).unwrap() == fs::read(&copied).unwrap();
    assert!(same, "the copy differs");
}

/// The backup's view before a promotion is exactly the last cut, also while the journal is far from
/// applied; and it takes writes from the promotion on, not before.
#[test]
fn qemu_sees_the_committed_view_and_the_change_of_roles() {
    let Some(program) = peer("qemu-img") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut hosts = Hosts::start(dir.path(), |pair| {
        let ports = [free_port().unwrap(), free_port().unwrap()];
        pair.nbd_ports = Some(ports);
    });
    let source = image(dir.path());
    let mut command = Command::new(&program);
    command.args(["convert", "-n", "-f", "raw", "-O", "raw"]);
    done(command.arg(&source).arg(hosts.uri("a")), LIMIT).unwrap();
    let epoch = hosts.quiesce();
    let status = hosts.pair.status("b").unwrap();
    assert!(
        status["epochs"]["applied"].as_u64() < status["epochs"]["committed"].as_u64(),
        "nothing is left in the journal: {status}"
    );
    let compare = |uri: &str, image: &Path| {
        let mut command = Command::new(&program);
        command.args(["compare", "-U", "-f", "raw", "-F", "raw"]);
        run(command.arg(uri).arg(image), LIMIT).unwrap()
    };
    let uri = hosts.uri("b");
    let ended = compare(&uri, &hosts.pair.path("a.img"));
    assert_eq!(ended.code, 0, "{}", ended.text);
    let ended = compare(&uri, &source);
    assert_eq!(ended.code, 0, "{}", ended.text);

    let refused = qemu_io(&uri, &["write -P 0x77 1m 64k"]);
    if let Some(ended) = &refused {
        assert!(
            ended.text.contains("Operation not permitted"),
            "{}",
            ended.text
        );
    }
    hosts.fail_over(epoch);
    let ended = compare(&uri, &source);
    assert_eq!(ended.code, 0, "{}", ended.text);
    if refused.is_some() {
        let commands = ["write -P 0x77 1m 64k", "flush", "read -P 0x77 1m 64k"];
        let ended = qemu_io(&uri, &commands).unwrap();
        assert_eq!(ended.code, 0, "{}", ended.text);
        // Exactly that range differs now.
        let ended = compare(&uri, &source);
        assert_eq!(ended.code, 1, "{}", ended.text);
        assert!(ended.text.contains("1048576"), "{}", ended.text);
    }
}
