//! The process that is watched: this test program once more, with its memory in a shared file and a page that
//! both sides have for commands and counts.

use checkpointer::memory::PAGE_BYTES;
use checkpointer::memory::ram::{Block, Mapping, Ram};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

#[path = "calls.rs"]
mod calls;

const IT: &str = "CHECKPOINTER_TEST_WATCHED";
/// Nothing here may take longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Words of the control page.
pub(crate) const READY: u64 = 0;
pub(crate) const WRITES: u64 = 1;
/// Of what the process has found wrong: a number for each kind, and how often.
pub(crate) const WRONG: u64 = 2;
pub(crate) const HOW_OFTEN: u64 = 3;
const COMMAND: u64 = 4;
const DONE: u64 = 5;
const ARGUMENT: u64 = 6;
/// Nanoseconds that the last command took.
pub(crate) const TOOK_NS: u64 = 7;
pub(crate) const SIGNALS: u64 = 8;
/// Thread numbers of the threads of `calls`, and their progress.
pub(crate) const THREADS: u64 = 16;
pub(crate) const PROGRESS: u64 = 32;
pub(crate) const CALLERS: u64 = 6;

/// What the process is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Do {
    /// Writes every page whose number is a multiple of the argument.
    Write = 1,
    /// Gives the second half of its memory back.
    Unmap,
    /// Becomes another program.
    Exec,
    /// Forks a child that ends at once.
    Fork,
    /// Maps its memory anew where it is.
    Remap,
    /// Writes so many pages here and there.
    Scatter,
}

/// Words that both processes have.
#[derive(Debug, Clone)]
pub(crate) struct Control(Arc<Mapping>);

impl Control {
    fn open(file: &Path) -> Self {
        Self(Arc::new(
            Mapping::open(&ram(file, 1)).expect("the control page"),
        ))
    }

    pub(crate) fn word(&self, n: u64) -> &AtomicU64 {
        let at = self.0.at(0).0.cast::<u64>();
        // SAFETY: an aligned word of a page that stays mapped as long as this; used as an atomic only.
        unsafe { AtomicU64::from_ptr(at.add(usize::try_from(n).expect("small"))) }
    }

    pub(crate) fn get(&self, n: u64) -> u64 {
        self.word(n).load(SeqCst)
    }

    fn wrong(&self, what: u64) {
        self.word(WRONG).store(what, SeqCst);
        self.word(HOW_OFTEN).fetch_add(1, SeqCst);
    }
}

pub(crate) fn ram(file: &Path, pages: u64) -> Ram {
    Ram::new(vec![Block {
        id: "m".to_owned(),
        file: file.to_owned(),
        file_offset: 0,
        size_bytes: pages * PAGE_BYTES,
    }])
    .expect("a block")
}

/// The process, seen from the test.
#[derive(Debug)]
pub(crate) struct Watchee {
    child: Child,
    dir: tempfile::TempDir,
    pub(crate) pages: u64,
    pub(crate) control: Control,
}

impl Watchee {
    /// `mode`: how many threads write here and there, or `calls`.
    pub(crate) fn start(pages: u64, mode: &str) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").expect("/dev/shm");
        let [ram_file, control] = ["ram", "control"].map(|name| dir.path().join(name));
        for (file, pages) in [(&ram_file, pages), (&control, 1)] {
            let file = std::fs::File::create(file).expect("a file");
            file.set_len(pages * PAGE_BYTES).expect("its size");
        }
        let mut command = again("child::the_watched_process");
        let told = format!("{} {pages} {mode}", dir.path().display());
        command.env(IT, told).stdin(Stdio::piped());
        // SAFETY: one system call; it ends with us, also when a test fails.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        let it = Self {
            child: command.spawn().expect("started"),
            control: Control::open(&control),
            dir,
            pages,
        };
        until("the process is ready", || it.control.get(READY) == 1);
        it
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stdin(&mut self) -> &mut std::process::ChildStdin {
        self.child.stdin.as_mut().expect("piped")
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("ram")
    }

    pub(crate) fn ram(&self) -> Ram {
        ram(&self.file(), self.pages)
    }

    pub(crate) fn order(&self, what: Do, argument: u64) {
        self.control.word(ARGUMENT).store(argument, SeqCst);
        self.control.word(DONE).store(0, SeqCst);
        self.control.word(COMMAND).store(what as u64, SeqCst);
        if what == Do::Exec {
            let link = format!("/proc/{}/exe", self.pid());
            until("it is another program", || {
                std::fs::read_link(&link).is_ok_and(|exe| exe.ends_with("sleep"))
            });
            return;
        }
        until("it has done so", || self.control.get(DONE) == 1);
    }

    fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.pid()).expect("a process");
        // SAFETY: takes no memory.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Every thread of it stands still afterwards.
    pub(crate) fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let pid = libc::pid_t::try_from(self.pid()).expect("a process");
        let mut status = 0;
        // SAFETY: `status` is ours.
        let told = unsafe { libc::waitpid(pid, &mut status, libc::WUNTRACED) };
        assert_eq!(told, pid);
        assert!(libc::WIFSTOPPED(status), "it has ended: {status:#x}");
    }

    /// The fault that `xtask tracker` plants: somebody else clears the marks of the process.
    pub(crate) fn be_planted(&self) {
        if std::env::var_os("CHECKPOINTER_TEST_PLANT").is_some_and(|word| word == "cleared") {
            let file = format!("/proc/{}/clear_refs", self.pid());
            std::fs::write(file, "4").expect("marks to clear");
        }
    }

    pub(crate) fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// It goes on, and has found nothing wrong.
    pub(crate) fn check(&mut self) {
        assert!(
            self.child.try_wait().expect("asked").is_none(),
            "it has ended"
        );
        let (wrong, often) = (self.control.get(WRONG), self.control.get(HOW_OFTEN));
        assert_eq!(often, 0, "something was disturbed, of kind {wrong}");
    }
}

impl Drop for Watchee {
    fn drop(&mut self) {
        self.kill();
    }
}

/// This program once more, for one test.
pub(crate) fn again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("ourselves"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.stdout(Stdio::null());
    command
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(
            since.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Does nothing but where it was started as the process that is watched.
#[test]
fn the_watched_process() {
    let Ok(told) = std::env::var(IT) else { return };
    let words: Vec<&str> = told.split(' ').collect();
    let dir = Path::new(words[0]);
    let pages: u64 = words[1].parse().expect("pages");
    let control = Control::open(&dir.join("control"));
    let memory = Arc::new(Mapping::open(&ram(&dir.join("ram"), pages)).expect("memory"));
    if words[2] == "calls" {
        calls::start(&control);
    } else {
        for n in 0..words[2].parse().expect("threads") {
            let (control, memory) = (control.clone(), Arc::clone(&memory));
            std::thread::spawn(move || write_on(n, &control, &memory));
        }
    }
    control.word(READY).store(1, SeqCst);
    loop {
        let what = control.word(COMMAND).swap(0, SeqCst);
        if what != 0 {
            let since = Instant::now();
            obey(what, control.get(ARGUMENT), &memory);
            let took = u64::try_from(since.elapsed().as_nanos()).expect("short");
            control.word(TOOK_NS).store(took, SeqCst);
            control.word(DONE).store(1, SeqCst);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Words here and there, whole pages, and pages that the kernel fills.
fn write_on(thread: u64, control: &Control, memory: &Mapping) {
    use std::io::Read;
    let mut random = fastrand::Rng::with_seed(1000 + thread);
    let mut noise = std::fs::File::open("/dev/urandom").expect("noise");
    loop {
        for _ in 0..random.usize(1..40) {
            let page = memory.at(random.u64(0..memory.pages())).0;
            // SAFETY: a whole page of a mapping that is alive. Others may write it too: bytes are all it is, and
            // nobody reads them as anything.
            let bytes = unsafe { std::slice::from_raw_parts_mut(page, 4096) };
            match random.u8(0..20) {
                0 => bytes.fill(random.u8(..)),
                1 => {
                    let at = random.usize(0..4000);
                    if noise.read(&mut bytes[at..at + 64]).is_err() {
                        control.wrong(100);
                    }
                }
                _ => bytes[random.usize(0..4096)] = random.u8(..),
            }
            control.word(WRITES).fetch_add(1, SeqCst);
        }
        // Never all pages between two looks, and each again and again.
        std::thread::sleep(Duration::from_micros(random.u64(0..300)));
    }
}

fn obey(what: u64, argument: u64, memory: &Mapping) {
    let pages = memory.pages();
    let start = memory.at(0).0;
    let half = usize::try_from(pages / 2 * PAGE_BYTES).expect("small");
    let touch = |page: u64| {
        let at = memory.at(page).0;
        // SAFETY: a byte of a mapping that is alive; no other thread of this process writes.
        unsafe { at.write_volatile(at.read_volatile().wrapping_add(1)) };
    };
    match what {
        w if w == Do::Write as u64 => {
            let step = usize::try_from(argument).expect("small");
            (0..pages).step_by(step).for_each(touch);
        }
        w if w == Do::Unmap as u64 => {
            // SAFETY: nothing here looks at that half again.
            assert_eq!(unsafe { libc::munmap(start.add(half).cast(), half) }, 0);
        }
        w if w == Do::Exec as u64 => {
            let e = Command::new("/bin/sleep").arg("60").exec();
            panic!("sleep: {e}");
        }
        w if w == Do::Fork as u64 => {
            // SAFETY: the child does nothing but end.
            unsafe {
                let child = libc::fork();
                if child == 0 {
                    libc::_exit(0);
                }
                libc::waitpid(child, std::ptr::null_mut(), 0);
            }
            touch(1);
        }
        w if w == Do::Remap as u64 => {
            // SAFETY: of a size of nothing it gives another mapping of the same memory, which is put in place of
            // the first one.
            unsafe {
                let none = std::ptr::null_mut::<libc::c_void>();
                let all = half * 2;
                let new = libc::mremap(start.cast(), 0, all, libc::MREMAP_MAYMOVE, none);
                assert_ne!(new, libc::MAP_FAILED);
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                let there = libc::mremap(new, all, all, flags, start);
                assert_eq!(there, start.cast());
            }
            touch(1);
        }
        w if w == Do::Scatter as u64 => {
            let mut random = fastrand::Rng::with_seed(argument);
            for _ in 0..argument {
                touch(random.u64(0..pages));
            }
        }
        _ => unreachable!("commands are the enum's"),
    }
}
