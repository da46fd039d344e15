//! Why a request about a guest's output was not done.

use crate::gate::Refusal;
use crate::install::InstallError;
use crate::netlink::NetlinkError;
use crate::relay::RelayError;
use std::io;

/// One line each: what, where, what to do instead.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The gate declined; nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// An order was not carried out: the interface is shut, and the gate has failed.
    #[error("{interface}: {what}; its output is dropped: detach it and attach it again")]
    OrderFailed { interface: String, what: String },
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("{interface}: {source}")]
    Relay {
        interface: String,
        #[source]
        source: RelayError,
    },
    #[error("{interface}: {what}: {source}")]
    Io {
        interface: String,
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("there is no network device {0}; attach one that `ip link` shows")]
    NoDevice(String),
    #[error("{0} is a port of no bridge; name the one it shall speak to with --bridge")]
    NoBridge(String),
    #[error("{0} is no bridge; name one that `ip link show type bridge` shows")]
    NotABridge(String),
    #[error("{interface} is of guest {guest}; detach it there first")]
    OtherGuest { interface: String, guest: String },
    #[error("{interface} is libxl's, for {path}: end xl remus first")]
    Libxls { interface: String, path: String },
    #[error("there are {1} {0}, the most there may be; detach one first")]
    TooMany(&'static str, usize),
    #[error("a relay's limit is set when it starts; end the daemon and start it with --limit")]
    LimitFixed,
    #[error("{what} {name:?} is not usable; type {want}")]
    BadName {
        what: &'static str,
        name: String,
        want: &'static str,
    },
}

impl HoldError {
    /// It was understood and declined: asking again will not help.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::NoDevice(_)
                | Self::NoBridge(_)
                | Self::NotABridge(_)
                | Self::OtherGuest { .. }
                | Self::Libxls { .. }
                | Self::LimitFixed
                | Self::TooMany(..)
                | Self::BadName { .. }
                | Self::Install(
                    InstallError::Foreign { .. }
                        | InstallError::NoInterface(_)
                        | InstallError::Shut(_)
                        | InstallError::OtherRoot { .. }
                )
        )
    }
}
