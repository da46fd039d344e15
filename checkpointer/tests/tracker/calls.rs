//! Threads that sit in system calls or compute, and notice when they are disturbed.

use super::{Control, PROGRESS, SIGNALS, THREADS};
use std::ffi::c_int;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

static SEEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn seen(_: c_int) {
    SEEN.fetch_add(1, SeqCst);
}

pub(super) fn start(control: &Control) {
    let action = seen as extern "C" fn(c_int);
    // SAFETY: the handler counts, and does nothing else; interrupted calls are begun again.
    unsafe {
        let mut how: libc::sigaction = std::mem::zeroed();
        how.sa_sigaction = action as usize;
        how.sa_flags = libc::SA_RESTART;
        assert_eq!(
            libc::sigaction(libc::SIGRTMIN(), &how, std::ptr::null_mut()),
            0
        );
    }
    let all: [fn(&Control, u64); 6] = [read, sleep, futex, poll, compute, compute_floats];
    for (n, one) in (0..).zip(all) {
        let control = control.clone();
        std::thread::spawn(move || {
            // SAFETY: takes no memory.
            let thread = unsafe { libc::gettid() };
            control
                .word(THREADS + n)
                .store(u64::from(thread.cast_unsigned()), SeqCst);
            loop {
                one(&control, n + 1);
                control.word(PROGRESS + n).fetch_add(1, SeqCst);
                control.word(SIGNALS).store(SEEN.load(SeqCst), SeqCst);
            }
        });
    }
}

/// Bytes of a pipe come one after the other.
fn read(control: &Control, me: u64) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut byte = 0u8;
    // SAFETY: one byte of ours.
    let got = unsafe { libc::read(0, (&raw mut byte).cast(), 1) };
    let next = NEXT.fetch_add(1, SeqCst);
    if got != 1 || u64::from(byte) != next % 256 {
        control.wrong(me);
    }
}

/// Neither cut short nor failed.
fn sleep(control: &Control, me: u64) {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 3_000_000,
    };
    let since = Instant::now();
    // SAFETY: the time is ours; what remains is not wanted.
    let got = unsafe { libc::nanosleep(&time, std::ptr::null_mut()) };
    // A handler that runs cuts it short, by its contract.
    let is_cut = got != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR);
    if !is_cut && (got != 0 || since.elapsed() < Duration::from_millis(3)) {
        control.wrong(me);
    }
}

/// Nobody wakes it, so it times out.
fn futex(control: &Control, me: u64) {
    let word = 7u32;
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 4_000_000,
    };
    // SAFETY: word and time are ours for the call.
    let got = unsafe { libc::syscall(libc::SYS_futex, &word, libc::FUTEX_WAIT, 7, &time) };
    let error = io::Error::last_os_error().raw_os_error();
    if got != -1 || !matches!(error, Some(libc::ETIMEDOUT | libc::EINTR)) {
        control.wrong(me);
    }
}

/// As QEMU's main loop waits, with a signal mask.
fn poll(control: &Control, me: u64) {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 2_000_000,
    };
    // SAFETY: no descriptors; time and mask are ours.
    let (got, error) = unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut mask, libc::SIGUSR1);
        let got = libc::ppoll(std::ptr::null_mut(), 0, &time, &mask);
        (got, io::Error::last_os_error().raw_os_error())
    };
    if got != 0 && error != Some(libc::EINTR) {
        control.wrong(me);
    }
    // Its own mask is the one that it had.
    // SAFETY: the mask is ours.
    let is_blocked = unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
        libc::sigismember(&mask, libc::SIGUSR1) != 0 || libc::sigismember(&mask, libc::SIGHUP) != 0
    };
    if is_blocked {
        control.wrong(me + 10);
    }
}

/// Many values at once, so that they lie in registers.
fn compute(control: &Control, me: u64) {
    let run = || {
        let mut words = [1u64, 2, 3, 4, 5, 6, 7, 8];
        for n in 0..20_000u64 {
            for (k, word) in (1u32..).zip(&mut words) {
                *word = word
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .rotate_left(k)
                    .wrapping_add(std::hint::black_box(n));
            }
        }
        words
    };
    if run() != run() {
        control.wrong(me);
    }
}

/// The same with vector registers.
fn compute_floats(control: &Control, me: u64) {
    let run = || {
        let mut words = [0.1f64, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];
        for n in 0..20_000u32 {
            for word in &mut words {
                *word =
                    (*word * 3.7).mul_add(1.0 - *word, f64::from(std::hint::black_box(n)) * 1e-9);
                *word -= word.floor();
            }
        }
        words.map(f64::to_bits)
    };
    if run() != run() {
        control.wrong(me);
    }
}
