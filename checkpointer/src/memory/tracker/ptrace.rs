//! One thread of another process, stopped by ptrace: system calls can be run in it, and then it goes on as if
//! nothing had been.
//!
//! ```text
//!   seize, interrupt ─► stopped on its way to user mode: registers and signal mask kept, signals blocked
//!        call: registers set ─► stop at its entry ─► stop at its exit: the answer   (as often as wanted)
//!        interrupt ─► stopped on its way to user mode again: registers and mask put back ─► detached
//! ```
//!
//! Why the last stop: a system call that the first stop has interrupted is begun again by the kernel on the way to
//! user mode after a signal stop, by the registers as they are then. After the stop at an exit only a side effect of
//! detaching brings that about, and without it the thread would see the kernel's inner error code.
//!
//! ptrace belongs to the thread that attached: all of this runs on one, and when that ends the kernel detaches.
//! A call that the kernel never begins again (`epoll_wait`) returns `EINTR`, as it does after any stop.

use super::TrackerError;
use super::failure::untraceable;
use std::ffi::{c_int, c_void};
use std::io;
use std::time::{Duration, Instant};

/// How long a thread may take to stop.
const STOP_MAX: Duration = Duration::from_secs(2);
/// A stop within this time is waited for without sleeping.
const SPIN: Duration = Duration::from_micros(200);
/// Reported by a stop for a system call (`PTRACE_O_TRACESYSGOOD`).
const SYSCALL_STOP: c_int = libc::SIGTRAP | 0x80;
/// Reported by `PTRACE_EVENT_STOP`, above the signal.
const EVENT_STOP: c_int = 128;
/// Code segment of 64-bit programs.
const CS_64_BIT: u64 = 0x33;
/// The thread is in no system call that would be begun again.
const NO_SYSCALL: u64 = u64::MAX;

type Registers = libc::user_regs_struct;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Syscall,
    Event,
}

/// A thread that stands still and is ours until this is dropped.
#[derive(Debug)]
pub(super) struct Stopped {
    pid: u32,
    thread: libc::pid_t,
    registers: Registers,
    mask: u64,
    /// Signals that could not be blocked; sent again in the end.
    held: Vec<c_int>,
    /// Registers and mask are not the thread's own.
    is_changed: bool,
    is_attached: bool,
}

impl Stopped {
    /// Stops a thread of the process.
    pub(super) fn seize(pid: u32, thread: u32) -> Result<Self, TrackerError> {
        let thread = libc::pid_t::try_from(thread)
            .map_err(|_| TrackerError::Gone(format!("there is no thread {thread}")))?;
        let options = libc::PTRACE_O_TRACESYSGOOD as usize as *mut c_void;
        // SAFETY: takes no memory of ours.
        if let Err(e) = unsafe { ptrace(libc::PTRACE_SEIZE, thread, std::ptr::null_mut(), options) }
        {
            return Err(match e.raw_os_error() {
                Some(libc::EPERM) => untraceable(pid),
                Some(libc::ESRCH) => TrackerError::ended(pid),
                _ => TrackerError::of("attaching to the process")(e),
            });
        }
        let mut stopped = Self {
            pid,
            thread,
            // SAFETY: plain numbers.
            registers: unsafe { std::mem::zeroed() },
            mask: 0,
            held: Vec::new(),
            is_changed: false,
            is_attached: true,
        };
        stopped.simple(libc::PTRACE_INTERRUPT)?;
        stopped.wait(Stop::Event, libc::PTRACE_CONT, true)?;
        stopped.registers = stopped.get_registers()?;
        if stopped.registers.cs != CS_64_BIT {
            return Err(TrackerError::Refused(format!(
                "process {pid} is a 32-bit program, which cannot be attached to"
            )));
        }
        let mut mask = 0u64;
        // SAFETY: the kernel's signal sets are 8 bytes, which `mask` has.
        unsafe { stopped.signal_mask(libc::PTRACE_GETSIGMASK, &mut mask) }?;
        stopped.mask = mask;
        Ok(stopped)
    }

    /// Of the thread, before anything was changed.
    pub(super) fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Runs a system call at `gate`, an address in the process where the instruction for it stands.
    ///
    /// # Errors
    /// Those of the call are in the answer, as the kernel gives them: -errno.
    pub(super) fn call(
        &mut self,
        gate: u64,
        number: libc::c_long,
        arguments: [u64; 2],
    ) -> Result<i64, TrackerError> {
        if !self.is_changed {
            // Signals that come by themselves wait. Those of a fault are let through: blocked, they would lose
            // their handlers.
            let mut mask = !0u64;
            for signal in [
                libc::SIGSEGV,
                libc::SIGBUS,
                libc::SIGILL,
                libc::SIGFPE,
                libc::SIGTRAP,
                libc::SIGSYS,
            ] {
                mask &= !(1 << (signal - 1));
            }
            self.is_changed = true;
            // SAFETY: 8 bytes, as above.
            unsafe { self.signal_mask(libc::PTRACE_SETSIGMASK, &mut mask) }?;
        }
        let mut registers = self.registers;
        registers.rip = gate;
        registers.rax = number.cast_unsigned();
        registers.orig_rax = NO_SYSCALL;
        [registers.rdi, registers.rsi] = arguments;
        self.set_registers(&registers)?;
        for _ in ["entry", "exit"] {
            self.simple(libc::PTRACE_SYSCALL)?;
            self.wait(Stop::Syscall, libc::PTRACE_SYSCALL, false)?;
        }
        Ok(self.get_registers()?.rax.cast_signed())
    }

    /// The thread goes on where it was.
    pub(super) fn release(mut self) -> Result<(), TrackerError> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<(), TrackerError> {
        if self.is_changed {
            self.simple(libc::PTRACE_INTERRUPT)?;
            self.simple(libc::PTRACE_CONT)?;
            self.wait(Stop::Event, libc::PTRACE_CONT, false)?;
            let registers = self.registers;
            self.set_registers(&registers)?;
            let mut mask = self.mask;
            // SAFETY: 8 bytes, as above.
            unsafe { self.signal_mask(libc::PTRACE_SETSIGMASK, &mut mask) }?;
            self.is_changed = false;
        }
        self.simple(libc::PTRACE_DETACH)?;
        self.is_attached = false;
        for signal in std::mem::take(&mut self.held) {
            // SAFETY: takes no memory.
            unsafe { libc::syscall(libc::SYS_tgkill, self.pid, self.thread, signal) };
        }
        Ok(())
    }

    /// Waits for a stop of that kind; from others the thread goes on by `resume`. Signals are passed on, or held
    /// where its registers are not its own.
    fn wait(
        &mut self,
        wanted: Stop,
        resume: libc::c_uint,
        is_passing: bool,
    ) -> Result<(), TrackerError> {
        let since = Instant::now();
        loop {
            let Some(code) = self.poll_stop()? else {
                let waited = since.elapsed();
                if waited > STOP_MAX {
                    return Err(TrackerError::Refused(format!(
                        "thread {} of process {} did not stop within {} s",
                        self.thread,
                        self.pid,
                        STOP_MAX.as_secs()
                    )));
                }
                if waited > SPIN {
                    std::thread::sleep(Duration::from_micros(50));
                } else {
                    std::thread::yield_now();
                }
                continue;
            };
            let (signal, event) = (code & 0xff, code >> 8);
            let stop = match (signal, event) {
                (SYSCALL_STOP, 0) => Some(Stop::Syscall),
                (_, EVENT_STOP) => Some(Stop::Event),
                _ => None,
            };
            if stop == Some(wanted) {
                return Ok(());
            }
            let mut deliver = 0;
            if stop.is_none() && event == 0 {
                if is_passing {
                    deliver = signal;
                } else {
                    self.held.push(signal);
                }
            }
            let data = deliver as usize as *mut c_void;
            // SAFETY: takes no memory of ours.
            unsafe { ptrace(resume, self.thread, std::ptr::null_mut(), data) }
                .map_err(|e| self.told(e))?;
        }
    }

    /// The code of a stop that has not been told: signal, and event above it. Ends of the process are left to
    /// whoever is its parent.
    fn poll_stop(&self) -> Result<Option<c_int>, TrackerError> {
        // SAFETY: plain numbers.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
        let id = self.thread.cast_unsigned();
        // SAFETY: `info` is ours for the call.
        if unsafe { libc::waitid(libc::P_PID, id, &mut info, options) } != 0 {
            return Err(self.told(io::Error::last_os_error()));
        }
        // SAFETY: waitid has filled it, or left it zero.
        let (told, code) = unsafe { (info.si_pid(), info.si_status()) };
        Ok((told != 0).then_some(code))
    }

    fn told(&self, error: io::Error) -> TrackerError {
        match error.raw_os_error() {
            Some(libc::ESRCH | libc::ECHILD) => TrackerError::ended(self.pid),
            _ => TrackerError::of("steering a thread of the process")(error),
        }
    }

    fn simple(&self, request: libc::c_uint) -> Result<(), TrackerError> {
        let none = std::ptr::null_mut();
        // SAFETY: these requests take no memory of ours.
        unsafe { ptrace(request, self.thread, none, none) }.map_err(|e| self.told(e))
    }

    fn get_registers(&self) -> Result<Registers, TrackerError> {
        // SAFETY: plain numbers.
        let mut registers: Registers = unsafe { std::mem::zeroed() };
        let data = (&raw mut registers).cast();
        // SAFETY: the kernel writes one such structure.
        unsafe {
            ptrace(
                libc::PTRACE_GETREGS,
                self.thread,
                std::ptr::null_mut(),
                data,
            )
        }
        .map_err(|e| self.told(e))?;
        Ok(registers)
    }

    fn set_registers(&self, registers: &Registers) -> Result<(), TrackerError> {
        let data = std::ptr::from_ref(registers).cast_mut().cast();
        // SAFETY: the kernel reads one such structure.
        unsafe {
            ptrace(
                libc::PTRACE_SETREGS,
                self.thread,
                std::ptr::null_mut(),
                data,
            )
        }
        .map_err(|e| self.told(e))
    }

    /// # Safety
    /// `request` is one of the two for signal masks.
    unsafe fn signal_mask(
        &self,
        request: libc::c_uint,
        mask: &mut u64,
    ) -> Result<(), TrackerError> {
        let size = size_of::<u64>() as *mut c_void;
        // SAFETY: the kernel reads or writes `size` bytes.
        unsafe { ptrace(request, self.thread, size, std::ptr::from_mut(mask).cast()) }
            .map_err(|e| self.told(e))
    }

    /// Where the thread's restartable sequences stand, if it has any.
    pub(super) fn rseq_area(&self) -> Option<u64> {
        // SAFETY: plain numbers.
        let mut told: libc::ptrace_rseq_configuration = unsafe { std::mem::zeroed() };
        let size = size_of_val(&told) as *mut c_void;
        let data = (&raw mut told).cast();
        // SAFETY: the kernel writes `size` bytes at most.
        unsafe { ptrace(libc::PTRACE_GET_RSEQ_CONFIGURATION, self.thread, size, data) }.ok()?;
        (told.rseq_abi_pointer != 0).then_some(told.rseq_abi_pointer)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.is_attached && self.put_back().is_err() {
            // It may be running yet: it has to stand still for its registers to be put back.
            let _ = self.simple(libc::PTRACE_INTERRUPT);
            let _ = self.wait(Stop::Event, libc::PTRACE_CONT, false);
            let _ = self.put_back();
        }
    }
}

/// # Safety
/// `address` and `data` are what the request wants.
unsafe fn ptrace(
    request: libc::c_uint,
    thread: libc::pid_t,
    address: *mut c_void,
    data: *mut c_void,
) -> io::Result<()> {
    // SAFETY: the caller answers for both.
    if unsafe { libc::ptrace(request, thread, address, data) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
