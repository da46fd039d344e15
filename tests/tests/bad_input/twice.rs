//! The second daemon on what a first one has: refused with one exit code, and nothing of its start
//! stays behind.

use super::{LIMIT, code, ends_with, refused, small};
use blockrep_tests::harness::{Pair, free_port};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

fn with_own(command: &mut Command, dir: &Path, flags: &[&str]) {
    for flag in flags {
        let path = dir.join(format!("other{flag}"));
        let path = path.display().to_string();
        let value = if *flag == "--nbd" {
            format!("unix:{path}")
        } else {
            path
        };
        command.args([*flag, &value]);
    }
}

/// The second daemon on an image, a state directory, a journal or a socket: which one is there.
#[test]
fn second_daemons_are_refused_and_the_first_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let other_port = free_port().unwrap();
    let mut primary = pair.start_primary().unwrap();
    let mut backup = pair.start_backup().unwrap();
    let pids = [&primary, &backup].map(|p| format!("process {}", p.pid()));

    // The same command line once more.
    let mut command = pair.primary_command().unwrap();
    refused(
        &mut command,
        code::IN_USE,
        &["a.state", &pids[0], "stop it"],
    );
    let mut command = pair.backup_command().unwrap();
    refused(
        &mut command,
        code::IN_USE,
        &["b.state", &pids[1], "stop it"],
    );

    // The image alone.
    let image = |name: &str| pair.path(name).display().to_string();
    let mut command = super::starting::primary();
    command.args(["-n", &format!("aio:{}", image("a.img"))]);
    with_own(&mut command, dir.path(), &["--state", "--control"]);
    refused(&mut command, code::IN_USE, &["a.img", &pids[0]]);
    let listen = format!("127.0.0.1:{other_port}");
    let mut command = super::starting::backup();
    command.args(["--listen", &listen, "--image", &image("b.img")]);
    with_own(&mut command, dir.path(), &["--state", "--control"]);
    refused(&mut command, code::IN_USE, &["b.img", &pids[1]]);

    // The journal alone.
    File::create(pair.path("c.img"))
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    let mut command = super::starting::backup();
    command.args(["--listen", &listen, "--image", &image("c.img")]);
    command.args(["--journal-size", "32MiB", "--journal"]);
    command.arg(pair.path("b.state").join("journal"));
    with_own(&mut command, dir.path(), &["--state", "--control"]);
    refused(&mut command, code::IN_USE, &["journal", &pids[1]]);

    // The control socket alone.
    let mut command = super::starting::primary();
    command.args(["-n", &format!("aio:{}", image("c.img"))]);
    command.arg("--control").arg(pair.path("a.ctl"));
    command.arg("--state").arg(pair.path("third"));
    let words = ["a.ctl", &pids[0], "--control PATH"];
    refused(&mut command, code::IN_USE, &words);

    ends_with(&mut primary, code::OK);
    ends_with(&mut backup, code::OK);
}

/// Names of everything in the directory of a pair but its logs.
fn names(pair: &Pair) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(&pair.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".log"))
        .collect();
    names.sort();
    names
}

/// A start that failed must not leave a state directory that keeps the right start out.
#[test]
fn a_failed_start_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let mut first = pair.start_primary().unwrap();
    let image = pair.path("b.img").display().to_string();
    let before = names(&pair);

    // The group's control socket is taken: the state beside the image was made before that showed.
    let mut command = super::starting::primary();
    command.args(["-n", &format!("aio:{image}"), "--nbd", &pair.nbd("b")]);
    command.arg("--control").arg(pair.path("a.ctl"));
    refused(&mut command, code::IN_USE, &["a.ctl", "stop it"]);
    let listen = format!("127.0.0.1:{}", pair.port);
    let wrong = |image: &str| {
        let mut command = super::starting::backup();
        command.args(["--listen", &listen, "--image", image]);
        command.args(["--journal-size", "32MiB"]);
        command
    };
    let mut command = wrong(&image);
    command.arg("--control").arg(pair.path("a.ctl"));
    refused(&mut command, code::IN_USE, &["a.ctl", "stop it"]);
    let mut command = wrong(&pair.path("nope.img").display().to_string());
    command.arg("--control").arg(pair.path("b.ctl"));
    refused(&mut command, code::STORE, &["nope.img", "No such file"]);
    let taken = std::net::TcpListener::bind(("127.0.0.1", pair.port)).unwrap();
    let mut command = wrong(&image);
    command.arg("--control").arg(pair.path("b.ctl"));
    refused(&mut command, code::IN_USE, &["in use", "stop what uses it"]);
    drop(taken);
    assert_eq!(names(&pair), before);

    // And the right one comes up on the same paths.
    let mut command = wrong(&image);
    command.arg("--control").arg(pair.path("b.ctl"));
    let mut backup = pair.launch("b", &mut command).unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    ends_with(&mut first, code::OK);
    ends_with(&mut backup, code::OK);
    // Nor does an orderly stop leave a socket or the lock of one.
    let left = names(&pair)
        .into_iter()
        .filter(|n| n.contains(".ctl") || n.contains(".nbd"));
    assert_eq!(left.collect::<Vec<_>>(), Vec::<String>::new());
}
