//! `checkpointer`: the daemons of a guest, beside it and where it would go on. Exit codes are those of
//! `blockrepctl`, which also looks at them and tells them what to do.

mod args;
mod estimate;

pub use args::Cli;

use crate::config::{Config, Side};
use crate::hypervisor::qemu::check::Served;
use crate::hypervisor::qemu::spec::{Child, Place, Role, Spec};
use crate::hypervisor::qemu::{Limits, is_nobody};
use crate::protect::{self, ProtectError, Protection};
use crate::standby::{self, ReceiveError, Reception};
use args::{Command, DaemonArgs};
use blkback_proto::ctl::{GuestSide, guest_socket_name};
use blockrep_host::ctl::runtime_dir;
use blockrep_host::exit::{Exit, Failure};
use blockrep_host::logging;
use clap::Parser;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the exit codes mean, for `--help`.
pub const EXIT_CODES: [(Exit, &str); 4] = [
    (Exit::Ok, "ended as told, or the guest is off"),
    (Exit::Failed, "failed"),
    (
        Exit::Usage,
        "wrong usage, or a mistake in the configuration",
    ),
    (
        Exit::Refused,
        "this guest cannot be protected, or is another host's",
    ),
];

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Ok
            };
            // A closed pipe is an end.
            let _ = error.print();
            return exit.into();
        }
    };
    match run(&cli) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            eprintln!("checkpointer: {failure}");
            failure.exit.into()
        }
    }
}

fn usage(text: impl ToString) -> Failure {
    Failure::new(Exit::Usage, text.to_string())
}

fn failed(text: impl ToString) -> Failure {
    Failure::new(Exit::Failed, text.to_string())
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let args = match (&cli.command, cli.command.daemon()) {
        (Command::Guardian(args), _) => return protect::guard(&args.qmp).map_err(failed),
        (Command::Estimate(args), _) => return estimate::estimate(args),
        (_, Some(args)) => args,
        (_, None) => unreachable!("all others are daemons"),
    };
    logging::init(args.log.as_deref()).map_err(usage)?;
    match &cli.command {
        Command::Guardian(_) | Command::Estimate(_) => unreachable!("done above"),
        Command::Protect(more) => {
            let config = read(args, Side::Protect)?;
            let served = served(&more.served)?;
            protect(
                config,
                args,
                Beside::Running(more.qmp.clone()),
                served,
                more.tracker.map(Into::into),
            )
        }
        Command::Run(more) => {
            let config = read(args, Side::Protect)?;
            let served = served(&more.served)?;
            let spec = spec(&config, &args.config)?;
            let dir = runtime_dir();
            std::fs::create_dir_all(&dir).map_err(|e| failed(format!("{}: {e}", dir.display())))?;
            let place = spec.place(&dir);
            refuse_living(&place.monitor)?;
            let mut child = begin(&config, &spec, &place)?;
            let result = protect(
                config,
                args,
                Beside::Started(place.monitor),
                served,
                more.tracker.map(Into::into),
            );
            if child.ended().ok().flatten().is_none() {
                tracing::info!("the guest runs on, process {}", child.pid());
                child.let_go();
            }
            result
        }
        Command::Receive(_) => {
            let config = read(args, Side::Standby)?;
            let spec = spec(&config, &args.config)?;
            let reception = Reception {
                control: control(args, &config, &GuestSide::Standby),
                run: runtime_dir(),
                spec,
                config,
            };
            standby::run(reception).map_err(|error| match error {
                ReceiveError::NoStandby(_) => Failure::new(Exit::Refused, error.to_string()),
                _ => failed(error),
            })
        }
    }
}

/// Starts the guest, if it is this host's; held from the beginning where its backup is in.
fn begin(config: &Config, spec: &Spec, place: &Place) -> Result<Child, Failure> {
    // Before it runs: it may have gone on elsewhere.
    let refused = |e: ProtectError| Failure::new(Exit::Refused, e.to_string());
    let has_backup = protect::claim(config).map_err(refused)?;
    let role = if has_backup {
        Role::Paused
    } else {
        Role::Primary
    };
    let mut child = spec.start(role, place).map_err(failed)?;
    // It answers before it is looked over.
    let mut qemu = child.attach(Limits::default()).map_err(failed)?;
    if has_backup {
        // QEMU may be who makes its devices.
        protect::hold(config).map_err(failed)?;
        qemu.cont_anyway().map_err(failed)?;
    }
    Ok(child)
}

/// A guest that its daemon left running must not be started a second time: that would take its memory away.
fn refuse_living(monitor: &Path) -> Result<(), Failure> {
    match UnixStream::connect(monitor) {
        Ok(_) => {}
        Err(error) if is_nobody(&error) => return Ok(()),
        Err(error) => {
            let text = format!(
                "whether the guest runs already is not known, its monitor {}: {error}; see whether a QEMU has it, and remove the socket if none does",
                monitor.display()
            );
            return Err(Failure::new(Exit::Refused, text));
        }
    }
    let text = format!(
        "a guest runs already, its monitor is {0}: protect it with `checkpointer protect --qmp {0}`, or end it first",
        monitor.display()
    );
    Err(Failure::new(Exit::Refused, text))
}

fn read(args: &DaemonArgs, side: Side) -> Result<Config, Failure> {
    Config::read(&args.config, side).map_err(usage)
}

fn spec(config: &Config, file: &Path) -> Result<Spec, Failure> {
    let told = |why: String| usage(format!("{}: [qemu]: {why}", file.display()));
    Spec::of(&config.guest, &config.qemu).map_err(told)
}

fn control(args: &DaemonArgs, config: &Config, side: &GuestSide) -> PathBuf {
    let name = guest_socket_name(&config.guest, side);
    args.control
        .clone()
        .unwrap_or_else(|| runtime_dir().join(name))
}

fn served(given: &[String]) -> Result<Vec<Served>, Failure> {
    let one = |text: &String| match text.strip_prefix("unix:") {
        Some(path) => Ok(Served::Socket(PathBuf::from(path))),
        None => {
            let parts = text
                .rsplit_once(':')
                .and_then(|(host, port)| Some((host, port.parse().ok()?)));
            let (host, port) = parts.ok_or_else(|| {
                usage(format!(
                    "--served {text}: write unix:PATH or HOST:PORT, as the guest's disk has it"
                ))
            })?;
            Ok(Served::Tcp {
                host: host.to_owned(),
                port,
            })
        }
    };
    given.iter().map(one).collect()
}

/// Whose monitor it is.
enum Beside {
    /// A guest that runs, for who knows how long.
    Running(PathBuf),
    /// One that begins.
    Started(PathBuf),
}

fn protect(
    config: Config,
    args: &DaemonArgs,
    beside: Beside,
    served: Vec<Served>,
    tracker: Option<crate::memory::tracker::Kind>,
) -> Result<(), Failure> {
    let control = control(args, &config, &GuestSide::Primary);
    let (monitor, is_afresh) = match beside {
        Beside::Running(monitor) => (monitor, false),
        Beside::Started(monitor) => (monitor, true),
    };
    let protection = Protection {
        config,
        monitor,
        is_afresh,
        served,
        control,
        tracker,
    };
    protect::run(protection).map_err(|error| match error {
        ProtectError::Unfit(_) | ProtectError::NotOurs(_) => {
            Failure::new(Exit::Refused, error.to_string())
        }
        _ => failed(error),
    })
}
