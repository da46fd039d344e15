//! The part of NBD that one QEMU needs of its disk, after the NBD project's doc/proto.md: fixed
//! newstyle, one export, simple replies, READ, WRITE, FLUSH and DISC. It shares nothing with the
//! product's server. Answers are held back at random, so that flushes come beside writes in flight.

#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;
use std::time::Duration;

use super::cache::SECTOR_BYTES;
use super::disk::{State, lock};

/// Longest request, as the export's block size information says.
const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Longest option a client may send.
const OPTION_BYTES_MAX: u32 = 4096;
/// Answers held back at once.
const HELD_MAX: usize = 16;
/// Answers are held back no longer than this once the client is quiet.
const HOLD_MS: libc::c_int = 1;

/// "NBDMAGIC", and the magics of options, their replies, requests and simple replies.
const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const FIXED_NEWSTYLE_AND_NO_ZEROES: u16 = 3;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
/// HAS_FLAGS and SEND_FLUSH: a volatile cache, and no FUA, so that every durable write is a flush.
const EXPORT_FLAGS: u16 = 0b101;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
pub(super) const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// Serves the first client until it goes, or the power does.
pub(super) fn serve(listener: &UnixListener, state: &Mutex<State>) {
    let mut client = loop {
        if lock(state).off {
            return;
        }
        match listener.accept() {
            Ok((client, _)) => break client,
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    // The handle is what ends a read of this thread when the disk is dropped.
    let handle = client
        .set_nonblocking(false)
        .and_then(|()| client.try_clone());
    let Ok(handle) = handle else { return };
    lock(state).client = Some(handle);
    let bytes = lock(state).bytes;
    // Ends when the client goes, which is how every round ends.
    if let Ok(true) = greet(&mut client, bytes) {
        let _ = transmit(&mut client, state);
    }
}

/// The handshake; true if the client goes on to requests.
fn greet(client: &mut UnixStream, bytes: u64) -> io::Result<bool> {
    let mut hello = INIT_MAGIC.to_be_bytes().to_vec();
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend(FIXED_NEWSTYLE_AND_NO_ZEROES.to_be_bytes());
    client.write_all(&hello)?;
    let _flags: [u8; 4] = take(client)?;
    loop {
        let magic = u64::from_be_bytes(take(client)?);
        let option = u32::from_be_bytes(take(client)?);
        let length = u32::from_be_bytes(take(client)?);
        if magic != OPTION_MAGIC || length > OPTION_BYTES_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        // There is one export, whatever it is called.
        let mut data = vec![0; length as usize];
        client.read_exact(&mut data)?;
        match option {
            OPTION_GO | OPTION_INFO => {
                let mut export = INFO_EXPORT.to_be_bytes().to_vec();
                export.extend(bytes.to_be_bytes());
                export.extend(EXPORT_FLAGS.to_be_bytes());
                answer_option(client, option, REPLY_INFO, &export)?;
                let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
                for size in [SECTOR_BYTES as u32, 4096, REQUEST_BYTES_MAX] {
                    sizes.extend(size.to_be_bytes());
                }
                answer_option(client, option, REPLY_INFO, &sizes)?;
                answer_option(client, option, REPLY_ACK, &[])?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            OPTION_ABORT => {
                answer_option(client, option, REPLY_ACK, &[])?;
                return Ok(false);
            }
            _ => answer_option(client, option, REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn answer_option(client: &mut UnixStream, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).expect("our own replies are short");
    let mut reply = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    for word in [option, kind, length] {
        reply.extend(word.to_be_bytes());
    }
    reply.extend_from_slice(data);
    client.write_all(&reply)
}

/// A request, with the data of a write.
struct Request {
    kind: u16,
    cookie: u64,
    offset: u64,
    length: u32,
    data: Vec<u8>,
}

impl Request {
    fn take(client: &mut UnixStream) -> io::Result<Self> {
        let magic = u32::from_be_bytes(take(client)?);
        let [_, _, high, low] = take(client)?;
        let kind = u16::from_be_bytes([high, low]);
        let cookie = u64::from_be_bytes(take(client)?);
        let offset = u64::from_be_bytes(take(client)?);
        let length = u32::from_be_bytes(take(client)?);
        if magic != REQUEST_MAGIC || length > REQUEST_BYTES_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut data = vec![0; if kind == WRITE { length as usize } else { 0 }];
        client.read_exact(&mut data)?;
        Ok(Self {
            kind,
            cookie,
            offset,
            length,
            data,
        })
    }

    /// Whether it is about whole sectors of the disk.
    fn fits(&self, disk_bytes: u64) -> bool {
        let sector = SECTOR_BYTES as u64;
        let length = u64::from(self.length);
        let whole = self.offset.is_multiple_of(sector) && length.is_multiple_of(sector);
        let end = self.offset.checked_add(length);
        whole && end.is_some_and(|end| end <= disk_bytes)
    }
}

/// Requests until the client goes or the power does.
fn transmit(client: &mut UnixStream, state: &Mutex<State>) -> io::Result<()> {
    let mut held: Vec<u64> = Vec::new();
    loop {
        if !held.is_empty() && (held.len() >= HELD_MAX || !is_readable(client)?) {
            let mut state = lock(state);
            if state.off {
                return Ok(());
            }
            state.all_answered();
            for cookie in held.drain(..) {
                answer(client, 0, cookie, &[])?;
            }
        }
        let request = Request::take(client)?;
        let mut state = lock(state);
        if state.off || request.kind == DISCONNECT {
            return Ok(());
        }
        carry_out(&request, client, &mut state, &mut held)?;
    }
}

/// Carries a request out and answers it, or puts its cookie into `held`.
fn carry_out(
    request: &Request,
    client: &mut UnixStream,
    state: &mut State,
    held: &mut Vec<u64>,
) -> io::Result<()> {
    let cookie = request.cookie;
    let fits = request.fits(state.bytes);
    match request.kind {
        READ if fits => {
            let mut data = vec![0; request.length as usize];
            let error = state.read(request.offset, &mut data);
            data.truncate(if error == 0 { data.len() } else { 0 });
            answer(client, error, cookie, &data)
        }
        WRITE if fits => {
            let error = state.write(request.offset, &request.data);
            // Answers keep their order: what is held back holds back what comes after it.
            if error == 0 && (!held.is_empty() || state.random.bool()) {
                held.push(cookie);
                return Ok(());
            }
            if error == 0 {
                state.all_answered();
            }
            answer(client, error, cookie, &[])
        }
        FLUSH => answer(client, state.flush(), cookie, &[]),
        _ => answer(client, EINVAL, cookie, &[]),
    }
}

fn answer(client: &mut UnixStream, error: u32, cookie: u64, data: &[u8]) -> io::Result<()> {
    let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
    reply.extend(error.to_be_bytes());
    reply.extend(cookie.to_be_bytes());
    reply.extend_from_slice(data);
    client.write_all(&reply)
}

fn take<const N: usize>(client: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Whether the client says more within [`HOLD_MS`].
fn is_readable(client: &UnixStream) -> io::Result<bool> {
    let mut asked = libc::pollfd {
        fd: client.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd that outlives the call, of a descriptor that is open.
    match unsafe { libc::poll(&raw mut asked, 1, HOLD_MS) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
        ready => Ok(ready > 0),
    }
}
