//! The life of a daemon: control server and threads are started, the end is waited for, and what the
//! threads ended with becomes the exit code. Owned by the main thread, which also feeds the watchdog.

use super::StartError;
use super::claims::Claims;
use super::in_order;
use super::seed::{MAILBOX_MAX, Seed, sprout};
use crate::cli::ExitCode;
use crate::config::Common;
use crate::daemon::control::Router;
use crate::daemon::faults::Faults;
use crate::daemon::files::words;
use crate::daemon::thread::{Ended, Mail};
use crate::daemon::vhost;
use crate::daemon::watch::Watch;
use crate::reactor::{MailSender, mailbox};
use blockrep_host::ctl::{EventLog, NewEvent, Server, ServerConfig};
use blockrep_host::notify;
use blockrep_host::signals::Shutdown;
use std::thread::JoinHandle;
use std::time::Duration;

/// Starts threads and control server, waits for the end.
pub(super) fn run(
    common: &Common,
    daemon: &str,
    claims: Claims,
    seeds: Vec<Seed>,
    faults: &Faults,
    watch: Watch,
    shutdown: &Shutdown,
) -> Result<(), StartError> {
    let other = |error: std::io::Error| StartError::new(ExitCode::Other, words(&error));
    let events = EventLog::new().map_err(other)?;
    let mut senders = Vec::new();
    let mut boxes = Vec::new();
    for _ in &seeds {
        let (sender, mailbox) = mailbox::<Mail>(MAILBOX_MAX).map_err(other)?;
        senders.push(sender);
        boxes.push(mailbox);
    }
    // Dropped from the last to the first: what was made goes while it is locked.
    let Claims {
        locks,
        nbd_file,
        vhost_files,
        control,
        fresh,
        ..
    } = claims;
    let server = Server::start_on(
        control,
        ServerConfig {
            path: common.control.clone(),
            daemon: format!("{daemon} {}", env!("CARGO_PKG_VERSION")),
            limits: Default::default(),
        },
        events.clone(),
        Router {
            threads: senders.clone(),
        },
    )?;
    // The first thread may write to what was blank so far.
    fresh.keep();
    let mut threads: Vec<JoinHandle<Result<Ended, std::io::Error>>> = Vec::new();
    let mut servers = Vec::new();
    for (mut seed, mailbox) in seeds.into_iter().zip(boxes) {
        let vhost = seed.vhost_listener.take();
        let (index, size_bytes) = (seed.about.index, seed.about.size_bytes);
        let peers = senders.clone();
        let log = events.clone();
        let faults = faults.clone();
        let name = format!("volume-{}", seed.about.index);
        let spawned = std::thread::Builder::new()
            .name(name)
            .spawn(move || sprout(seed, &faults, mailbox, peers, log)?.run());
        threads.push(spawned.map_err(other)?);
        if let Some(listener) = vhost {
            let sender = senders[index].clone();
            servers.push(vhost::serve(listener, index, size_bytes, sender).map_err(other)?);
        }
    }
    let kind = blkback_proto::ctl::EventKind::DaemonStarted;
    events.publish(NewEvent::new(common.group.clone(), kind, "started", ""));
    notify::ready("serving");
    wait(shutdown, watch, &threads, &senders);
    notify::stopping("stopping");
    let result = join(threads);
    servers.into_iter().for_each(vhost::Server::stop);
    note_end(&result, common, senders.len());
    drop((server, nbd_file, vhost_files, locks));
    result.map(|_| ())
}

/// Where everything has ended in order; that this cannot be noted is no failure.
fn note_end(result: &Result<bool, StartError>, common: &Common, volumes: usize) {
    if matches!(result, Ok(true))
        && let Err(error) = in_order::end(&super::layout(common), volumes)
    {
        tracing::warn!("not noted that the daemon was stopped in order: {error}");
    }
}

fn wait(
    shutdown: &Shutdown,
    mut watch: Watch,
    threads: &[JoinHandle<Result<Ended, std::io::Error>>],
    senders: &[MailSender<Mail>],
) {
    while !shutdown.wait_within(Duration::from_secs(1)) {
        notify::watchdog();
        watch.look(senders);
        if threads.iter().any(JoinHandle::is_finished) {
            break;
        }
    }
    for sender in senders {
        // A thread that has ended needs no telling.
        let _ = sender.send(Mail::Stop);
    }
}

/// Gives whether every thread ended in order.
fn join(threads: Vec<JoinHandle<Result<Ended, std::io::Error>>>) -> Result<bool, StartError> {
    let mut result = Ok(true);
    for thread in threads {
        match thread.join() {
            Ok(Ok(Ended::InOrder)) => {}
            Ok(Ok(Ended::GaveUp)) => result = result.map(|_| false),
            Ok(Ok(Ended::Failed(text))) => {
                result = Err(StartError::new(ExitCode::StorageFailed, text))
            }
            Ok(Err(error)) => {
                let text = format!("an I/O thread failed: {}", words(&error));
                result = Err(StartError::new(ExitCode::Other, text));
            }
            Err(_) => {
                result = Err(StartError::new(ExitCode::Other, "an I/O thread panicked"));
            }
        }
    }
    result
}
