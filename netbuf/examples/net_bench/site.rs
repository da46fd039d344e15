//! Namespaces, interfaces, and what stands between the guest's and the bridge.

use clap::ValueEnum;
use netbuf::gate::Epoch;
use netbuf::hold::{Hold, Mechanism};
use netbuf::netlink::Netlink;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The daemon's own default.
pub(crate) const LIMIT_BYTES: u32 = 64 << 20;
/// Of what happens by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// What stands between the guest's interface and the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// The interface is a port of the bridge.
    Nothing,
    Relay,
    Plug,
}

impl Way {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Relay => "relay",
            Self::Plug => "plug",
        }
    }

    fn mechanism(self) -> Option<Mechanism> {
        match self {
            Self::Nothing => None,
            Self::Relay => Some(Mechanism::Relay { epochs_max: 1024 }),
            Self::Plug => Some(Mechanism::Plug),
        }
    }
}

/// A network namespace that lives as long as this and whoever is in it.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    fn new() -> io::Result<Self> {
        let thread = std::thread::spawn(|| {
            unshare()?;
            quiet();
            File::open("/proc/thread-self/ns/net").map(Self)
        });
        thread.join().expect("it does not panic")
    }

    /// Runs `what` on a thread of its own in there.
    pub(crate) fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let fd = self.0.as_raw_fd();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: setns(2) touches no memory, and changes this thread only, which ends here.
                assert_eq!(unsafe { libc::setns(fd, libc::CLONE_NEWNET) }, 0, "setns");
                what()
            });
            thread.join().expect("what runs there does not panic")
        })
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

fn unshare() -> io::Result<()> {
    // SAFETY: unshare(2) touches no memory.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Nothing is said there but by the load. A kernel without IPv6 or without packet filter has no such files.
fn quiet() {
    for which in ["default", "all"] {
        let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        let _ = std::fs::write(path, "1");
    }
    for family in ["ip", "ip6", "arp"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
        let _ = std::fs::write(path, "0");
    }
}

/// This process, which has one thread, gets a network of its own.
pub(crate) fn leave_the_hosts_network() -> io::Result<()> {
    unshare()?;
    quiet();
    Ok(())
}

/// Lines for `ip -batch`.
pub(crate) fn ip(lines: &str) -> Outcome<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().ok_or("no standard input")?;
    stdin.write_all(lines.as_bytes())?;
    drop(stdin);
    match child.wait()?.success() {
        true => Ok(()),
        false => Err(format!("ip refused: {lines}").into()),
    }
}

/// One way, ready, open.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) guest: Namespace,
    pub(crate) witness: Namespace,
    hold: Option<Hold>,
    epoch: u64,
}

impl Site {
    pub(crate) fn new(way: Way) -> Outcome<Self> {
        let site = Self {
            guest: Namespace::new()?,
            witness: Namespace::new()?,
            hold: None,
            epoch: 0,
        };
        ip("link set lo up\n\
            link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
            link set br0 up\n")?;
        for (near, far, room) in [("g1", "g0", &site.guest), ("w0", "w1", &site.witness)] {
            ip(&format!(
                "link add {near} type veth peer name {far}\nlink set {near} master br0\n\
                 link set {far} netns {}\nlink set {near} up\n",
                room.path()
            ))?;
            room.run(|| {
                ip(&format!("link set lo up\nlink set {far} up\n")).map_err(|e| e.to_string())
            })?;
        }
        site.with(way)
    }

    fn with(mut self, way: Way) -> Outcome<Self> {
        if let Some(mechanism) = way.mechanism() {
            let mut hold = Hold::new(Netlink::open()?, "bench", mechanism, LIMIT_BYTES);
            hold.attach("g1", None)?;
            self.hold = Some(hold);
        }
        settled()?;
        Ok(self)
    }

    /// The next epoch is cut: the first cut begins to hold. False where nothing can hold.
    pub(crate) fn cut(&mut self) -> Outcome<bool> {
        let Some(hold) = &mut self.hold else {
            return Ok(false);
        };
        self.epoch += 1;
        hold.cut(Epoch(self.epoch))?;
        Ok(true)
    }

    /// Everything that was cut goes.
    pub(crate) fn release(&mut self) -> Outcome<()> {
        if let Some(hold) = &mut self.hold {
            hold.release(Epoch(self.epoch))?;
        }
        Ok(())
    }

    /// Frames that were dropped at the limit, or in front of the relay.
    pub(crate) fn dropped(&mut self) -> u64 {
        let Some(hold) = &mut self.hold else {
            return 0;
        };
        let status = hold.status();
        let each = status.interfaces.iter();
        each.filter_map(|one| one.dropped_frames).sum()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.hold = None;
        if let Ok(mut netlink) = Netlink::open() {
            let _ = netbuf::hold::cleanup(&mut netlink);
        }
        // Its veth pairs end with their other ends.
        let _ = ip("link del br0\nlink del g1\nlink del w0\n");
    }
}

/// Waits until every interface has its carrier and every port forwards: until then frames are swallowed.
pub(crate) fn settled() -> Outcome<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let list = ["-d", "-o", "link", "show", "type", "veth"];
        let output = Command::new("ip").args(list).output()?;
        let text = String::from_utf8(output.stdout)?;
        let ready = |line: &str| {
            let port = line.contains("bridge_slave");
            line.contains(" state UP ") && (!port || line.contains("bridge_slave state forwarding"))
        };
        if text.lines().all(ready) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("the network does not come up: {text}").into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
