//! The keys by which libxl is answered: what this program needs of xenstore, and no more.

use std::io;
use std::time::Duration;

/// A key of libxl's directory for a device: the IFB whose plug it shall order.
pub const IFB: &str = "ifb";
/// `connected` or `error`.
pub const STATUS: &str = "hotplug-status";
/// Why not. libxl takes its presence for a failure, whenever it was written.
pub const ERROR: &str = "hotplug-error";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("xenstore cannot be reached: {0}; is xenstored running here?")]
    Unreachable(#[source] io::Error),
    #[error("xenstore: {what}: {source}")]
    Refused {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("xenstore: {what}: no answer within {} s", .after.as_secs())]
    Silent { what: String, after: Duration },
}

/// Every wait of it is bounded.
pub trait Store {
    /// # Errors
    /// [`StoreError`]; not for a key that is not there.
    fn read(&mut self, path: &str) -> Result<Option<String>, StoreError>;
    /// # Errors
    /// [`StoreError`].
    fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError>;
    /// With everything below it.
    ///
    /// # Errors
    /// [`StoreError`]; not for a key that is not there.
    fn remove(&mut self, path: &str) -> Result<(), StoreError>;
    /// The names in a directory; one that is not there has none.
    ///
    /// # Errors
    /// [`StoreError`].
    fn list(&mut self, path: &str) -> Result<Vec<String>, StoreError>;
}

#[cfg(test)]
pub(super) mod memory {
    use super::{Store, StoreError};
    use std::collections::BTreeMap;
    use std::io;

    /// In memory; as xenstore, a key makes the directories above it.
    #[derive(Debug, Default)]
    pub(crate) struct Memory {
        pub(crate) keys: BTreeMap<String, String>,
        /// What was changed, in its order: `+path value`, `-path`.
        pub(crate) log: Vec<String>,
        /// Writes of a key that ends like this fail.
        pub(crate) refuses: Option<&'static str>,
    }

    impl Store for Memory {
        fn read(&mut self, path: &str) -> Result<Option<String>, StoreError> {
            Ok(self.keys.get(path).cloned())
        }

        fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError> {
            if self.refuses.is_some_and(|end| path.ends_with(end)) {
                return Err(StoreError::Refused {
                    what: format!("write {path}"),
                    source: io::Error::from(io::ErrorKind::QuotaExceeded),
                });
            }
            let above = path.match_indices('/').skip(1);
            for directory in above.map(|(at, _)| &path[..at]) {
                self.keys.entry(directory.to_owned()).or_default();
            }
            self.keys.insert(path.to_owned(), value.to_owned());
            self.log.push(format!("+{path} {value}"));
            Ok(())
        }

        fn remove(&mut self, path: &str) -> Result<(), StoreError> {
            let below = format!("{path}/");
            let before = self.keys.len();
            self.keys
                .retain(|key, _| key != path && !key.starts_with(&below));
            if self.keys.len() < before {
                self.log.push(format!("-{path}"));
            }
            Ok(())
        }

        fn list(&mut self, path: &str) -> Result<Vec<String>, StoreError> {
            let below = format!("{path}/");
            let names = self.keys.keys().filter_map(|key| key.strip_prefix(&below));
            let own = names.filter(|name| !name.contains('/'));
            Ok(own.map(str::to_owned).collect())
        }
    }
}
