//! `HOST:PORT` as people type it: a name, an IPv4 address or a bracketed IPv6 address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::error::{SpecError, SpecErrorKind};
use super::{DEFAULT_LINK_PORT, Part};

/// Longest host name, in bytes (RFC 1035).
const HOST_BYTES_MAX: usize = 253;
/// Longest label of a host name, in bytes (RFC 1035).
const LABEL_BYTES_MAX: usize = 63;

/// Where a peer is reached. Equal endpoints print alike: names are lower case, addresses in
/// their canonical text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Host name or address, an IPv6 address without its brackets (`fe80::1%eth0` keeps its zone).
    pub host: String,
    /// TCP port, never 0.
    pub port: u16,
}

impl Endpoint {
    /// The host as an address, where it is one without a zone.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether the host is this machine's loopback by its text alone: an address of 127/8, `::1`,
    /// or `localhost`. Any other name counts as beyond, because it is not looked up here.
    pub fn is_loopback(&self) -> bool {
        match self.ip() {
            Some(ip) => ip.to_canonical().is_loopback(),
            None => self.host == "localhost" || self.host.ends_with(".localhost"),
        }
    }

    /// Reads `HOST[:PORT]`; the port is [`DEFAULT_LINK_PORT`] when absent.
    pub(super) fn read(part: Part<'_>) -> Result<Self, SpecError> {
        let (host, port) = match part.text.strip_prefix('[') {
            Some(_) => bracketed(part)?,
            None => plain(part)?,
        };
        let port = port.map_or(Ok(DEFAULT_LINK_PORT), port_number)?;
        Ok(Self { host, port })
    }
}

/// `[V6]` or `[V6]:PORT`; the port part comes back without its colon.
fn bracketed(part: Part<'_>) -> Result<(String, Option<Part<'_>>), SpecError> {
    let Some(close) = part.text.find(']') else {
        return Err(part.first(1).wrong(SpecErrorKind::Bracket));
    };
    let inside = part.sub(1, close);
    if inside.text.is_empty() {
        return Err(part.sub(0, close + 1).wrong(SpecErrorKind::EmptyHost));
    }
    let (address, zone) = match inside.text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (inside.text, None),
    };
    let zone_is_fine = zone.is_none_or(|zone| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        !zone.is_empty() && zone.len() <= LABEL_BYTES_MAX && zone.bytes().all(plain)
    });
    let Some(address) = address.parse::<Ipv6Addr>().ok().filter(|_| zone_is_fine) else {
        return Err(inside.wrong(SpecErrorKind::BadIpv6));
    };
    let host = match zone {
        Some(zone) => format!("{address}%{zone}"),
        None => address.to_string(),
    };
    let rest = part.from(close + 1);
    if rest.text.is_empty() {
        return Ok((host, None));
    }
    if !rest.text.starts_with(':') {
        return Err(rest.wrong(SpecErrorKind::BadIpv6));
    }
    Ok((host, Some(rest.from(1))))
}

/// `NAME`, `NAME:PORT`, `V4` or `V4:PORT`; the port part comes back without its colon.
fn plain(part: Part<'_>) -> Result<(String, Option<Part<'_>>), SpecError> {
    if let Some(at) = part.text.find(['[', ']']) {
        return Err(part.from(at).first(1).wrong(SpecErrorKind::Bracket));
    }
    let (host, port) = match part.text.split_once(':') {
        Some((_, port)) if port.contains(':') => {
            // `fd00::2` or `fd00::2:9000`; `a:1:2` is nobody's address.
            let v6 = part
                .text
                .bytes()
                .all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.');
            let kind = if v6 {
                SpecErrorKind::BareIpv6
            } else {
                SpecErrorKind::BadHost
            };
            return Err(part.wrong(kind));
        }
        Some((host, _)) => (part.first(host.len()), Some(part.from(host.len() + 1))),
        None => (part, None),
    };
    if host.text.is_empty() {
        return Err(host.wrong(SpecErrorKind::EmptyHost));
    }
    if !is_host(host.text) {
        return Err(host.wrong(SpecErrorKind::BadHost));
    }
    Ok((host.text.to_ascii_lowercase(), port))
}

/// Whether `text` is an IPv4 address or a host name; a name of digits and dots alone is neither.
fn is_host(text: &str) -> bool {
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return text.parse::<Ipv4Addr>().is_ok();
    }
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let edge = label.starts_with('-') || label.ends_with('-');
        !label.is_empty() && label.len() <= LABEL_BYTES_MAX && !edge && label.bytes().all(inner)
    };
    text.len() <= HOST_BYTES_MAX && text.split('.').all(label)
}

fn port_number(part: Part<'_>) -> Result<u16, SpecError> {
    // A sign is not a digit, though the standard parser takes one.
    if part.text.is_empty() || !part.text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(part.wrong(SpecErrorKind::PortDigits));
    }
    match part.text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(part.wrong(SpecErrorKind::PortRange)),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Endpoint {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        Self::read(Part::checked(text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::DiskSpec;
    use super::*;

    // Two spellings of one address would pass the check for two volumes on one port.
    #[test]
    fn hosts_have_one_spelling() {
        for (typed, host, printed) in [
            ("[fd00::2]:9001", "fd00::2", "[fd00::2]:9001"),
            ("[FD00:0:0:0:0:0:0:2]:9001", "fd00::2", "[fd00::2]:9001"),
            ("[fe80::1%eth0]:9001", "fe80::1%eth0", "[fe80::1%eth0]:9001"),
            ("[::1]", "::1", "[::1]:9000"),
            (
                "Backup.Example:9001",
                "backup.example",
                "backup.example:9001",
            ),
            ("db_1-b:1", "db_1-b", "db_1-b:1"),
            ("127.0.0.1:65535", "127.0.0.1", "127.0.0.1:65535"),
        ] {
            let endpoint: Endpoint = typed.parse().unwrap();
            assert_eq!(
                (endpoint.host.as_str(), endpoint.to_string().as_str()),
                (host, printed)
            );
            let disk = DiskSpec::parse(&format!("remus:{typed}|aio:/img")).unwrap();
            assert_eq!(disk.remote, Some(endpoint));
        }
    }

    // Plain text of a disk leaves the host when "loopback" is judged too generously.
    #[test]
    fn loopback_is_judged_by_text_alone() {
        for (typed, loopback) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("localhost:1", true),
            ("vm.localhost:1", true),
            ("localhost.example:1", false),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("10.0.0.2:1", false),
            ("[fe80::1%lo]:1", false),
        ] {
            assert_eq!(
                typed.parse::<Endpoint>().unwrap().is_loopback(),
                loopback,
                "{typed}"
            );
        }
    }
}
