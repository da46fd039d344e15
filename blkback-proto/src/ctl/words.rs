//! The closed word lists of the protocol: modes, roles, states, event kinds, error codes.
//!
//! Each list stands once and gives the enum, its wire word and its reading. A word that this
//! version does not know is kept as it came, so that an old client can still show it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! words {
    (
        $(#[$meta:meta])*
        $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
            /// A word of a newer minor version, kept as it came.
            Other(String),
        }

        impl $name {
            /// Every word of this version, in the order of the enum.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word as it stands in the JSON.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)+
                    Self::Other(word) => word,
                }
            }
        }

        impl From<&str> for $name {
            fn from(word: &str) -> Self {
                match word {
                    $($word => Self::$variant,)+
                    _ => Self::Other(word.to_owned()),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = String::deserialize(deserializer)?;
                Ok(Self::from(word.as_str()))
            }
        }
    };
}

words! {
    /// Side of a group at a moment.
    Role {
        /// The guest writes here.
        Primary = "primary",
        /// Holds the last committed epoch.
        Backup = "backup",
    }
}

words! {
    /// How well a group is protected right now.
    GroupState {
        /// Starting: recovery, first connection.
        Starting = "starting",
        /// The backup acknowledges epochs.
        Protected = "protected",
        /// The backup was lost; that is being made durable.
        Degrading = "degrading",
        /// Runs on without the backup, by the loss policy; differences are being noted.
        Degraded = "degraded",
        /// Runs without a backup: none was given, or none has taken this side in since the start.
        Standalone = "standalone",
        /// The other side is being made equal.
        Resyncing = "resyncing",
        /// The data here is a mix of epochs and must not be used.
        Inconsistent = "inconsistent",
        /// Writes are held, by the loss policy or because a side failed.
        Paused = "paused",
        /// A backup that has a usable epoch and no primary connected.
        WaitingForPrimary = "waiting-for-primary",
        /// A backup that follows its primary.
        Following = "following",
        /// A primary whose backup has not yet connected since the start.
        WaitingForBackup = "waiting-for-backup",
        /// The last acknowledged epoch may be damaged; an operator decides.
        Suspect = "suspect",
        /// A backup that is becoming primary.
        Promoting = "promoting",
        /// A backup that became primary.
        Promoted = "promoted",
        /// A former primary: its backup was promoted and holds the current disk.
        Superseded = "superseded",
        /// Both sides have a history of their own.
        SplitBrain = "split-brain",
        /// Ending: draining what is in flight.
        Stopping = "stopping",
        /// Stopped by a failure of its own disk, journal or state.
        Failed = "failed",
    }
}

words! {
    /// State of one volume.
    VolumeState {
        /// Same committed epoch on both sides.
        InSync = "in-sync",
        /// Differs from the other side by more than the epochs in flight.
        Dirty = "dirty",
        /// Is being compared and copied.
        Syncing = "syncing",
        /// The image here is a mix of epochs.
        Inconsistent = "inconsistent",
        /// A record of the last acknowledged epoch is damaged.
        Suspect = "suspect",
        /// Image or journal failed; final for this store.
        Failed = "failed",
        /// No other side: standalone, or not yet connected.
        Alone = "alone",
    }
}

words! {
    /// State of the link to the peer.
    LinkState {
        /// No peer is configured.
        Absent = "absent",
        /// A backup waits for a connection.
        Listening = "listening",
        /// A primary is trying to connect.
        Connecting = "connecting",
        /// Connected, identities and lineages being compared.
        Handshake = "handshake",
        /// Session is up.
        Up = "up",
        /// Lost; a new attempt follows.
        Down = "down",
        /// The peer was refused, or refused us; an operator decides.
        Refused = "refused",
    }
}

words! {
    /// How the guest of a volume that is served by vhost-user stands.
    GuestState {
        /// No VMM is connected.
        Waiting = "waiting",
        /// A VMM is connected.
        Connected = "connected",
        /// A queue was stopped because its driver broke the rules.
        Broken = "broken",
    }
}

words! {
    /// State of the output of a guest.
    NetState {
        /// Nothing is held.
        Open = "open",
        /// What is said now is held; everything before is out.
        Holding = "holding",
        /// An epoch is cut and waits for its release.
        Cut = "cut",
        /// Nothing is released, on somebody's word.
        Held = "held",
        /// Found after a restart, and held.
        Adopted = "adopted",
        /// Something did not do as ordered; its output is dropped.
        Failed = "failed",
    }
}

words! {
    /// What holds the frames of a guest.
    NetMechanism {
        /// The kernel's `sch_plug` behind an IFB.
        Plug = "plug",
        /// A thread of the daemon between the interface and its bridge.
        Relay = "relay",
    }
}

words! {
    /// Which of the two daemons of a guest.
    GuestSide {
        /// Beside the running guest.
        Primary = "primary",
        /// Where it would go on.
        Standby = "standby",
    }
}

words! {
    /// How a guest with its memory is protected.
    GuestProtection {
        /// Something that protection needs is missing, or a standby has no primary.
        Waiting = "waiting",
        /// All of its memory is copied once, while it runs.
        Copying = "copying",
        /// The backup has its last checkpoints.
        Protected = "protected",
        /// It runs, and what it says is held.
        Held = "held",
        /// It runs alone, on the authority's word.
        Open = "open",
        /// It is off, and the backup is being told.
        Ending = "ending",
        /// Protection has ended here.
        Over = "over",
        /// A standby that takes checkpoints in.
        Following = "following",
        /// A standby that has lost its primary, and waits for a word.
        Lost = "lost",
        /// A standby that is becoming primary.
        Promoting = "promoting",
        /// A standby whose promotion was decided and is not done: the guest is this host's, and runs nowhere.
        Unfinished = "unfinished",
        /// The guest goes on here.
        Promoted = "promoted",
        /// Stopped by a failure of its own.
        Failed = "failed",
    }
}

words! {
    /// How the state of a guest's devices is read.
    StatePath {
        /// `xen-save-devices-state`.
        XenSave = "xen-save",
        /// A migration that leaves shared memory out.
        Migrate = "migrate",
    }
}

words! {
    /// How written pages are found.
    TrackerKind {
        /// Write protection by userfaultfd, read by PAGEMAP_SCAN.
        Uffd = "uffd",
        /// The kernel's soft-dirty bits.
        SoftDirty = "soft-dirty",
        /// All pages against a copy.
        Compare = "compare",
    }
}

words! {
    /// How the time between two checkpoints is chosen.
    IntervalMode {
        /// It is what was set.
        Fixed = "fixed",
        /// It keeps the pauses to a share of the time.
        Adaptive = "adaptive",
    }
}

words! {
    /// When a write is answered.
    AckMode {
        /// After the local write.
        Local = "local",
        /// After the local write; FLUSH and FUA after everything before them is sealed.
        Flush = "flush",
        /// After the backup has it durably.
        Write = "write",
    }
}

words! {
    /// Whether others can see writes before they are committed.
    OutputClass {
        /// Everything the guest says is held until the commit.
        Held = "held",
        /// Others may see writes before they are committed.
        Open = "open",
    }
}

words! {
    /// What an event is about.
    EventKind {
        /// The daemon is up.
        DaemonStarted = "daemon-started",
        /// The daemon is ending.
        DaemonStopping = "daemon-stopping",
        /// The group changed its state.
        GroupState = "group-state",
        /// A volume changed its state; `volume` in the detail.
        VolumeState = "volume-state",
        /// The link changed its state.
        LinkState = "link-state",
        /// The group changed its role.
        RoleChanged = "role-changed",
        /// The guest of a volume came, went or broke the rules; `volume` in the detail.
        GuestState = "guest-state",
        /// A new lineage began.
        LineageAdded = "lineage-added",
        /// A promotion was done.
        Promoted = "promoted",
        /// A promotion was refused.
        PromotionRefused = "promotion-refused",
        /// A peer was refused.
        PeerRefused = "peer-refused",
        /// The loss policy was applied or lifted.
        LossPolicy = "loss-policy",
        /// A bound was reached or left.
        LimitReached = "limit-reached",
        /// A disk failed a request.
        IoError = "io-error",
        /// A bad or missing record was found.
        JournalDamage = "journal-damage",
        /// The output of a guest changed its state.
        NetState = "net-state",
        /// A network device of a guest came, went, was renamed or adopted; `interface` in the detail.
        NetInterface = "net-interface",
        /// Where a guest now is was announced.
        NetAnnounced = "net-announced",
        /// The protection of a guest changed its state.
        GuestProtection = "guest-protection",
        /// A checkpoint was given up; `epoch` in the detail where it had a number.
        GuestEpochGivenUp = "guest-epoch-given-up",
        /// A guest goes on here; `epoch` and `lineage` in the detail.
        GuestPromoted = "guest-promoted",
        /// A guest switched itself off, or its protection was ended.
        GuestEnded = "guest-ended",
    }
}

words! {
    /// Why a request was not done.
    ErrorCode {
        /// No version in common, or a frame of another version than agreed.
        UnsupportedVersion = "unsupported-version",
        /// The packet was no frame; the connection is closed.
        BadFrame = "bad-frame",
        /// The frame was well formed, its body was not; the connection goes on.
        BadRequest = "bad-request",
        /// This daemon does not do such requests.
        Unsupported = "unsupported",
        /// The user of the client may not control this daemon.
        NotPermitted = "not-permitted",
        /// The limit of clients is reached.
        TooManyClients = "too-many-clients",
        /// The daemon is ending.
        ShuttingDown = "shutting-down",
        /// The daemon failed to answer.
        Internal = "internal",
        /// What was waited for did not happen in time.
        TimedOut = "timed-out",
        /// There is no backup to commit with.
        NoBackup = "no-backup",
        /// A disk, journal or state file failed.
        IoError = "io-error",
        /// The request belongs to the other role.
        WrongRole = "wrong-role",
        /// The epoch named is not the one that is next.
        WrongEpoch = "wrong-epoch",
        /// Refused beside a living link unless forced.
        NeedsForce = "needs-force",
        /// Refused on suspect data unless the operator accepts it.
        NeedsAcceptSuspect = "needs-accept-suspect",
        /// Nobody but an operator can vouch for the other host.
        NeedsByHand = "needs-by-hand",
        /// The data is inconsistent; nothing can force it.
        Inconsistent = "inconsistent",
        /// Refused for the reason in the message.
        Refused = "refused",
    }
}

impl ErrorCode {
    /// True where the daemon understood and declined: repeating the same request will not help.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NotPermitted
                | Self::WrongRole
                | Self::WrongEpoch
                | Self::NeedsForce
                | Self::NeedsAcceptSuspect
                | Self::NeedsByHand
                | Self::Inconsistent
                | Self::Refused
        )
    }
}
