//! The command line.

use super::EXIT_CODES;
use crate::memory::tracker::Kind;
use blockrep_host::exit::Exit;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint, value_parser};
use std::path::PathBuf;

/// Carry a running guest to its backup, many times a second.
///
/// Memory, device state and disks of one moment go to the backup; what the guest says is held until they are there. When
/// its host dies, it goes on at the backup, its TCP connections included. `blockrepctl guest` looks at these
/// daemons and tells them what to do.
#[derive(Debug, Parser)]
#[command(name = "checkpointer", version, after_help = Exit::help(&EXIT_CODES))]
pub struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Protect a QEMU that runs already
    ///
    /// Its memory has to lie in a shared file (-object memory-backend-file,share=on), its disks on a blockrep daemon. What
    /// else stands in the way is told before anything is done to it. When this daemon ends, the guest runs on.
    Protect(ProtectArgs),
    /// Start a QEMU from the configuration's [qemu], and protect it
    Run(RunArgs),
    /// Wait where the guest would go on: take its checkpoints in, and take it over
    Receive(ReceiveArgs),
    /// Tell what it would cost to protect a QEMU that runs, at several intervals
    ///
    /// Looks the guest over as `protect` does, finds out for some seconds which pages it writes, and pauses it a few times as for
    /// a checkpoint, which is announced and guarded. Nothing is sent, held or changed; how each figure was made is told below
    /// the table.
    Estimate(EstimateArgs),
    /// Let a guest go on whose checkpointer was killed within a pause; started by that
    #[command(hide = true)]
    Guardian(GuardianArgs),
}

impl Command {
    /// Of a daemon.
    pub(super) fn daemon(&self) -> Option<&DaemonArgs> {
        Some(match self {
            Self::Protect(args) => &args.daemon,
            Self::Run(args) => &args.daemon,
            Self::Receive(args) => &args.daemon,
            Self::Estimate(_) | Self::Guardian(_) => return None,
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct DaemonArgs {
    /// Configuration of the guest, TOML
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) config: PathBuf,
    /// Control socket [default: /run/blockrep/GUEST.checkpointer.sock or GUEST.standby.sock]
    #[arg(long, value_name = "PATH")]
    pub(super) control: Option<PathBuf>,
    /// What is logged: error, warn, info, debug or trace, or TARGET=LEVEL[,…]
    #[arg(long, value_name = "LEVELS")]
    pub(super) log: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ProtectArgs {
    #[command(flatten)]
    pub(super) daemon: DaemonArgs,
    /// Monitor of the running QEMU: the socket of its -qmp
    #[arg(long, value_name = "PATH")]
    pub(super) qmp: PathBuf,
    /// Where the guest's disks are served by blockrep, as QEMU was told: unix:PATH or HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub(super) served: Vec<String>,
    /// How written pages are found [default: the best that works]
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) tracker: Option<TrackerChoice>,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) daemon: DaemonArgs,
    /// Where the guest's disks are served by blockrep, as QEMU was told: unix:PATH or HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub(super) served: Vec<String>,
    /// How written pages are found [default: the best that works]
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) tracker: Option<TrackerChoice>,
}

#[derive(Debug, Args)]
pub(super) struct ReceiveArgs {
    #[command(flatten)]
    pub(super) daemon: DaemonArgs,
}

#[derive(Debug, Args)]
pub(super) struct EstimateArgs {
    /// Monitor of the running QEMU: the socket of its -qmp [default: that of `checkpointer run` by --config]
    #[arg(long, value_name = "PATH", required_unless_present = "config")]
    pub(super) qmp: Option<PathBuf>,
    /// Configuration of the guest, TOML: its disks, buffers and limits count
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) config: Option<PathBuf>,
    /// Where the guest's disks are served by blockrep, as QEMU was told: unix:PATH or HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub(super) served: Vec<String>,
    /// How written pages are found [default: the best that works]
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) tracker: Option<TrackerChoice>,
    /// How long the guest is looked at
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = value_parser!(u64).range(1..=3_600))]
    pub(super) seconds: u64,
    /// From one checkpoint to the next, each of these
    #[arg(long, value_name = "MS", value_delimiter = ',', default_values_t = [25, 50, 100, 200], value_parser = value_parser!(u64).range(5..=10_000))]
    pub(super) interval_ms: Vec<u64>,
    /// Most of the time that the guest may stand still [default: the configuration's, else 5]
    #[arg(long, value_name = "PERCENT", value_parser = value_parser!(u64).range(1..=50))]
    pub(super) pause_percent: Option<u64>,
    /// What the link to the backup carries
    #[arg(long, value_name = "MIB", value_parser = value_parser!(u64).range(1..))]
    pub(super) link_mib_per_s: Option<u64>,
    /// To the backup and back, as ping shows it, in microseconds
    #[arg(long, value_name = "US")]
    pub(super) round_trip_us: Option<u64>,
    /// One line of JSON in the place of the table
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct GuardianArgs {
    /// Monitor of the QEMU
    pub(super) qmp: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum TrackerChoice {
    /// Write protection by userfaultfd
    Userfaultfd,
    /// The kernel's soft-dirty bits
    SoftDirty,
    /// All pages against a copy
    Compare,
}

impl From<TrackerChoice> for Kind {
    fn from(choice: TrackerChoice) -> Self {
        match choice {
            TrackerChoice::Userfaultfd => Self::Userfaultfd,
            TrackerChoice::SoftDirty => Self::SoftDirty,
            TrackerChoice::Compare => Self::Compare,
        }
    }
}
