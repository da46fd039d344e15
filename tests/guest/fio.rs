//! fio in the guest: other people's program writes the disk and verifies what it wrote.
//!
//! It stands at `/bin/fio` with its libraries. Sizes of requests are mixed, 32 of them are in flight,
//! every block carries a crc32c and the number of its write. What fio says is told in lines:
//! `FIO w r`, KiB that the running job has written and has read to verify. [`measure`] verifies nothing.

use std::io::{BufRead, BufReader};
use std::process::{ChildStderr, Command, Stdio};
use std::thread::JoinHandle;

use crate::system::{CommandLine, Outcome};

/// Sizes of requests, and how many of a hundred have each.
const SIZES: &str = "--bssplit=512/10:4k/50:8k/10:16k/15:64k/10:128k/5";
/// What a settled area holds follows from this.
const SETTLED_SEED: &str = "--randseed=4711";
/// More passes than anybody waits for.
const FOR_EVER: u32 = 1_000_000;

/// A stretch of the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Area {
    offset_mib: u64,
    size_mib: u64,
}

impl Area {
    /// `key` names it on the command line, as `OFFSET+SIZE` in MiB; `None` where it does not.
    pub(crate) fn read(line: &CommandLine, key: &str) -> Outcome<Option<Self>> {
        let Some(text) = line.word(key) else {
            return Ok(None);
        };
        let numbers = text
            .split_once('+')
            .and_then(|(offset, size)| Some((offset.parse().ok()?, size.parse().ok()?)));
        let (offset_mib, size_mib) =
            numbers.ok_or_else(|| format!("{key}{text} is not OFFSET+SIZE"))?;
        Ok(Some(Self {
            offset_mib,
            size_mib,
        }))
    }
}

/// Writes the area once and flushes it: afterwards it is promised.
pub(crate) fn settle(disk: &str, area: Area) -> Outcome<()> {
    let words = ["--do_verify=0", "--end_fsync=1", SETTLED_SEED];
    run(disk, area, &words)
}

/// Verifies what [`settle`] wrote, and writes nothing.
pub(crate) fn verify_settled(disk: &str, area: Area) -> Outcome<()> {
    run(disk, area, &["--verify_only=1", SETTLED_SEED])
}

/// Writes the area with flushes in between, verifies it, and begins anew, `passes` times.
pub(crate) fn churn(disk: &str, area: Area, passes: Option<u32>) -> Outcome<()> {
    let loops = format!("--loops={}", passes.unwrap_or(FOR_EVER));
    run(
        disk,
        area,
        &["--do_verify=1", "--randrepeat=0", "--fdatasync=512", &loops],
    )
}

/// Reads or writes 4K blocks anywhere on the disk, `depth` at a time; returns fio's line of terse figures.
pub(crate) fn measure(disk: &str, depth: u64, words: &[String]) -> Outcome<String> {
    let mut command = command(disk);
    command
        .arg(format!("--iodepth={depth}"))
        .args(["--bs=4k", "--norandommap=1", "--percentile_list=50:99"])
        // From the submission: a guest's program waits for that, too.
        .args(["--lat_percentiles=1", "--clat_percentiles=0"])
        .args(words);
    let mut figures = None;
    carry_out(&mut command, |line| {
        figures = read_terse(&line).map(|_| line);
    })?;
    figures.ok_or_else(|| "fio: no figures".to_owned())
}

fn run(disk: &str, area: Area, words: &[&str]) -> Outcome<()> {
    let mut command = command(disk);
    command
        .args(["--iodepth=32", "--rw=randwrite", SIZES])
        .args(["--verify=crc32c", "--verify_fatal=1"])
        .arg("--verify_state_save=0")
        .arg(format!("--offset={}m", area.offset_mib))
        .arg(format!("--size={}m", area.size_mib))
        .arg("--status-interval=1")
        .args(words);
    carry_out(&mut command, |line| match read_terse(&line) {
        Some((written, read)) => println!("FIO {written} {read}"),
        // What is wrong stands among these lines, too.
        None => println!("fio: {line}"),
    })
}

/// A fio past the page cache that says its figures in lines.
fn command(disk: &str) -> Command {
    let mut command = Command::new("/bin/fio");
    command
        .args(["--name=guest", "--filename", disk, "--direct=1", "--thread"])
        .args(["--ioengine=libaio", "--minimal"]);
    command
}

/// Runs it to its end; `take` is given its lines as they come.
fn carry_out(command: &mut Command, take: impl FnMut(String)) -> Outcome<()> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let failed = |e: std::io::Error| format!("/bin/fio: {e}");
    let mut child = command.spawn().map_err(failed)?;
    let errors = collect_errors(child.stderr.take());
    if let Some(pipe) = child.stdout.take() {
        let lines = BufReader::new(pipe).lines();
        lines.map_while(Result::ok).for_each(take);
    }
    let status = child.wait().map_err(failed)?;
    let said = errors.join().unwrap_or_default();
    if status.success() && said.is_empty() {
        return Ok(());
    }
    Err(format!("fio: {status}: {}", said.join("; ")))
}

/// KiB written and read, of a line of fio's terse format, version 3.
fn read_terse(line: &str) -> Option<(u64, u64)> {
    let fields: Vec<&str> = line.split(';').collect();
    if *fields.first()? != "3" {
        return None;
    }
    let number = |at: usize| fields.get(at)?.parse().ok();
    Some((number(46)?, number(5)?))
}

fn collect_errors(pipe: Option<ChildStderr>) -> JoinHandle<Vec<String>> {
    std::thread::spawn(move || {
        let mut said = Vec::new();
        let lines = pipe.map(BufReader::new);
        for line in lines.into_iter().flat_map(BufRead::lines) {
            let Ok(line) = line else { break };
            println!("fio: {line}");
            said.push(line);
        }
        said
    })
}
