//! What a start makes for the first time, so that a start that fails leaves nothing behind.
//!
//! A state directory that a mistyped command line left would stand in the way of the right one.
//! Nothing that existed before is ever listed here, and the list is let go of before the first
//! thread runs: what it names is as blank as it was made. Dropped while the locks are held.

use std::path::{Path, PathBuf};

/// Files and directories made by this start, in the order of their making.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    made: Vec<PathBuf>,
}

impl Fresh {
    /// To be called before a file is made, or may be: one that exists is not ours to remove.
    pub(super) fn file(&mut self, path: &Path) {
        if is_absent(path) && !self.made.iter().any(|made| made == path) {
            self.made.push(path.to_owned());
        }
    }

    /// The same for a directory and its parents.
    pub(super) fn dir(&mut self, path: &Path) {
        let absent: Vec<&Path> = path.ancestors().take_while(|dir| is_absent(dir)).collect();
        for dir in absent.into_iter().rev() {
            self.file(dir);
        }
    }

    /// The start went well: everything stays.
    pub(super) fn keep(mut self) {
        self.made.clear();
    }
}

fn is_absent(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

impl Drop for Fresh {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            // A directory in which somebody else put something stays, and so does what cannot be
            // removed: the error of the start is the one to tell.
            let _ = std::fs::remove_file(path).or_else(|_| std::fs::remove_dir(path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A failed start that removed more than it made would be worse than one that left it.
    #[test]
    fn only_what_was_made_goes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("old")).unwrap();
        fs::write(at("old/kept"), "x").unwrap();
        let make = || {
            let mut fresh = Fresh::default();
            for name in ["old/kept", "old/new", "new/deep/meta"] {
                let path = at(name);
                fresh.dir(path.parent().unwrap());
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fresh.file(&path);
                fs::write(path, "x").unwrap();
            }
            fresh
        };
        drop(make());
        assert!(at("old/kept").exists() && !at("old/new").exists() && !at("new").exists());
        let fresh = make();
        fs::write(at("new/foreign"), "x").unwrap();
        drop(fresh);
        assert!(at("new/foreign").exists() && !at("new/deep").exists());
        make().keep();
        assert!(at("old/new").exists() && at("new/deep/meta").exists());
    }
}
