//! What every `/init` of a guest needs of the kernel, by system calls: there is no other user space.

use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

/// Errors are one line for the serial console.
pub(crate) type Outcome<T> = Result<T, String>;

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn umount(target: *const c_char) -> c_int;
    fn reboot(how: c_int) -> c_int;
    fn sync();
    fn tcdrain(fd: c_int) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

/// RB_POWER_OFF of reboot(2).
const POWER_OFF: c_int = 0x4321_fedc;
/// finit_module(2) on x86-64.
const SYS_FINIT_MODULE: c_long = 313;

/// Ends the machine, after what was said has left it.
pub(crate) fn power_off() {
    // SAFETY: calls without memory arguments; PID 1 may power the machine off.
    unsafe {
        sync();
        tcdrain(1);
        reboot(POWER_OFF);
    }
}

/// Mounts what the kernel shows of itself.
pub(crate) fn attach_kernel_trees() -> Outcome<()> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        attach(kind, target, kind, "")?;
    }
    Ok(())
}

/// The kernel's command line.
pub(crate) struct CommandLine(String);

impl CommandLine {
    pub(crate) fn read() -> Outcome<Self> {
        let text = fs::read_to_string("/proc/cmdline");
        text.map(Self).map_err(|e| format!("/proc/cmdline: {e}"))
    }

    /// What stands behind `key`, which ends in '='.
    pub(crate) fn word(&self, key: &str) -> Option<&str> {
        self.0.split_whitespace().find_map(|w| w.strip_prefix(key))
    }

    pub(crate) fn number(&self, key: &str) -> Outcome<u64> {
        let text = self
            .word(key)
            .ok_or_else(|| format!("{key} is missing on the command line"))?;
        text.parse().map_err(|e| format!("{key}{text}: {e}"))
    }
}

/// Loads the modules that `/modules.list` names, in its order.
pub(crate) fn load_modules() -> Outcome<()> {
    let list = fs::read_to_string("/modules.list").map_err(|e| format!("/modules.list: {e}"))?;
    for name in list.lines() {
        let file = File::open(name).map_err(|e| format!("{name}: {e}"))?;
        // SAFETY: the fd is open for the call and the parameters are a NUL-terminated string.
        let done = unsafe { syscall(SYS_FINIT_MODULE, file.as_raw_fd(), c"".as_ptr(), 0 as c_int) };
        if done != 0 {
            return Err(format!(
                "module {name}: {}",
                std::io::Error::last_os_error()
            ));
        }
    }
    Ok(())
}

/// The device appears a moment after its driver.
pub(crate) fn wait_for_disk(disk: &Path) -> Outcome<()> {
    for _ in 0..200 {
        if disk.exists() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(format!("{} did not appear in 10 s", disk.display()))
}

/// mount(2), at a directory that is made if it is missing.
pub(crate) fn attach(source: &str, target: &str, kind: &str, data: &str) -> Outcome<()> {
    fs::create_dir_all(target).map_err(|e| format!("{target}: {e}"))?;
    let [source_c, target_c, kind_c, data_c] =
        [source, target, kind, data].map(|text| CString::new(text).expect("no NUL in these"));
    // SAFETY: four NUL-terminated strings that outlive the call.
    let done = unsafe {
        mount(
            source_c.as_ptr(),
            target_c.as_ptr(),
            kind_c.as_ptr(),
            0,
            data_c.as_ptr().cast(),
        )
    };
    if done == 0 {
        return Ok(());
    }
    Err(format!(
        "mount {source} on {target}: {}",
        std::io::Error::last_os_error()
    ))
}

/// umount(2).
pub(crate) fn detach(target: &str) -> Outcome<()> {
    let name = CString::new(target).expect("no NUL in these");
    // SAFETY: one NUL-terminated string that outlives the call.
    match unsafe { umount(name.as_ptr()) } {
        0 => Ok(()),
        _ => Err(format!(
            "umount {target}: {}",
            std::io::Error::last_os_error()
        )),
    }
}
