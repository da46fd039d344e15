//! What stands at an IFB that was made for libxl (`IFLA_IFALIAS`): for which directory of the store, and who
//! asked. `libxl /libxl/3/remus/netbuf/0 4711 123456 0`.
//!
//! No guest of the daemon's has such a name, so a daemon that starts takes over none of these. Who asked is the
//! process that started this one: libxl's, alive as long as its messages may come to the plug. Its start time
//! keeps a later process with the same number from being taken for it.

use super::request::StorePath;
use crate::install::vif_of;
use crate::netlink::request::ALIAS_BYTES_MAX;
use crate::netlink::{Link, Netlink, NetlinkError};
use std::fmt;

const WORD: &str = "libxl";

/// A process, told from every other since the host was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    pub pid: u32,
    /// Clock ticks since boot; 0 where the kernel does not say.
    pub started: u64,
}

impl Asker {
    /// The process that started this one.
    #[must_use]
    pub fn parent() -> Self {
        Self::of(std::os::unix::process::parent_id())
    }

    /// The process with this number now.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let started = started(pid).unwrap_or(0);
        Self { pid, started }
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)
    }
}

/// When a process that runs was started.
fn started(pid: u32) -> Option<u64> {
    started_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 3 and 22 of proc_pid_stat(5). The name before them may hold anything but ends with the last bracket.
fn started_in(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then_some(())?;
    fields.nth(18)?.parse().ok()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub path: StorePath,
    pub asker: Asker,
    /// The index of the second interface that is redirected to the same IFB; 0 where there is none.
    pub twin: u32,
}

impl Mark {
    #[must_use]
    pub fn read(alias: &str) -> Option<Self> {
        let words: Vec<&str> = alias.split(' ').collect();
        let [WORD, path, pid, started, twin] = words.as_slice() else {
            return None;
        };
        Some(Self {
            path: StorePath::parse(path)?,
            asker: Asker {
                pid: pid.parse().ok()?,
                started: started.parse().ok()?,
            },
            twin: twin.parse().ok()?,
        })
    }

    #[must_use]
    pub fn write(&self) -> String {
        let Self { path, asker, twin } = self;
        let text = format!("{WORD} {path} {} {} {twin}", asker.pid, asker.started);
        assert!(
            text.len() <= ALIAS_BYTES_MAX,
            "a few words and five numbers"
        );
        text
    }
}

/// One IFB that was made for libxl.
#[derive(Debug, Clone)]
pub struct Marked {
    pub mark: Mark,
    pub ifb: Link,
    /// The index of the interface it is for.
    pub vif: u32,
}

impl Marked {
    fn of(ifb: Link) -> Option<Self> {
        let vif = vif_of(&ifb.name).filter(|_| ifb.kind == "ifb")?;
        let mark = Mark::read(&ifb.alias)?;
        Some(Self { mark, ifb, vif })
    }
}

/// All of them in this network namespace.
///
/// # Errors
/// When the kernel does not answer.
pub fn all(netlink: &mut Netlink) -> Result<Vec<Marked>, NetlinkError> {
    let links = netlink.links()?;
    Ok(links.into_iter().filter_map(Marked::of).collect())
}

/// The one of an interface.
///
/// # Errors
/// When the kernel does not answer.
pub fn of(netlink: &mut Netlink, vif: u32) -> Result<Option<Marked>, NetlinkError> {
    let ifb = netlink.link(&crate::install::ifb_name(vif))?;
    Ok(ifb.and_then(Marked::of))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mark that is read as another's is another domain's output let go.
    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let path = StorePath {
            domain: u32::MAX,
            device: u32::MAX,
        };
        let asker = Asker {
            pid: u32::MAX,
            started: u64::MAX,
        };
        let twin = u32::MAX;
        let mark = Mark { path, asker, twin };
        assert_eq!(Mark::read(&mark.write()), Some(mark));
        let bad = [
            "",
            "vm1",
            "libxl",
            "libxl /libxl/3/remus/netbuf/0",
            "libxl /libxl/3/remus/netbuf/0 1 2",
            "libxl /libxl/3/remus/netbuf/0 1 2 3 4",
            "libxl /libxl/3/remus/netbuf/0/ 1 2 3",
            "libxl  1 2 3",
            "vm1 /libxl/3/remus/netbuf/0 1 2 3",
        ];
        for alias in bad {
            assert_eq!(Mark::read(alias), None, "{alias:?}");
        }
    }

    /// A process that is gone holds a guest's output for ever, or one that runs loses its plug.
    #[test]
    fn a_process_is_told_from_the_dead_and_from_its_successor() {
        let pid = std::process::id();
        let me = Asker::of(pid);
        assert!(me.is_alive() && Asker::parent().is_alive());
        let before = Asker {
            started: me.started - 1,
            ..me
        };
        assert!(!before.is_alive(), "the same number, another process");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        assert_eq!(started(dead), None);
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(started_in(&format!("5 (a) b) S {rest}")), Some(777));
        assert_eq!(
            started_in(&format!("5 (a) Z {rest}")),
            None,
            "waits to be reaped"
        );
        assert_eq!(started_in("5 (a"), None);
    }
}
