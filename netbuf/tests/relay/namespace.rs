//! Network namespaces of the tests' own threads: nothing has a name outside, and nothing can be left behind.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// Of what happens by itself; nobody waits that long on a host that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// False, with a line, where namespaces cannot be made.
pub(crate) fn possible() -> bool {
    // SAFETY: geteuid(2) touches no memory.
    let root = unsafe { libc::geteuid() } == 0;
    let mut ip = Command::new("ip");
    let ip = ip.arg("-V").stdout(Stdio::null()).status().is_ok();
    let may = root && ip && std::thread::spawn(unshared).join().unwrap();
    if !may {
        eprintln!("skipped: needs root and ip (Debian package iproute2)");
    }
    may
}

fn unshared() -> bool {
    // SAFETY: unshare(2) touches no memory; it affects this thread only.
    unsafe { libc::unshare(libc::CLONE_NEWNET) == 0 }
}

/// Puts the calling thread into a namespace of its own, without IPv6 of its own accord.
pub(crate) fn unshare() {
    assert!(unshared());
    for which in ["default", "all"] {
        let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        // A kernel without IPv6 has no such file.
        let _ = std::fs::write(path, "1");
    }
    // A bridge that asks the packet filter drops IP frames without a sound header.
    for family in ["ip", "ip6", "arp"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
        let _ = std::fs::write(path, "0");
    }
}

/// Lines of ip(8) in the calling thread's namespace; false if one of them did not succeed.
pub(crate) fn try_ip(lines: &str) -> bool {
    let mut ip = Command::new("ip");
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{lines}").unwrap();
    drop(stdin);
    child.wait().unwrap().success()
}

/// Lines of ip(8) in the calling thread's namespace.
#[track_caller]
pub(crate) fn ip(lines: &str) {
    assert!(try_ip(lines), "ip: {lines}");
}

/// What one command of ip(8) shows of the calling thread's namespace.
#[track_caller]
pub(crate) fn ip_shows(arguments: &str) -> String {
    let mut ip = Command::new("ip");
    let output = ip.args(arguments.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until every interface has its carrier and every port forwards: the kernel's worker for that is late on a
/// busy host, and until then frames are swallowed.
pub(crate) fn settled() {
    until("the network", || {
        let text = ip_shows("-d -o link show type veth");
        let ready = |line: &str| {
            let port = line.contains("bridge_slave");
            line.contains(" state UP ") && (!port || line.contains("bridge_slave state forwarding"))
        };
        text.lines().all(ready).then_some(())
    });
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

type Job = Box<dyn FnOnce() + Send>;

/// A thread with a namespace of its own.
pub(crate) struct Room {
    pub(crate) thread: i32,
    jobs: Sender<Job>,
}

impl Room {
    pub(crate) fn new() -> Self {
        let (jobs, inbox) = channel::<Job>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            unshare();
            // SAFETY: gettid(2) touches no memory.
            tell.send(unsafe { libc::gettid() }).unwrap();
            for job in inbox {
                job();
            }
        });
        let thread = told.recv().unwrap();
        Self { thread, jobs }
    }

    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let job: Job = Box::new(move || tell.send(job()).unwrap());
        self.jobs.send(job).unwrap();
        told.recv().unwrap()
    }
}
