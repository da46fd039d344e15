//! Who ends the pause of a guest whose checkpointer was killed has nothing to say of a guest that is gone, too.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};

/// What it says and how it ends, when its owner is killed within a pause.
fn left_in_a_pause(monitor: &std::path::Path) -> Output {
    let mut guardian = Command::new(env!("CARGO_BIN_EXE_checkpointer"))
        .arg("guardian")
        .arg(monitor)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut pipe = guardian.stdin.take().expect("its pipe");
    pipe.write_all(b"rp").expect("told");
    drop(pipe);
    guardian.wait_with_output().expect("it ends")
}

#[test]
fn a_qemu_that_has_ended_is_no_guest_that_stands_still() {
    let dir = tempfile::tempdir().expect("a directory");
    let left_behind = dir.path().join("left-behind");
    drop(UnixListener::bind(&left_behind).expect("a socket"));
    for monitor in [left_behind, dir.path().join("none")] {
        let output = left_in_a_pause(&monitor);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.is_empty(),
            "{monitor:?}: {said}"
        );
    }
}
