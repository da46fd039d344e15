//! `cargo xtask tracker`: the tracker by soft-dirty bits, on a kernel that has them.
//!
//! The kernel of this machine may lack them (`CONFIG_MEM_SOFT_DIRTY`); Debian's has them. So the test program of
//! `checkpointer/tests/tracker` runs in a guest with Debian's kernel: a process writes here and there, and whenever it stands
//! still a shadow, which takes only what the tracker told, must have its memory byte for byte. A test that leaves itself out
//! for want of the bits counts as failed. With the plant somebody else clears the marks between two scans, as a
//! dump by CRIU would: pages are missed then, and the same test must say so.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::checkout::{Checkout, built_program};
use crate::demo::Verdict;
use crate::guest::{self, BOOT_LIMIT, Boot, Guest, GuestFailed, MEMORY_MIB, Word};
use crate::kernel::{self, Contents, GuestKernel};
use crate::net::said::Said;
use crate::packages::{self, Purpose};
use crate::stop::minutes;
use crate::{parcel, process, ui};

/// Everything that is by soft-dirty bits, on a process; QEMU itself is not in the guest.
const TESTS: [&str; 3] = [
    "follow::soft_dirty_misses_nothing",
    "follow::a_first_copy_loses_no_write",
    "ends::what_becomes_of_the_process_is_told",
];
/// What the first of them says when a page was missed.
const MISSED: &str = "after a stop differs page";
/// Emulated, beside other work.
const LIMIT: Duration = minutes(8);

/// What must be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Plant {
    /// Somebody else clears the marks.
    Cleared,
}

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// How often the process is stopped and compared
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    rounds: u32,
    /// Plant a fault; the command must then fail
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    /// Do not install what is missing; only say it
    #[arg(long)]
    no_install: bool,
}

/// How the test program ended.
enum End {
    Passed,
    Failed(String),
}

/// Runs the tests once; prints each with its end, and what it noted.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<Verdict> {
    let purposes = [Purpose::Guest];
    packages::provide(checkout, &purposes, options.no_install)?;
    packages::require(&purposes)?;
    let name = match options.plant {
        Some(Plant::Cleared) => "tracker-cleared",
        None => "tracker",
    };
    let dir = checkout.work().join("run").join(name);
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let step = ui::step("building the tracker's tests");
    let program = build(checkout, &dir.join("build.log"))?;
    step.done("");
    let kernel = kernel_with(checkout, &program, &dir)?;
    let (end, log) = run_there(checkout, options, &kernel, &program, &dir)?;
    let said = Said::read(&log)?;
    said.print();
    judge(&end, &said, options, &log)
}

fn judge(end: &End, said: &Said, options: &Options, log: &Path) -> Result<Verdict> {
    let text = std::fs::read(log).with_context(|| format!("read {}", log.display()))?;
    let has_none = String::from_utf8_lossy(&text).contains("skipped: no soft-dirty");
    let log = log.display();
    if has_none {
        bail!("this guest's kernel has no soft-dirty bits, so nothing was shown; see {log}");
    }
    match (end, options.plant) {
        (End::Passed, _) if said.tests.is_empty() => bail!("no test ran; see {log}"),
        (End::Passed, None) => Ok(Verdict::Holds),
        (End::Passed, Some(_)) => bail!("the plant was not found; see {log}"),
        (End::Failed(why), None) => {
            println!("{why}; see {log}");
            Ok(Verdict::Failed)
        }
        (End::Failed(why), Some(_)) => {
            if !said.failed_with(TESTS[0], MISSED) {
                bail!("it failed, but not because a page was missed: {why}; see {log}");
            }
            println!("the plant was found");
            Ok(Verdict::Failed)
        }
    }
}

fn run_there(
    checkout: &Checkout,
    options: &Options,
    kernel: &GuestKernel,
    program: &Path,
    dir: &Path,
) -> Result<(End, PathBuf)> {
    let accelerator = guest::accelerator(checkout, kernel)?;
    let step = ui::step("the tracker's tests in a guest");
    let tests = match options.plant {
        Some(_) => TESTS[0].to_owned(),
        None => TESTS.join(","),
    };
    let mut pairs = format!("CHECKPOINTER_TEST_ROUNDS={}", options.rounds);
    if options.plant == Some(Plant::Cleared) {
        pairs.push_str(",CHECKPOINTER_TEST_PLANT=cleared");
    }
    let mut guest = Guest::boot(&Boot {
        kernel,
        accelerator,
        // A busy machine is late with the ticks by which the kernel tries its timer, and it gives up.
        arguments: format!(
            "no_timer_check program={} arguments={tests},--exact,--test-threads=1,--nocapture env={pairs}",
            program.display()
        ),
        memory_mib: MEMORY_MIB,
        disk_socket: None,
        devices: &[],
        dir,
        name: "tracker",
        host: None,
        half_line: Vec::new(),
    })?;
    guest.expect_word("to boot", BOOT_LIMIT)?;
    let end = match guest.expect_word("to run the tests", LIMIT) {
        Ok(Word::Done) => End::Passed,
        Ok(other) => bail!("the guest says {other:?}"),
        Err(error) if error.is::<GuestFailed>() => End::Failed(error.to_string()),
        Err(error) => return Err(error),
    };
    step.done(format!("kernel {}, {}", kernel.version, accelerator.name()));
    Ok((end, dir.join("tracker-serial.log")))
}

/// The kernel, with the test program at its place here, and the program that a process becomes in a test.
fn kernel_with(checkout: &Checkout, program: &Path, dir: &Path) -> Result<GuestKernel> {
    let mut files = parcel::of_the_system("sleep")?;
    files.extend(parcel::at_its_place(program, dir)?);
    files.sort();
    files.dedup_by(|a, b| a.0 == b.0);
    let contents = Contents {
        program: "program",
        modules: &[],
        files: &files,
    };
    kernel::provide_with(checkout, &contents)
}

/// Builds it, and asks cargo where it is.
fn build(checkout: &Checkout, log: &Path) -> Result<PathBuf> {
    let mut cargo = checkout.cargo();
    cargo.args([
        "test",
        "-p",
        "checkpointer",
        "--no-run",
        "--test",
        "tracker",
    ]);
    cargo.arg("--message-format=json-render-diagnostics");
    let built = process::run(&mut cargo, log, minutes(15))?;
    built.success("cargo test -p checkpointer --no-run")?;
    let text = std::fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    built_program(&text, "tracker", "test").with_context(|| format!("see {}", log.display()))
}
