//! The rules: what each wish makes of a record, or why it is refused. Pure: lineage and time come in.

use super::record::Record;
use blkback_proto::ctl::one_line;
use blkback_proto::ids::LineageId;
use thiserror::Error;

/// What a change is signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Fresh and random; not "none yet".
    pub lineage: LineageId,
    /// Why, for people.
    pub note: String,
    /// Now, Unix time.
    pub unix_ms: u64,
}

/// What the rules say to a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// This record is to be put in the place of the present one.
    Swap(Record),
    /// It is so already.
    Already,
}

/// Why the rules say no. One line each: what, and what to type.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// It was never protected.
    #[error(
        "{guest} has no record: it was never protected from here; start checkpointer protect at the host that runs it"
    )]
    NoRecord {
        /// Which guest.
        guest: String,
    },
    /// Another host is the primary: this host's guest must not run on.
    #[error("{guest} is {primary}'s since its record's generation {generation} ({note}); {next}")]
    OtherPrimary {
        /// Which guest.
        guest: String,
        /// Whose it is.
        primary: String,
        /// Of the record.
        generation: u64,
        /// Of the record.
        note: String,
        /// What to do.
        next: String,
    },
    /// This host's copy is not the newest: the primary went on alone.
    #[error(
        "{host} is not in sync: {primary} took it out, or never took it in ({note}), so {guest} has gone on at \
         {primary}; bring {primary} back and type blockrepctl guest status {guest} there"
    )]
    NotInSync {
        /// Which guest.
        guest: String,
        /// Who asked.
        host: String,
        /// Whose it is.
        primary: String,
        /// Of the record.
        note: String,
    },
    /// A primary cannot be promoted.
    #[error(
        "{host} is the primary of {guest} already, with {backup} as its backup; promote at {backup}, if at all"
    )]
    IsPrimary {
        /// Which guest.
        guest: String,
        /// Who asked.
        host: String,
        /// Who could be promoted.
        backup: String,
    },
    /// A host was given as its own backup.
    #[error(
        "{host} cannot be its own backup of {guest}: two hosts have one name; set `host` in one of the two files"
    )]
    Itself {
        /// Which guest.
        guest: String,
        /// The name.
        host: String,
    },
}

impl Refusal {
    /// Whether another host has the guest, or has gone on with it: what runs here must stop.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::OtherPrimary { .. } | Self::NotInSync { .. })
    }
}

/// What a change means for the host that is no part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// Nobody loses anything.
    Quiet,
    /// The guest is taken from its primary.
    Promote {
        /// The former primary.
        from: &'a str,
    },
    /// The guest will go on without its backup.
    Degrade {
        /// The former backup.
        out: &'a str,
    },
}

impl<'a> Change<'a> {
    /// Of one record into the next.
    #[must_use]
    pub fn between(old: &'a Record, new: &Record) -> Self {
        if old.primary != new.primary {
            return Self::Promote { from: &old.primary };
        }
        let gone = |host: &&String| !new.in_sync.contains(host);
        match old.in_sync.iter().find(gone) {
            Some(out) => Self::Degrade { out },
            None => Self::Quiet,
        }
    }
}

/// A guest begins at this host. A backup that is in stays in: what the guest says is to be held then.
///
/// # Errors
/// [`Refusal::OtherPrimary`].
pub fn claim(
    record: Option<&Record>,
    guest: &str,
    host: &str,
    stamp: &Stamp,
) -> Result<Ruling, Refusal> {
    match record {
        None => Ok(Ruling::Swap(Record {
            guest: guest.to_owned(),
            generation: 1,
            lineage: stamp.lineage,
            primary: host.to_owned(),
            in_sync: vec![host.to_owned()],
            note: one_line(&stamp.note),
            unix_ms: stamp.unix_ms,
        })),
        Some(record) if record.primary == host => Ok(Ruling::Already),
        Some(record) => Err(other_primary(record)),
    }
}

/// The output is held, and the backup has a whole checkpoint from since then: from now on the guest could go on there. Whoever was in
/// sync before is not any more, for it gets no checkpoints.
///
/// # Errors
/// [`Refusal::OtherPrimary`], [`Refusal::Itself`].
pub fn protect(
    record: &Record,
    host: &str,
    backup: &str,
    stamp: &Stamp,
) -> Result<Ruling, Refusal> {
    if record.primary != host {
        return Err(other_primary(record));
    }
    if host == backup {
        return Err(Refusal::Itself {
            guest: record.guest.clone(),
            host: host.to_owned(),
        });
    }
    let mut in_sync = vec![host.to_owned(), backup.to_owned()];
    in_sync.sort();
    if record.in_sync == in_sync {
        return Ok(Ruling::Already);
    }
    // The same primary goes on writing: its lineage stays.
    Ok(Ruling::Swap(Record {
        lineage: record.lineage,
        in_sync,
        ..after(record, stamp)
    }))
}

/// The guest goes on without its backup.
///
/// # Errors
/// [`Refusal::OtherPrimary`]: the backup has been promoted; the guest here is to be stopped.
pub fn degrade(record: &Record, host: &str, stamp: &Stamp) -> Result<Ruling, Refusal> {
    if record.primary != host {
        return Err(other_primary(record));
    }
    if record.is_alone(host) {
        return Ok(Ruling::Already);
    }
    Ok(Ruling::Swap(Record {
        in_sync: vec![host.to_owned()],
        ..after(record, stamp)
    }))
}

/// The guest goes on at a backup, which has stopped to acknowledge.
///
/// # Errors
/// [`Refusal::NotInSync`]: the primary has gone on alone; [`Refusal::IsPrimary`].
pub fn promote(record: &Record, host: &str, stamp: &Stamp) -> Result<Ruling, Refusal> {
    if record.is_alone(host) {
        return Ok(Ruling::Already);
    }
    if record.primary == host {
        return Err(Refusal::IsPrimary {
            guest: record.guest.clone(),
            host: host.to_owned(),
            backup: record.backup().unwrap_or("its backup").to_owned(),
        });
    }
    if !record.in_sync.iter().any(|name| name == host) {
        return Err(Refusal::NotInSync {
            guest: record.guest.clone(),
            host: host.to_owned(),
            primary: record.primary.clone(),
            note: record.note.clone(),
        });
    }
    Ok(Ruling::Swap(Record {
        primary: host.to_owned(),
        in_sync: vec![host.to_owned()],
        ..after(record, stamp)
    }))
}

/// After a swap that came too late: who has the guest, in one line.
#[must_use]
pub fn who_won(record: &Record, host: &str) -> String {
    let Record {
        guest,
        primary,
        generation,
        note,
        ..
    } = record;
    let what = if record.is_alone(host) {
        format!("{guest} is this host's, alone")
    } else if primary == host {
        format!("{guest} is still this host's, with a backup")
    } else if record.in_sync.iter().any(|name| name == host) {
        format!("{guest} is still {primary}'s, and this host is in sync")
    } else {
        format!("{primary} has {guest}, and this host must not run it")
    };
    one_line(&format!("{what} (generation {generation}: {note})"))
}

fn after(record: &Record, stamp: &Stamp) -> Record {
    assert!(!stamp.lineage.is_none(), "a stamp has a lineage of its own");
    let next = record.generation.checked_add(1);
    Record {
        generation: next.expect("2^64 changes outlast any guest"),
        lineage: stamp.lineage,
        note: one_line(&stamp.note),
        unix_ms: stamp.unix_ms,
        ..record.clone()
    }
}

fn other_primary(record: &Record) -> Refusal {
    let Record { guest, primary, .. } = record;
    Refusal::OtherPrimary {
        guest: guest.clone(),
        primary: primary.clone(),
        generation: record.generation,
        note: record.note.clone(),
        next: format!(
            "stop the guest here, and type blockrepctl guest status {guest} at {primary}"
        ),
    }
}
