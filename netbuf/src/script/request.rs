//! What libxl asks: two variables of the environment and a word. Pure.

use crate::daemon::{LIMIT_BYTES_DEFAULT, LIMIT_BYTES_MAX, LIMIT_BYTES_MIN};
use crate::hold::check_device;
use blkback_proto::units::{human_bytes, parse_bytes};
use std::fmt;

/// The interface whose output is to be held.
pub const VIF: &str = "vifname";
/// Where libxl reads the answer.
pub const PATH: &str = "XENBUS_PATH";
/// At teardown, the IFB that libxl has read; it knows none where set-up failed.
pub const IFB: &str = "REMUS_IFB";
/// Ours: what is held at most. libxl hands its own environment on.
pub const LIMIT: &str = "NETBUF_LIMIT";

/// A domain's directory for one of its network devices: `/libxl/3/remus/netbuf/0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorePath {
    pub domain: u32,
    pub device: u32,
}

impl StorePath {
    /// Only as libxl writes it: one directory has one spelling, which is compared and kept.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split('/').collect();
        let ["", "libxl", domain, "remus", "netbuf", device] = words.as_slice() else {
            return None;
        };
        let path = Self {
            domain: domain.parse().ok()?,
            device: device.parse().ok()?,
        };
        (path.to_string() == text).then_some(path)
    }

    #[must_use]
    pub fn key(&self, name: &str) -> String {
        format!("{self}/{name}")
    }

    /// This directory and those above it that are made for it, from the inside out.
    #[must_use]
    pub fn directories(&self) -> [String; 3] {
        let remus = format!("/libxl/{}/remus", self.domain);
        [self.to_string(), format!("{remus}/netbuf"), remus]
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, device } = self;
        write!(f, "/libxl/{domain}/remus/netbuf/{device}")
    }
}

/// What is wanted, but for whether it is to be made or taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub vif: String,
    pub path: StorePath,
    pub limit_bytes: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("{0} is not set: this program is started by libxl; type xl remus -N with its path")]
    Missing(&'static str),
    #[error("{name} is {value:?}; {want}")]
    Unusable {
        name: &'static str,
        value: String,
        want: String,
    },
}

fn unusable(name: &'static str, value: &str, want: impl Into<String>) -> RequestError {
    RequestError::Unusable {
        name,
        value: value.chars().take(80).collect(),
        want: want.into(),
    }
}

impl Request {
    /// `variable`: one of the environment; an empty one is none.
    ///
    /// # Errors
    /// [`RequestError`], also for what is not UTF-8.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, RequestError> {
        let set = |name: &'static str| {
            variable(name)
                .filter(|value| !value.is_empty())
                .ok_or(RequestError::Missing(name))
        };
        let vif = set(VIF)?;
        if check_device(&vif).is_err() {
            let want = "it must be a network device's name, as `ip link` shows it";
            return Err(unusable(VIF, &vif, want));
        }
        let path = set(PATH)?;
        let parsed = StorePath::parse(&path);
        let want = "it must be /libxl/DOMAIN/remus/netbuf/DEVICE";
        Ok(Self {
            vif,
            path: parsed.ok_or_else(|| unusable(PATH, &path, want))?,
            limit_bytes: match set(LIMIT) {
                Ok(text) => limit(&text)?,
                Err(_) => LIMIT_BYTES_DEFAULT,
            },
        })
    }
}

fn limit(text: &str) -> Result<u32, RequestError> {
    let bytes = parse_bytes(text).ok();
    let within = |bytes: &u64| (LIMIT_BYTES_MIN..=LIMIT_BYTES_MAX).contains(bytes);
    let fits = bytes.filter(within).and_then(|bytes| bytes.try_into().ok());
    fits.ok_or_else(|| {
        let (min, max) = (human_bytes(LIMIT_BYTES_MIN), human_bytes(LIMIT_BYTES_MAX));
        unusable(LIMIT, text, format!("set it to {min} to {max}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(variables: &[(&str, &str)]) -> Result<Request, RequestError> {
        Request::read(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const GOOD: &str = "/libxl/3/remus/netbuf/0";

    #[test]
    fn what_libxl_sets_is_read() {
        let request = read(&[(VIF, "vif3.0"), (PATH, GOOD), (IFB, "ifb0")]).unwrap();
        assert_eq!(request.vif, "vif3.0");
        assert_eq!((request.path.domain, request.path.device), (3, 0));
        assert_eq!(request.path.to_string(), GOOD);
        assert_eq!(request.path.key("ifb"), "/libxl/3/remus/netbuf/0/ifb");
        assert_eq!(request.limit_bytes, LIMIT_BYTES_DEFAULT);
        let limited = read(&[(VIF, "a"), (PATH, GOOD), (LIMIT, "10MiB")]).unwrap();
        assert_eq!(limited.limit_bytes, 10 << 20);
    }

    /// A wrong path is another domain's keys, or the store's root.
    #[test]
    fn anything_else_is_refused_in_one_line() {
        let bad_paths = [
            "",
            "/",
            "/libxl",
            "/libxl/3/remus/netbuf",
            "/libxl/3/remus/netbuf/",
            "/libxl/3/remus/netbuf/0/",
            "/libxl/03/remus/netbuf/0",
            "/libxl/+3/remus/netbuf/0",
            "/libxl/-1/remus/netbuf/0",
            "/libxl/4294967296/remus/netbuf/0",
            "/libxl/3/remus/netbuf/0/../../../../local",
            "libxl/3/remus/netbuf/0",
            "/local/domain/3/remus/netbuf/0",
            "/libxl/3/remus/netbuf/0\n",
        ];
        for path in bad_paths {
            let error = read(&[(VIF, "vif3.0"), (PATH, path)])
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(PATH) && !error.contains('\n'), "{error}");
        }
        for vif in ["", "a/b", "vif 3", "0123456789abcdef", "a\nb"] {
            let error = read(&[(VIF, vif), (PATH, GOOD)]).unwrap_err().to_string();
            assert!(error.starts_with(VIF) && !error.contains('\n'), "{error}");
        }
        for text in ["0", "127KiB", "3GiB", "lots"] {
            let error = read(&[(VIF, "a"), (PATH, GOOD), (LIMIT, text)]).unwrap_err();
            assert!(error.to_string().starts_with(LIMIT), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_path_has_one_spelling(text in "/?(libxl|[0-9]{1,11}|remus|netbuf|[./+-])(/[a-z0-9]{0,6}){0,5}") {
            if let Some(path) = StorePath::parse(&text) {
                prop_assert_eq!(path.to_string(), text);
            }
        }

        #[test]
        fn every_domain_and_device_is_read_back(domain: u32, device: u32) {
            let path = StorePath { domain, device };
            prop_assert_eq!(StorePath::parse(&path.to_string()), Some(path));
        }
    }
}
