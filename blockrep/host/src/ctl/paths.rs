//! Where control sockets lie when nobody says otherwise.

use std::path::PathBuf;

use thiserror::Error;

/// Directory of control sockets.
pub const RUNTIME_DIR: &str = "/run/blockrep";
/// Environment variable that replaces [`RUNTIME_DIR`].
pub const RUNTIME_DIR_VARIABLE: &str = "BLOCKREP_RUNTIME_DIR";
/// Longest group name that goes into a path.
const NAME_BYTES_MAX: usize = 64;
/// "x.backup" would share its path with the backup of "x", and so on.
const ENDS_OF_OTHERS: [&str; 3] = [".backup", ".checkpointer", ".standby"];

/// A group name that cannot be part of a path.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "group name \"{}\" is not usable: type 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' or '.', \
     beginning with a letter or digit, not ending in .backup, .checkpointer or .standby", name.escape_debug()
)]
pub struct NameError {
    /// As it was given.
    pub name: String,
}

/// The directory of control sockets of this process.
pub fn runtime_dir() -> PathBuf {
    std::env::var_os(RUNTIME_DIR_VARIABLE)
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| PathBuf::from(RUNTIME_DIR), PathBuf::from)
}

/// Default socket of the primary daemon of a group.
///
/// # Errors
/// [`NameError`] for a name that would leave the directory.
pub fn control_path(group: &str) -> Result<PathBuf, NameError> {
    Ok(runtime_dir().join(format!("{}.sock", checked(group)?)))
}

/// Default socket of the backup daemon of a group, so that both may run on one host.
///
/// # Errors
/// As [`control_path`].
pub fn control_path_of_backup(group: &str) -> Result<PathBuf, NameError> {
    Ok(runtime_dir().join(format!("{}.backup.sock", checked(group)?)))
}

fn checked(name: &str) -> Result<&str, NameError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = name.len() <= NAME_BYTES_MAX
        && !ENDS_OF_OTHERS.iter().any(|end| name.ends_with(end))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain);
    if good {
        Ok(name)
    } else {
        Err(NameError {
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group name with a slash would make a root daemon replace files anywhere.
    #[test]
    fn names_cannot_leave_the_directory() {
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a b",
            "a\n",
            "x.backup",
            "x.checkpointer",
            "x.standby",
            &"x".repeat(65),
        ] {
            assert!(control_path(bad).is_err(), "{bad:?}");
        }
        assert!(control_path("x.standby2").is_ok() && control_path("standby").is_ok());
        let path = control_path("vm-1.disk_a").unwrap();
        assert_eq!(path, runtime_dir().join("vm-1.disk_a.sock"));
        assert_ne!(path, control_path_of_backup("vm-1.disk_a").unwrap());
    }
}
