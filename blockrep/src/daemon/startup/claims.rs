//! Everything a daemon must have for itself: locks, addresses, control socket. Taken before the
//! first byte of state is written, and given back, with what was made for it, by a start that
//! fails.

use super::StartError;
use super::fresh::Fresh;
use crate::cli::ExitCode;
use crate::config::{Common, ListenAddr};
use crate::daemon::files::{self, FileError, Layout};
use crate::daemon::listen::{BoundLink, SocketFile, link_listener, nbd_listener, vhost_listener};
use crate::daemon::owner;
use blockrep_host::ctl::{BindError, ControlSocket};
use blockrep_host::lock::{FileLock, LockError};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::Path;

/// What names another place for the control socket; the default is for root only.
const CONTROL_FLAGS: &str =
    "--control PATH (the variable BLOCKREP_RUNTIME_DIR names a directory for all)";

/// Held until the daemon ends. What this start made goes first, then the sockets, and the locks
/// at last: fields are dropped in this order.
pub(super) struct Claims {
    pub(super) fresh: Fresh,
    pub(super) control: ControlSocket,
    pub(super) nbd: Option<OwnedFd>,
    pub(super) nbd_file: Option<SocketFile>,
    /// One for each volume, where vhost-user is served.
    pub(super) vhost: VecDeque<OwnedFd>,
    pub(super) vhost_files: Vec<SocketFile>,
    /// One for each volume of a backup.
    pub(super) links: Vec<BoundLink>,
    pub(super) locks: Vec<FileLock>,
}

/// Takes everything. `links` are the addresses of a backup, which has journals, too; a primary has
/// none.
pub(super) fn take(
    common: &Common,
    layout: &Layout,
    images: &[&Path],
    links: &[&ListenAddr],
) -> Result<Claims, StartError> {
    let mut locks = Vec::new();
    // Behind the locks, so that it is dropped before them.
    let mut fresh = Fresh::default();
    let state_lock = layout.state.join("lock");
    fresh.dir(&layout.state);
    files::make_dir_in_place(&layout.state).map_err(|error| error.or_give("--state"))?;
    fresh.file(&state_lock);
    let state = FileLock::lock_file(&state_lock);
    locks.push(state.map_err(|error| StartError::held("state directory", &layout.state, error))?);
    for image in images {
        let lock = FileLock::exclusive(image);
        locks.push(lock.map_err(|error| StartError::held("image", image, error))?);
    }
    for index in 0..links.len() {
        let dir = layout.journal_dir(index);
        fresh.dir(&dir);
        fresh.file(&dir.join("lock"));
        locks.push(owner::lock_journal(layout, index)?);
    }
    if let Some(dir) = common.control.parent() {
        files::make_dir_in_place(dir).map_err(|error| error.or_give(CONTROL_FLAGS))?;
    }
    let control = ControlSocket::claim(&common.control)?;
    let (nbd, nbd_file) = nbd_listener(common.nbd.as_ref())?.unzip();
    let vhost = common.vhost_user.iter().map(|path| vhost_listener(path));
    let (vhost, vhost_files) = vhost.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    let links = links
        .iter()
        .map(|address| link_listener(address, common.insecure_plaintext))
        .collect::<Result<_, _>>()?;
    Ok(Claims {
        fresh,
        control,
        nbd,
        nbd_file: nbd_file.flatten(),
        vhost,
        vhost_files,
        links,
        locks,
    })
}

impl StartError {
    /// Names what is in use by the name the operator knows, not by that of its lock.
    pub(in crate::daemon) fn held(what: &str, path: &Path, error: LockError) -> Self {
        let LockError::Held { holder, .. } = error else {
            return error.into();
        };
        let path = path.display();
        let who = holder.map_or_else(
            || "another process".to_owned(),
            |pid| format!("process {pid}"),
        );
        let text = format!("{what} {path} is in use by {who}: stop it first, or name another");
        Self::new(ExitCode::InUse, text)
    }
}

impl From<LockError> for StartError {
    fn from(error: LockError) -> Self {
        let code = match error {
            LockError::Held { .. } => ExitCode::InUse,
            LockError::Io { .. } => ExitCode::Store,
        };
        Self::new(code, error.to_string())
    }
}

impl From<BindError> for StartError {
    fn from(error: BindError) -> Self {
        let code = match error {
            BindError::InUse { .. } | BindError::NotASocket { .. } => ExitCode::InUse,
            BindError::PathTooLong { .. } | BindError::NoDirectory { .. } => ExitCode::Usage,
            BindError::Io { .. } => ExitCode::Other,
        };
        let text = error.to_string();
        match error {
            BindError::Io { .. } => FileError { text, code }.or_give(CONTROL_FLAGS).into(),
            _ => Self::new(code, text),
        }
    }
}
