//! What is written at an IFB of ours (`IFLA_IFALIAS`), so that nothing has to stand on a disk.
//!
//! ```text
//!   vm1                      plug: the guest
//!   vm1 br0 0,1,0,0,0,0,0,0  relay: also the bridge the device was a port of, and its settings before
//!   - br0 0,1,0,0,0,0,0,0    detached while held: nobody's; how to give the device back
//! ```
//! Anything else was not written by us and is taken for no record.

use super::HoldError;
use crate::netlink::request::ALIAS_BYTES_MAX;
use blkback_proto::ctl::NET_DEVICE_BYTES_MAX;
use blkback_proto::ctl::NET_GUEST_BYTES_MAX;

const NOBODY: &str = "-";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) guest: Option<String>,
    /// Name of the bridge, and the device's settings before [`crate::relay::isolate`].
    pub(super) wired: Option<(String, String)>,
}

impl Record {
    pub(super) fn read(alias: &str) -> Self {
        let words: Vec<&str> = alias.split(' ').collect();
        let (guest, wired) = match words.as_slice() {
            [guest] => (*guest, None),
            [guest, bridge, was] if is_device(bridge) => {
                (*guest, Some(((*bridge).to_owned(), (*was).to_owned())))
            }
            _ => return Self::default(),
        };
        Self {
            guest: Some(guest.to_owned()).filter(|guest| check_guest(guest).is_ok()),
            wired,
        }
    }

    pub(super) fn write(&self) -> String {
        let guest = self.guest.as_deref();
        let text = match &self.wired {
            None => guest.unwrap_or_default().to_owned(),
            Some((bridge, was)) => format!("{} {bridge} {was}", guest.unwrap_or(NOBODY)),
        };
        assert!(
            text.len() <= ALIAS_BYTES_MAX,
            "64 + 15 + 16 bytes and spaces"
        );
        text
    }
}

/// What the kernel takes as the name of a device, without what would break a record.
fn is_device(name: &str) -> bool {
    (1..=NET_DEVICE_BYTES_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

/// # Errors
/// [`HoldError::BadName`].
pub fn check_device(name: &str) -> Result<(), HoldError> {
    if is_device(name) {
        return Ok(());
    }
    Err(HoldError::BadName {
        what: "device",
        name: name.chars().take(40).collect(),
        want: "1 to 15 letters, digits or signs, as `ip link` shows them",
    })
}

/// # Errors
/// [`HoldError::BadName`].
pub fn check_guest(name: &str) -> Result<(), HoldError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = (1..=NET_GUEST_BYTES_MAX).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain);
    if good {
        return Ok(());
    }
    Err(HoldError::BadName {
        what: "guest",
        name: name.chars().take(40).collect(),
        want: "1 to 64 letters, digits, '-', '_' or '.', beginning with a letter or digit",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name read back as another gives one guest's output to another's gate.
    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        for guest in [None, Some("vm1".to_owned()), Some("x".repeat(64))] {
            for wired in [None, Some(("br0".to_owned(), "0,1,0,0,0,0,0,0".to_owned()))] {
                let record = Record {
                    guest: guest.clone(),
                    wired,
                };
                assert_eq!(Record::read(&record.write()), record);
            }
        }
        for alias in ["uplink of rack 7", "-", "a b", "a b/c d", " ", "vm1\n", "ä"] {
            assert_eq!(Record::read(alias), Record::default(), "{alias:?}");
        }
    }
}
