//! The sockets a daemon listens on.

use super::files::words;
use super::startup::StartError;
use crate::cli::ExitCode;
use crate::config::{Common, ListenAddr, NbdListen};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long an address may stay in use: the kernel frees the io_uring of a killed daemon, and with
/// it the sockets that still accept in it, some time after the process is gone.
const IN_USE_MAX: Duration = Duration::from_secs(2);
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(50);

/// Tries again while the address is in use.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, StartError>) -> Result<T, StartError> {
    let end = Instant::now() + IN_USE_MAX;
    loop {
        match attempt() {
            Err(error) if error.code == ExitCode::AddressInUse && Instant::now() < end => {
                std::thread::sleep(RETRY);
            }
            other => return other,
        }
    }
}

fn in_use(what: &str, error: &std::io::Error) -> StartError {
    let code = if error.kind() == std::io::ErrorKind::AddrInUse {
        ExitCode::AddressInUse
    } else {
        ExitCode::Other
    };
    let hint = if code == ExitCode::AddressInUse {
        ": stop what uses it, or give another"
    } else {
        ""
    };
    StartError::new(
        code,
        format!("cannot listen on {what}: {}{hint}", words(error)),
    )
}

/// Listens for NBD clients.
///
/// # Errors
/// The address is in use, or no address of this host.
pub(super) fn nbd_listener(listen: Option<&NbdListen>) -> Result<Option<OwnedFd>, StartError> {
    Ok(match listen {
        None => None,
        Some(NbdListen::Unix(path)) => {
            patiently(|| replace_dead_socket(path))?;
            let what = format!("unix:{}", path.display());
            let listener = UnixListener::bind(path).map_err(|error| in_use(&what, &error))?;
            Some(listener.into())
        }
        Some(NbdListen::Tcp(address)) => Some(tcp_listener(*address, "NBD address tcp:")?),
    })
}

/// Listens for a VMM that speaks vhost-user.
///
/// # Errors
/// As [`nbd_listener`].
pub(super) fn vhost_listener(common: &Common, index: usize) -> Result<Option<OwnedFd>, StartError> {
    let path = common.vhost_user.get(index);
    nbd_listener(path.map(|path| NbdListen::Unix(path.clone())).as_ref())
}

/// Removes a socket file that nobody listens on any more.
fn replace_dead_socket(path: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::FileTypeExt;
    use std::os::unix::net::UnixStream;
    let Ok(known) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !known.file_type().is_socket() {
        let text = format!(
            "{} exists and is no socket: give another path",
            path.display()
        );
        return Err(StartError::new(ExitCode::AddressInUse, text));
    }
    if UnixStream::connect(path).is_ok() {
        let text = format!(
            "cannot listen on unix:{}: another process does: stop it, or give another path",
            path.display()
        );
        return Err(StartError::new(ExitCode::AddressInUse, text));
    }
    std::fs::remove_file(path).map_err(|error| in_use(&path.display().to_string(), &error))
}

fn tcp_listener(address: SocketAddr, what: &str) -> Result<OwnedFd, StartError> {
    let listener = patiently(|| {
        TcpListener::bind(address).map_err(|error| in_use(&format!("{what}{address}"), &error))
    })?;
    if let Ok(bound) = listener.local_addr() {
        tracing::info!("listening on {what}{bound}");
    }
    Ok(listener.into())
}

/// Listens for primaries.
///
/// # Errors
/// As [`nbd_listener`]; or the name leads beyond this host and that was not said to be meant.
pub(super) fn link_listener(listen: &ListenAddr, insecure: bool) -> Result<OwnedFd, StartError> {
    let address = match listen {
        ListenAddr::Addr(address) => *address,
        ListenAddr::Name(name) => {
            let found = (name.host.to_string(), name.port)
                .to_socket_addrs()
                .map_err(|error| in_use(&name.to_string(), &error))?
                .next();
            let address = found.ok_or_else(|| {
                StartError::new(ExitCode::Usage, format!("{name} has no address"))
            })?;
            if !address.ip().is_loopback() && !insecure {
                return Err(StartError::new(
                    ExitCode::Usage,
                    format!(
                        "{name} is {address}, which is beyond this host: say --insecure-plaintext, \
                         or listen on 127.0.0.1"
                    ),
                ));
            }
            address
        }
    };
    tcp_listener(address, "link address ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon restarted right after it was killed must come up: its dead predecessor may hold
    /// the address a moment longer. One that is really in use is told of.
    #[test]
    fn an_address_that_becomes_free_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd");
        let old = UnixListener::bind(&path).unwrap();
        let mut old = Some(old);
        let mut attempts = 0;
        patiently(|| {
            attempts += 1;
            if attempts == 3 {
                old = None;
            }
            replace_dead_socket(&path)
        })
        .unwrap();
        assert_eq!(attempts, 3);
        let _living = UnixListener::bind(&path).unwrap();
        let error = nbd_listener(Some(&NbdListen::Unix(path))).unwrap_err();
        assert_eq!(error.code, ExitCode::AddressInUse);
    }
}
