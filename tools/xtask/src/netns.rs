//! Two "hosts" on one machine: network namespaces without a name, joined by a veth pair.
//!
//! A namespace lives as long as a descriptor or a process holds it. These are held by this program's
//! descriptors and by the processes started in them, so nothing can be left behind, not even by
//! SIGKILL, and no name can collide.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::checkout::tool;
use crate::process;

/// The address of each host on the cable between them; nobody outside can see them.
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];

/// One host.
#[derive(Debug)]
pub(crate) struct Host {
    namespace: OwnedFd,
    pub(crate) address: Ipv4Addr,
}

impl Host {
    /// Two hosts with a cable. Needs root.
    pub(crate) fn pair() -> Result<[Self; 2]> {
        let [one, two] = ADDRESSES;
        let hosts = [Self::alone(one)?, Self::alone(two)?];
        hosts[0].cable("eth0", &hosts[1], "eth0")?;
        for host in &hosts {
            host.ip(&format!("address add {}/30 dev eth0", host.address))?;
            host.ip("link set eth0 up")?;
        }
        Ok(hosts)
    }

    /// A host that reaches nobody yet; its address is given to no device. Needs root.
    pub(crate) fn alone(address: Ipv4Addr) -> Result<Self> {
        let host = Self {
            namespace: new_namespace()?,
            address,
        };
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// Joins a new device `name` with a new one of another host.
    pub(crate) fn cable(&self, name: &str, other: &Self, other_name: &str) -> Result<()> {
        let there = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            other.namespace.as_raw_fd()
        );
        self.ip(&format!(
            "link add {name} type veth peer name {other_name} netns {there}"
        ))
    }

    /// Every process on this host, whoever started it.
    pub(crate) fn processes(&self) -> Result<Vec<u32>> {
        let own = File::from(self.namespace.try_clone()?).metadata()?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").context("read /proc")? {
            let Some(pid) = entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // One that has just ended is on no host.
            let its = std::fs::metadata(format!("/proc/{pid}/ns/net"));
            if its.is_ok_and(|its| (its.dev(), its.ino()) == (own.dev(), own.ino())) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// Lets `command` start on this host.
    pub(crate) fn place(&self, command: &mut Command) {
        let namespace = self.namespace.as_raw_fd();
        // SAFETY: setns(2) between fork and exec is async-signal-safe; the descriptor belongs to
        // `self`, and `command` is started by code that also holds `self`.
        unsafe {
            command.pre_exec(move || match libc::setns(namespace, libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
    }

    /// Runs `ip` there; words are parted by one space.
    pub(crate) fn ip(&self, arguments: &str) -> Result<()> {
        let mut command = tool("ip");
        command.args(arguments.split(' '));
        self.place(&mut command);
        let output = process::ask(&mut command)?;
        if !output.status.success() {
            bail!(
                "ip {arguments}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}

/// Made on a thread of its own, so that this program itself stays where it is.
fn new_namespace() -> Result<OwnedFd> {
    let made = std::thread::spawn(|| {
        // SAFETY: changes the calling thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
    });
    let made = made.join().expect("the closure does not panic");
    made.context("make a network namespace (unshare)")
}

/// Runs `what` with the network of `host`, on a thread of its own.
pub(crate) fn on<T: Send>(host: &Host, what: impl FnOnce() -> T + Send) -> T {
    let namespace = host.namespace.as_raw_fd();
    std::thread::scope(|scope| {
        let there = scope.spawn(move || {
            // SAFETY: changes this thread only, which ends with the closure.
            assert_eq!(unsafe { libc::setns(namespace, libc::CLONE_NEWNET) }, 0);
            what()
        });
        there.join().expect("the closure does not panic")
    })
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    // Hosts without a cable would make every demo wait for a connection that cannot come.
    #[test]
    fn the_hosts_reach_each_other_and_nobody_else() {
        // SAFETY: no arguments, cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("not root: nothing was tested, as the demo runs on loopback then");
            return;
        }
        let [one, two] = Host::pair().expect("root may make namespaces and `ip` is there");
        let address = SocketAddr::from((two.address, 9000));
        let listener = on(&two, || TcpListener::bind(address)).expect("the address is there");
        let connect =
            move |to: SocketAddr| TcpStream::connect_timeout(&to, Duration::from_secs(10)).is_ok();
        assert!(on(&one, move || connect(address)));
        assert!(!on(&one, move || connect(SocketAddr::from((
            Ipv4Addr::LOCALHOST,
            9000
        )))));
        drop(listener);
    }
}
