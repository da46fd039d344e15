//! A tap, as a hypervisor has it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

pub(crate) struct Tap(pub(crate) File);

impl Tap {
    /// In the calling thread's namespace; `None` where the kernel has none.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = options
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .ok()?;
        // SAFETY: TUNSETIFF reads one ifreq of plain numbers.
        unsafe {
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
            let done = libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request);
            (done == 0).then_some(Self(file))
        }
    }

    /// The next frame that waits there.
    pub(crate) fn next(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 70_000];
        match (&self.0).read(&mut frame) {
            Ok(bytes) => {
                frame.truncate(bytes);
                Some(frame)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) fn say(&self, frame: &[u8]) {
        assert_eq!((&self.0).write(frame).unwrap(), frame.len());
    }
}
