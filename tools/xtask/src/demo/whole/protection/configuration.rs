//! What the two checkpointers are told, as TOML.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::stage::{BRIDGE, GUEST, MAC, TAP};

/// One side's file.
#[derive(Debug)]
pub(super) struct Side<'a> {
    pub(super) guest: &'a str,
    /// Name of this host at the authority.
    pub(super) host: &'a str,
    /// Control sockets of this host's disk daemon and netbuf.
    pub(super) disks: &'a Path,
    pub(super) output: &'a Path,
    pub(super) memory: Memory,
    /// The record, seen by both.
    pub(super) authority: &'a Path,
    pub(super) qemu: &'a Path,
    pub(super) memory_mib: u32,
    pub(super) arguments: &'a [String],
}

/// The way of the guest's memory, and what follows from the side.
#[derive(Debug)]
pub(super) enum Memory {
    /// To the backup's address.
    Backup {
        address: String,
        /// The standby's name at the authority.
        host: String,
        /// Adaptive, as it is by default, where none is given.
        interval_ms: Option<u64>,
        /// Cuts before that; 0 for none.
        early_ms: u64,
        /// The guest's memory.
        file: PathBuf,
    },
    /// Taken in at this address; it takes over by itself.
    Listen {
        address: String,
        /// Directory in memory for what was acknowledged.
        store: PathBuf,
        /// After this long without a word the primary counts as dead.
        silence_ms: Option<u64>,
    },
}

impl Side<'_> {
    pub(super) fn toml(&self) -> String {
        let mut text = String::new();
        let mut line = |words: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{words}");
        };
        line(&format!("guest = {}", quoted(self.guest)));
        line(&format!("host = {}", quoted(self.host)));
        line("\n[disks]");
        line(&format!("control = {}", path(self.disks)));
        line("\n[output]");
        line(&format!("control = {}", path(self.output)));
        line(&format!("interfaces = [{}]", quoted(TAP)));
        line(&format!("bridge = {}", quoted(BRIDGE)));
        line(&format!(
            "stations = [{{ interface = {}, mac = {}, addresses = [{}] }}]",
            quoted(TAP),
            quoted(MAC),
            quoted(&GUEST.to_string())
        ));
        line("\n[memory]");
        match &self.memory {
            Memory::Backup {
                address,
                host,
                interval_ms,
                early_ms,
                ..
            } => {
                line(&format!("backup = {}", quoted(address)));
                line(&format!("backup_host = {}", quoted(host)));
                line("\n[epochs]");
                line(&format!("early_ms = {early_ms}"));
                match interval_ms {
                    Some(ms) => line(&format!("interval_ms = {ms}")),
                    None => line("[epochs.adaptive]"),
                }
            }
            Memory::Listen {
                address,
                store,
                silence_ms,
            } => {
                line(&format!("listen = {}", quoted(address)));
                line(&format!("store = {}", path(store)));
                line("\n[standby]");
                line("promote = \"auto\"");
                if let Some(ms) = silence_ms {
                    line(&format!("silence_ms = {ms}"));
                }
            }
        }
        line("\n[authority]");
        line(&format!("file = {}", path(self.authority)));
        line("\n[qemu]");
        line(&format!("program = {}", path(self.qemu)));
        line(&format!("memory_mib = {}", self.memory_mib));
        if let Memory::Backup { file, .. } = &self.memory {
            line(&format!("memory_file = {}", path(file)));
        }
        let arguments: Vec<String> = self.arguments.iter().map(|word| quoted(word)).collect();
        line(&format!("args = [\n  {},\n]", arguments.join(",\n  ")));
        text
    }
}

/// A string of JSON is a basic string of TOML, too.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

fn path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    //! A file that says one side's words at the other, or breaks at a quote, ends a round before it began.

    use super::*;

    fn side(memory: Memory) -> String {
        Side {
            guest: "demo",
            host: "a",
            disks: Path::new("/run/a.ctl"),
            output: Path::new("/run/a.net"),
            memory,
            authority: Path::new("/run/authority"),
            qemu: Path::new("/usr/bin/qemu"),
            memory_mib: 256,
            arguments: &["-append".to_owned(), "say \"x\\y\"".to_owned()],
        }
        .toml()
    }

    #[test]
    fn each_side_has_its_own_words_and_strings_are_quoted() {
        let primary = side(Memory::Backup {
            address: "10.77.0.2:9100".to_owned(),
            host: "b".to_owned(),
            interval_ms: Some(25),
            early_ms: 5,
            file: PathBuf::from("/dev/shm/x/a"),
        });
        let standby = side(Memory::Listen {
            address: "10.77.0.2:9100".to_owned(),
            store: PathBuf::from("/dev/shm/x/b"),
            silence_ms: None,
        });
        for (text, words) in [
            (
                &primary,
                "backup_host = \"b\"\n\n[epochs]\nearly_ms = 5\ninterval_ms = 25\n",
            ),
            (&primary, "memory_file = \"/dev/shm/x/a\""),
            (&primary, "\"say \\\"x\\\\y\\\"\",\n]"),
            (&primary, "stations = [{ interface = \"tap0\", mac = "),
            (
                &standby,
                "store = \"/dev/shm/x/b\"\n\n[standby]\npromote = \"auto\"\n",
            ),
        ] {
            assert!(text.contains(words), "{words} in {text}");
        }
        assert!(!primary.contains("[standby]") && !standby.contains("[epochs]"));
    }
}
