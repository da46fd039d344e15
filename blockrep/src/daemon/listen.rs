//! The sockets a daemon listens on.

use super::files::words;
use super::startup::StartError;
use crate::cli::ExitCode;
use crate::config::{ListenAddr, NbdListen};
use socket2::{Domain, Socket, Type};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long an address may stay in use: the kernel frees the io_uring of a killed daemon, and with
/// it the sockets that still accept in it, some time after the process is gone.
const IN_USE_MAX: Duration = Duration::from_secs(2);
/// As messages name it.
const LINK: &str = "link address ";
/// Primaries that the kernel keeps until they are taken: one per volume is meant to come.
const LINK_BACKLOG: i32 = 16;
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(50);

/// Tries again while the address is in use.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, StartError>) -> Result<T, StartError> {
    let end = Instant::now() + IN_USE_MAX;
    loop {
        match attempt() {
            Err(error) if error.code == ExitCode::InUse && Instant::now() < end => {
                std::thread::sleep(RETRY);
            }
            other => return other,
        }
    }
}

fn in_use(what: &str, error: &std::io::Error) -> StartError {
    let code = if error.kind() == std::io::ErrorKind::AddrInUse {
        ExitCode::InUse
    } else {
        ExitCode::Other
    };
    let hint = match error.raw_os_error() {
        _ if code == ExitCode::InUse => ": stop what uses it, or give another",
        Some(libc::EADDRNOTAVAIL) => {
            ": it is no address of this host: `ip addr` shows which there are; give one of them"
        }
        Some(libc::EACCES | libc::EPERM) if what.starts_with("unix:") => {
            ": the user of this daemon may not make files in that directory: give another, or run the \
             daemon as its owner"
        }
        Some(libc::EACCES | libc::EPERM) => {
            ": ports below 1024 are for root: give a higher one, or run the daemon as root"
        }
        Some(_) => ": give another address",
        // What looks names up has no number of the kernel.
        None => ": is the name right, and does `getent hosts NAME` know it?",
    };
    StartError::new(
        code,
        format!("cannot listen on {what}: {}{hint}", words(error)),
    )
}

/// The file of a socket that this daemon made; it goes when this is dropped, unless somebody else
/// has replaced it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

fn identity_of(path: &Path) -> std::io::Result<(u64, u64)> {
    let known = std::fs::symlink_metadata(path)?;
    Ok((known.dev(), known.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity_of(&self.path).ok() == Some(self.identity) {
            // Left behind, it is replaced at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens for NBD clients.
///
/// # Errors
/// The address is in use, or no address of this host.
pub(super) fn nbd_listener(
    listen: Option<&NbdListen>,
) -> Result<Option<(OwnedFd, Option<SocketFile>)>, StartError> {
    Ok(match listen {
        None => None,
        Some(NbdListen::Unix(path)) => {
            let (listener, file) = unix_listener(path, "--nbd")?;
            Some((listener, Some(file)))
        }
        Some(NbdListen::Tcp(address)) => Some((tcp_listener(*address, "NBD address tcp:")?, None)),
    })
}

/// Listens for a VMM that speaks vhost-user.
///
/// # Errors
/// As [`nbd_listener`].
pub(super) fn vhost_listener(path: &Path) -> Result<(OwnedFd, SocketFile), StartError> {
    unix_listener(path, "--vhost-user")
}

fn unix_listener(path: &Path, flag: &str) -> Result<(OwnedFd, SocketFile), StartError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    if !dir.is_dir() {
        let text = format!(
            "cannot listen on unix:{}: there is no directory {}: make it, or give another {flag} \
             unix:/PATH",
            path.display(),
            dir.display()
        );
        return Err(StartError::new(ExitCode::Usage, text));
    }
    patiently(|| replace_dead_socket(path))?;
    let failed = |error| in_use(&format!("unix:{}", path.display()), &error);
    let listener = UnixListener::bind(path).map_err(failed)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity_of(path).map_err(failed)?,
    };
    Ok((listener.into(), file))
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
        return Err(StartError::new(ExitCode::InUse, text));
    }
    if UnixStream::connect(path).is_ok() {
        let text = format!(
            "cannot listen on unix:{}: another process does: stop it, or give another path",
            path.display()
        );
        return Err(StartError::new(ExitCode::InUse, text));
    }
    std::fs::remove_file(path).map_err(|error| in_use(&path.display().to_string(), &error))
}

fn tcp_listener(address: SocketAddr, what: &str) -> Result<OwnedFd, StartError> {
    let listener = patiently(|| {
        TcpListener::bind(address).map_err(|error| in_use(&format!("{what}{address}"), &error))
    })?;
    Ok(listener.into())
}

/// The address is this daemon's, and nobody can connect yet: until [`BoundLink::listen`], a primary is
/// told that the connection is refused, not left waiting for an answer to its hello.
#[derive(Debug)]
pub(super) struct BoundLink {
    socket: Socket,
    address: SocketAddr,
}

impl BoundLink {
    fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        Ok(Self { socket, address })
    }

    /// Takes connections from now on.
    ///
    /// # Errors
    /// Another program bound the address at the same moment and was faster.
    pub(super) fn listen(self) -> Result<OwnedFd, StartError> {
        let failed = |error| in_use(&format!("{LINK}{}", self.address), &error);
        self.socket.listen(LINK_BACKLOG).map_err(failed)?;
        let listener = self.socket.into();
        tell_address(LINK, &listener);
        Ok(listener)
    }
}

/// Logs the address of a TCP listener, which may have been given with port 0. Said when nothing can
/// keep the daemon from starting any more: an error stands alone.
pub(super) fn tell_address(what: &str, listener: &OwnedFd) {
    // The address of a Unix socket is no internet address, and everybody knows its path.
    let bound = listener
        .try_clone()
        .map(TcpListener::from)
        .and_then(|tcp| tcp.local_addr());
    if let Ok(bound) = bound {
        tracing::info!("listening on {what}{bound}");
    }
}

/// Claims the address on which primaries will be listened for.
///
/// # Errors
/// As [`nbd_listener`]; or the name leads beyond this host and that was not said to be meant.
pub(super) fn link_listener(listen: &ListenAddr, insecure: bool) -> Result<BoundLink, StartError> {
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
    patiently(|| {
        BoundLink::bind(address).map_err(|error| in_use(&format!("{LINK}{address}"), &error))
    })
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
        assert_eq!(error.code, ExitCode::InUse);
    }

    /// The kernel's words alone left the operator to guess.
    #[test]
    fn every_error_of_an_address_has_its_advice() {
        for (errno, what, code, word) in [
            (
                libc::EADDRNOTAVAIL,
                "link address 203.0.113.9:9",
                ExitCode::Other,
                "`ip addr`",
            ),
            (
                libc::EADDRINUSE,
                "link address 127.0.0.1:9",
                ExitCode::InUse,
                "stop what uses it",
            ),
            (
                libc::EACCES,
                "link address 127.0.0.1:80",
                ExitCode::Other,
                "below 1024",
            ),
            (
                libc::EACCES,
                "unix:/run/x.nbd",
                ExitCode::Other,
                "that directory",
            ),
        ] {
            let error = in_use(what, &std::io::Error::from_raw_os_error(errno));
            assert_eq!(error.code, code);
            assert!(error.to_string().contains(word), "{error}");
        }
        let error = in_use("nowhere:9", &std::io::Error::other("no such name"));
        assert!(error.to_string().contains("getent hosts"), "{error}");
    }

    /// A socket file that stays is one more thing to clean up by hand, and one that is removed
    /// under a successor cuts its clients off.
    #[test]
    fn the_own_socket_file_goes_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd");
        let address = NbdListen::Unix(path.clone());
        let listener = nbd_listener(Some(&address)).unwrap();
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
        let (_fd, file) = nbd_listener(Some(&address)).unwrap().unwrap();
        std::fs::rename(&path, dir.path().join("kept")).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());

        let address = NbdListen::Unix(dir.path().join("absent/nbd"));
        let error = nbd_listener(Some(&address)).unwrap_err();
        assert_eq!(error.code, ExitCode::Usage);
        let text = error.to_string();
        assert!(text.contains("there is no directory"), "{text}");
        assert!(text.contains("make it, or give another"), "{text}");
    }
}
