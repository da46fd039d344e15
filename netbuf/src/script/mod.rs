//! `remus-netbuf-setup`: what libxl starts for `xl remus -N`, in the place of the script of Xen's.
//!
//! ```text
//!   xl remus ── setup ────► redirect, IFB, plug (open) ── key ifb = netbuf-N ──► libxl
//!      │                                  ▲
//!      ├── BUFFER at each suspend, RELEASE_ONE at each commit ── by netlink, past us
//!      └── teardown ──► IFB down: what is held is dropped ── all away, keys away
//! ```
//! There is no daemon in this: libxl orders the plug itself, so nobody else may. What is made is made by
//! [`crate::install`]: every protocol, a filter without a key, an IFB for each interface. It begins open, as
//! libxl's first message is BUFFER, at the first suspend; before it the guest has no backup, and what it says
//! belongs to no epoch.
//!
//! [`request`] reads what libxl asks, [`store`] is where it is answered, [`mark`] tells whose an IFB is,
//! [`work`] does it. `netbuf/NETBUF.md`, "Under libxl".

pub mod mark;
pub mod request;
mod status;
pub mod store;
mod twin;
pub mod work;
pub mod xenstored;

pub use status::lines;

use crate::install::Root;
use crate::netlink::{Netlink, NetlinkError};
use blockrep_host::exit::{Exit, Failure};
use blockrep_host::lock::{FileLock, LockError};
use blockrep_host::logging;
use clap::{Parser, ValueEnum};
use mark::Asker;
use request::{Request, RequestError};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use store::StoreError;
use work::ScriptError;
use xenstored::{PATIENCE, Xenstored};

/// How long another script is waited for. With the waits for the store it is less than libxl's 40 s.
const LOCK_WAIT: Duration = Duration::from_secs(15);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Every exit code of `remus-netbuf-setup`, with its line in `--help`.
pub const EXIT_CODES: [(Exit, &str); 4] = [
    (Exit::Ok, "done"),
    (Exit::Failed, "failed"),
    (
        Exit::Usage,
        "wrong usage: of the command line or the environment",
    ),
    (Exit::Refused, "what is there is somebody else's"),
];

/// Hold a Xen guest's output for `xl remus`: the program to name with -N.
///
/// libxl starts it for each network device of a guest, and then orders the plug itself. No daemon is needed.
/// It takes `vifname` and `XENBUS_PATH` from the environment, as libxl sets them, and `NETBUF_LIMIT`: what is
/// held at most, 64MiB by default.
#[derive(Debug, Parser)]
#[command(name = "remus-netbuf-setup", version, after_help = Exit::help(&EXIT_CODES))]
pub struct Cli {
    #[arg(value_enum)]
    action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// From libxl's first message on, hold what the device says
    Setup,
    /// Drop what is held, and leave the device alone
    Teardown,
    /// Show every device that is held for libxl, and whether its process runs
    Status,
}

/// The whole program.
pub fn main() -> ExitCode {
    // First of all: a parent that ends meanwhile is another one afterwards.
    let asker = Asker::parent();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is an end.
            let _ = error.print();
            let wrong = error.use_stderr();
            return if wrong { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    match run(cli.action, asker) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) if failure.is_closed_pipe() => Exit::Ok.into(),
        Err(failure) => {
            eprintln!("remus-netbuf-setup: {failure}");
            failure.exit.into()
        }
    }
}

fn run(action: Action, asker: Asker) -> Result<(), Failure> {
    // Warnings only: what libxl starts writes on the terminal of who typed `xl remus`.
    let usage = |error: logging::LoggingError| Failure::new(Exit::Usage, error.to_string());
    logging::init(Some("warn")).map_err(usage)?;
    match action {
        Action::Status => {
            let mut out = io::stdout().lock();
            let lines = lines(&mut Netlink::open()?)?;
            for line in &lines {
                writeln!(out, "{line}")?;
            }
            if lines.is_empty() {
                writeln!(out, "no device is held for libxl")?;
            }
            Ok(out.flush()?)
        }
        Action::Setup => {
            let request = read_request()?;
            let mut store = Xenstored::connect(PATIENCE)?;
            let mut netlink = Netlink::open()?;
            let _lock = lock(&blockrep_host::ctl::runtime_dir())?;
            let root = Root::Plug {
                limit_bytes: request.limit_bytes,
            };
            work::set_up(&mut netlink, &mut store, &request, asker, root)?;
            Ok(())
        }
        Action::Teardown => {
            let request = read_request()?;
            let mut netlink = Netlink::open()?;
            let _lock = lock(&blockrep_host::ctl::runtime_dir())?;
            // What is held is dropped whether the store answers or not.
            work::take_away(&mut netlink, &request, asker)?;
            let mut store = Xenstored::connect(PATIENCE)?;
            work::forget_lost(&mut netlink, &mut store, &request)?;
            Ok(work::forget_keys(&mut store, &request)?)
        }
    }
}

fn read_request() -> Result<Request, RequestError> {
    Request::read(|name| std::env::var(name).ok())
}

/// One script at a time works in a network namespace, and no cleanup beside it.
///
/// # Errors
/// [`ScriptError::Lock`], after a bounded wait.
pub fn lock(dir: &Path) -> Result<FileLock, ScriptError> {
    let path = crate::daemon::namespace_file(dir, "netbuf-script");
    let begun = Instant::now();
    loop {
        match FileLock::lock_file(&path) {
            Err(LockError::Held { .. }) if begun.elapsed() < LOCK_WAIT => {
                std::thread::sleep(LOCK_RETRY);
            }
            done => return Ok(done?),
        }
    }
}

/// Takes away all that was made for libxl; the names of the IFBs. Not under a process that runs, unless forced.
///
/// # Errors
/// [`ScriptError::InUse`], and what the kernel refuses.
pub fn cleanup(netlink: &mut Netlink, force: bool) -> Result<Vec<String>, ScriptError> {
    let all = mark::all(netlink)?;
    if let Some(used) = all.iter().find(|one| !force && one.mark.asker.is_alive()) {
        return Err(ScriptError::InUse {
            vif: status::vif_name(netlink, used)?,
            asker: used.mark.asker,
            path: used.mark.path.to_string(),
        });
    }
    for found in &all {
        work::clear(netlink, found)?;
    }
    Ok(all.into_iter().map(|one| one.ifb.name).collect())
}

impl From<ScriptError> for Failure {
    fn from(error: ScriptError) -> Self {
        let exit = if error.is_refusal() {
            Exit::Refused
        } else {
            Exit::Failed
        };
        Self::new(exit, error.to_string())
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        ScriptError::from(error).into()
    }
}

impl From<NetlinkError> for Failure {
    fn from(error: NetlinkError) -> Self {
        ScriptError::from(error).into()
    }
}

#[cfg(test)]
mod tests;
