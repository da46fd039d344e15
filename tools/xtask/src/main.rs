//! Project commands: `cargo xtask demo`, `postgres`, `demo-disk`, `test`, `sim`, `crash`, `power`, `guest-fio`, `restarts`, `migrate`,
//! `net`, `tracker`, `clock`, `bench`, `man`, `install`.
//!
//! Exit codes: 0 all holds; 1 it was tried and does not hold; 2 it could not be tried, or the command
//! line is wrong; 130 interrupted.

mod aside;
mod bench;
mod checkout;
mod churn;
mod demo;
#[path = "../../../tests/guest/entry.rs"]
#[allow(dead_code)] // Shared with the guest's program, which uses the rest.
mod entry;
mod fsck;
mod guest;
mod initramfs;
mod kernel;
mod lab;
mod net;
mod netns;
mod packages;
mod parcel;
mod planted;
mod power;
mod process;
#[path = "../../../tests/guest/receipts.rs"]
#[allow(dead_code)] // Shared with the guest's program, which uses the rest.
mod receipts;
mod stop;
mod suite;
mod tracker;
mod ui;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use checkout::Checkout;
use demo::{Under, Verdict};
use packages::Purpose;

const EXIT_FAILED: u8 = 1;
const EXIT_ERROR: u8 = 2;
/// The package, and the program in it, that writes the manual.
const MAN_PACKAGE: &str = "blockrep-man";

/// Commands of the blockrep project
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Let a real guest lose its host and go on at the other one, in the middle of a TCP connection
    Demo(demo::whole::Options),
    /// Let Debian's PostgreSQL lose its host under its clients, and read back all that it acknowledged
    Postgres(demo::whole::postgres::Options),
    /// Let a real guest lose its host and boot again from the backup's disk
    DemoDisk(demo::Options),
    /// The demo's rounds on qemu-nbd alone, to tell faults of the lab from faults of the product
    GuestSelftest(demo::SelftestOptions),
    /// Run the whole test suite, with a time table
    Test(suite::Options),
    /// Run the simulator; arguments are passed on
    Sim(Passed),
    /// Kill real processes in named phases under load; arguments are passed on
    Crash(Passed),
    /// Cut the power of the backup's machine, whose disks then lose what was not flushed
    Power(power::Options),
    /// Let fio write and verify in a guest until its host dies, and verify on the backup
    GuestFio(churn::GuestFioOptions),
    /// Kill and restart the disk's daemon under a living guest, which must not notice
    Restarts(churn::RestartsOptions),
    /// Move a living guest into a file and out of it with QEMU's own migration
    Migrate(churn::MigrateOptions),
    /// Test netbuf with the relay here, or with the kernel's plug in a guest whose kernel has it
    Net(net::Options),
    /// Measure what protection and a failover cost the clock of a guest
    Clock(demo::whole::ClockOptions),
    /// Test the tracker by soft-dirty bits in a guest whose kernel has them
    Tracker(tracker::Options),
    /// Measure the disk beside other stacks, on this machine or from inside a guest, held frames, and a guest's memory
    #[command(subcommand)]
    Bench(Bench),
    /// Write man pages, and completions for bash, zsh and fish, from the programs' command lines
    ///
    /// The program that writes them is taken from `target/release`, or where only that is there from
    /// `target/debug`; what is missing is built, which takes minutes where nothing is.
    Man {
        /// Directory laid out like /usr/share; without it `share` in cargo's target directory
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Show what the commands need of the system, and install what is missing
    Install {
        /// Only for these commands; without it the table is printed
        #[arg(value_enum)]
        purposes: Vec<Purpose>,
        /// Only print the command
        #[arg(long)]
        no_install: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Measure the disk against fixed bars, with qemu-nbd, QEMU's mirror and a bare disk; arguments are passed on
    Disk(Passed),
    /// Measure a protected guest against fixed bars: pauses, failovers and bytes, beside QEMU's own means; arguments are
    /// passed on
    Memory(Passed),
    /// Run fio in a guest: on the protected disk by vhost-user and by NBD, and on an unprotected image
    Guest(bench::Options),
    /// Measure what holding a guest's frames costs: delay, rate and memory of relay and plug
    Net(bench::NetOptions),
}

/// Arguments for a program that this one does not read.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(Verdict::Holds) => ExitCode::SUCCESS,
        Ok(Verdict::Failed) => ExitCode::from(EXIT_FAILED),
        Err(error) if error.is::<stop::Interrupted>() => {
            eprintln!("{error}");
            ExitCode::from(stop::EXIT_INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}

fn run(command: Command) -> Result<Verdict> {
    let checkout = Checkout::find()?;
    stop::catch_signals()?;
    match command {
        Command::Demo(options) => demo::whole::run(&checkout, &options),
        Command::Postgres(options) => demo::whole::postgres::run(&checkout, &options),
        Command::DemoDisk(options) => demo::run(&checkout, &options, Under::Blockrep),
        Command::GuestSelftest(options) => demo::run(&checkout, &options.into(), Under::QemuNbd),
        Command::Test(options) => suite::run(&checkout, &options),
        Command::Power(options) => power::run(&checkout, &options),
        Command::GuestFio(options) => churn::guest_fio(&checkout, &options),
        Command::Restarts(options) => churn::restarts(&checkout, &options),
        Command::Migrate(options) => churn::migrate(&checkout, &options),
        Command::Net(options) => net::run(&checkout, &options),
        Command::Clock(options) => demo::whole::clock(&checkout, &options),
        Command::Tracker(options) => tracker::run(&checkout, &options),
        Command::Sim(passed) => become_tests_program(&checkout, "sim", &passed),
        Command::Crash(passed) => become_tests_program(&checkout, "crash", &passed),
        Command::Bench(Bench::Guest(options)) => bench::run(&checkout, &options),
        Command::Bench(Bench::Net(options)) => bench::net(&checkout, &options),
        Command::Bench(Bench::Disk(passed)) => bench_disk(&checkout, passed),
        Command::Bench(Bench::Memory(passed)) => bench_memory(&checkout, passed),
        Command::Man { out } => write_manual(&checkout, out),
        Command::Install {
            purposes,
            no_install,
        } => {
            if purposes.is_empty() {
                packages::list();
            } else {
                packages::provide(&checkout, &purposes, no_install)?;
            }
            Ok(Verdict::Holds)
        }
    }
}

fn bench_disk(checkout: &Checkout, mut passed: Passed) -> Result<Verdict> {
    let arguments = &mut passed.arguments;
    let only_help = arguments
        .iter()
        .any(|word| word == "--help" || word == "-h");
    packages::provide(checkout, &[Purpose::Bench], only_help)?;
    arguments.insert(0, "disk".into());
    become_tests_program(checkout, "bench", &passed)
}

fn bench_memory(checkout: &Checkout, mut passed: Passed) -> Result<Verdict> {
    let words = bench::kernel_words(checkout, &passed.arguments)?;
    passed.arguments.insert(0, "memory".into());
    passed.arguments.extend(words);
    become_tests_program(checkout, "bench", &passed)
}

/// Replaces this process by a program of the tests package, optimised.
fn become_tests_program(checkout: &Checkout, name: &str, passed: &Passed) -> Result<Verdict> {
    let (package, options) = (suite::TESTS_PACKAGE, ["--release"]);
    become_program(checkout, package, name, &options, &passed.arguments)
}

fn write_manual(checkout: &Checkout, out: Option<PathBuf>) -> Result<Verdict> {
    let target = checkout.metadata()?.target_dir()?;
    // What is built already is not built once more with other options.
    let is_built = |profile: &str| target.join(profile).join(MAN_PACKAGE).is_file();
    let options: &[&str] = if is_built("debug") && !is_built("release") {
        &[]
    } else {
        &["--release"]
    };
    let out = match out {
        // Cargo is started elsewhere.
        Some(out) => {
            std::path::absolute(&out).with_context(|| format!("directory {}", out.display()))?
        }
        None => target.join("share"),
    };
    let arguments = ["--out".into(), out.into_os_string()];
    become_program(checkout, MAN_PACKAGE, MAN_PACKAGE, options, &arguments)
}

/// Replaces this process by a program of a package; returns only if that is not possible.
fn become_program(
    checkout: &Checkout,
    package: &str,
    name: &str,
    options: &[&str],
    arguments: &[OsString],
) -> Result<Verdict> {
    if !checkout.metadata()?.has_program(package, name) {
        bail!("this checkout has no program {name} in {package}");
    }
    let mut cargo = checkout.cargo();
    cargo.arg("run").args(options);
    cargo.args(["-p", package, "--bin", name, "--"]);
    let error = cargo.args(arguments).exec();
    bail!("cannot start cargo: {error}")
}
