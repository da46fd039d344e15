//! SOCK_SEQPACKET sockets: bind without a race or a moment of wrong mode, peers, packets.

use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
    bind, connect, listen, recv, send, socket_with,
};
use thiserror::Error;

use super::paths::RUNTIME_DIR;
use crate::lock::{FileLock, LockError};

/// Longest path of a Unix socket (unix(7): 108 bytes with the ending zero).
const PATH_BYTES_MAX: usize = 107;
const BACKLOG: i32 = 32;

/// Who is at the other end of a connection, as the kernel saw it when it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCred {
    /// Process id; 0 when the peer is outside this process's view.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Why a control socket cannot be had. One line each, for the user.
#[derive(Debug, Error)]
pub enum BindError {
    /// A daemon is serving there.
    #[error(
        "control socket {} is in use by {}: stop it, or type another --control PATH",
        path.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse { path: PathBuf, pid: Option<u32> },
    /// Something else has that name.
    #[error("{} exists and is not a socket: type another --control PATH", path.display())]
    NotASocket { path: PathBuf },
    /// The kernel takes no longer name.
    #[error(
        "control socket path {} has {} bytes, at most {PATH_BYTES_MAX} are possible: type a \
         shorter --control PATH", path.display(), path.as_os_str().len()
    )]
    PathTooLong { path: PathBuf },
    /// The directory is missing.
    #[error(
        "directory {} of the control socket does not exist: make it, or type another --control PATH",
        dir.display()
    )]
    NoDirectory { dir: PathBuf },
    /// Anything else, with what was being done.
    #[error("cannot {what} control socket {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// A control socket that is claimed: it has its name and its lock, and nobody can connect before
/// a server is started on it. Dropped, it is gone again.
#[derive(Debug)]
pub struct ControlSocket(pub(super) Listener);

impl ControlSocket {
    /// Takes the name.
    ///
    /// # Errors
    /// [`BindError`], one line for the user.
    pub fn claim(path: &Path) -> Result<Self, BindError> {
        Listener::bind(path).map(Self)
    }
}

/// A bound socket; its file goes when this is dropped, unless somebody else has replaced it.
#[derive(Debug)]
pub(super) struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket file.
    identity: (u64, u64),
    lock: FileLock,
}

impl Listener {
    /// Binds `path` with mode 0600; [`Listener::listen`] comes later.
    ///
    /// A lock beside the socket decides between two daemons that start at once; who holds it may
    /// replace the file a dead daemon left. The mode is set on the socket before it has a name, so
    /// there is no moment at which others could connect, whatever the umask.
    pub(super) fn bind(path: &Path) -> Result<Self, BindError> {
        let io_error = |what| {
            move |errno: Errno| BindError::Io {
                what,
                path: path.to_owned(),
                source: errno.into(),
            }
        };
        let address = address_of(path)?;
        make_directory(path)?;
        let lock = take_lock(path)?;
        clear_stale(path, &address)?;

        let fd = new_socket(SocketFlags::NONBLOCK).map_err(io_error("make"))?;
        fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(io_error("protect"))?;
        bind(&fd, &address).map_err(io_error("bind"))?;
        let identity = identity_of(path).map_err(|source| BindError::Io {
            what: "find",
            path: path.to_owned(),
            source,
        })?;
        let listener = Self {
            fd,
            path: path.to_owned(),
            identity,
            lock,
        };
        Ok(listener)
    }

    /// From now on clients can connect.
    pub(super) fn listen(&self) -> Result<(), BindError> {
        listen(&self.fd, BACKLOG).map_err(|errno| BindError::Io {
            what: "listen on",
            path: self.path.clone(),
            source: errno.into(),
        })
    }

    /// The next connection, or `None` when there is none waiting.
    pub(super) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::WOULDBLOCK | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if identity_of(&self.path).ok() == Some(self.identity) {
            // Left behind, it is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
        // Still locked: who waits for the lock sees that the file has lost its name.
        let _ = fs::remove_file(self.lock.path());
    }
}

fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn address_of(path: &Path) -> Result<SocketAddrUnix, BindError> {
    SocketAddrUnix::new(path).map_err(|_| BindError::PathTooLong {
        path: path.to_owned(),
    })
}

/// Makes the default directory; any other is the user's to make.
fn make_directory(path: &Path) -> Result<(), BindError> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => return Ok(()),
    };
    if dir == Path::new(RUNTIME_DIR) {
        fs::create_dir_all(dir).map_err(|source| BindError::Io {
            what: "make the directory of",
            path: path.to_owned(),
            source,
        })?;
    }
    if dir.is_dir() {
        Ok(())
    } else {
        Err(BindError::NoDirectory {
            dir: dir.to_owned(),
        })
    }
}

fn take_lock(path: &Path) -> Result<FileLock, BindError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    FileLock::lock_file(Path::new(&name)).map_err(|error| match error {
        LockError::Held { holder, .. } => BindError::InUse {
            path: path.to_owned(),
            pid: holder,
        },
        LockError::Io { source, .. } => BindError::Io {
            what: "lock",
            path: path.to_owned(),
            source,
        },
    })
}

/// Removes the socket file of a daemon that is dead. Called with the lock held.
fn clear_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), BindError> {
    let io_error = |what| {
        move |source| BindError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("look at")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    let probe = new_socket(SocketFlags::NONBLOCK).map_err(|e| io_error("probe")(e.into()))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => {
            fs::remove_file(path).map_err(io_error("replace"))
        }
        Ok(()) => {
            let pid = peer_cred(&probe)
                .ok()
                .map(|peer| peer.pid)
                .filter(|pid| *pid != 0);
            Err(BindError::InUse {
                path: path.to_owned(),
                pid,
            })
        }
        // A backlog that is full, or a listening socket of another type: somebody lives there.
        Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(BindError::InUse {
            path: path.to_owned(),
            pid: None,
        }),
        Err(errno) => Err(io_error("probe")(errno.into())),
    }
}

/// Whether a daemon lives behind this socket file, as far as can be told without speaking to it;
/// true also where this user may not connect. False for the file of a dead daemon.
pub fn somebody_listens(path: &Path) -> bool {
    let Ok(address) = SocketAddrUnix::new(path) else {
        return false;
    };
    let attempt = new_socket(SocketFlags::NONBLOCK).and_then(|probe| connect(&probe, &address));
    matches!(
        attempt,
        Ok(()) | Err(Errno::AGAIN | Errno::ACCESS | Errno::PERM)
    )
}

pub(super) fn new_socket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | flags,
        None,
    )
}

/// Credentials of the other end.
pub(super) fn peer_cred(fd: &impl AsFd) -> io::Result<PeerCred> {
    let mut cred = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut bytes = libc::socklen_t::try_from(mem::size_of_val(&cred)).expect("12 bytes");
    // SAFETY: cred is writable for `bytes` bytes and has no invalid bit patterns. The safe wrapper
    // cannot be used: its process id is non-zero by type, and a peer in another process namespace
    // has id 0.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut bytes,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(PeerCred {
        pid: u32::try_from(cred.pid).unwrap_or(0),
        uid: cred.uid,
        gid: cred.gid,
    })
}

/// One attempt to read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A packet of this many bytes is in the buffer.
    Packet(usize),
    /// A packet longer than the buffer was thrown away; its length.
    TooLong(usize),
    /// The other end is gone (or sent an empty packet, which looks the same).
    Closed,
    /// Nothing there.
    Nothing,
}

/// Reads one packet without waiting. Descriptors sent along are closed by the kernel.
pub(super) fn receive(fd: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let room = buffer.len();
    match recv(fd, buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
        Ok((_, 0)) => Ok(Received::Closed),
        Ok((_, bytes)) if bytes > room => Ok(Received::TooLong(bytes)),
        Ok((_, bytes)) => Ok(Received::Packet(bytes)),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(Received::Nothing),
        Err(errno) => Err(errno.into()),
    }
}

/// Sends one packet without waiting; false when the other end must read first.
pub(super) fn send_now(fd: &impl AsFd, packet: &[u8]) -> io::Result<bool> {
    match send(fd, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        // A packet goes whole or not at all.
        Ok(_) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR | Errno::NOBUFS) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
