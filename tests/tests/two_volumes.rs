//! A group of two volumes on real daemons: cut together, promoted together.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use blockrep_tests::harness::{Pair, Process, binary, free_port};
use blockrep_tests::programs::Load;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);

struct Two {
    pair: Pair,
    second_port: u16,
    /// Where the primary looks for the second volume's backup, if not there.
    wrong_port: Option<u16>,
}

impl Two {
    fn new(dir: &Path) -> Self {
        let pair = Pair::new(dir, 16 << 20).unwrap();
        for image in ["a2.img", "b2.img"] {
            let file = File::create(pair.path(image)).unwrap();
            file.set_len(8 << 20).unwrap();
        }
        let second_port = free_port().unwrap();
        Self {
            pair,
            second_port,
            wrong_port: None,
        }
    }

    fn second_port_of(&self, host: &str) -> u16 {
        match self.wrong_port {
            Some(port) if host == "a" => port,
            _ => self.second_port,
        }
    }

    fn start(&self, program: &str, host: &str, more: &[&str]) -> Process {
        let mut command = Command::new(binary(program).unwrap());
        let second_port = self.second_port_of(host);
        for (port, image) in [(self.pair.port, ""), (second_port, "2")] {
            let image = self.pair.path(&format!("{host}{image}.img"));
            let spec = format!("remus:127.0.0.1:{port}|aio:{}", image.display());
            command.args(["-n", &spec]);
        }
        for (flag, file) in [("--state", "state"), ("--control", "ctl")] {
            let path = self.pair.path(&format!("{host}.{file}"));
            command.arg(flag).arg(path);
        }
        command.args(["--group", "two", "--nbd", &self.pair.nbd(host)]);
        self.pair.launch(host, command.args(more)).unwrap()
    }
}

/// The disks of one machine at different epochs: a database whose log and tables disagree.
#[test]
fn both_volumes_are_promoted_at_the_same_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let two = Two::new(dir.path());
    let pair = &two.pair;
    let _backup = two.start("blockrep-backup", "b", &["--journal-size", "32MiB"]);
    let mut primary = two.start("blockrep", "a", &["--epoch", "10ms", "--ack", "flush"]);
    pair.wait_state("a", "protected", LIMIT).unwrap();

    let loads = [("first", "a.img"), ("second", "a2.img")]
        .map(|(name, export)| Load::new(pair, name, export, &["--writes", "100000"]));
    let mut running = loads.each_ref().map(|load| load.start().unwrap());
    std::thread::sleep(Duration::from_millis(1500));
    let cut = pair.ctl_json("a", &["cut", "--wait"]).unwrap();
    assert_eq!(cut["committed"], true, "{cut}");
    primary.kill();
    for load in &mut running {
        assert_eq!(load.wait(LIMIT).unwrap(), 3, "{}", load.text());
    }

    pair.wait_state("b", "waiting-for-primary", LIMIT).unwrap();
    let promoted = pair.ctl_json("b", &["promote"]).unwrap();
    let epoch = promoted["epoch"].as_u64().unwrap();
    assert!(epoch >= cut["epoch"].as_u64().unwrap(), "{promoted}");
    loads[0].check(pair, "b.img", "flush", epoch).unwrap();
    loads[1].check(pair, "b2.img", "flush", epoch).unwrap();
    // One epoch for both, and what status says of it.
    let status = pair.status("b").unwrap();
    assert_eq!(status["group"]["state"], "promoted");
    assert_eq!(status["volumes"].as_array().unwrap().len(), 2);
}

/// A guest's second disk served as its first: the export's name is all that tells them apart.
#[test]
fn export_names_select_the_volume() {
    let dir = tempfile::tempdir().unwrap();
    let two = Two::new(dir.path());
    let _primary = two.start("blockrep", "a", &["--epoch", "10ms"]);
    for (name, export, writes) in [("first", "a.img", "300"), ("second", "a2.img", "200")] {
        let load = Load::new(&two.pair, name, export, &["--writes", writes]);
        assert_eq!(load.run(LIMIT).unwrap().code, 0);
    }
    let status = two.pair.status("a").unwrap();
    let volumes = status["volumes"].as_array().unwrap();
    for (volume, (name, size, writes)) in volumes
        .iter()
        .zip([("a.img", 16 << 20, 300), ("a2.img", 8 << 20, 200)])
    {
        assert_eq!(volume["name"], name);
        assert_eq!(volume["size_bytes"], size);
        assert_eq!(volume["counters"]["writes"], writes, "{volume}");
    }
    let list = Command::new(binary("blockrep-load").unwrap())
        .args(["run", "--nbd", &two.pair.nbd("a"), "--export", "a3.img"])
        .args(["--writes", "1", "--log"])
        .arg(two.pair.path("third.log"))
        .output()
        .unwrap();
    assert!(!list.status.success(), "an export that does not exist");
}

/// One wrong port of two: the group's reason named the address that was right.
#[test]
fn the_volume_without_a_link_is_named_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let mut two = Two::new(dir.path());
    let wrong_port = free_port().unwrap();
    two.wrong_port = Some(wrong_port);
    let _backup = two.start("blockrep-backup", "b", &["--journal-size", "32MiB"]);
    let _primary = two.start("blockrep", "a", &["--epoch", "10ms"]);
    let wrong = format!("127.0.0.1:{wrong_port}");
    let status = wait(&two.pair, "a", |status| {
        status["volumes"][0]["link"]["state"] == "up"
    });
    let reason = status["group"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("volume 1 (a2.img): "), "{reason}");
    assert!(reason.contains(&wrong), "{reason}");
    assert!(!reason.contains(&two.pair.port.to_string()), "{reason}");
    assert_eq!(status["link"]["peer"], wrong.as_str(), "{status}");
    assert_eq!(status["volumes"][1]["link"]["peer"], wrong.as_str());
    let page = two.pair.ctl("a", &["status"]).unwrap();
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    for line in [
        format!("link of a.img to 127.0.0.1:{}: up", two.pair.port),
        format!("link of a2.img to {wrong}: connecting"),
    ] {
        assert!(page.contains(&line), "{page}");
    }
    let backup = wait(&two.pair, "b", |status| {
        let reason = status["group"]["reason"].as_str().unwrap();
        reason.contains("the primary is not connected with volume 1")
    });
    let next = backup["group"]["next"].as_str().unwrap();
    assert!(
        next.starts_with("put its address right at the primary"),
        "{next}"
    );
    let events = two.pair.ctl("a", &["events"]).unwrap();
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    let told = format!("link-state: volume 1 (a2.img): backup {wrong} does not answer");
    assert!(events.contains(&told), "{events}");
}

/// Of a volume that follows alone no epoch is ever committed: the guest wrote until the backup's journal was
/// full, then stood still for half a minute, again and again, and the first disk was compared each time.
#[test]
fn a_volume_that_is_connected_alone_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut two = Two::new(dir.path());
    two.wrong_port = Some(free_port().unwrap());
    let _backup = two.start("blockrep-backup", "b", &["--journal-size", "32MiB"]);
    let _primary = two.start("blockrep", "a", &["--epoch", "10ms"]);
    wait(&two.pair, "a", |status| {
        status["volumes"][0]["link"]["state"] == "up"
    });
    let load = Load::new(&two.pair, "first", "a.img", &["--writes", "6000"]);
    assert_eq!(load.run(LIMIT).unwrap().code, 0);
    let status = two.pair.status("a").unwrap();
    let reason = status["volumes"][0]["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("connected with the backup; not every"),
        "{reason}"
    );
    assert_eq!(status["group"]["state"], "standalone", "{status}");
    let backup = two.pair.status("b").unwrap();
    let used = backup["volumes"][0]["journal"]["percent"].as_u64().unwrap();
    assert_eq!(used, 0, "{backup}");
}

fn wait(pair: &Pair, host: &str, is_so: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    let began = std::time::Instant::now();
    loop {
        let status = pair.status(host).unwrap();
        if is_so(&status) {
            return status;
        }
        assert!(began.elapsed() < LIMIT, "{status:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
