//! The guest's address on its network device, by ioctl: there is no other user space.

use std::ffi::{c_char, c_int, c_short, c_ulong};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::system::Outcome;

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, argument: *const Request) -> c_int;
}

/// ifreq of netdevice(7): a name, then an address or flags; 40 bytes on x86-64.
#[repr(C)]
struct Request {
    name: [c_char; 16],
    value: Value,
}

#[repr(C)]
union Value {
    flags: c_short,
    address: SocketAddress,
    room: [u64; 3],
}

/// sockaddr_in of ip(7).
#[repr(C)]
#[derive(Clone, Copy)]
struct SocketAddress {
    family: u16,
    port: u16,
    address: [u8; 4],
    zero: [u8; 8],
}

const AF_INET: c_int = 2;
const SOCK_DGRAM: c_int = 2;
const SIOCSIFFLAGS: c_ulong = 0x8914;
const SIOCSIFADDR: c_ulong = 0x8916;
const SIOCSIFNETMASK: c_ulong = 0x891c;
const IFF_UP: c_short = 1;

/// Gives the device `address` in a network of 256, and lets it up.
pub(crate) fn bring_up(name: &str, address: Ipv4Addr) -> Outcome<()> {
    wait_for(name)?;
    // SAFETY: no memory involved.
    let fd = unsafe { socket(AF_INET, SOCK_DGRAM, 0) };
    if fd < 0 {
        return Err(format!("socket: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: just opened, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mask = Ipv4Addr::new(255, 255, 255, 0);
    let flags = {
        let mut value = Value { room: [0; 3] };
        value.flags = IFF_UP;
        value
    };
    for (what, request, value) in [
        ("address", SIOCSIFADDR, of_address(address)),
        ("mask", SIOCSIFNETMASK, of_address(mask)),
        ("flags", SIOCSIFFLAGS, flags),
    ] {
        let mut asked = Request {
            name: [0; 16],
            value,
        };
        // The last place stays NUL.
        for (place, byte) in asked.name[..15].iter_mut().zip(name.bytes()) {
            *place = byte.cast_signed();
        }
        // SAFETY: the fd is open, and the kernel reads one ifreq, which is `asked`.
        if unsafe { ioctl(fd.as_raw_fd(), request, &asked) } != 0 {
            let error = std::io::Error::last_os_error();
            return Err(format!("{what} of {name}: {error}"));
        }
    }
    Ok(())
}

fn of_address(address: Ipv4Addr) -> Value {
    Value {
        address: SocketAddress {
            family: 2,
            port: 0,
            address: address.octets(),
            zero: [0; 8],
        },
    }
}

/// The device appears a moment after its driver.
fn wait_for(name: &str) -> Outcome<()> {
    let shown = Path::new("/sys/class/net").join(name);
    for _ in 0..200 {
        if shown.exists() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(format!("{name} did not appear in 10 s"))
}
