//! The server against a client of a few lines.

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
