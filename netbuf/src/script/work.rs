//! What is made for libxl, and taken away again. Everything here is done under the lock of scripts.

use super::mark::{self, Asker, Mark, Marked};
use super::request::Request;
use super::store::{ERROR, IFB, STATUS, Store, StoreError};
use super::twin;
use crate::gate::Order;
use crate::hold;
use crate::install::{
    self, Begin, InstallError, Root, Standing, carry_out, ifb_name, install_first, look, uninstall,
};
use crate::netlink::{Link, Netlink, NetlinkError, request};
use blockrep_host::lock::LockError;

/// Why it was not done. One line each.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("scripts wait for each other: {0}")]
    Lock(#[from] LockError),
    #[error(
        "there is no network device {0} in this network namespace; a driver domain's cannot be held here"
    )]
    NoDevice(String),
    #[error("{vif} is used by {asker} for {path}: end that first")]
    InUse {
        vif: String,
        asker: Asker,
        path: String,
    },
    #[error("{vif} is held by netbuf's daemon for {guest}: type netbuf detach {guest} {vif} first")]
    OfGuest { vif: String, guest: String },
    #[error("{vif} was held for a guest that is gone: netbuf cleanup lets it pass")]
    Nobodys { vif: String },
    #[error(
        "this kernel lacks what holding takes ({0}): it needs sch_plug, ifb, sch_ingress, cls_u32 and act_mirred"
    )]
    NoPlug(NetlinkError),
}

impl ScriptError {
    /// It was understood and declined: what is there is somebody else's.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::InUse { .. }
                | Self::OfGuest { .. }
                | Self::Nobodys { .. }
                | Self::Install(InstallError::Foreign { .. })
        )
    }
}

/// Holds the output of an interface from libxl's first message on; the name of the IFB that it is to order.
///
/// # Errors
/// [`ScriptError`]. Then nothing is left behind, and the store says why, but for what somebody else uses.
pub fn set_up(
    netlink: &mut Netlink,
    store: &mut dyn Store,
    request: &Request,
    asker: Asker,
    root: Root,
) -> Result<String, ScriptError> {
    let path = request.path;
    let done = place(netlink, store, request, asker, root).and_then(|name| {
        // Of an earlier time; libxl would take it for this one's.
        store.remove(&path.key(ERROR))?;
        store.write(&path.key(IFB), &name)?;
        store.write(&path.key(STATUS), "connected")?;
        Ok(name)
    });
    let error = match done {
        Err(error) if !matches!(error, ScriptError::InUse { .. }) => error,
        done => return done,
    };
    let undone = take_away(netlink, request, asker);
    let _ = store.remove(&path.key(IFB));
    let text = blkback_proto::ctl::one_line(&error.to_string());
    let told = store.write(&path.key(ERROR), &text);
    if let Err(unsaid) = told.and_then(|()| store.write(&path.key(STATUS), "error"))
        && !matches!(error, ScriptError::Store(_))
    {
        tracing::warn!("libxl is not told why: {unsaid}");
    }
    undone.and(Err(error))
}

fn place(
    netlink: &mut Netlink,
    store: &mut dyn Store,
    request: &Request,
    asker: Asker,
    root: Root,
) -> Result<String, ScriptError> {
    let vif = netlink.link(&request.vif)?;
    let vif = vif.ok_or_else(|| ScriptError::NoDevice(request.vif.clone()))?;
    if let Some(name) = make_room(netlink, request, &vif, asker)? {
        return Ok(name);
    }
    forget_lost(netlink, store, request)?;
    refuse_others(netlink, &vif)?;
    let twin = twin::of(netlink, &vif.name)?;
    if let Some(twin) = &twin {
        refuse_others(netlink, twin)?;
        twin::refuse_foreign(netlink, twin.index, 0)?;
    }
    let twin = twin.map_or(0, |twin| twin.index);
    let path = request.path;
    let mark = Mark { path, asker, twin };
    let placed = place_all(netlink, vif.index, &mark, root);
    placed
        .map(|()| ifb_name(vif.index))
        .map_err(|error| match error {
            // So the kernel says that it knows no such queue, filter or action.
            InstallError::Netlink(error)
                if error.is(libc::ENOENT) || error.is(libc::EOPNOTSUPP) =>
            {
                ScriptError::NoPlug(error)
            }
            error => error.into(),
        })
}

fn place_all(netlink: &mut Netlink, vif: u32, mark: &Mark, root: Root) -> Result<(), InstallError> {
    let ifb = install_first(netlink, vif, root, Begin::Open, 1)?;
    netlink.ask("mark the IFB", request::set_alias(ifb, &mark.write()))?;
    install::install(netlink, vif, root, Begin::Open)?;
    if mark.twin != 0 {
        twin::join(netlink, mark.twin, ifb)?;
    }
    Ok(())
}

/// What stands of an earlier set-up of this interface or this directory goes away, with what it holds; if the
/// same process asked for the same, it stays as it is, and its name comes back.
fn make_room(
    netlink: &mut Netlink,
    request: &Request,
    vif: &Link,
    asker: Asker,
) -> Result<Option<String>, ScriptError> {
    for found in mark::all(netlink)? {
        let (same_vif, same_path) = (found.vif == vif.index, found.mark.path == request.path);
        if !same_vif && !same_path {
            continue;
        }
        let again = same_path && found.mark.asker == asker;
        if !again {
            refuse_in_use(&request.vif, &found)?;
        }
        if again && same_vif && is_whole(netlink, &found)? {
            return Ok(Some(found.ifb.name));
        }
        clear(netlink, &found)?;
    }
    Ok(None)
}

fn refuse_in_use(vif: &str, found: &Marked) -> Result<(), ScriptError> {
    if !found.mark.asker.is_alive() {
        return Ok(());
    }
    Err(ScriptError::InUse {
        vif: vif.to_owned(),
        asker: found.mark.asker,
        path: found.mark.path.to_string(),
    })
}

fn is_whole(netlink: &mut Netlink, found: &Marked) -> Result<bool, ScriptError> {
    let standing = look(netlink, found.vif)?.standing();
    if !matches!(standing, Standing::Whole { .. }) {
        return Ok(false);
    }
    let twin = found.mark.twin;
    Ok(twin == 0
        || netlink.link_of(twin)?.is_none()
        || twin::is_joined(netlink, twin, found.ifb.index)?)
}

/// What the daemon holds, or held, is not to be taken from it.
fn refuse_others(netlink: &mut Netlink, vif: &Link) -> Result<(), ScriptError> {
    let Some(ifb) = netlink.link(&ifb_name(vif.index))? else {
        return Ok(());
    };
    let vif_name = vif.name.clone();
    if let Some(guest) = hold::guest_at(&ifb) {
        return Err(ScriptError::OfGuest {
            vif: vif_name,
            guest,
        });
    }
    match look(netlink, vif.index)?.standing() {
        Standing::Whole { .. } | Standing::Shut => Err(ScriptError::Nobodys { vif: vif_name }),
        Standing::Absent | Standing::Unfinished => Ok(()),
    }
}

/// Takes away what stands for this directory; what it holds is dropped. Of others nothing is touched.
///
/// # Errors
/// [`ScriptError::InUse`]: another process asked for it, and runs.
pub fn take_away(
    netlink: &mut Netlink,
    request: &Request,
    asker: Asker,
) -> Result<(), ScriptError> {
    for found in mark::all(netlink)? {
        if found.mark.path != request.path {
            continue;
        }
        if found.mark.asker != asker {
            refuse_in_use(&request.vif, &found)?;
        }
        clear(netlink, &found)?;
    }
    // Set-up was killed after its first step: the IFB has no mark, and nothing is redirected to it.
    if let Some(vif) = netlink.link(&request.vif)?
        && let Some(ifb) = netlink.link(&ifb_name(vif.index))?
        && ifb.alias.is_empty()
        && look(netlink, vif.index)?.standing() == Standing::Unfinished
    {
        uninstall(netlink, vif.index)?;
    }
    Ok(())
}

/// Ours by the key in the store, but its IFB was deleted by hand: the kernel drops what is redirected.
///
/// # Errors
/// What the kernel or the store refuses.
pub fn forget_lost(
    netlink: &mut Netlink,
    store: &mut dyn Store,
    request: &Request,
) -> Result<(), ScriptError> {
    let Some(name) = store.read(&request.path.key(IFB))? else {
        return Ok(());
    };
    let Some(vif) = netlink.link(&request.vif)? else {
        return Ok(());
    };
    if name != ifb_name(vif.index) || netlink.link(&name)?.is_some() {
        return Ok(());
    }
    if look(netlink, vif.index)?.orphaned {
        uninstall(netlink, vif.index)?;
    }
    if let Some(twin) = twin::of(netlink, &vif.name)?
        && twin::is_joined(netlink, twin.index, 0)?
    {
        twin::leave(netlink, twin.index, 0)?;
    }
    Ok(())
}

/// Takes one away. Its IFB goes down first, so nothing that it holds is let out.
///
/// # Errors
/// What the kernel refuses, or what of somebody else's stands there; the IFB is down then.
pub fn clear(netlink: &mut Netlink, found: &Marked) -> Result<(), InstallError> {
    carry_out(netlink, found.ifb.index, Order::Shut)?;
    if found.mark.twin != 0 {
        twin::leave(netlink, found.mark.twin, found.ifb.index)?;
    }
    uninstall(netlink, found.vif)
}

/// No key of ours stays, nor a directory that was made for one.
///
/// # Errors
/// What the store refuses.
pub fn forget_keys(store: &mut dyn Store, request: &Request) -> Result<(), StoreError> {
    for name in [IFB, STATUS, ERROR] {
        store.remove(&request.path.key(name))?;
    }
    for directory in request.path.directories() {
        if !store.list(&directory)?.is_empty() {
            break;
        }
        store.remove(&directory)?;
    }
    Ok(())
}
