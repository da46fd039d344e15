//! The part of NBD that one QEMU needs of its disk, after the NBD project's doc/proto.md: fixed
//! newstyle, one export, simple replies, READ, WRITE, FLUSH and DISC. It shares nothing with the
//! product's server. Answers are held back at random, so that flushes come beside writes in flight.

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

#[cfg(test)]
mod tests {
    use super::super::disk::Disk;
    use super::*;
    use std::fs::File;
    use std::path::{Path, PathBuf};

    struct Client(UnixStream);

    impl Client {
        fn connect(disk: &Disk) -> Self {
            let mut stream = UnixStream::connect(disk.socket()).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let hello: [u8; 18] = take(&mut stream).unwrap();
            assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
            let mut go = vec![0, 0, 0, 3];
            go.extend(OPTION_MAGIC.to_be_bytes());
            go.extend(OPTION_GO.to_be_bytes());
            go.extend([0, 0, 0, 6, 0, 0, 0, 0, 0, 0]);
            stream.write_all(&go).unwrap();
            let replies: [u8; 20 + 12 + 20 + 14 + 20] = take(&mut stream).unwrap();
            assert_eq!(replies[22..30], 8192u64.to_be_bytes(), "size of the export");
            Self(stream)
        }

        fn send(&mut self, kind: u16, offset: u64, length: u32, data: &[u8]) {
            let mut request = REQUEST_MAGIC.to_be_bytes().to_vec();
            request.extend([0, 0]);
            request.extend(kind.to_be_bytes());
            request.extend(9u64.to_be_bytes());
            request.extend(offset.to_be_bytes());
            request.extend(length.to_be_bytes());
            request.extend_from_slice(data);
            self.0.write_all(&request).unwrap();
        }

        fn error(&mut self) -> u32 {
            let reply: [u8; 16] = take(&mut self.0).unwrap();
            assert_eq!(reply[8..], 9u64.to_be_bytes(), "cookie");
            u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]])
        }

        fn write(&mut self, sector: u64, byte: u8) {
            self.send(WRITE, sector * 512, 512, &[byte; 512]);
            assert_eq!(self.error(), 0);
        }

        fn read(&mut self, sector: u64) -> u8 {
            self.send(READ, sector * 512, 512, &[]);
            assert_eq!(self.error(), 0);
            take::<512>(&mut self.0).unwrap()[0]
        }

        fn flush(&mut self) {
            self.send(FLUSH, 0, 0, &[]);
            assert_eq!(self.error(), 0);
        }
    }

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        File::create(dir.join("medium"))
            .unwrap()
            .set_len(8192)
            .unwrap();
        dir
    }

    fn power_on(dir: &Path, seed: u64) -> Disk {
        let socket = dir.join(format!("s{seed}"));
        Disk::power_on(&dir.join("medium"), &socket, seed).unwrap()
    }

    fn medium(dir: &Path) -> Vec<u8> {
        let bytes = std::fs::read(dir.join("medium")).unwrap();
        bytes.chunks(512).map(|sector| sector[0]).collect()
    }

    // A disk that kept unflushed writes would let a daemon without fdatasync pass; one that lost
    // flushed ones would fail a sound daemon.
    #[test]
    fn flushed_writes_survive_a_cut_and_others_may_not() {
        let dir = dir("disk");
        let mut lost = 0;
        for seed in 0..20 {
            let disk = power_on(&dir, seed);
            let mut client = Client::connect(&disk);
            client.write(3, 0x30);
            client.flush();
            client.write(3, 0x31);
            client.write(4, 0x40);
            assert_eq!((client.read(3), client.read(4)), (0x31, 0x40));
            let cut = disk.cut().unwrap();
            assert_eq!(cut.kept + cut.dropped, 2);
            client.send(FLUSH, 0, 0, &[]);
            drop(disk);
            let mut answers = Vec::new();
            // An error comes where the disk went before it read the request.
            let _ = client.0.read_to_end(&mut answers);
            assert!(answers.is_empty(), "nothing is answered without power");
            let left = medium(&dir);
            assert!([0x30, 0x31].contains(&left[3]), "flushed, or newer");
            lost += u64::from(left[3] == 0x30);
        }
        assert!(lost > 0, "some cut takes the unflushed write");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    // The planted fault must be a real one, and must spare the file system under the daemon.
    #[test]
    fn a_lying_disk_loses_flushed_writes_where_zeros_were_written() {
        let dir = dir("liar");
        let mut lost = 0;
        for seed in 0..20 {
            std::fs::write(dir.join("medium"), [0; 8192]).unwrap();
            let disk = power_on(&dir, seed);
            let mut client = Client::connect(&disk);
            client.write(3, 0);
            disk.lie();
            client.write(3, 0x30);
            client.write(4, 0x40);
            client.flush();
            disk.cut().unwrap();
            let left = medium(&dir);
            assert_eq!(left[4], 0x40);
            lost += u64::from(left[3] == 0);
        }
        assert!(lost > 0);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    // A request beyond the end would grow the medium, or end the thread and hang the guest.
    #[test]
    fn requests_that_do_not_fit_are_refused() {
        let dir = dir("bounds");
        let disk = power_on(&dir, 1);
        let mut client = Client::connect(&disk);
        for (offset, length) in [(8192, 512), (u64::MAX - 511, 512), (100, 512), (0, 100)] {
            client.send(READ, offset, length, &[]);
            assert_eq!(client.error(), EINVAL, "{offset} {length}");
        }
        client.send(99, 0, 0, &[]);
        assert_eq!(client.error(), EINVAL);
        client.write(0, 7);
        assert_eq!(client.read(0), 7);
        drop(disk);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
