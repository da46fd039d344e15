//! The engine of one volume, in either role.
//!
//! Pure: an event and the time go in, effects come out. One I/O thread owns the engine of its
//! volume; the simulator drives the same code. The group ([`crate::group`]) decides what concerns
//! all volumes of a virtual machine: epochs, commits, protection, promotion. It and the engines
//! meet in the messages below.

pub mod apply;
pub mod backup;
pub mod builder;
pub mod primary;
pub mod ranges;

use crate::io::{IoId, Memory, Op, Reply};
use blkback_proto::ids::{Epoch, GroupUuid, LineageId, SessionId, VolumeUuid};
use blkback_proto::link::{Frame, RefuseCode};

/// A moment in nanoseconds since some fixed one; never goes back.
pub type Nanos = u64;

/// Who a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Group.
    pub group: GroupUuid,
    /// Volume.
    pub volume: VolumeUuid,
    /// Which volume of the group, from 0.
    pub volume_index: u16,
    /// Number of volumes of the group.
    pub volume_count: u16,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// What goes out on a link, in order.
pub enum Outgoing<M: Memory> {
    /// A control frame.
    Frame(Frame),
    /// A record: header, payloads and padding, to be sent one behind the other.
    Record(Vec<M::Buf>),
}

impl<M: Memory> std::fmt::Debug for Outgoing<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Frame(frame) => write!(f, "{frame:?}"),
            Self::Record(bufs) => {
                write!(
                    f,
                    "record of {} bytes",
                    bufs.iter().map(|b| b.as_ref().len()).sum::<usize>()
                )
            }
        }
    }
}

/// What an engine wants done.
#[derive(Debug)]
pub enum Effect<M: Memory> {
    /// A storage operation; [`crate::io::Done`] comes back.
    Io(IoId, Op<M>),
    /// The answer to a request of a front end.
    Reply(Reply<M>),
    /// Something for the peer.
    Send(Outgoing<M>),
    /// The connection ends once what was sent before is out.
    CloseLink,
    /// Something for the group.
    Group(ToGroup),
}

/// How writes stand while the group is in some state of protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Nobody holds a copy, durably known: writes complete when they are in the image.
    Unprotected,
    /// The backup follows: writes complete by ack mode.
    Protected,
    /// Writes wait: the loss of protection is being made durable, or policy says so.
    Blocked,
}

/// From the group to a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToVolume {
    /// Primary: hold completions until the thaw that comes with [`ToVolume::Seal`].
    Prepare,
    /// Primary: the writes from now on belong to the epoch after this one.
    Cut {
        /// The epoch that ends.
        epoch: Epoch,
        /// The epoch that begins: the one after, or further on when a backup knows higher ones.
        next: Epoch,
    },
    /// Primary: every volume has cut; seal the epoch and let completions go.
    Seal {
        /// The epoch that ended.
        epoch: Epoch,
        /// Some volume of the group wrote in it.
        group_wrote: bool,
        /// The sealed epoch before it in which some volume wrote.
        base: Epoch,
        /// When it was cut.
        cut_unix_ns: u64,
    },
    /// Primary: the hypervisor is about to drain; waiting writes may use the reserve.
    Drain,
    /// Primary: the histories, oldest first, as made durable by the group.
    Lineage(Vec<(LineageId, Epoch)>),
    /// Primary: how writes stand from now on.
    Protect(Protection),
    /// Primary: every volume of the group is connected; images that may differ are compared now. Not before:
    /// of a volume that follows alone no epoch is ever committed, and its window would fill up.
    Compare,
    /// Primary: output up to this epoch was let go.
    Released(Epoch),
    /// Both: end the session, for this reason.
    DropLink(String),
    /// Primary: the group cannot go on; every request is answered with an error from now on.
    Fail(String),
    /// Backup: answer this hello with a welcome; the history it brings is durable.
    Accept {
        /// Which hello.
        session: SessionId,
        /// Current history of the primary.
        lineage: LineageId,
        /// First epoch this session may bring.
        epoch: Epoch,
        /// The images must be compared.
        sync: bool,
    },
    /// Backup: refuse this hello.
    Refuse(RefuseCode, String),
    /// Backup: the group has this epoch whole.
    Commit(Epoch),
    /// Backup: end the session, take nothing more, and say what is sealed.
    Fence,
    /// Backup: the promotion came to nothing; a primary may connect again.
    Unfence,
    /// Backup: be the primary from this epoch on, under this lineage.
    Promote {
        /// Last epoch that counts.
        epoch: Epoch,
        /// New history.
        lineage: LineageId,
    },
}

/// From a volume to the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToGroup {
    /// Primary: holds completions.
    Prepared,
    /// Primary: the backup has seen epochs up to this one; the session begins above it.
    NeedEpoch(Epoch),
    /// Primary: has cut.
    CutDone {
        /// The epoch that ended.
        epoch: Epoch,
        /// This volume wrote in it.
        wrote: bool,
    },
    /// Primary: somebody waits for a commit, or the journal window runs low.
    WantCut,
    /// Primary: the backup took us in.
    LinkUp {
        /// The images must be compared first.
        sync_needed: bool,
    },
    /// Primary: everything that differed was sent; equal at the commit of this epoch.
    SyncSent(Epoch),
    /// Primary: the backup is so far.
    Acked {
        /// Durable for this volume.
        durable: Epoch,
        /// Committed for the group.
        committed: Epoch,
        /// In the image of the backup.
        applied: Epoch,
    },
    /// Primary: writes have waited for window space for too long.
    PressureTimeout,
    /// Primary: the backup does not want us.
    Refused(RefuseCode, String),
    /// Both: the session is over.
    LinkLost(String),
    /// Both: the store of this volume failed for good.
    Failed(String),
    /// Backup: a primary wants in.
    Hello(Box<blkback_proto::link::Hello>),
    /// Backup: the session is set up and durable.
    SessionUp,
    /// Backup: the image is being compared and copied: no epoch from now on.
    Inconsistent,
    /// Backup: all of this epoch is on stable storage here.
    Sealed(Epoch),
    /// Backup: the image is an epoch again, from this one on.
    Consistent(Epoch),
    /// Backup: fenced; nothing above this epoch is sealed here.
    Fenced {
        /// Highest sealed epoch.
        sealed: Epoch,
        /// Highest epoch that had begun to arrive.
        begun: Epoch,
    },
    /// Backup: serves as primary.
    Serving,
    /// Backup: the journal is drained; the image alone is the volume.
    Drained,
}
