//! The socket file, a second daemon, the end.

use super::*;

/// Whoever can open the socket can promote: nobody but the owner may, at no moment.
#[test]
fn socket_is_private_and_goes_with_the_server() {
    let mut rig = Rig::new();
    let metadata = fs::symlink_metadata(rig.path()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.mode() & 0o777, 0o600);
    assert_eq!(rig.server.as_ref().unwrap().path(), rig.path());
    assert!(somebody_listens(&rig.path()));
    rig.server = None;
    assert!(!somebody_listens(&rig.path()));
    assert!(!rig.path().exists());
    let error = Client::connect(&rig.path(), "late", LONG).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
}

/// A second daemon on one socket would take promotes meant for the first.
#[test]
fn living_socket_is_refused_with_the_pid_of_its_daemon() {
    let rig = Rig::new();
    let config = ServerConfig {
        path: rig.path(),
        daemon: "second".into(),
        limits: Limits::default(),
    };
    let (sender, _kept) = mpsc::channel();
    let error = Server::start(config, rig.log.clone(), TestHandler { kept: sender }).unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    assert_eq!(
        rig.client()
            .prepare(PrepareRequest::default())
            .unwrap()
            .epoch,
        1
    );
}

fn start_at(path: PathBuf) -> Result<Server, BindError> {
    let (sender, _kept) = mpsc::channel();
    let config = ServerConfig {
        path,
        daemon: "x".into(),
        limits: Limits::default(),
    };
    Server::start(
        config,
        EventLog::new().unwrap(),
        TestHandler { kept: sender },
    )
}

/// After kill -9 the next start must not need a hand; what is not ours must not be deleted.
#[test]
fn stale_sockets_are_replaced_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("g.sock");
    let address = SocketAddrUnix::new(&path).unwrap();
    let foreign = seqpacket();
    bind(&foreign, &address).unwrap();
    listen(&foreign, 1).unwrap();
    let error = start_at(path.clone()).unwrap_err();
    assert!(matches!(error, BindError::InUse { pid: Some(pid), .. } if pid == std::process::id()));
    drop(foreign);
    assert!(!somebody_listens(&path));
    assert!(path.exists(), "the dead daemon left its socket");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    drop(start_at(path.clone()).expect("replaced"));

    fs::write(&path, b"precious").unwrap();
    let error = start_at(path.clone()).unwrap_err();
    assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

/// A wrong path is the user's mistake: one line that says what to type.
#[test]
fn bad_paths_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let error = start_at(dir.path().join("no/such/g.sock")).unwrap_err();
    assert!(matches!(error, BindError::NoDirectory { .. }), "{error}");
    let error = start_at(dir.path().join("x".repeat(120))).unwrap_err();
    assert!(matches!(error, BindError::PathTooLong { .. }), "{error}");
    let error = Client::connect(&dir.path().join("none"), "c", LONG)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("--control") && !error.contains('\n'),
        "{error}"
    );
}

/// A daemon that ends while tools are connected says so by closing, and does not hang.
#[test]
fn clients_see_the_end_of_the_server() {
    let mut rig = Rig::new();
    let (_, mut stream) = rig.client().follow(0).unwrap();
    let raw = Raw::greeted(&rig);
    raw.send(&Request::Cut(CutRequest::default()).to_packet(1, 2).unwrap());
    let (_, _, late) = rig.kept.recv_timeout(LONG).unwrap();
    rig.server = None;
    late.ok(Answer::Cut(CutAnswer {
        epoch: 1,
        committed: false,
        ..CutAnswer::default()
    }));
    raw.assert_closed();
    let error = stream.next_within(LONG).unwrap_err();
    assert!(matches!(error, ClientError::Closed { .. }), "{error}");
}

/// Connects with the effective user of this thread alone changed, as another user's tool would.
fn connect_as(uid: u32, path: &Path) -> Result<Client, ClientError> {
    let path = path.to_owned();
    let tool = std::thread::spawn(move || {
        // SAFETY: plain numbers; the raw call changes the calling thread only (credentials(7)),
        // and the thread ends with the closure.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) };
        assert_eq!(result, 0, "setresuid");
        Client::connect(&path, "other user", LONG)
    });
    tool.join().unwrap()
}

/// Should the mode of the socket be loosened by hand or by a backup tool, the daemon itself must
/// still refuse other users. Needs root to be another user; the suite runs as root.
#[test]
fn other_users_are_refused_whatever_the_mode() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: cannot become another user");
        return;
    }
    let rig = Rig::new();
    let error = connect_as(65_534, &rig.path()).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");

    for (path, mode) in [(rig.dir.path(), 0o755), (&rig.path(), 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let error = connect_as(65_534, &rig.path()).unwrap_err();
    let ClientError::Daemon(reply) = &error else {
        panic!("{error}")
    };
    assert_eq!(reply.code, ErrorCode::NotPermitted);
    connect_as(0, &rig.path()).expect("root may");
}
