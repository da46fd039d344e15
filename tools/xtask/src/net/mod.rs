//! `cargo xtask net`: netbuf's daemon holds real frames and real TCP, by the kernel's plug or by the relay.
//!
//! The tests are those of `netbuf/tests/daemon` that hold for either mechanism. With the relay they run here,
//! in network namespaces. The kernel of this machine may lack `sch_plug`; Debian's has it as a module, so with
//! the plug they run in a guest, which gets the test program as it stands in this checkout, the daemon, and
//! `ip` and `tc`. With a plant the test made for it must fail, and for the reason that was planted.

pub(crate) mod said;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::checkout::{Checkout, built_program};
use crate::demo::Verdict;
use crate::guest::{self, Accelerator, BOOT_LIMIT, Boot, Guest, GuestFailed, Word};
use crate::kernel::{self, Contents, GuestKernel};
use crate::packages::{self, Purpose};
use crate::process::Process;
use crate::stop::minutes;
use crate::{parcel, process, ui};
use said::Said;

/// What netbuf needs of the kernel, and the tests of a network.
const MODULES: [&str; 8] = [
    "sch_plug",
    "sch_ingress",
    "cls_u32",
    "act_mirred",
    "ifb",
    "veth",
    "bridge",
    "tun",
];
const MEMORY_MIB: u32 = 512;
/// The tests that hold for either mechanism.
const TESTS: &str = "either::,either_tampered::,failover::,streams::";
/// Those of the program that libxl starts; only a plug will do for them.
const SCRIPT_TESTS: &str = "plugged::";
/// All of them but kills and TCP, on an emulated processor beside other work.
const LIMIT: Duration = minutes(10);
/// One kill with the daemon's next start, there.
const LIMIT_OF_A_KILL: Duration = Duration::from_secs(3);

/// How output is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mechanism {
    /// By the kernel's `sch_plug`, in a guest
    Plug,
    /// By netbuf's own threads, here
    Relay,
}

impl Mechanism {
    fn word(self) -> &'static str {
        match self {
            Self::Plug => "plug",
            Self::Relay => "relay",
        }
    }
}

/// A bug of netbuf's that a test has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Plant {
    /// Output is let go before its epoch is released.
    EarlyRelease,
    /// Only IPv4 is held.
    Ipv4Only,
    /// A frame that was held is lost.
    LostFrame,
}

impl Plant {
    fn word(self) -> &'static str {
        match self {
            Self::EarlyRelease => "early-release",
            Self::Ipv4Only => "ipv4-only",
            Self::LostFrame => "lost-frame",
        }
    }

    /// The test that has to find it, and what it says then.
    fn found_by(self) -> (&'static str, &'static str) {
        match self {
            Self::EarlyRelease | Self::Ipv4Only => ("either::every_kind_of_frame", "left early"),
            Self::LostFrame => ("either::a_hundred_thousand_frames", "lost"),
        }
    }
}

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// What holds the frames
    #[arg(long, value_enum, default_value_t = Mechanism::Plug)]
    mechanism: Mechanism,
    /// Plant a bug; the command must then fail
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    /// How often the daemon is killed
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// How long TCP runs through epochs of 25 ms
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    tcp_seconds: u32,
    /// Only the tests whose names contain this
    #[arg(long, value_name = "WORD", conflicts_with = "plant")]
    only: Option<String>,
    /// Do not install what is missing; only say it
    #[arg(long)]
    no_install: bool,
}

impl Options {
    /// Names of tests, with commas between.
    fn tests(&self) -> &str {
        match (self.plant, &self.only) {
            (Some(plant), _) => plant.found_by().0,
            (None, Some(word)) => word,
            (None, None) => TESTS,
        }
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let mut pairs = vec![
            ("NETBUF_TEST_MECHANISM", self.mechanism.word().to_owned()),
            ("NETBUF_TEST_KILLS", self.kills.to_string()),
            ("NETBUF_TEST_STREAM_SECONDS", self.tcp_seconds.to_string()),
        ];
        pairs.extend(
            self.plant
                .map(|plant| ("NETBUF_TEST_PLANT", plant.word().to_owned())),
        );
        pairs
    }

    fn limit(&self) -> Duration {
        LIMIT + LIMIT_OF_A_KILL * self.kills + Duration::from_secs(2) * self.tcp_seconds
    }
}

/// How the test program ended.
enum End {
    Passed,
    Failed(String),
}

/// What cargo builds for the tests.
struct Built {
    tests: PathBuf,
    script_tests: PathBuf,
    /// The daemon, and the program that libxl starts.
    programs: [PathBuf; 2],
}

/// Runs the tests once; prints each with its end, and what it noted.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<Verdict> {
    let in_guest = options.mechanism == Mechanism::Plug;
    if in_guest {
        let purposes = [Purpose::Guest];
        packages::provide(checkout, &purposes, options.no_install)?;
        packages::require(&purposes)?;
    }
    let plant = options.plant.map_or("none", Plant::word);
    let name = format!("net-{}-{plant}", options.mechanism.word());
    let dir = checkout.work().join("run").join(name);
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let step = ui::step("building netbuf and its tests");
    let built = build(checkout, &dir.join("build.log"))?;
    step.done("");
    let (end, log) = if in_guest {
        let mut guests = Guests::new(checkout, options, &built, &dir)?;
        let ran = guests.run("plug", &built.tests, options.tests())?;
        let goes_on = options.plant.is_none() && options.only.is_none();
        if goes_on && matches!(ran.0, Ok(End::Passed)) {
            Said::read(&ran.1)?.print();
            guests.run("script", &built.script_tests, SCRIPT_TESTS)?
        } else {
            ran
        }
    } else {
        run_here(options, &built, &dir)?
    };
    let said = Said::read(&log)?;
    said.print();
    judge(end, &said, options, &log)
}

fn judge(end: Result<End>, said: &Said, options: &Options, log: &Path) -> Result<Verdict> {
    let log = log.display();
    match (end?, options.plant) {
        (End::Passed, _) if said.tests.is_empty() => bail!("no test ran; see {log}"),
        (End::Passed, None) => Ok(Verdict::Holds),
        (End::Passed, Some(plant)) => bail!("the plant {} was not found; see {log}", plant.word()),
        (End::Failed(why), None) => {
            println!("{why}; see {log}");
            Ok(Verdict::Failed)
        }
        (End::Failed(why), Some(plant)) => {
            let (test, reason) = plant.found_by();
            if !said.failed_with(test, reason) {
                bail!(
                    "with the plant {} it failed, but {test} does not say \"{reason}\": {why}; see {log}",
                    plant.word()
                );
            }
            println!("the plant {} was found", plant.word());
            Ok(Verdict::Failed)
        }
    }
}

/// In the namespaces that the tests make.
fn run_here(options: &Options, built: &Built, dir: &Path) -> Result<(Result<End>, PathBuf)> {
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("network namespaces need root");
    }
    let log = dir.join("tests.log");
    if log.exists() {
        std::fs::remove_file(&log).with_context(|| format!("remove {}", log.display()))?;
    }
    let step = ui::step("netbuf's tests with the relay");
    let mut command = Command::new(&built.tests);
    command
        .args(options.tests().split(','))
        .args(["--test-threads=1", "--nocapture"])
        .envs(options.environment())
        .env("RUST_BACKTRACE", "0");
    let mut process = Process::spawn(&mut command, "the tests", &log)?;
    let end = process
        .wait(options.limit())
        .map(|status| match status.success() {
            true => End::Passed,
            false => End::Failed(process::describe(status)),
        });
    step.done("");
    Ok((end, log))
}

/// Boots a kernel that has the plug, once for each test program.
struct Guests<'a> {
    options: &'a Options,
    dir: &'a Path,
    kernel: GuestKernel,
    accelerator: Accelerator,
}

impl<'a> Guests<'a> {
    fn new(
        checkout: &Checkout,
        options: &'a Options,
        built: &Built,
        dir: &'a Path,
    ) -> Result<Self> {
        let [daemon, setup] = &built.programs;
        let programs = [&built.tests, &built.script_tests, daemon, setup];
        let kernel = kernel_with(checkout, &programs, dir)?;
        let accelerator = guest::accelerator(checkout, &kernel)?;
        Ok(Self {
            options,
            dir,
            kernel,
            accelerator,
        })
    }

    fn run(&mut self, name: &str, program: &Path, tests: &str) -> Result<(Result<End>, PathBuf)> {
        let step = ui::step(format!("netbuf's tests with the plug: {tests}"));
        let pairs = self.options.environment();
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let mut guest = Guest::boot(&Boot {
            kernel: &self.kernel,
            accelerator: self.accelerator,
            // A busy machine is late with the ticks by which the kernel tries its timer, and it gives up.
            arguments: format!(
                "no_timer_check program={} arguments={tests},--test-threads=1,--nocapture env={}",
                program.display(),
                pairs.join(",")
            ),
            memory_mib: MEMORY_MIB,
            disk_socket: None,
            devices: &[],
            dir: self.dir,
            name,
            host: None,
            half_line: Vec::new(),
        })?;
        guest.expect_word("to boot", BOOT_LIMIT)?;
        let end = match guest.expect_word("to run the tests", self.options.limit()) {
            Ok(Word::Done) => Ok(End::Passed),
            Ok(other) => bail!("the guest says {other:?}"),
            Err(error) if error.is::<GuestFailed>() => Ok(End::Failed(error.to_string())),
            Err(error) => Err(error),
        };
        let (version, under) = (&self.kernel.version, self.accelerator.name());
        step.done(format!("kernel {version}, {under}"));
        Ok((end, self.dir.join(format!("{name}-serial.log"))))
    }
}

/// The kernel, with programs of this checkout and what they call in its initramfs.
pub(crate) fn kernel_with(
    checkout: &Checkout,
    programs: &[&PathBuf],
    dir: &Path,
) -> Result<GuestKernel> {
    let mut files = parcel::of_the_system("ip")?;
    files.extend(parcel::of_the_system("tc")?);
    // At its place here, which the test program knows.
    for program in programs {
        files.extend(parcel::at_its_place(program, dir)?);
    }
    files.sort();
    files.dedup_by(|a, b| a.0 == b.0);
    let contents = Contents {
        program: "program",
        modules: &MODULES,
        files: &files,
    };
    kernel::provide_with(checkout, &contents)
}

/// Builds them, and asks cargo where they are.
fn build(checkout: &Checkout, log: &Path) -> Result<Built> {
    let mut cargo = checkout.cargo();
    cargo.args(["test", "-p", "netbuf", "--no-run"]);
    cargo.args(["--test", "daemon", "--test", "script"]);
    cargo.arg("--message-format=json-render-diagnostics");
    let built = process::run(&mut cargo, log, minutes(15))?;
    built.success("cargo test -p netbuf --no-run")?;
    let text = std::fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    let program = |name: &str, kind: &str| {
        let found = built_program(&text, name, kind);
        found.with_context(|| format!("see {}", log.display()))
    };
    Ok(Built {
        tests: program("daemon", "test")?,
        script_tests: program("script", "test")?,
        programs: [
            program("netbuf", "bin")?,
            program("remus-netbuf-setup", "bin")?,
        ],
    })
}
