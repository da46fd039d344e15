//! A host with a guest's interface in a bridge, a witness behind it, a store, and who starts the program.
//!
//! `guest ═ vif3.0 ─ br0 ─ far ═ witness`  (═ is a veth pair)

use crate::server::Server;
use crate::wire::Wire;
use netbuf::netlink::Netlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) const PATH: &str = "/libxl/3/remus/netbuf/0";
/// Of what happens by itself; nobody waits that long on a host that works.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a body in a namespace of its own; says so and skips where that is not allowed.
pub(crate) fn in_namespace(body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: geteuid(2) touches no memory, unshare(2) neither; it affects this thread only.
        let made = unsafe { libc::geteuid() == 0 && libc::unshare(libc::CLONE_NEWNET) == 0 };
        if !made || Command::new("ip").arg("-V").output().is_err() {
            eprintln!("skipped: needs root and ip (Debian package iproute2)");
            return;
        }
        body();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// One ip(8) command in the thread's namespace.
#[track_caller]
pub(crate) fn ip(arguments: &str) -> String {
    let mut ip = Command::new("ip");
    let output = ip.args(arguments.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
pub(crate) fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How the program ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) code: i32,
    pub(crate) text: String,
}

impl End {
    #[track_caller]
    pub(crate) fn good(&self) {
        assert_eq!(
            (self.code, self.text.as_str()),
            (0, ""),
            "libxl wants silence"
        );
    }

    /// With this code, and one line.
    #[track_caller]
    pub(crate) fn bad(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{}", self.text);
        let text = self.text.trim_end();
        assert!(!text.contains('\n'), "{text}");
        text.strip_prefix("remus-netbuf-setup: ")
            .expect("who says it")
    }
}

pub(crate) struct Host {
    dir: tempfile::TempDir,
    pub(crate) store: Server,
    pub(crate) netlink: Netlink,
    pub(crate) guest: Wire,
    pub(crate) witness: Wire,
    sentinel: Wire,
    sentinels: u64,
}

impl Host {
    pub(crate) fn new() -> Self {
        for scope in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            let _ = std::fs::write(path, "1");
        }
        for family in ["ip", "ip6", "arp"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
            let _ = std::fs::write(path, "0");
        }
        ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0");
        ip("link set br0 mtu 9000");
        ip("link set br0 up");
        Self::add_card("guest", "vif3.0");
        Self::add_card("witness", "far");
        Self::add_card("sentinel", "by");
        let dir = tempfile::tempdir().unwrap();
        Self {
            store: Server::start(dir.path()),
            dir,
            netlink: Netlink::open().unwrap(),
            guest: Wire::open("guest"),
            witness: Wire::open("witness"),
            sentinel: Wire::open("sentinel"),
            sentinels: 0,
        }
    }

    /// All frames that the witness has got and not been asked for yet: a sentinel frame goes through the same
    /// bridge after the fact, and whatever is in front of it was there before.
    pub(crate) fn frames(&mut self) -> Vec<Vec<u8>> {
        self.sentinels += 1;
        let mut sentinel = vec![0xff; 6];
        sentinel.extend([2, 0, 0, 0, 0, 9, 0x88, 0xb6]);
        sentinel.extend(self.sentinels.to_be_bytes());
        sentinel.resize(60, 0);
        self.sentinel.send(&sentinel);
        let mut seen = Vec::new();
        loop {
            let frame = self.witness.receive();
            if frame == sentinel {
                return seen;
            }
            seen.push(frame);
        }
    }

    /// One more interface in the bridge, with who speaks at it.
    pub(crate) fn add_card(near: &str, far: &str) {
        ip(&format!(
            "link add {near} mtu 9000 type veth peer name {far} mtu 9000"
        ));
        ip(&format!("link set {far} master br0"));
        for end in [near, far] {
            ip(&format!("link set {end} up"));
        }
        until("the network", || {
            let text = ip("-d -o link show type veth");
            let ready = |line: &str| {
                let port = line.contains("bridge_slave");
                line.contains(" state UP ")
                    && (!port || line.contains("bridge_slave state forwarding"))
            };
            text.lines().all(ready).then_some(())
        });
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// As libxl starts it, for a device of domain 3.
    pub(crate) fn program(&self, action: &str, vif: &str, device: u32) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_remus-netbuf-setup"));
        program
            .arg(action)
            .env("vifname", vif)
            .env("XENBUS_PATH", format!("/libxl/3/remus/netbuf/{device}"))
            .env("XENSTORED_PATH", self.store.socket())
            .env("BLOCKREP_RUNTIME_DIR", self.dir());
        program
    }

    pub(crate) fn set_up(&self) -> End {
        end(&mut self.program("setup", "vif3.0", 0))
    }

    pub(crate) fn tear_down(&self) -> End {
        end(&mut self.program("teardown", "vif3.0", 0))
    }

    /// Every link and queueing discipline.
    pub(crate) fn kernel(&mut self) -> String {
        let mut text = String::new();
        for link in self.netlink.links().unwrap() {
            let qdiscs = self.netlink.qdiscs(link.index).unwrap();
            let kinds: Vec<String> = qdiscs.into_iter().map(|qdisc| qdisc.kind).collect();
            text.push_str(&format!("{} {kinds:?}; ", link.name));
        }
        text
    }

    pub(crate) fn index(&mut self, name: &str) -> u32 {
        self.netlink.link(name).unwrap().unwrap().index
    }
}

pub(crate) fn end(program: &mut Command) -> End {
    let output = program.output().unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    text.push_str(&String::from_utf8(output.stderr).unwrap());
    End {
        code: output.status.code().expect("it is not killed"),
        text,
    }
}

/// Asked by a process of its own, which has ended when the program has.
pub(crate) fn asked_by_another(program: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only fork(2), waitpid(2) and _exit(2) are called.
    unsafe {
        program.pre_exec(|| {
            let child = libc::fork();
            if child == 0 {
                return Ok(());
            }
            let mut status = 0;
            libc::waitpid(child, &raw mut status, 0);
            libc::_exit(libc::WEXITSTATUS(status))
        })
    }
}
