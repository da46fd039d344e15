//! A process is attached to, and does not notice.

use crate::child::{CALLERS, PROGRESS, SIGNALS, THREADS, Watchee, until};
use crate::has;
use checkpointer::memory::ram::Mapping;
use checkpointer::memory::tracker::{self, Kind, inject};
use std::io::Write;
use std::sync::Arc;

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("it lives")
        .count()
}

fn tracers(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let tracer = |task: std::path::PathBuf| {
        let status = std::fs::read_to_string(task.join("status")).expect("it lives");
        let lines = status.lines().filter(|line| line.starts_with("TracerPid"));
        lines.map(str::to_owned).collect::<String>()
    };
    tasks
        .map(|task| tracer(task.expect("a thread").path()))
        .collect()
}

/// Threads in read, nanosleep, futex, ppoll and two that compute; signals come meanwhile.
#[test]
fn two_hundred_attaches_disturb_nothing() {
    let mut it = Watchee::start(16, "calls");
    until("all threads are there", || {
        (0..CALLERS).all(|n| it.control.get(THREADS + n) != 0)
    });
    let pid = it.pid();
    if !has(Kind::Userfaultfd, &inject::userfaultfd(pid, pid)) {
        return;
    }
    let before = descriptors(pid);
    let (mut random, mut sent, mut byte) = (fastrand::Rng::with_seed(3), 0, 0u8);
    let progress =
        |it: &Watchee| -> Vec<u64> { (0..CALLERS).map(|n| it.control.get(PROGRESS + n)).collect() };
    let first = progress(&it);
    for round in 0..200 {
        let thread = match round % (CALLERS + 1) {
            CALLERS => pid,
            n => u32::try_from(it.control.get(THREADS + n)).expect("a thread"),
        };
        // Queued by the kernel, one by one: none may be lost, wherever it finds the thread.
        for _ in 0..random.u32(0..3) {
            // SAFETY: takes no memory.
            let told = unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, libc::SIGRTMIN()) };
            assert_eq!(told, 0);
            sent += 1;
        }
        if random.bool() {
            it.stdin().write_all(&[byte]).expect("written");
            byte = byte.wrapping_add(1);
        }
        let taken = inject::userfaultfd(pid, thread);
        drop(taken.unwrap_or_else(|e| panic!("attach {round}, thread {thread}: {e}")));
    }
    assert_eq!(descriptors(pid), before, "nothing is left in the process");
    assert!(
        tracers(pid).iter().all(|line| line.ends_with("\t0")),
        "nobody traces it"
    );
    until("all signals have been seen", || {
        it.control.get(SIGNALS) == sent
    });
    let now = progress(&it);
    it.stdin().write_all(&[byte]).expect("written");
    until("all threads go on", || {
        progress(&it).iter().zip(&now).all(|(n, then)| n > then)
    });
    assert!(now.iter().zip(&first).all(|(n, then)| n > then));
    it.check();
}

/// A process that is stopped is attached to, and stays stopped.
#[test]
fn a_stopped_process_stays_stopped() {
    let it = Watchee::start(16, "calls");
    it.stop();
    let pid = it.pid();
    for _ in 0..20 {
        if !has(Kind::Userfaultfd, &inject::userfaultfd(pid, pid)) {
            return;
        }
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        until("it is stopped again", || stat().contains(") T "));
    }
    it.go_on();
    let then: u64 = it.control.get(PROGRESS + 1);
    until("it goes on", || it.control.get(PROGRESS + 1) > then);
}

/// Somebody debugs it: said so, and the next way is taken.
#[test]
fn a_traced_process_is_refused_in_words() {
    let mut it = Watchee::start(16, "1");
    let pid = it.pid();
    let thread = libc::pid_t::try_from(pid).expect("a process");
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: takes no memory. This thread traces it for as long as it lives.
    let told = unsafe { libc::ptrace(libc::PTRACE_SEIZE, thread, none, none) };
    assert_eq!(told, 0);
    let mapping = Arc::new(Mapping::open(&it.ram()).expect("its memory"));
    let watched = tracker::find(pid, &it.ram()).expect("found");
    let (tracker, why) = tracker::choose(pid, &watched, &mapping, None).expect("another way");
    assert_ne!(tracker.kind(), Kind::Userfaultfd);
    assert!(why.contains("not userfaultfd"), "{why}");
    if why.contains("not userfaultfd: the kernel") {
        println!("the kernel has no userfaultfd, so nothing was traced");
    } else {
        let told = format!("traced by process {} already", std::process::id());
        assert!(why.contains(&told), "{why}");
    }
    let forced = tracker::choose(pid, &watched, &mapping, Some(Kind::Userfaultfd));
    assert!(forced.is_err(), "what is forced is not replaced");
    it.check();
}

const TARGET: &str = "CHECKPOINTER_TEST_UNPRIVILEGED";

/// Another user's process: said what to change, and the next way is taken.
#[test]
fn an_unprivileged_tracker_is_refused_in_words() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if let Ok(told) = std::env::var(TARGET) {
        let (pid, file) = told.split_once(' ').expect("two words");
        let mapping = Mapping::open(&crate::child::ram(file.as_ref(), 16)).expect("its memory");
        let watched = [tracker::Watched {
            first_page: 0,
            pages: 16,
            address: 0x1000_0000,
        }];
        let pid = pid.parse().expect("a number");
        let told = tracker::choose(pid, &watched, &Arc::new(mapping), None);
        let (tracker, why) = told.expect("another way");
        assert_eq!(tracker.kind(), Kind::Compare);
        let is_old = why.contains("not userfaultfd: the kernel");
        assert!(why.contains("CAP_SYS_PTRACE") || is_old, "{why}");
        std::process::exit(77);
    }
    // SAFETY: takes no memory.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: only root can become another user");
        return;
    }
    let it = Watchee::start(16, "1");
    let open = |file: &std::path::Path, mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(file, mode).expect("ours");
    };
    open(&it.file(), 0o666);
    open(it.file().parent().expect("a directory"), 0o755);
    let mut command = crate::child::again("attach::an_unprivileged_tracker_is_refused_in_words");
    command.env(TARGET, format!("{} {}", it.pid(), it.file().display()));
    match command.uid(65534).gid(65534).status() {
        Err(e) => println!("skipped: another user cannot run this program: {e}"),
        Ok(status) => assert_eq!(status.code(), Some(77)),
    }
}
