//! The command line of `blockrep-load`. Kept in the library so that man pages and completions come
//! from it.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};

use super::nbd::Address;
use super::oracle::{Ack, Rules};
use super::plan::Workload;
use super::run::{Options, Until};
use super::unit::UNIT_SIZE;

/// Writes self-describing blocks over NBD and judges what a crash left behind.
#[derive(Debug, Parser)]
#[command(name = "blockrep-load", version, after_help = exit_codes())]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Every exit code with its line in `--help`.
pub const EXIT_CODES: [(u8, &str); 4] = [
    (
        0,
        "run: ended as asked, no request failed; check: the image is consistent",
    ),
    (
        1,
        "run: requests failed; check: the image is not consistent",
    ),
    (2, "wrong usage, or the run or check could not be done"),
    (
        3,
        "run: server or control socket went away or stopped answering; the log is good",
    ),
];

fn exit_codes() -> String {
    let line = |(code, text): &(u8, &str)| format!("  {code}  {text}");
    let lines: Vec<String> = EXIT_CODES.iter().map(line).collect();
    format!("Exit codes:\n{}", lines.join("\n"))
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write to an export that reads as zeroes, and log what was acknowledged when.
    Run(RunArgs),
    /// Judge an image or export by the log of a run.
    Check(CheckArgs),
    /// Print a log as JSON lines.
    Dump {
        /// The log.
        #[arg(long, value_name = "FILE")]
        log: PathBuf,
    },
}

/// Arguments of `run`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("end").required(true).args(["seconds", "writes"]))]
pub struct RunArgs {
    /// The server: unix:PATH or tcp:HOST:PORT.
    #[arg(long, value_name = "ADDRESS")]
    pub nbd: Address,
    /// Name of the export.
    #[arg(long, default_value = "")]
    pub export: String,
    /// Control socket of the daemon to ask for cuts.
    #[arg(long, value_name = "PATH", requires = "cut_every")]
    pub control: Option<PathBuf>,
    /// Ask for a cut every so many milliseconds.
    #[arg(long, value_name = "MS", requires = "control", value_parser = positive())]
    pub cut_every: Option<u64>,
    /// Stop after so many seconds.
    #[arg(long, value_parser = positive())]
    pub seconds: Option<u64>,
    /// Stop after so many writes, zeroes and discards.
    #[arg(long, value_parser = positive())]
    pub writes: Option<u64>,
    /// Requests in flight on each connection.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub queue_depth: u32,
    /// Connections.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: u32,
    /// Lengths of requests, drawn evenly: multiples of 512 with k or m behind.
    #[arg(
        long,
        value_name = "SIZES",
        default_value = "4k",
        value_delimiter = ','
    )]
    pub block_sizes: Vec<Size>,
    /// Use only so many bytes from the start of the disk: k, m or g behind.
    #[arg(long, value_name = "SIZE")]
    pub span: Option<Size>,
    /// A flush after so many requests; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub flush_every: u64,
    /// Requests with FUA.
    #[arg(long, value_name = "P", default_value_t = 0, value_parser = percent())]
    pub fua_percent: u8,
    /// Requests that overlap a recent one.
    #[arg(long, value_name = "P", default_value_t = 10, value_parser = percent())]
    pub overlap_percent: u8,
    /// Requests that write zeroes.
    #[arg(long, value_name = "P", default_value_t = 0, value_parser = percent())]
    pub zero_percent: u8,
    /// Requests that discard. Only for servers whose discarded blocks read as zeroes.
    #[arg(long, value_name = "P", default_value_t = 0, value_parser = percent())]
    pub discard_percent: u8,
    /// Requests that wait for one in flight to complete, and then overlap it half of the time.
    #[arg(long, value_name = "P", default_value_t = 10, value_parser = percent())]
    pub dependent_percent: u8,
    /// At most so many requests a second.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Seed of the workload; drawn and printed if not given.
    #[arg(long)]
    pub seed: Option<u64>,
    /// End the run if the server answers nothing for so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = positive())]
    pub stall_limit: u64,
    /// The log; must not exist.
    #[arg(long, value_name = "FILE")]
    pub log: PathBuf,
    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).args(["image", "nbd"]))]
pub struct CheckArgs {
    /// The log of the run.
    #[arg(long, value_name = "FILE")]
    pub log: PathBuf,
    /// Image file or block device to judge.
    #[arg(long, value_name = "PATH")]
    pub image: Option<PathBuf>,
    /// Export to judge: unix:PATH or tcp:HOST:PORT.
    #[arg(long, value_name = "ADDRESS")]
    pub nbd: Option<Address>,
    /// Name of the export.
    #[arg(long, default_value = "", requires = "nbd")]
    pub export: String,
    /// The epoch the image is at: it must hold what was acknowledged before the cut of this epoch
    /// was asked for, and nothing submitted after the answer.
    #[arg(long, value_name = "N")]
    pub epoch: Option<u64>,
    /// What acknowledgements promised.
    #[arg(long, default_value = "local")]
    pub ack: Ack,
    /// Requests in flight may have landed in part: for the image of a host that died in the middle
    /// of a write.
    #[arg(long)]
    pub split_writes: bool,
    /// Units of other runs are what was there before.
    #[arg(long)]
    pub earlier_runs: bool,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

fn positive() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..)
}

fn percent() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(0..=100)
}

/// A size in bytes, a multiple of the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let lower = text.to_ascii_lowercase();
        let (digits, factor) = match lower.char_indices().last() {
            Some((at, 'k')) => (&lower[..at], 1 << 10),
            Some((at, 'm')) => (&lower[..at], 1 << 20),
            Some((at, 'g')) => (&lower[..at], 1 << 30),
            _ => (lower.as_str(), 1),
        };
        let number: Option<u64> = digits.parse().ok().filter(|number| *number > 0);
        match number.and_then(|number| number.checked_mul(factor)) {
            Some(bytes) if bytes.is_multiple_of(UNIT_SIZE as u64) => Ok(Size(bytes)),
            _ => Err("expected a multiple of 512, like 512, 4k or 1m".into()),
        }
    }
}

/// Largest request length accepted.
const BLOCK_BYTES_MAX: u64 = 32 << 20;
/// Largest sum of payloads in flight on all connections.
const IN_FLIGHT_BYTES_MAX: u64 = 1 << 30;

impl RunArgs {
    /// The options of the run, or the user's mistake in one line.
    pub fn options(&self) -> Result<Options, String> {
        let mut block_sizes = Vec::new();
        for Size(bytes) in &self.block_sizes {
            match u32::try_from(*bytes) {
                Ok(block) if *bytes <= BLOCK_BYTES_MAX => block_sizes.push(block),
                _ => return Err(format!("--block-sizes: {bytes} is more than 32m")),
            }
        }
        let longest = block_sizes.iter().copied().max().map_or(0, u64::from);
        let in_flight = u64::from(self.connections) * u64::from(self.queue_depth) * longest;
        if in_flight > IN_FLIGHT_BYTES_MAX {
            return Err(
                "more than 1g would be in flight; lower --queue-depth, --connections or \
                        --block-sizes"
                    .into(),
            );
        }
        if u32::from(self.zero_percent) + u32::from(self.discard_percent) > 100 {
            return Err("--zero-percent and --discard-percent together are at most 100".into());
        }
        let until = match (self.seconds, self.writes) {
            (Some(seconds), _) => Until::Elapsed(Duration::from_secs(seconds)),
            (None, writes) => Until::Requests(writes.unwrap_or(0)),
        };
        Ok(Options {
            address: self.nbd.clone(),
            export: self.export.clone(),
            connections: self.connections,
            queue_depth: self.queue_depth,
            workload: Workload {
                block_sizes,
                span_bytes: self.span.map_or(u64::MAX, |span| span.0),
                fua_percent: self.fua_percent,
                overlap_percent: self.overlap_percent,
                zero_percent: self.zero_percent,
                discard_percent: self.discard_percent,
                dependent_percent: self.dependent_percent,
                flush_every: self.flush_every,
            },
            until,
            cut_every: self.cut_every.map(Duration::from_millis),
            rate: self.rate,
            seed: self.seed.unwrap_or_else(|| fastrand::u64(..)),
            log: self.log.clone(),
            stall_limit: Duration::from_secs(self.stall_limit),
        })
    }
}

impl CheckArgs {
    /// What the image is held to.
    pub fn rules(&self) -> Rules {
        Rules {
            ack: self.ack,
            epoch: self.epoch,
            split: self.split_writes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Production: a contradiction between arguments shows up as a panic at the first start.
    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// Production: sizes with a typo must be refused, not read as something else.
    #[test]
    fn sizes_are_multiples_of_the_unit() {
        let cases = [
            ("512", 512),
            ("4k", 4096),
            ("64K", 65536),
            ("1m", 1 << 20),
            ("2g", 2 << 30),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Size(bytes)));
        }
        for bad in [
            "",
            "0",
            "k",
            "100",
            "-4k",
            "4kk",
            "18446744073709551615g",
            "4 k",
        ] {
            assert!(bad.parse::<Size>().is_err(), "accepted {bad}");
        }
    }

    fn options(args: &[&str]) -> Result<Options, String> {
        let base = [
            "blockrep-load",
            "run",
            "--nbd",
            "unix:/s",
            "--log",
            "l",
            "--writes",
            "5",
        ];
        let cli =
            Cli::try_parse_from(base.iter().chain(args)).map_err(|error| error.to_string())?;
        match cli.command {
            Command::Run(args) => args.options(),
            _ => Err("not run".into()),
        }
    }

    /// Production: a mistake found only in the middle of a long run.
    #[test]
    fn impossible_runs_are_refused_before_they_begin() {
        assert!(options(&[]).is_ok());
        assert_eq!(
            options(&["--block-sizes", "512,4k"])
                .unwrap()
                .workload
                .block_sizes,
            [512, 4096]
        );
        let cases: [&[&str]; 6] = [
            &["--block-sizes", "64m"],
            &["--block-sizes", "32m", "--queue-depth", "64"],
            &["--zero-percent", "60", "--discard-percent", "60"],
            &["--fua-percent", "101"],
            &["--seconds", "1"],
            &["--cut-every", "10"],
        ];
        for args in cases {
            assert!(options(args).is_err(), "accepted {args:?}");
        }
    }
}
