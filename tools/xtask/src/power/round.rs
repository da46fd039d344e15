//! One power cut: load through a primary on this machine, the backup in a guest on disks that lose
//! what was not flushed, the cut, the guest again, promotion, and the check of what was promised.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::cache::Cut;
use super::disk::Disk;
use super::{Plant, Stage};
use crate::checkout::tool;
use crate::demo::sparse_file;
use crate::guest::{self, BOOT_LIMIT, Boot, Guest, MEMORY_MIB, Word};
use crate::lab::Place;
use crate::process::{self, Process};
use crate::stop::{self, minutes};

const IMAGE_BYTES: u64 = 32 << 20;
/// Room for the journal (tests/guest/power.rs says how large), the image and ext4's own.
const STATE_DISK_BYTES: u64 = 128 << 20;
/// How errors of the backup begin on its console.
const BACKUP: &str = "blockrep-backup: ";
/// What it says of a journal that lacks an epoch it had acknowledged.
const LOST_WORDS: &str = " was acknowledged and only epoch ";
/// Where the guest's disk is mounted, and the image's places.
const IMAGE_ON_EXT4: &str = "/mnt/b.img";
const IMAGE_ON_A_DISK: &str = "/dev/vdb";
/// The guest's address in QEMU's own network (tests/guest/power.rs).
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const LINK_PORT: u16 = 9000;
const NBD_PORT: u16 = 10809;

/// A cut before this many epochs of load were committed proves nothing.
const COMMITTED_MIN: u64 = 20;
/// Then the cut comes within this time.
const CUT_WITHIN_MS: u64 = 4_000;
/// The load is never the first to end.
const LOAD_SECONDS: &str = "600";
const PROTECTED_LIMIT: Duration = Duration::from_secs(90);
const COMMITTED_LIMIT: Duration = minutes(3);
const LOSS_LIMIT: Duration = minutes(2);
const PROMOTE_LIMIT: Duration = minutes(2);
const CHECK_LIMIT: Duration = minutes(3);
/// Between two looks at the primary.
const LOOK: Duration = Duration::from_millis(200);
/// What `blockrep-load check` ends with when the disk breaks a promise.
const EXIT_VIOLATION: i32 = 1;

/// What a round has shown.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) number: u32,
    pub(super) image: &'static str,
    /// Highest epoch the primary knew as committed, so that its flushes were answered.
    pub(super) released: u64,
    /// What the backup became; none if it refused.
    pub(super) promoted: Option<u64>,
    /// Unflushed sectors at the cut.
    pub(super) cut: Cut,
    /// Writes and flushes that the guest's disks took before the cut.
    pub(super) writes: u64,
    pub(super) flushes: u64,
    /// Promotion needed the operator's word.
    pub(super) suspect: bool,
    /// What does not hold; none = the round holds.
    pub(super) faults: Vec<String>,
    /// Among them is the loss of something that was acknowledged or released.
    pub(super) lost: bool,
}

/// The guest's disks: ext4 with the state, and the image if it has a disk of its own.
struct Media {
    files: Vec<PathBuf>,
    image: &'static str,
}

pub(super) fn run(stage: &Stage<'_>, number: u32, place: &Place) -> Result<Row> {
    let mut random = fastrand::Rng::with_seed(stage.seed.wrapping_add(u64::from(number)));
    let media = Media::make(place, number.is_multiple_of(2))?;
    let disks = media.power_on(place, "1", &mut random)?;
    let ports = Ports::find()?;
    let mut guest = stage.boot(place, "backup", &media, &disks, ports)?;
    expect(&mut guest, "to start its backup", |word| word == "started")?;

    let mut primary = Primary::start(stage, place, ports.link)?;
    primary.wait_until_protected()?;
    if stage.options.plant == Some(Plant::NoSync) {
        disks.iter().for_each(Disk::lie);
    }
    let base = primary.committed()?;
    let mut load = primary.load(stage, place, random.u32(..))?;
    primary.wait_until_committed(base + COMMITTED_MIN, &mut load)?;
    stop::sleep(Duration::from_millis(random.u64(..CUT_WITHIN_MS)))?;
    load.must_be_alive()?;

    let mut cut = Cut::default();
    let (mut writes, mut flushes) = (0, 0);
    for disk in &disks {
        let lost = disk.cut()?;
        cut.kept += lost.kept;
        cut.dropped += lost.dropped;
        writes += disk.counts().writes;
        flushes += disk.counts().flushes;
    }
    guest.rest_after_kill();
    drop(disks);
    let released = primary.wait_until_it_is_alone()?;
    drop(primary);
    // It has lost its disk and ends by itself; how, is its own business: its history counts.
    if load.wait(Duration::from_secs(20)).is_err() {
        stop::check()?;
        load.kill();
    }

    let mut row = Row {
        number,
        image: if media.image == IMAGE_ON_A_DISK {
            "disk"
        } else {
            "ext4"
        },
        released,
        promoted: None,
        cut,
        writes,
        flushes,
        suspect: false,
        faults: Vec::new(),
        lost: false,
    };
    after_the_cut(stage, place, &media, &mut random, &mut row)?;
    Ok(row)
}

/// Power is back: recovery, promotion, check.
fn after_the_cut(
    stage: &Stage<'_>,
    place: &Place,
    media: &Media,
    random: &mut fastrand::Rng,
    row: &mut Row,
) -> Result<()> {
    let disks = media.power_on(place, "2", random)?;
    let ports = Ports::find()?;
    let mut guest = stage.boot(place, "promote", media, &disks, ports)?;
    let answer = loop {
        let word = power_word(&mut guest, "to promote", PROMOTE_LIMIT)?;
        let (verb, rest) = word.split_once(' ').unwrap_or((&word, ""));
        match verb {
            "started" => {}
            "suspect" => row.suspect = true,
            "promoted" => break rest.to_owned(),
            _ => {
                let why = last_words(&place.log("promote-serial"));
                row.lost = why.contains(LOST_WORDS);
                row.faults
                    .push(format!("after the cut the guest says: {word}{why}"));
                return Ok(());
            }
        }
    };
    let answer: Value = serde_json::from_str(&answer).context("answer of promote --json")?;
    let epoch = answer["epoch"]
        .as_u64()
        .context("promote answered without epoch")?;
    row.promoted = Some(epoch);
    row.faults.extend(check(stage, place, ports.nbd, epoch)?);
    if epoch < row.released {
        // Only empty epochs may lie between: their numbers do not survive a restart (JOURNAL.md,
        // scenario 17), and by content the disk is the released epoch too.
        let released = row.released;
        let fault = check(stage, place, ports.nbd, released)?;
        let told = |fault| format!("at epoch {epoch}, and {released} was released: {fault}");
        row.faults.extend(fault.map(told));
    }
    row.lost = !row.faults.is_empty();
    Ok(())
}

/// What the backup said last on the guest's console, ready to be appended; nothing if it said nothing.
fn last_words(console: &Path) -> String {
    let bytes = std::fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().find(|line| line.starts_with(BACKUP));
    line.map_or_else(String::new, |line| format!("; {}", line.trim_end()))
}

/// What keeps the promoted disk from being `epoch` with all that was promised; none = it is.
fn check(stage: &Stage<'_>, place: &Place, port: u16, epoch: u64) -> Result<Option<String>> {
    let mut check = stage.programs.command("blockrep-load");
    check.args(["check", "--nbd", &format!("tcp:127.0.0.1:{port}")]);
    check.args(["--ack", "flush", "--epoch", &epoch.to_string(), "--log"]);
    check.arg(history(place));
    let said = process::run(&mut check, &place.log("check"), CHECK_LIMIT)?;
    match said.status.code() {
        Some(0) => Ok(None),
        Some(EXIT_VIOLATION) => {
            // Findings are indented, below what was looked at.
            let words = said.text.lines().find(|line| line.starts_with("  "));
            let words = words.map_or("the check failed and named nothing", str::trim);
            Ok(Some(words.to_owned()))
        }
        _ => {
            let how = process::describe(said.status);
            bail!("blockrep-load check: {how}{}", process::tail_of(&said.log));
        }
    }
}

impl Media {
    /// Fresh disks; the image is a file on ext4 or a disk of its own.
    fn make(place: &Place, own_disk: bool) -> Result<Self> {
        let state = place.dir.join("state.disk");
        let content = place.dir.join("content");
        std::fs::create_dir(&content)?;
        sparse_file(&state, STATE_DISK_BYTES)?;
        let mut media = Self {
            files: vec![state.clone()],
            image: if own_disk {
                IMAGE_ON_A_DISK
            } else {
                IMAGE_ON_EXT4
            },
        };
        if own_disk {
            let image = place.dir.join("image.disk");
            sparse_file(&image, IMAGE_BYTES)?;
            media.files.push(image);
        } else {
            sparse_file(&content.join("b.img"), IMAGE_BYTES)?;
        }
        let mut mkfs = tool("mkfs.ext4");
        // Nothing is left for the guest's kernel to write in the background.
        mkfs.args([
            "-q",
            "-F",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0",
            "-d",
        ]);
        mkfs.arg(&content).arg(&state);
        process::run(&mut mkfs, &place.log("mkfs"), minutes(1))?.success("mkfs.ext4")?;
        Ok(media)
    }

    fn power_on(
        &self,
        place: &Place,
        phase: &str,
        random: &mut fastrand::Rng,
    ) -> Result<Vec<Disk>> {
        let disk = |(at, file): (usize, &PathBuf)| {
            Disk::power_on(
                file,
                &place.socket(&format!("d{phase}{at}")),
                random.u64(..),
            )
        };
        self.files.iter().enumerate().map(disk).collect()
    }
}

/// Ports of this machine that lead into the guest.
#[derive(Debug, Clone, Copy)]
struct Ports {
    link: u16,
    nbd: u16,
}

impl Ports {
    /// Two that nobody holds at this moment.
    fn find() -> Result<Self> {
        let probe = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port");
        let (link, nbd) = (probe()?, probe()?);
        Ok(Self {
            link: link.local_addr()?.port(),
            nbd: nbd.local_addr()?.port(),
        })
    }
}

impl Stage<'_> {
    fn boot(
        &self,
        place: &Place,
        role: &str,
        media: &Media,
        disks: &[Disk],
        ports: Ports,
    ) -> Result<Guest> {
        let forward = |from: u16, to: u16| format!("hostfwd=tcp:127.0.0.1:{from}-{GUEST}:{to}");
        let (link, nbd) = (forward(ports.link, LINK_PORT), forward(ports.nbd, NBD_PORT));
        let mut devices = vec![
            "-netdev".to_owned(),
            format!("user,id=n0,restrict=on,{link},{nbd}"),
            "-device".to_owned(),
            "virtio-net-pci,netdev=n0,romfile=".to_owned(),
        ];
        for (at, disk) in disks.iter().enumerate().skip(1) {
            devices.extend(guest::disk(&format!("d{at}"), disk.socket()));
        }
        Guest::boot(&Boot {
            kernel: &self.kernel,
            accelerator: self.accelerator,
            arguments: format!("role={role} image={}", media.image),
            memory_mib: MEMORY_MIB,
            disk_socket: disks.first().map(Disk::socket),
            devices: &devices,
            dir: &place.dir,
            name: role,
            host: None,
            half_line: Vec::new(),
        })
    }
}

/// The guest's next word, without its `POWER`.
fn power_word(guest: &mut Guest, what: &str, limit: Duration) -> Result<String> {
    match guest.expect_word(what, limit)? {
        Word::Power(word) => Ok(word),
        _ => bail!("the guest says something else than POWER"),
    }
}

fn expect(guest: &mut Guest, what: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let word = power_word(guest, what, BOOT_LIMIT)?;
    if !wanted(&word) {
        bail!("the guest says: {word}");
    }
    Ok(())
}

/// The primary, on this machine, which keeps its power.
#[derive(Debug)]
struct Primary {
    process: Process,
    control: PathBuf,
    nbd: PathBuf,
    ctl: Command,
    /// Its last status, for whoever looks at a failed round.
    last_status: PathBuf,
}

impl Primary {
    fn start(stage: &Stage<'_>, place: &Place, port: u16) -> Result<Self> {
        let image = place.dir.join("a.img");
        sparse_file(&image, IMAGE_BYTES)?;
        let (nbd, control) = (place.socket("a"), place.socket("a.ctl"));
        let mut command = stage.programs.command("blockrep");
        command
            .arg("-n")
            .arg(format!("remus:127.0.0.1:{port}|aio:{}", image.display()));
        command
            .arg("--nbd")
            .arg(unix(&nbd))
            .arg("--control")
            .arg(&control);
        // Epochs are cut by the load, which notes what was written before and after each, and by
        // flushes. With `pause` nothing is answered that the backup does not have.
        command.args(["--group", "power", "--epoch", "1s", "--ack", "flush"]);
        command.args(["--on-backup-loss", "pause"]);
        let process = Process::spawn(&mut command, "blockrep", &place.log("primary"))?;
        let mut ctl = stage.programs.command("blockrepctl");
        ctl.arg("--control")
            .arg(&control)
            .args(["status", "--json"]);
        Ok(Self {
            process,
            control,
            nbd,
            ctl,
            last_status: place.log("status"),
        })
    }

    fn status(&mut self) -> Result<Value> {
        self.process.must_be_alive()?;
        let output = process::ask(&mut self.ctl)?;
        if !output.status.success() {
            bail!("status: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        std::fs::write(&self.last_status, &output.stdout)?;
        serde_json::from_slice(&output.stdout).context("answer of blockrepctl status")
    }

    fn committed(&mut self) -> Result<u64> {
        let status = self.status()?;
        let committed = status["epochs"]["committed"].as_u64();
        committed.context("the primary's status names no epochs.committed")
    }

    /// Waits for a status of which `look` makes something.
    fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        let mut last = "no answer yet".to_owned();
        loop {
            // It does not answer before it listens.
            if let Ok(status) = self.status() {
                if let Some(found) = look(&status) {
                    return Ok(found);
                }
                let word = |key: &str| status["group"][key].as_str().unwrap_or("none").to_owned();
                last = format!("{} ({})", word("state"), word("reason"));
            }
            self.process.must_be_alive()?;
            if Instant::now() >= end {
                bail!(
                    "waited {} s in vain for {what}; the primary is {last}",
                    limit.as_secs()
                );
            }
            stop::sleep(LOOK)?;
        }
    }

    fn wait_until_protected(&mut self) -> Result<()> {
        self.wait_for("protection", PROTECTED_LIMIT, |status| {
            (status["group"]["state"] == "protected").then_some(())
        })
    }

    fn wait_until_committed(&mut self, epoch: u64, load: &mut Process) -> Result<()> {
        let what = format!("the commit of epoch {epoch} under load");
        self.wait_for(&what, COMMITTED_LIMIT, |status| {
            (status["epochs"]["committed"].as_u64()? >= epoch).then_some(())
        })?;
        load.must_be_alive()
    }

    /// Waits until it has seen the loss of its backup, after which nothing is committed any more;
    /// returns the last committed epoch.
    fn wait_until_it_is_alone(&mut self) -> Result<u64> {
        self.wait_for("the primary to see the loss", LOSS_LIMIT, |status| {
            let alone = status["link"]["state"] != "up" && status["group"]["state"] != "protected";
            alone.then(|| status["epochs"]["committed"].as_u64())
        })?
        .context("the primary's status names no epochs.committed")
    }

    /// Starts the load on its disk.
    fn load(&self, stage: &Stage<'_>, place: &Place, seed: u32) -> Result<Process> {
        let mut command = stage.programs.command("blockrep-load");
        command
            .args(["run", "--nbd", &unix(&self.nbd), "--control"])
            .arg(&self.control);
        command.args([
            "--cut-every",
            "70",
            "--seconds",
            LOAD_SECONDS,
            "--stall-limit",
            "300",
        ]);
        command.args([
            "--block-sizes",
            "512,4k,16k",
            "--queue-depth",
            "12",
            "--flush-every",
            "20",
        ]);
        command.args(["--fua-percent", "3", "--zero-percent", "3", "--rate", "600"]);
        command
            .args(["--seed", &seed.to_string(), "--log"])
            .arg(history(place));
        Process::spawn(&mut command, "blockrep-load run", &place.log("load"))
    }
}

fn history(place: &Place) -> PathBuf {
    place.dir.join("load.history")
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}
