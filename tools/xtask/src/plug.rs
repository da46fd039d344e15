//! `cargo xtask plug`: netbuf with the kernel's plug, in a guest whose kernel has it.
//!
//! The kernel of this machine may lack `sch_plug`; Debian's has it as a module. The guest gets the test
//! program of the daemon as it stands in this checkout, the daemon, and `ip` and `tc`, and runs there what
//! runs here with the relay. With a plant the same must fail.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::checkout::Checkout;
use crate::demo::Verdict;
use crate::guest::{self, BOOT_LIMIT, Boot, Guest, GuestFailed, Word};
use crate::kernel::{self, Contents, GuestKernel};
use crate::packages::{self, Purpose};
use crate::stop::minutes;
use crate::{parcel, process, ui};

/// What netbuf needs of the kernel, and the tests of a network.
const MODULES: [&str; 7] = [
    "sch_plug",
    "sch_ingress",
    "cls_u32",
    "act_mirred",
    "ifb",
    "veth",
    "bridge",
];
const MEMORY_MIB: u32 = 512;
/// All tests, on an emulated processor beside other work.
const LIMIT: Duration = minutes(12);

/// A bug of netbuf's that a test has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Plant {
    /// Output is let go before its epoch is released.
    EarlyRelease,
    /// Only IPv4 is redirected to the plug.
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

    /// The test that has to find it.
    fn found_by(self) -> &'static str {
        match self {
            Self::EarlyRelease | Self::Ipv4Only => "either::every_kind_of_frame",
            Self::LostFrame => "either::a_hundred_thousand_frames",
        }
    }
}

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Plant a bug; the command must then fail
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    /// Do not install what is missing; only say it
    #[arg(long)]
    no_install: bool,
}

/// The two programs that cargo builds for the test.
struct Built {
    tests: PathBuf,
    daemon: PathBuf,
}

/// Runs the tests once; prints each with its end.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<Verdict> {
    let purposes = [Purpose::Guest];
    packages::provide(checkout, &purposes, options.no_install)?;
    packages::require(&purposes)?;
    let dir = checkout.work().join("run/plug");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let step = ui::step("building netbuf and its tests");
    let built = build(checkout, &dir.join("build.log"))?;
    step.done("");
    let kernel = kernel_with(checkout, [&built.tests, &built.daemon], &dir)?;
    let accelerator = guest::accelerator(checkout, &kernel)?;
    let step = ui::step("netbuf's tests with the plug");
    let environment = match options.plant {
        Some(plant) => format!(
            "NETBUF_TEST_MECHANISM=plug,NETBUF_TEST_PLANT={}",
            plant.word()
        ),
        None => "NETBUF_TEST_MECHANISM=plug".to_owned(),
    };
    let tests = options.plant.map_or("either::", Plant::found_by);
    let mut guest = Guest::boot(&Boot {
        kernel: &kernel,
        accelerator,
        arguments: format!(
            "program={} arguments={tests},--test-threads=1 env={environment}",
            built.tests.display()
        ),
        memory_mib: MEMORY_MIB,
        disk_socket: None,
        devices: &[],
        dir: &dir,
        name: "plug",
        host: None,
        half_line: Vec::new(),
    })?;
    guest.expect_word("to boot", BOOT_LIMIT)?;
    let end = guest.expect_word("to run the tests", LIMIT);
    let tests = outcomes(&dir.join("plug-serial.log"))?;
    step.done(format!("kernel {}, {}", kernel.version, accelerator.name()));
    for test in &tests {
        println!("  {test}");
    }
    let failed = match end {
        Ok(Word::Done) => None,
        Ok(other) => bail!("the guest says {other:?}"),
        Err(error) if error.is::<GuestFailed>() => Some(error),
        Err(error) => return Err(error),
    };
    Ok(match (failed, options.plant) {
        (None, None) if tests.is_empty() => bail!("no test ran; see {}", dir.display()),
        (None, None) => Verdict::Holds,
        (None, Some(plant)) => bail!("the plant {} was not found", plant.word()),
        (Some(why), None) => {
            println!("{why}; see {}", dir.join("plug-serial.log").display());
            Verdict::Failed
        }
        (Some(_), Some(plant)) => {
            println!("the plant {} was found", plant.word());
            Verdict::Failed
        }
    })
}

/// The kernel, with two programs and what they call in its initramfs.
pub(crate) fn kernel_with(
    checkout: &Checkout,
    programs: [&PathBuf; 2],
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

/// Builds both, and asks cargo where they are.
fn build(checkout: &Checkout, log: &Path) -> Result<Built> {
    let mut cargo = checkout.cargo();
    cargo.args(["test", "-p", "netbuf", "--test", "daemon", "--no-run"]);
    cargo.arg("--message-format=json-render-diagnostics");
    let said = process::run(&mut cargo, log, minutes(15))?;
    said.success("cargo test -p netbuf --no-run")?;
    let text = std::fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    let program = |name: &str, kind: &str| {
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|one| one["target"]["name"] == name && one["target"]["kind"][0] == kind)
            .filter_map(|one| one["executable"].as_str().map(PathBuf::from))
            .next_back()
            .with_context(|| format!("cargo names no {kind} {name}; see {}", log.display()))
    };
    Ok(Built {
        tests: program("daemon", "test")?,
        daemon: program("netbuf", "bin")?,
    })
}

/// How each test ended, as the test program says it; the daemons' own lines stand in between.
fn outcomes(serial: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(serial).with_context(|| format!("read {}", serial.display()))?;
    Ok(read_outcomes(&String::from_utf8_lossy(&bytes)))
}

fn read_outcomes(text: &str) -> Vec<String> {
    let mut outcomes = Vec::new();
    let mut name = None;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("test ") {
            name = rest.split_whitespace().next();
        }
        let end = line
            .rsplit(' ')
            .next()
            .filter(|end| ["ok", "FAILED"].contains(end));
        if let (Some(end), Some(name)) = (end, name)
            && (line == end || line.starts_with("test "))
        {
            outcomes.push(format!("{name}: {end}"));
        }
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run in which nothing was tested passed for one that was.
    #[test]
    fn every_test_has_its_end() {
        let text = "LEDGER-READY\r\ntest a::one ... INFO vm1: attached\r\nINFO more ok\r\nok\r\n\
                    test a::two ... ok\r\ntest a::three ... INFO\r\nFAILED\r\ntest a::four ... INFO\r\n";
        assert_eq!(
            read_outcomes(text),
            ["a::one: ok", "a::two: ok", "a::three: FAILED"]
        );
    }
}
