//! Settings as given, before they mean anything: which key, what text, and where it was said.
//!
//! Flags and file fill the same table, so that one mistake has one text wherever it is made.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Which daemon the settings are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `blockrep`.
    Primary,
    /// `blockrep-backup`.
    Backup,
}

impl Program {
    /// Name of the binary.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "blockrep",
            Self::Backup => "blockrep-backup",
        }
    }
}

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// One text.
    Text,
    /// One or several texts.
    List,
    /// True or false.
    Switch,
}

macro_rules! keys {
    ($($(#[$meta:meta])* $key:ident = $name:literal, $takes:ident, $programs:tt;)+) => {
        /// A setting. Its name is the long flag and the key of the file.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Key { $($(#[$meta])* $key),+ }

        impl Key {
            /// Every key, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$key),+];

            /// Spelling in the file, and of the long flag.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$key => $name),+ }
            }

            /// What it takes.
            pub const fn takes(self) -> Takes {
                match self { $(Self::$key => Takes::$takes),+ }
            }

            /// Which daemons know it: primary, backup.
            const fn known_to(self) -> (bool, bool) {
                match self { $(Self::$key => $programs),+ }
            }
        }
    };
}

keys! {
    /// Disk specs, one per volume.
    Disk = "disk", List, (true, true);
    /// Link addresses of a backup, one per image.
    Listen = "listen", List, (false, true);
    /// Images of a backup.
    Image = "image", List, (false, true);
    /// Name of the group.
    Group = "group", Text, (true, true);
    /// Address for NBD clients.
    Nbd = "nbd", Text, (true, true);
    /// Socket for VMMs that speak vhost-user.
    VhostUser = "vhost-user", Text, (true, true);
    /// Control socket.
    Control = "control", Text, (true, true);
    /// Length of an epoch.
    Epoch = "epoch", Text, (true, false);
    /// Ack mode.
    Ack = "ack", Text, (true, false);
    /// Loss policy.
    OnBackupLoss = "on-backup-loss", Text, (true, false);
    /// How long back-pressure may last.
    BackpressureTimeout = "backpressure-timeout", Text, (true, false);
    /// Directory of the metadata.
    State = "state", Text, (true, true);
    /// Directory of the journal.
    Journal = "journal", Text, (false, true);
    /// Size of the journal of each volume.
    JournalSize = "journal-size", Text, (true, true);
    /// Limit of writes to the image.
    ThrottleApply = "throttle-apply", Text, (false, true);
    /// Limit of what is received from the primary.
    ThrottleLink = "throttle-link", Text, (false, true);
    /// Skip the first comparison.
    AssumeIdentical = "assume-identical", Switch, (true, false);
    /// The images are those of the state directory, whatever files they are.
    SameImage = "same-image", Switch, (true, true);
    /// Listen beyond loopback without encryption.
    InsecurePlaintext = "insecure-plaintext", Switch, (true, true);
    /// Log level.
    Log = "log", Text, (true, true);
}

impl Key {
    /// The key of that name, of whichever daemon.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|key| key.name() == name)
    }

    /// Whether `program` knows this key.
    pub const fn belongs_to(self, program: Program) -> bool {
        let (primary, backup) = self.known_to();
        match program {
            Program::Primary => primary,
            Program::Backup => backup,
        }
    }
}

/// Where a setting was said, or that it was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the command line.
    Flag(Key),
    /// In the configuration file; `line` counts from 1.
    File {
        path: Arc<str>,
        line: usize,
        key: Key,
    },
    /// Nowhere: the default.
    Default(Key),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(Key::Disk) => f.write_str("-n"),
            Self::Flag(key) => write!(f, "--{}", key.name()),
            Self::File { path, line, key } => write!(f, "{path}:{line}: {}", key.name()),
            Self::Default(key) => write!(f, "--{} (default)", key.name()),
        }
    }
}

/// A text and where it was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// As typed; `true` or `false` for a switch.
    pub text: String,
    /// Where.
    pub place: Place,
}

/// Everything that was said, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    given: BTreeMap<Key, Vec<Given>>,
}

impl Settings {
    /// Adds one text for `key`, after those already there.
    pub fn add(&mut self, key: Key, text: impl Into<String>, place: Place) {
        self.given.entry(key).or_default().push(Given {
            text: text.into(),
            place,
        });
    }

    /// Adds what the command line said for `key`.
    pub fn add_flags(&mut self, key: Key, texts: impl IntoIterator<Item = String>) {
        for text in texts {
            self.add(key, text, Place::Flag(key));
        }
    }

    /// Paths as a shell user types them: what the flags say relative to `dir`, the directory the
    /// command was typed in, is made absolute. Specs are not for that, nor is anything in a file:
    /// both are read on other days and in other directories.
    pub fn made_absolute(&mut self, dir: &str) {
        let plain = |text: &str| {
            let word = !text.is_empty() && !text.contains(|c: char| c.is_control() || c == '|');
            word && text.trim() == text && !text.starts_with('/')
        };
        let joined = |text: &str| {
            let text = text.strip_prefix("./").unwrap_or(text);
            format!("{}/{text}", dir.trim_end_matches('/'))
        };
        for (key, given) in &mut self.given {
            for given in given {
                let text = given.text.as_str();
                let made = match key {
                    Key::Image if text.contains(':') => None,
                    Key::Image | Key::State | Key::Journal | Key::Control => {
                        plain(text).then(|| joined(text))
                    }
                    Key::Nbd | Key::VhostUser => text
                        .strip_prefix("unix:")
                        .filter(|path| plain(path))
                        .map(|path| format!("unix:{}", joined(path))),
                    _ => None,
                };
                if let Some(made) = made {
                    given.text = made;
                }
            }
        }
    }

    /// Everything said for `key`, in order.
    pub fn all(&self, key: Key) -> &[Given] {
        self.given.get(&key).map_or(&[], Vec::as_slice)
    }

    /// What was said for a key that takes one text.
    pub fn one(&self, key: Key) -> Option<&Given> {
        self.all(key).last()
    }

    /// Whether a switch is on.
    pub fn is_on(&self, key: Key) -> bool {
        self.one(key).is_some_and(|given| given.text == "true")
    }

    /// `self`, the flags, completed by `file`. A key the flags say is theirs alone, lists
    /// included; and flags that name volumes one way (`-n`, or `--listen` and `--image`) set
    /// aside the volumes that the file names the other way.
    #[must_use]
    pub fn over(mut self, mut file: Self) -> Self {
        if self.given.contains_key(&Key::Disk) {
            file.given.remove(&Key::Listen);
            file.given.remove(&Key::Image);
        }
        if self.given.contains_key(&Key::Listen) || self.given.contains_key(&Key::Image) {
            file.given.remove(&Key::Disk);
        }
        for (key, given) in file.given {
            self.given.entry(key).or_insert(given);
        }
        self
    }
}
