//! A guest that we start ourselves: its description, and QEMU's command line of it for either host.
//!
//! ```toml
//! guest = "vm1"
//! [qemu]
//! memory_mib = 256
//! args = ["-machine", "q35", "-nodefaults", "-display", "none"]
//! ```
//!
//! Both hosts start it from the same description: what differs would be refused when the state is loaded. The
//! arguments are QEMU's own words, but for what has to be as we need it.

use super::Error;
use serde::Deserialize;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

mod child;

pub use child::Child;

/// Id of the memory object.
pub const MEMORY_ID: &str = "blockrep-ram";
/// Most memory of a guest, in MiB: 16 TiB.
const MEMORY_MIB_MAX: u64 = 16 << 20;
/// Most arguments.
const ARGS_MAX: usize = 1000;
/// Longest name of a guest.
const NAME_BYTES_MAX: usize = 64;

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Its name: letters, digits, `-`, `_` and `.`.
    pub guest: String,
    /// How it is run.
    pub qemu: QemuSpec,
}

/// How a guest is run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuSpec {
    /// The program, on the PATH or as a path.
    #[serde(default = "default_program")]
    pub program: PathBuf,
    /// The guest's memory.
    pub memory_mib: u64,
    /// Where it lies; otherwise beside the sockets, which should be on a tmpfs.
    pub memory_file: Option<PathBuf>,
    /// Everything else, in QEMU's words.
    #[serde(default)]
    pub args: Vec<String>,
}

fn default_program() -> PathBuf {
    PathBuf::from("qemu-system-x86_64")
}

/// What QEMU is started as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The guest runs from its beginning; its memory is made anew.
    Primary,
    /// The same, and it stands still until it is told to run.
    Paused,
    /// It waits for the state of a running one; its memory is there already.
    Standby,
}

/// Files of one started QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The monitor's socket.
    pub monitor: PathBuf,
    /// The guest's memory.
    pub memory: PathBuf,
    /// What QEMU prints.
    pub log: PathBuf,
}

impl Spec {
    /// # Errors
    /// What is wrong with it, and what to type instead, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let spec: Self = toml::from_str(text).map_err(|e| one_line(&e.to_string()))?;
        spec.checked()
    }

    fn checked(self) -> Result<Self, String> {
        let spec = self;
        let name = &spec.guest;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_name = !name.is_empty() && !name.starts_with('.') && name.len() <= NAME_BYTES_MAX;
        if !is_name || !name.chars().all(plain) {
            return Err(format!(
                "guest = {name:?}: a name is 1 to {NAME_BYTES_MAX} letters, digits, - and _"
            ));
        }
        if !(1..=MEMORY_MIB_MAX).contains(&spec.qemu.memory_mib) {
            return Err(format!(
                "memory_mib = {}: a guest has 1 to {MEMORY_MIB_MAX}",
                spec.qemu.memory_mib
            ));
        }
        if spec.qemu.args.len() > ARGS_MAX {
            return Err(format!("args: at most {ARGS_MAX}"));
        }
        refuse_ours(&spec.qemu.args)?;
        Ok(spec)
    }

    /// Of the `[qemu]` of a configuration.
    ///
    /// # Errors
    /// As [`Spec::parse`].
    pub fn of(guest: &str, qemu: &toml::Table) -> Result<Self, String> {
        let qemu = toml::Value::Table(qemu.clone());
        let qemu: QemuSpec = qemu.try_into().map_err(|e| one_line(&e.to_string()))?;
        Self {
            guest: guest.to_owned(),
            qemu,
        }
        .checked()
    }

    /// Bytes of the guest's memory.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.qemu.memory_mib << 20
    }

    /// Its files in a directory.
    #[must_use]
    pub fn place(&self, dir: &Path) -> Place {
        let file = |what: &str| dir.join(format!("{}.{what}", self.guest));
        let own = self.qemu.memory_file.clone();
        Place {
            monitor: file("qmp"),
            memory: own.unwrap_or_else(|| file("ram")),
            log: file("log"),
        }
    }

    /// QEMU's arguments, without the program.
    #[must_use]
    pub fn arguments(&self, role: Role, place: &Place) -> Vec<OsString> {
        let mib = self.qemu.memory_mib;
        let ours = [
            "-m".to_owned(),
            format!("{mib}M"),
            "-object".to_owned(),
            format!(
                "memory-backend-file,id={MEMORY_ID},size={mib}M,mem-path={},share=on",
                quoted(&place.memory)
            ),
            // QEMU puts together what several of these say.
            "-machine".to_owned(),
            format!("memory-backend={MEMORY_ID}"),
            "-qmp".to_owned(),
            format!("unix:{},server=on,wait=off", quoted(&place.monitor)),
        ];
        let waiting: &[&str] = match role {
            Role::Primary => &[],
            Role::Paused => &["-S"],
            // One that has loaded waits for the order to go on.
            Role::Standby => &["-S", "-incoming", "defer"],
        };
        let waiting = waiting.iter().map(|&word| word.to_owned());
        let all = self.qemu.args.iter().cloned().chain(ours);
        all.chain(waiting).map(OsString::from).collect()
    }

    /// Starts QEMU.
    ///
    /// # Errors
    /// Its files cannot be made, or the program not be run.
    pub fn start(&self, role: Role, place: &Place) -> Result<Child, Error> {
        self.prepare_memory(role, place)?;
        // A socket that an earlier one left behind would be connected to and answer nothing.
        match fs::remove_file(&place.monitor) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(place.monitor.display().to_string())(e));
            }
            _ => {}
        }
        Child::start(&self.qemu.program, &self.arguments(role, place), place)
    }

    fn prepare_memory(&self, role: Role, place: &Place) -> Result<(), Error> {
        let told = || Error::io(place.memory.display().to_string());
        let bytes = self.memory_bytes();
        match role {
            Role::Primary | Role::Paused => {
                let file = File::create(&place.memory).map_err(told())?;
                let only_us = Permissions::from_mode(0o600);
                file.set_permissions(only_us).map_err(told())?;
                file.set_len(bytes).map_err(told())
            }
            Role::Standby => {
                let has = fs::metadata(&place.memory).map_err(told())?.len();
                if has == bytes {
                    return Ok(());
                }
                Err(Error::Unfit(format!(
                    "{} has {has} bytes; the guest's memory has {bytes}",
                    place.memory.display()
                )))
            }
        }
    }
}

/// As QEMU wants a value within a list.
fn quoted(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

/// Options that have to be as we need them, and what to do instead.
const OURS: [(&str, &str); 11] = [
    ("m", "write memory_mib = N"),
    ("mem-path", "write memory_file = \"PATH\""),
    ("mem-prealloc", "leave it out"),
    (
        "qmp",
        "leave it out, there is one; for another one use -mon",
    ),
    (
        "qmp-pretty",
        "leave it out, there is one; for another one use -mon",
    ),
    ("incoming", "leave it out, the standby has it"),
    ("S", "leave it out, and pause the guest when it runs"),
    ("daemonize", "leave it out, it is started in the background"),
    ("loadvm", "leave it out, a guest begins at its beginning"),
    (
        "snapshot",
        "leave it out, its writes would be lost at failover",
    ),
    ("numa", "leave it out, all memory is one object"),
];

fn refuse_ours(args: &[String]) -> Result<(), String> {
    for (at, argument) in args.iter().enumerate() {
        let option = argument.strip_prefix("--").or(argument.strip_prefix('-'));
        let Some(option) = option else { continue };
        // The value of an option before it may begin with a dash, but none of these is such a value.
        if let Some((name, advice)) = OURS.iter().find(|(name, _)| *name == option) {
            return Err(format!("args: -{name} is not yours to give: {advice}"));
        }
        let value = args.get(at + 1).map_or("", String::as_str);
        let is_machine = matches!(option, "machine" | "M");
        if is_machine
            && value
                .split(',')
                .any(|part| part.starts_with("memory-backend="))
        {
            return Err(
                "args: memory-backend= is not yours to give: write memory_mib = N".to_owned(),
            );
        }
        if option == "object" && value.contains("memory-backend-") {
            return Err(
                "args: a memory object is not yours to give: write memory_mib = N".to_owned(),
            );
        }
        if option == "device" && is_hot_memory(value) {
            return Err(format!(
                "args: -device {value}: memory that is plugged in cannot be protected: write memory_mib = N"
            ));
        }
    }
    Ok(())
}

fn is_hot_memory(device: &str) -> bool {
    let kind = device.split(',').next().unwrap_or_default();
    ["pc-dimm", "nvdimm", "virtio-mem", "virtio-pmem"]
        .iter()
        .any(|hot| kind.starts_with(hot))
}

#[cfg(test)]
mod tests {
    //! A standby that is started otherwise than its primary refuses the state at failover.
    use super::*;

    const TEXT: &str =
        "guest = \"vm1\"\n[qemu]\nmemory_mib = 256\nargs = [\"-machine\", \"q35\"]\n";

    fn words(role: Role, dir: &str) -> String {
        let spec = Spec::parse(TEXT).expect("a guest");
        let arguments = spec.arguments(role, &spec.place(Path::new(dir)));
        let texts: Vec<_> = arguments
            .iter()
            .map(|a| a.to_str().expect("text"))
            .collect();
        texts.join(" ")
    }

    #[test]
    fn both_hosts_build_the_same_machine() {
        let primary = words(Role::Primary, "/run/x");
        assert_eq!(
            primary,
            "-machine q35 -m 256M -object memory-backend-file,id=blockrep-ram,size=256M,mem-path=/run/x/vm1.ram,\
             share=on -machine memory-backend=blockrep-ram -qmp unix:/run/x/vm1.qmp,server=on,wait=off"
        );
        assert_eq!(words(Role::Paused, "/run/x"), format!("{primary} -S"));
        let standby = words(Role::Standby, "/run/x");
        assert_eq!(standby, format!("{primary} -S -incoming defer"));
        assert!(words(Role::Primary, "/a,b").contains("mem-path=/a,,b/vm1.ram"));
    }

    #[test]
    fn what_is_not_the_users_is_refused_with_advice() {
        let with = |args: &str| Spec::parse(&TEXT.replace("\"-machine\", \"q35\"", args));
        for (args, told) in [
            ("\"-m\", \"512\"", "memory_mib"),
            ("\"--qmp\", \"unix:/x\"", "-mon"),
            ("\"-incoming\", \"defer\"", "standby"),
            ("\"-machine\", \"q35,memory-backend=x\"", "memory_mib"),
            (
                "\"-object\", \"memory-backend-ram,id=x,size=1G\"",
                "memory_mib",
            ),
            ("\"-device\", \"pc-dimm,memdev=x\"", "plugged in"),
        ] {
            let error = with(args).expect_err(args);
            assert!(error.contains(told), "{args}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        assert!(with("\"-drive\", \"file=-m\", \"-name\", \"m\"").is_ok());
    }

    #[test]
    fn a_bad_description_is_told_in_a_line() {
        for (text, told) in [
            (TEXT.replace("vm1", "../vm"), "a name is"),
            (TEXT.replace("256", "0"), "memory_mib"),
            (format!("{TEXT}cores = 4\n"), "cores"),
            (TEXT.replace("memory_mib = 256", ""), "memory_mib"),
        ] {
            let error = Spec::parse(&text).expect_err(&text);
            assert!(error.contains(told) && !error.contains('\n'), "{error}");
        }
    }
}
