//! Addresses the daemons listen on: the link, and NBD.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use blkback_proto::diskspec::text::quoted;
use blkback_proto::diskspec::{Endpoint, SpecError};

/// Longest path of a Unix socket, in bytes: `sun_path` without its terminating NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Where a backup listens for its primary.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddr {
    /// An address; port 0 takes any free port, for tests.
    Addr(SocketAddr),
    /// A host name, or an IPv6 address with a zone, to be looked up when the socket is bound.
    Name(Endpoint),
}

impl ListenAddr {
    /// Whether nobody beyond this host can connect, by the text alone. Whoever looks a
    /// [`ListenAddr::Name`] up must check the address it finds as well.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Addr(addr) => addr.ip().to_canonical().is_loopback(),
            Self::Name(name) => name.is_loopback(),
        }
    }

    /// Whether a socket on `self` keeps one from being bound on `other`.
    pub fn clashes_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Addr(a), Self::Addr(b)) => addrs_clash(*a, *b),
            (Self::Name(a), Self::Name(b)) => a == b,
            _ => false,
        }
    }
}

/// Equal ports meet when the addresses are equal or one of them is every address.
pub(super) fn addrs_clash(a: SocketAddr, b: SocketAddr) -> bool {
    let every = |ip: IpAddr| ip.is_unspecified();
    let meet = a.ip() == b.ip() || every(a.ip()) || every(b.ip());
    a.port() == b.port() && a.port() != 0 && meet
}

impl From<Endpoint> for ListenAddr {
    fn from(endpoint: Endpoint) -> Self {
        match endpoint.ip() {
            Some(ip) => Self::Addr(SocketAddr::new(ip, endpoint.port)),
            None => Self::Name(endpoint),
        }
    }
}

impl FromStr for ListenAddr {
    type Err = SpecError;

    /// Reads `HOST[:PORT]`.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text.parse::<SocketAddr>() {
            Ok(addr) if addr.port() == 0 => Ok(Self::Addr(addr)),
            _ => text.parse::<Endpoint>().map(Self::from),
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// Where NBD clients are served.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NbdListen {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address; port 0 takes any free port, for tests.
    Tcp(SocketAddr),
}

/// Text that is no NBD address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NbdListenError {
    /// Neither `unix:` nor `tcp:`, or no IP address and port behind it.
    #[error(
        "{} is no address for NBD; give unix:/PATH or tcp:127.0.0.1:10809",
        quoted(text)
    )]
    Form { text: String },
    /// A path the kernel would resolve against the working directory, or would not take at all.
    #[error(
        "{} is no absolute path for a socket; give unix:/PATH of at most {max} bytes",
        quoted(path)
    )]
    Path { path: String, max: usize },
}

impl FromStr for NbdListen {
    type Err = NbdListenError;

    fn from_str(text: &str) -> Result<Self, NbdListenError> {
        let form = || NbdListenError::Form {
            text: text.to_owned(),
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return if is_socket_path(path) {
                Ok(Self::Unix(PathBuf::from(path)))
            } else {
                let max = SOCKET_PATH_BYTES_MAX;
                Err(NbdListenError::Path {
                    path: path.to_owned(),
                    max,
                })
            };
        }
        let addr = text.strip_prefix("tcp:").ok_or_else(form)?;
        let addr = match addr.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}").parse(),
            None => addr.parse(),
        };
        addr.map(Self::Tcp).map_err(|_| form())
    }
}

/// Whether the kernel can bind a socket at `path`, wherever the daemon stands.
pub(super) fn is_socket_path(path: &str) -> bool {
    let named = !matches!(path.rsplit('/').next(), Some("" | "." | ".."));
    let printable = !path.chars().any(char::is_control);
    path.starts_with('/') && named && printable && path.len() <= SOCKET_PATH_BYTES_MAX
}

impl fmt::Display for NbdListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(addr) => write!(f, "tcp:{addr}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // An address that prints otherwise than it reads makes --check-config lie.
    #[test]
    fn addresses_read_back() {
        for text in [
            "10.0.0.2:9000",
            "[fd00::2]:9000",
            "127.0.0.1:0",
            "backup.example:9000",
        ] {
            let listen: ListenAddr = text.parse().unwrap();
            assert_eq!(listen.to_string(), text);
        }
        assert_eq!(
            "10.0.0.2".parse::<ListenAddr>().unwrap().to_string(),
            "10.0.0.2:9000"
        );
        for text in ["unix:/run/x.sock", "tcp:127.0.0.1:10809", "tcp:[::1]:0"] {
            let listen: NbdListen = text.parse().unwrap();
            assert_eq!(listen.to_string(), text);
        }
        let localhost: NbdListen = "tcp:localhost:10809".parse().unwrap();
        assert_eq!(localhost.to_string(), "tcp:127.0.0.1:10809");
    }

    // A clash that is not seen here is EADDRINUSE at the second volume, after the first serves.
    #[test]
    fn clashes_are_seen_before_binding() {
        let clash = |a: &str, b: &str| {
            a.parse::<ListenAddr>()
                .unwrap()
                .clashes_with(&b.parse().unwrap())
        };
        assert!(clash("10.0.0.2:9000", "10.0.0.2"));
        assert!(clash("0.0.0.0:9000", "10.0.0.2:9000"));
        assert!(clash("h:9000", "H:9000"));
        assert!(!clash("10.0.0.2:9000", "10.0.0.2:9001"));
        assert!(!clash("10.0.0.2:9000", "10.0.0.3:9000"));
        assert!(!clash("127.0.0.1:0", "127.0.0.1:0"));
    }
}
