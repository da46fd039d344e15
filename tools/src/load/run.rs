//! A run from its options to its figures; the work between is the `generator`'s.

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;

use super::control::Cutter;
use super::generator::Generator;
use super::log::{Header, LogError, LogWriter};
use super::nbd::{self, Address, Export, NbdError, Stream};
use super::plan::{Planner, Workload};
use super::unit::UNIT_SIZE;

/// When a run ends by itself.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// After this long.
    Elapsed(Duration),
    /// After this many requests that change the disk.
    Requests(u64),
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub address: Address,
    /// Name of the export.
    pub export: String,
    /// Connections to it.
    pub connections: u32,
    /// Requests in flight on each connection.
    pub queue_depth: u32,
    /// Lengths and percentages; its `span_bytes` is cut to the size of the export.
    pub workload: Workload,
    /// The end.
    pub until: Until,
    /// Time between two cuts, if cuts are asked for.
    pub cut_every: Option<Duration>,
    /// Most requests a second.
    pub rate: Option<u32>,
    /// Seed of the workload.
    pub seed: u64,
    /// The log; must not exist.
    pub log: PathBuf,
    /// No reply for this long with requests in flight ends the run.
    pub stall_limit: Duration,
}

/// Why a run could not begin or keep its log.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The server, before the first request.
    #[error(transparent)]
    Nbd(#[from] NbdError),
    /// The server lacks what the options ask for.
    #[error("the export {lacks}; {instead}")]
    Unsupported {
        /// What is missing.
        lacks: &'static str,
        /// What to type instead.
        instead: &'static str,
    },
    /// The workload does not fit the disk.
    #[error("a block of {block} bytes does not fit: {limit}")]
    BlockSize {
        /// The block size.
        block: u32,
        /// What bounds it.
        limit: &'static str,
    },
    /// The kernel refuses io_uring.
    #[error("io_uring: {0}")]
    Uring(io::Error),
    /// The thread that asks for cuts could not be started.
    #[error("control thread: {0}")]
    Thread(io::Error),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "end", content = "reason", rename_all = "snake_case")]
pub enum End {
    /// As asked.
    Done,
    /// The server went away.
    ConnectionLost(String),
    /// The server stopped answering.
    Stalled,
    /// The control socket went away.
    ControlLost(String),
}

/// Figures of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// How it ended.
    #[serde(flatten)]
    pub end: End,
    /// Id of the run, in every unit.
    pub run: u64,
    /// Seed of the workload.
    pub seed: u64,
    /// Requests that change the disk: submitted, completed, failed.
    pub submitted: u64,
    /// Of these, answered with success.
    pub completed: u64,
    /// Of these, answered with an error; failed flushes count too.
    pub failed: u64,
    /// Bytes of completed requests.
    pub bytes: u64,
    /// Completed flushes.
    pub flushes: u64,
    /// Cuts answered with an epoch.
    pub cuts: u64,
    /// Cuts refused.
    pub cuts_refused: u64,
    /// Wall time of the run.
    pub seconds: f64,
    /// Completed requests that change the disk, a second.
    pub requests_per_second: f64,
}

/// Runs to the end. Blocks the thread.
pub fn run(options: &Options, cutter: Option<Box<dyn Cutter>>) -> Result<Summary, RunError> {
    let (streams, export) = connect(options)?;
    let mut workload = options.workload.clone();
    let unit = UNIT_SIZE as u64;
    workload.span_bytes = workload.span_bytes.min(export.bytes) / unit * unit;
    check(&workload, &export)?;
    // A run id of zero would look like an unset field.
    let run = fastrand::u64(1..);
    let (disk_bytes, span_bytes) = (export.bytes, workload.span_bytes);
    let header = Header {
        run,
        disk_bytes,
        span_bytes,
        seed: options.seed,
    };
    let log = LogWriter::create(&options.log, &header)?;
    let runtime = tokio_uring::Runtime::new(&tokio_uring::builder()).map_err(RunError::Uring)?;
    let planner = Planner::new(workload, options.seed);
    runtime.block_on(async {
        let generator = Generator::new(options, run, log, planner, streams);
        Rc::new(generator).drive(cutter).await
    })
}

fn connect(options: &Options) -> Result<(Vec<Stream>, Export), RunError> {
    let (first, export) = nbd::connect(&options.address, &options.export)?;
    if options.connections > 1 && !export.multi_conn() {
        return Err(RunError::Unsupported {
            lacks: "does not promise coherence between connections",
            instead: "use --connections 1",
        });
    }
    let mut streams = vec![first];
    for _ in 1..options.connections {
        let (stream, other) = nbd::connect(&options.address, &options.export)?;
        if other != export {
            return Err(NbdError::Protocol("two connections show different exports").into());
        }
        streams.push(stream);
    }
    Ok((streams, export))
}

fn check(workload: &Workload, export: &Export) -> Result<(), RunError> {
    let rules = [
        (export.read_only(), "is read-only", "connect to the primary"),
        (
            export.block_min > UNIT_SIZE as u32,
            "takes no blocks of 512 bytes",
            "use a disk with 512-byte blocks",
        ),
        (
            workload.flush_every > 0 && !export.flush(),
            "has no FLUSH",
            "use --flush-every 0",
        ),
        (
            workload.fua_percent > 0 && !export.fua(),
            "has no FUA",
            "use --fua-percent 0",
        ),
        (
            workload.zero_percent > 0 && !export.write_zeroes(),
            "has no WRITE_ZEROES",
            "use --zero-percent 0",
        ),
        (
            workload.discard_percent > 0 && !export.trim(),
            "has no TRIM",
            "use --discard-percent 0",
        ),
    ];
    if let Some((_, lacks, instead)) = rules.into_iter().find(|(broken, ..)| *broken) {
        return Err(RunError::Unsupported { lacks, instead });
    }
    for block in workload.block_sizes.iter().copied() {
        if u64::from(block) > workload.span_bytes {
            return Err(RunError::BlockSize {
                block,
                limit: "the disk or the span is smaller",
            });
        }
        if block > export.payload_max {
            return Err(RunError::BlockSize {
                block,
                limit: "the server takes less at once",
            });
        }
    }
    Ok(())
}
