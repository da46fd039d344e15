//! `netbuf`: the daemon, and what is typed to one. Exit codes are those of `blockrepctl`.

mod args;
mod client;
mod failure;
mod render;

pub use args::Cli;
pub use failure::{EXIT_CODES, Exit};

use crate::daemon::{self, Config, LIMIT_BYTES_DEFAULT};
use crate::hold;
use crate::netlink::Netlink;
use crate::script::{self, work::ScriptError};
use args::{CleanupArgs, Command, RunArgs};
use blockrep_host::lock::LockError;
use blockrep_host::logging;
use clap::Parser;
use failure::Failure;
use std::io::{self, Write};
use std::process::ExitCode;

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
    let mut out = io::stdout().lock();
    let result = run(&cli, &mut out).and_then(|()| Ok(out.flush()?));
    match result {
        Ok(()) => Exit::Ok.into(),
        Err(failure) if failure.is_closed_pipe() => Exit::Ok.into(),
        Err(failure) => {
            eprintln!("netbuf: {failure}");
            failure.exit.into()
        }
    }
}

fn run(cli: &Cli, out: &mut dyn Write) -> Result<(), Failure> {
    let control = cli.control.clone().unwrap_or_else(daemon::control_path);
    match &cli.command {
        Command::Run(args) => serve(control, args),
        Command::Cleanup(args) => cleanup(*args, out),
        command => {
            let timeout = std::time::Duration::from_secs(cli.timeout);
            client::run(&control, timeout, command, out)
        }
    }
}

fn serve(control: std::path::PathBuf, args: &RunArgs) -> Result<(), Failure> {
    let usage = |error: logging::LoggingError| Failure::new(Exit::Usage, error.to_string());
    logging::init(args.log.as_deref()).map_err(usage)?;
    let config = Config {
        control,
        limit_bytes: args.limit.unwrap_or(LIMIT_BYTES_DEFAULT),
        choice: args.mechanism.into(),
        attach: args.attach.clone(),
    };
    daemon::run(&config).map_err(Failure::from)
}

/// Works without a daemon, and is not for a host with one.
fn cleanup(args: CleanupArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let failed = |text: String| Failure::new(Exit::Failed, text);
    let _lock = match daemon::namespace_lock(&blockrep_host::ctl::runtime_dir()) {
        Ok(lock) => Some(lock),
        Err(LockError::Held { holder, .. }) if !args.force => {
            let who = holder.map_or("a daemon".to_owned(), |pid| format!("process {pid}"));
            let text = format!(
                "{who} holds guests here: stop it first (systemctl stop netbuf), or type netbuf cleanup --force"
            );
            return Err(Failure::new(Exit::Refused, text));
        }
        Err(_) => None,
    };
    let mut netlink = Netlink::open().map_err(|error| failed(error.to_string()))?;
    let dir = blockrep_host::ctl::runtime_dir();
    let _scripts = match script::lock(&dir) {
        Err(error @ ScriptError::Lock(LockError::Held { .. })) => return Err(Failure::from(error)),
        lock => lock.ok(),
    };
    let mut removed = script::cleanup(&mut netlink, args.force).map_err(|error| {
        let failure = Failure::from(error);
        let exit = failure.exit;
        match exit {
            Exit::Refused => {
                Failure::new(exit, format!("{failure}, or type netbuf cleanup --force"))
            }
            _ => failure,
        }
    })?;
    removed.extend(hold::cleanup(&mut netlink).map_err(|error| failed(error.to_string()))?);
    match removed.as_slice() {
        [] => writeln!(out, "there was nothing to remove")?,
        names => writeln!(
            out,
            "removed {}; what was held is dropped, output passes",
            names.join(", ")
        )?,
    }
    Ok(())
}
