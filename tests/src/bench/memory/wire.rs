//! Bytes on the wire for each byte of written pages that are not zero: the encoder alone, on pages of loads.
//!
//! Two are made up, one is recorded from a compiler that runs here. What a guest writes is measured with
//! the guests of the demos; their figures are told by `blockrepctl guest timeline`.

use super::Run;
use super::record::{Recorder, Written};
use anyhow::{Context, Result, ensure};
use blkback_proto::ids::{Epoch, LineageId, SessionId};
use blkback_proto::memory::StateKind;
use checkpointer::memory::stream::encoder::{Counts, Cut, Encoder, EncoderSettings};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const PAGE: usize = 4096;
/// Pages of the memory that is made up.
const RAM_PAGES: usize = 16_384;
/// Epochs of each load.
const EPOCHS: u64 = 200;
/// Functions of the program that is compiled.
const FUNCTIONS: usize = 300;

/// What a load came to.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    pub(super) name: &'static str,
    pub(super) counts: Counts,
    /// Processor time for each page, in microseconds.
    pub(super) us_per_page: f64,
}

/// All loads.
///
/// # Errors
/// Of the compiler.
pub(super) fn all(run: &Run) -> Result<Vec<Wire>> {
    run.say("encoding pages of loads");
    let mut all = vec![
        Load::new("pgbench, made up").with(synthetic(400, 40)),
        Load::new("C compile, made up").with(synthetic(60, 300)),
    ];
    match compiler() {
        Some(cc1) => {
            let mut load = Load::new("C compile, recorded from cc1 on this machine");
            compile(run, &cc1, |written| load.epoch(written))?;
            all.push(load);
        }
        None => run.say("no gcc is here: no compile is recorded"),
    }
    Ok(all.into_iter().map(Load::end).collect())
}

#[derive(Debug)]
struct Load {
    name: &'static str,
    encoder: Encoder,
    number: u64,
    sum: Counts,
    time: Duration,
    pages: u64,
}

impl Load {
    fn new(name: &'static str) -> Self {
        let mut encoder = Encoder::new(EncoderSettings::default());
        encoder.begin_session(SessionId(1), 1);
        Self {
            name,
            encoder,
            number: 0,
            sum: Counts::default(),
            time: Duration::ZERO,
            pages: 0,
        }
    }

    fn with(mut self, epochs: impl Iterator<Item = Written>) -> Self {
        for written in epochs {
            self.epoch(&written);
        }
        self
    }

    fn epoch(&mut self, written: &Written) {
        self.number += 1;
        let cut = Cut {
            epoch: Epoch(self.number),
            lineage: LineageId([1; 16]),
            pages: &written.pages,
            bytes: &written.bytes,
            state: &[],
            kind: StateKind::SaveDevices,
        };
        let begun = thread_time();
        let counts = self
            .encoder
            .epoch(&cut, |_| Ok::<_, std::convert::Infallible>(()));
        self.time += thread_time().saturating_sub(begun);
        let Ok(counts) = counts;
        self.pages += written.pages.len() as u64;
        for (sum, more) in [
            (&mut self.sum.zero, counts.zero),
            (&mut self.sum.same, counts.same),
            (&mut self.sum.full, counts.full),
            (&mut self.sum.delta, counts.delta),
            (&mut self.sum.page_wire_bytes, counts.page_wire_bytes),
        ] {
            *sum += more;
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    fn end(self) -> Wire {
        Wire {
            name: self.name,
            counts: self.sum,
            us_per_page: self.time.as_secs_f64() * 1e6 / self.pages.max(1) as f64,
        }
    }
}

/// Time that this thread had a processor: the machine may have others to serve.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes the time into `time`, which outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos)
}

/// Memory like a guest's: code and data of programs.
fn programs() -> Vec<u8> {
    let mut bytes = Vec::new();
    for path in [
        "/proc/self/exe",
        "/bin/bash",
        "/usr/lib/x86_64-linux-gnu/libc.so.6",
    ] {
        bytes.extend(std::fs::read(path).unwrap_or_default());
    }
    bytes.truncate(RAM_PAGES * PAGE);
    let have = bytes.clone();
    while bytes.len() < RAM_PAGES * PAGE {
        let left = RAM_PAGES * PAGE - bytes.len();
        bytes.extend(&have[..left.min(have.len())]);
    }
    bytes
}

/// In each epoch so many pages of a few get some rows of dozens of bytes, and so many become copies of others.
fn synthetic(hot: usize, anew: usize) -> impl Iterator<Item = Written> {
    let mut random = fastrand::Rng::with_seed(2);
    let mut memory = programs();
    let favourites: Vec<usize> = (0..1500).map(|_| random.usize(0..RAM_PAGES)).collect();
    (0..EPOCHS).map(move |_| {
        let mut pages = Vec::new();
        for _ in 0..hot {
            let page = favourites[random.usize(0..favourites.len())];
            for _ in 0..random.usize(1..6) {
                let at = page * PAGE + random.usize(0..PAGE - 40);
                random.fill(&mut memory[at..at + 40]);
            }
            pages.push(page);
        }
        for _ in 0..anew {
            let (page, of) = (random.usize(0..RAM_PAGES), random.usize(0..RAM_PAGES));
            memory.copy_within(of * PAGE..(of + 1) * PAGE, page * PAGE);
            pages.push(page);
        }
        pages.sort_unstable();
        pages.dedup();
        let bytes = pages.iter().flat_map(|page| &memory[page * PAGE..][..PAGE]);
        Written {
            bytes: bytes.copied().collect(),
            pages: pages.iter().map(|page| *page as u64).collect(),
        }
    })
}

/// The compiler proper of gcc: one process, whose memory is that of the compile.
fn compiler() -> Option<PathBuf> {
    let told = Command::new("gcc")
        .arg("-print-prog-name=cc1")
        .output()
        .ok()?;
    let path = PathBuf::from(String::from_utf8(told.stdout).ok()?.trim());
    path.is_file().then_some(path)
}

/// A program in C, other in each run.
fn program(seed: u64) -> String {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut text = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
    for number in 0..FUNCTIONS {
        let _ = writeln!(
            text,
            "struct s{number} {{ int a; double d[8]; char *name; }};"
        );
        let _ = writeln!(
            text,
            "int f{number}(struct s{number} *p, int n) {{ int i, s = {number};"
        );
        for _ in 0..random.usize(3..12) {
            let (a, b) = (random.u32(1..999), random.u32(2..9));
            let _ = match random.u32(0..5) {
                0 => writeln!(
                    text,
                    "for (i = 0; i < n * {b}; i++) {{ s ^= i << {b}; if (s & {a}) p->d[{b} & 7] += s; }}"
                ),
                1 => writeln!(
                    text,
                    "switch (n % {b}) {{ case 0: s += {a}; break; default: printf(\"{a} %d\\n\", s); }}"
                ),
                2 => writeln!(
                    text,
                    "if (p->name && strlen(p->name) > {a}) {{ char b[{a} + 1]; memset(b, n, sizeof b); s += b[{b} % {a}]; }}"
                ),
                3 => writeln!(
                    text,
                    "while (s > {a}) {{ s /= {b}; p->d[1] -= s * 0.{a}; }}"
                ),
                _ => writeln!(
                    text,
                    "s += f{}((void *)p, s & {b});",
                    random.usize(0..=number)
                ),
            };
        }
        text += "p->a = s; return s; }\n";
    }
    text
}

/// The program with its headers: the compiler proper knows no places of those.
fn preprocessed(dir: &Path, seed: u64) -> Result<PathBuf> {
    let (source, whole) = (dir.join("program.c"), dir.join("program.i"));
    std::fs::write(&source, program(seed))?;
    let mut command = Command::new("gcc");
    command.arg("-E").arg(&source).arg("-o").arg(&whole);
    let status = command.status().context("starting gcc")?;
    ensure!(status.success(), "gcc -E: {status}");
    Ok(whole)
}

fn compile(run: &Run, cc1: &Path, mut epoch: impl FnMut(&Written)) -> Result<()> {
    let dir = tempfile::tempdir().context("a directory for a program")?;
    let mut recorder = Recorder::default();
    let mut running: Option<std::process::Child> = None;
    for number in 0..EPOCHS {
        let has_ended = match &mut running {
            Some(child) => child.try_wait()?.is_some(),
            None => true,
        };
        if has_ended {
            let mut command = Command::new(cc1);
            command.args(["-fpreprocessed", "-O2", "-quiet", "-o", "/dev/null"]);
            command.arg(preprocessed(dir.path(), number)?);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            running = Some(command.spawn().context("starting cc1")?);
        }
        let pid = running.as_ref().map_or(0, std::process::Child::id);
        epoch(&recorder.look(&[i32::try_from(pid)?]));
        std::thread::sleep(Duration::from_millis(super::EPOCH_MS));
        if run.check_stop().is_err() {
            break;
        }
    }
    if let Some(mut child) = running {
        let _ = child.kill();
        let _ = child.wait();
    }
    run.check_stop()
}
