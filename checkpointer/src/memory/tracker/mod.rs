//! Which pages of its memory a running guest has written, told from outside: the hypervisor is not changed and
//! does not help.
//!
//! Three ways, best first; [`choose`] takes the first that works here and says why.
//!
//! | kind | needs | a scan costs |
//! |---|---|---|
//! | userfaultfd | Linux 6.7, ptrace of the hypervisor once | by memory that is in use: about 0.4 ms per GiB |
//! | soft-dirty | a kernel with `CONFIG_MEM_SOFT_DIRTY` | by memory, several ms per GiB |
//! | compare | as much memory again as the guest has | by memory, about 130 ms per GiB |
//!
//! # In which order
//!
//! ```text
//!   arm (in slices) ─► pause, go on ─► copy everything, live ─► pause: scan, copy what is dirty, go on ─► …
//!                      │                └ copied, for each run
//!                      └ I/O that had begun before a page was armed has ended
//! ```
//!
//! Invariants:
//! - A page is armed before it is copied. What is written in between is told once too often, never missed.
//! - **Scans belong into a pause in which the hypervisor's I/O has drained** (QEMU's `stop` does that). A disk
//!   read without the page cache tells the kernel its pages when it begins; the device writes them later. A scan
//!   in between would tell such a page, watch it anew, and never learn of the write. The same goes for what
//!   was under way when a page was armed, hence one pause between arming and copying.
//! - After an error nothing is known: all pages count as dirty, and a tracker is chosen anew.
//!
//! Not seen by userfaultfd and soft-dirty: writes of other processes through mappings of their own (a vhost-user
//! back end, a child that was forked), of devices (VFIO, vDPA), by write(2) to the file, and holes that are
//! punched (a balloon: the page reads as zero afterwards, and may not be told). Whoever protects the guest refuses
//! such devices, or has the pages from whoever writes them.

mod compare;
mod failure;
pub mod inject;
mod kernel;
mod maps;
#[cfg(target_arch = "x86_64")]
mod ptrace;
mod soft_dirty;
mod uffd;

pub use failure::TrackerError;
pub use maps::find;

use super::dirty::Pages;
use super::ram::Mapping;
use std::fmt::Debug;
use std::sync::Arc;

/// Where a run of the guest's pages is mapped in the process that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    pub first_page: u64,
    pub pages: u64,
    /// In that process.
    pub address: u64,
}

/// How it is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Userfaultfd,
    SoftDirty,
    Compare,
}

impl Kind {
    /// Best first.
    pub const ALL: [Self; 3] = [Self::Userfaultfd, Self::SoftDirty, Self::Compare];

    /// As it stands in status and configuration.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Userfaultfd => "userfaultfd",
            Self::SoftDirty => "soft-dirty",
            Self::Compare => "compare",
        }
    }

    /// What it costs, for people.
    #[must_use]
    pub fn cost(self) -> &'static str {
        match self {
            Self::Userfaultfd => "under 1 ms of pause per GiB of memory in use",
            Self::SoftDirty => "several ms of pause per GiB of memory",
            Self::Compare => "over 100 ms of pause per GiB of memory, and as much memory again",
        }
    }

    /// The kind of that [`word`](Self::word).
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

/// Tells which pages were written. One thread has it; what must happen in which order stands above.
pub trait Tracker: Debug + Send {
    fn kind(&self) -> Kind;

    /// The pages of a run are watched from now on. A guest that runs waits for it a little: slices of some
    /// thousand pages keep that short.
    ///
    /// # Errors
    /// The process has gone, or the kernel's.
    fn arm(&mut self, first: u64, count: u64) -> Result<(), TrackerError>;

    /// Of the first copy: these bytes are what the caller has of the pages from `first` on. What a scan tells is
    /// copied within the same pause, and need not be told.
    fn copied(&mut self, first: u64, bytes: &[u8]);

    /// Every page written since it was armed or scanned last goes into `dirty`, and is watched anew. Pages that
    /// were never armed or copied may be told too.
    ///
    /// # Errors
    /// The process has gone, its memory is mapped otherwise, or the kernel's. Nothing is known then.
    fn scan(&mut self, dirty: &mut Pages) -> Result<(), TrackerError>;

    /// Nothing is watched any more and the process is as it was. Dropping it does the same.
    ///
    /// # Errors
    /// The kernel's.
    fn disarm(&mut self) -> Result<(), TrackerError>;
}

/// The best tracker that works here, or the one that is forced; and why this one, in words for status.
///
/// # Errors
/// The forced one does not work; or the process has gone.
pub fn choose(
    pid: u32,
    watched: &[Watched],
    mapping: &Arc<Mapping>,
    forced: Option<Kind>,
) -> Result<(Box<dyn Tracker>, String), TrackerError> {
    for part in watched {
        let end = part.first_page.checked_add(part.pages);
        if part.pages == 0 || end.is_none_or(|end| end > mapping.pages()) {
            return Err(TrackerError::Refused(format!(
                "pages {} and {} more are watched of a guest that has {}",
                part.first_page,
                part.pages,
                mapping.pages()
            )));
        }
    }
    if let Some(kind) = forced {
        return Ok((open(kind, pid, watched, mapping)?, "asked for".to_owned()));
    }
    let mut refusals = Vec::new();
    for kind in Kind::ALL {
        match open(kind, pid, watched, mapping) {
            Ok(tracker) if refusals.is_empty() => {
                return Ok((tracker, "the best there is".to_owned()));
            }
            Ok(tracker) => return Ok((tracker, refusals.join("; "))),
            Err(gone @ TrackerError::Gone(_)) => return Err(gone),
            Err(e) => refusals.push(format!("not {}: {e}", kind.word())),
        }
    }
    Err(TrackerError::Refused(refusals.join("; ")))
}

fn open(
    kind: Kind,
    pid: u32,
    watched: &[Watched],
    mapping: &Arc<Mapping>,
) -> Result<Box<dyn Tracker>, TrackerError> {
    Ok(match kind {
        Kind::Userfaultfd => Box::new(uffd::Uffd::attach(pid, watched)?),
        Kind::SoftDirty => Box::new(soft_dirty::SoftDirty::attach(pid, watched)?),
        Kind::Compare => Box::new(compare::Compare::new(Arc::clone(mapping))?),
    })
}
