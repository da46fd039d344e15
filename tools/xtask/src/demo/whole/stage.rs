//! Two hosts, a switch between them and a client, and a network for replication apart from theirs.
//!
//! All of it is held by this program's descriptors and the processes started on it: nothing can be left behind.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::netns::Host;

/// The client's and the guest's network. The hosts have no address in it.
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 10);
/// Where the guest listens.
pub(super) const PORT: u16 = 7007;
/// Of the guest, wherever it runs.
pub(super) const MAC: &str = "52:54:00:6b:72:01";
/// The hosts on the network of replication.
const HOST_A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const HOST_B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub(super) const BRIDGE: &str = "br0";
/// The guest's end of its network device, on either host.
pub(super) const TAP: &str = "tap0";
const UPLINK: &str = "up0";
const REPLICATION: &str = "repl0";
/// All cables of host A: one order cuts it off.
const CABLES_OF_A: &str = "7";
/// SIGKILL takes effect within this.
const END_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) a: Host,
    pub(super) b: Host,
    pub(super) client: Host,
    /// Holds its namespace.
    _switch: Host,
}

impl Stage {
    /// Builds it. Needs root.
    pub(super) fn build() -> Result<Self> {
        let (a, b) = (Host::alone(HOST_A)?, Host::alone(HOST_B)?);
        let (switch, client) = (Host::alone(Ipv4Addr::UNSPECIFIED)?, Host::alone(CLIENT)?);
        a.cable(REPLICATION, &b, REPLICATION)?;
        switch.ip("link add sw0 type bridge")?;
        switch.ip("link set sw0 up")?;
        for (port, host, device) in [
            ("pa", &a, UPLINK),
            ("pb", &b, UPLINK),
            ("pc", &client, "eth0"),
        ] {
            switch.cable(port, host, device)?;
            switch.ip(&format!("link set {port} master sw0"))?;
            switch.ip(&format!("link set {port} up"))?;
        }
        for host in [&a, &b] {
            host.ip(&format!(
                "address add {}/30 dev {REPLICATION}",
                host.address
            ))?;
            host.ip(&format!("link add {BRIDGE} type bridge"))?;
            host.ip(&format!("tuntap add dev {TAP} mode tap"))?;
            for port in [UPLINK, TAP] {
                host.ip(&format!("link set {port} master {BRIDGE}"))?;
            }
            for device in [REPLICATION, BRIDGE, UPLINK] {
                host.ip(&format!("link set {device} up"))?;
            }
        }
        // The standby's is brought up by the announcement: nobody reads it before, and it would fill up.
        a.ip(&format!("link set {TAP} up"))?;
        client.ip(&format!("address add {CLIENT}/24 dev eth0"))?;
        client.ip("link set eth0 up")?;
        for device in [REPLICATION, UPLINK] {
            a.ip(&format!("link set {device} group {CABLES_OF_A}"))?;
        }
        Ok(Self {
            a,
            b,
            client,
            _switch: switch,
        })
    }

    /// Pulls all cables of host A at once: nothing that is said there is heard any more, not even that a
    /// connection ends because its process was killed.
    pub(super) fn cut_off_a(&self) -> Result<()> {
        self.a.ip(&format!("link set group {CABLES_OF_A} down"))
    }
}

/// SIGKILL to every process of a host; returns when they are gone, or cannot be seen to go.
pub(super) fn kill_all(host: &Host) {
    let end = Instant::now() + END_LIMIT;
    // Again, for what was started meanwhile. What cannot be listed is killed with its parent.
    while let Ok(pids) = host.processes() {
        if pids.is_empty() || Instant::now() >= end {
            return;
        }
        for pid in pids
            .into_iter()
            .filter_map(|pid| libc::pid_t::try_from(pid).ok())
        {
            // SAFETY: no memory involved.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Drop for Stage {
    /// Daemons of ours end with this program; what they started has to end with its host.
    fn drop(&mut self) {
        for host in [&self.a, &self.b] {
            kill_all(host);
        }
    }
}

#[cfg(test)]
mod tests {
    //! A cable that is not cut, or a network that never worked, makes every failover look good or bad at once.

    use std::io::ErrorKind;
    use std::net::{SocketAddr, TcpStream};

    use super::*;
    use crate::netns::on;

    /// Whether somebody there says that nobody listens.
    fn reaches(from: &Host, to: Ipv4Addr) -> bool {
        let to = SocketAddr::from((to, 9));
        let tried = on(from, move || {
            TcpStream::connect_timeout(&to, Duration::from_secs(2))
        });
        tried.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    }

    #[test]
    fn the_client_reaches_either_host_and_a_no_more_when_it_is_cut_off() {
        // SAFETY: no arguments, cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("not root: nothing was tested, as the whole demo does not run then");
            return;
        }
        let stage = Stage::build().unwrap();
        // In the guests' place.
        let [at_a, at_b] = [21, 22].map(|last| Ipv4Addr::new(10, 78, 0, last));
        for (host, address) in [(&stage.a, at_a), (&stage.b, at_b)] {
            host.ip(&format!("address add {address}/24 dev {BRIDGE}"))
                .unwrap();
        }
        assert!(reaches(&stage.client, at_a) && reaches(&stage.client, at_b));
        assert!(reaches(&stage.b, HOST_A));
        assert!(!reaches(&stage.client, HOST_A), "two networks");
        stage.cut_off_a().unwrap();
        assert!(!reaches(&stage.client, at_a) && !reaches(&stage.b, HOST_A));
        assert!(reaches(&stage.client, at_b));
    }

    // A hypervisor that outlives its host would answer in two places.
    #[test]
    fn everything_on_a_host_is_killed_and_nothing_else() {
        // SAFETY: no arguments, cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("not root: nothing was tested, as the whole demo does not run then");
            return;
        }
        let stage = Stage::build().unwrap();
        let sleep = |host: &Host| {
            let mut command = std::process::Command::new("sh");
            host.place(command.args(["-c", "sleep 600 & sleep 600"]));
            command.spawn().unwrap()
        };
        let (mut there, mut elsewhere) = (sleep(&stage.a), sleep(&stage.b));
        while stage.a.processes().unwrap().len() < 3 || stage.b.processes().unwrap().len() < 3 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let reaper = std::thread::spawn(move || there.wait());
        kill_all(&stage.a);
        reaper.join().unwrap().unwrap();
        assert_eq!(stage.a.processes().unwrap(), [0; 0]);
        assert_eq!(stage.b.processes().unwrap().len(), 3);
        let reaper = std::thread::spawn(move || elsewhere.wait());
        drop(stage);
        reaper.join().unwrap().unwrap();
    }
}
