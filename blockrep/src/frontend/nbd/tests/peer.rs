//! QEMU's NBD client against a small blocking server around [`Conn`], with the disk in memory.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command as Process, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::*;

/// Reads that touch this byte of a disk fail, as a bad sector does.
const BAD_BYTE: u64 = 0x30_0000;
const DISK_BYTES: u64 = 0x40_0000;
/// A peer that takes longer is stuck.
const HANG_LIMIT: Duration = Duration::from_secs(120);

/// What the test looks at afterwards.
#[derive(Default)]
struct Shared {
    disks: Mutex<BTreeMap<String, Vec<u8>>>,
    requests: Mutex<Vec<Request>>,
    structured: Mutex<Vec<bool>>,
}

struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    fn start(config: Config, exports: Vec<ExportInfo>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let address = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared::default());
        for export in &exports {
            let zeroes = vec![0; export.size_bytes() as usize];
            shared
                .disks
                .lock()
                .expect("no panic")
                .insert(export.name().to_owned(), zeroes);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let acceptor = thread::spawn({
            let (shared, stop) = (Arc::clone(&shared), Arc::clone(&stop));
            move || {
                let mut clients = Vec::new();
                for socket in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let (shared, exports) = (Arc::clone(&shared), exports.clone());
                    clients.push(thread::spawn(move || {
                        serve(
                            socket.expect("an accepted socket"),
                            config,
                            &exports,
                            &shared,
                        )
                    }));
                }
                for client in clients {
                    let ended = client.join().expect("a client thread without a panic");
                    // A client that hangs up at once resets its socket; nothing else may happen.
                    assert!(ended.is_ok_and(|fatal| fatal.is_none()));
                }
            }
        });
        Server {
            address,
            shared,
            stop,
            acceptor: Some(acceptor),
        }
    }

    fn url(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address)
    }

    /// Ends the server; its threads' failures become the test's.
    fn finish(mut self) -> Arc<Shared> {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        let acceptor = self.acceptor.take().expect("finish is called once");
        acceptor.join().expect("every client was served to its end");
        Arc::clone(&self.shared)
    }
}

/// One connection to its end: the loop of the module's description, blocking.
fn serve(
    mut socket: TcpStream,
    config: Config,
    exports: &[ExportInfo],
    shared: &Shared,
) -> io::Result<Option<Fatal>> {
    socket.set_nodelay(true)?;
    let mut out = Vec::new();
    let mut conn = Conn::new(config, &mut out);
    let mut buffer = vec![0; 4096];
    loop {
        socket.write_all(&out)?;
        out.clear();
        let received = match socket.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            received => received?,
        };
        let mut rest = &buffer[..received];
        while !rest.is_empty() {
            let step = match conn.input(rest, &exports, &mut out) {
                Ok(step) => step,
                Err(fatal) => return Ok(Some(fatal)),
            };
            rest = &rest[step.consumed..];
            socket.write_all(&out)?;
            out.clear();
            match step.event {
                Some(Event::TransmissionStarted) => {
                    shared
                        .structured
                        .lock()
                        .expect("no panic")
                        .push(conn.replies().structured());
                }
                Some(Event::Request(request)) => execute(&mut socket, &conn, request, &[], shared)?,
                Some(Event::WritePayload(request)) => {
                    let mut data = vec![0; request.length as usize];
                    let ready_bytes = rest.len().min(data.len());
                    let (ready, missing) = data.split_at_mut(ready_bytes);
                    ready.copy_from_slice(&rest[..ready.len()]);
                    rest = &rest[ready.len()..];
                    socket.read_exact(missing)?;
                    conn.payload_done();
                    execute(&mut socket, &conn, request, &data, shared)?;
                }
                Some(Event::Disconnect) => return Ok(None),
                None => {}
            }
        }
    }
}

fn execute(
    socket: &mut TcpStream,
    conn: &Conn,
    request: Request,
    payload: &[u8],
    shared: &Shared,
) -> io::Result<()> {
    shared.requests.lock().expect("no panic").push(request);
    let name = conn.export().expect("requests come in transmission").name();
    let mut disks = shared.disks.lock().expect("no panic");
    let disk = disks.get_mut(name).expect("one disk for each export");
    let start = request.offset as usize;
    let range = start..start + request.length as usize;
    let mut data: &[u8] = &[];
    match request.command {
        Command::Read { .. } if range.contains(&(BAD_BYTE as usize)) => {
            return socket.write_all(&conn.replies().error(request.cookie, Errno::Io));
        }
        Command::Read { .. } => data = &disk[range],
        Command::Write => disk[range].copy_from_slice(payload),
        // What was trimmed is undefined; a pattern shows who takes it for zeroes.
        Command::Trim => disk[range].fill(0xee),
        Command::WriteZeroes { .. } => disk[range].fill(0),
        Command::Flush => {}
    }
    socket.write_all(&conn.replies().success(&request))?;
    socket.write_all(data)
}

/// Runs a program to its end, at most [`HANG_LIMIT`]; `None`, with a printed reason, when it is
/// not installed.
fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    let spawned = Process::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed (Debian: qemu-utils)");
            return None;
        }
        spawned => spawned.expect("an installed program can be started"),
    };
    let started = Instant::now();
    while child.try_wait().expect("our own child").is_none() {
        if started.elapsed() > HANG_LIMIT {
            child.kill().expect("our own child");
            let output = child.wait_with_output().expect("our own child");
            panic!("{program} {arguments:?} hangs: {output:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Some(child.wait_with_output().expect("our own child"))
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

fn qemu_io(server: &Server, export: &str, options: &[&str], commands: &[&str]) -> Option<Output> {
    let url = server.url(export);
    let mut arguments = vec!["-f", "raw", "-d", "unmap", "-t", "writeback"];
    arguments.extend(options);
    arguments.push(&url);
    commands
        .iter()
        .for_each(|command| arguments.extend(["-c", command]));
    run("qemu-io", &arguments)
}

/// A server that only our own tests understand is of no use to a guest.
#[test]
fn qemu_reads_back_what_it_wrote() {
    for (config, structured) in [(config(), true), (config().simple_replies_only(), false)] {
        let server = Server::start(config, vec![full_export("disk", DISK_BYTES)]);
        let commands = [
            "write -P 0xab 0 64k",
            "read -P 0xab 0 64k",
            "write -f -P 0x5a 1M 4k",
            "read -P 0x5a 1M 4k",
            "write -P 0x11 100 50", // QEMU makes whole sectors of it: it was told the unit
            "read -P 0x11 100 50",
            "read -P 0xab 150 1000",
            "write -z 4k 4k",
            "write -z -u 8k 4k",
            "read -P 0 4k 8k",
            "discard 1M 4k",
            "read -P 0xee 1M 4k",
            "aio_write -P 0x31 2M 512k",
            "aio_write -P 0x32 2560k 256k",
            "aio_flush",
            "aio_read -P 0x31 2M 512k",
            "aio_read -P 0x32 2560k 256k",
            "aio_flush",
            "flush",
        ];
        let Some(output) = qemu_io(&server, "disk", &[], &commands) else {
            return;
        };
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains("failed"), "{said}");
        // A wrong pattern must be noticed, or all of the above says nothing.
        let wrong = qemu_io(&server, "disk", &[], &["read -P 0xac 0 512"]).expect("installed");
        assert!(
            text(&wrong).contains("verification failed"),
            "{}",
            text(&wrong)
        );

        let shared = server.finish();
        assert!(
            shared
                .structured
                .lock()
                .expect("no panic")
                .iter()
                .all(|s| *s == structured)
        );
        let requests = shared.requests.lock().expect("no panic");
        let seen = |what: &dyn Fn(&Request) -> bool| requests.iter().any(what);
        assert!(seen(&|r| r.command == Command::Write
            && r.fua
            && r.offset == 1 << 20));
        assert!(seen(&|r| r.command == Command::Write
            && !r.fua
            && r.length == 64 << 10));
        assert!(seen(&|r| r.command == Command::Trim));
        assert!(seen(&|r| r.command == Command::Flush));
        for keep in [true, false] {
            let zeroes = Command::WriteZeroes {
                no_hole: keep,
                fast: false,
            };
            assert!(seen(&|r| r.command == zeroes), "no_hole {keep}");
        }
    }
}

/// An error reply a real client cannot read ends the connection of every guest with a bad sector.
#[test]
fn qemu_survives_an_error_and_a_read_only_export() {
    let mut read_only = full_export("frozen", DISK_BYTES);
    read_only.read_only = true;
    for config in [config(), config().simple_replies_only()] {
        let exports = vec![full_export("disk", DISK_BYTES), read_only.clone()];
        let server = Server::start(config, exports);
        let bad = ["read 3M 4k", "write -P 7 0 4k", "read -P 7 0 4k"];
        let Some(output) = qemu_io(&server, "disk", &[], &bad) else {
            return;
        };
        let said = text(&output);
        assert!(said.contains("read failed: Input/output error"), "{said}");
        assert!(
            said.contains("wrote 4096/4096") && said.contains("read 4096/4096"),
            "{said}"
        );

        let read = qemu_io(&server, "frozen", &["-r"], &["read -P 0 0 1M"]).expect("installed");
        assert!(read.status.success(), "{}", text(&read));
        let write = qemu_io(&server, "frozen", &[], &["write 0 4k"]).expect("installed");
        assert!(!write.status.success(), "{}", text(&write));
        let unknown = qemu_io(&server, "nobody", &[], &["read 0 4k"]).expect("installed");
        assert!(
            text(&unknown).contains("no such export"),
            "{}",
            text(&unknown)
        );
        server.finish();
    }
}

/// An operator who asks what is served must see it, and a whole image must survive the way.
#[test]
fn qemu_lists_the_exports_and_copies_an_image() {
    let listed = full_export("disk", DISK_BYTES).with_description("root disk of web1");
    let exports = vec![
        listed
            .and_then(|e| e.with_preferred_block(8192))
            .expect("a good export"),
        ExportInfo::new("other", 1 << 20).expect("a good export"),
    ];
    let server = Server::start(config(), exports);
    let port = server.address.port().to_string();
    let Some(list) = run(
        "qemu-nbd",
        &["--list", "--bind", "127.0.0.1", "--port", &port],
    ) else {
        return;
    };
    let said = text(&list);
    for line in [
        "exports available: 2",
        "export: 'disk'",
        "export: 'other'",
        "description: root disk of web1",
        "size:  4194304",
        "min block: 512",
        "opt block: 8192",
        "max block: 1048576",
        "( flush fua trim zeroes df multi )",
    ] {
        assert!(said.contains(line), "{line} is missing in\n{said}");
    }

    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = folder.path().join("image");
    let mut random = fastrand::Rng::with_seed(7);
    let bytes: Vec<u8> = (0..2 << 20).map(|_| random.u8(..)).collect();
    std::fs::write(&image, &bytes).expect("room for an image");
    let (image, url) = (image.to_str().expect("a plain path"), server.url("disk"));
    let copy = ["convert", "-n", "-f", "raw", "-O", "raw", image, &url];
    let Some(copied) = run("qemu-img", &copy) else {
        return;
    };
    assert!(copied.status.success(), "{}", text(&copied));
    let shared = server.finish();
    let disks = shared.disks.lock().expect("no panic");
    assert!(
        disks["disk"].starts_with(&bytes),
        "the image did not arrive as it was"
    );
}
