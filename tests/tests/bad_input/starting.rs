//! Mistakes that keep a daemon from starting: one line, one exit code, nothing touched.

use super::{FAULTS, code, ends_with, refused, small};
use blockrep_tests::harness::{binary, free_port};
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::Command;

pub(crate) fn primary() -> Command {
    Command::new(binary("blockrep").unwrap())
}

pub(crate) fn backup() -> Command {
    Command::new(binary("blockrep-backup").unwrap())
}

/// A typing mistake in a disk's name, met at three in the morning.
#[test]
fn wrong_words_are_named() {
    for (command, words) in [
        (
            primary().args(["-n", "remus:host:99999|aio:/x.img"]),
            &["99999", "65535"][..],
        ),
        (
            primary().args(["-n", "remsu:host:1|aio:/x.img"]),
            &["remsu"],
        ),
        (primary().args(["-n", "aio:x.img"]), &["x.img", "/"]),
        (&mut primary(), &["-n"]),
        (
            primary().args(["-n", "aio:/x", "--epoch", "1h"]),
            &["1h", "10s"],
        ),
        (
            primary().args(["-n", "aio:/x", "--epcoh", "1s"]),
            &["--epcoh", "--epoch"],
        ),
        (
            backup().args(["--listen", "10.0.0.1:9000", "--image", "/x"]),
            &["--insecure-plaintext"],
        ),
        (backup().args(["--listen", "127.0.0.1:9000"]), &["--image"]),
    ] {
        refused(command, code::USAGE, words);
    }
}

/// A key that nobody reads: the setting an operator relies on is not in force.
#[test]
fn an_unknown_key_of_the_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    fs::write(&file, "on-backup-los = \"pause\"\n").unwrap();
    let mut command = primary();
    command.args(["-n", "aio:/x"]).arg("--config").arg(&file);
    refused(&mut command, code::USAGE, &["on-backup-los", "c.toml"]);
    command = primary();
    command.args(["-n", "aio:/x", "--config", "/nowhere/c.toml"]);
    refused(
        &mut command,
        code::USAGE,
        &["/nowhere/c.toml", "no such file"],
    );
}

/// Primary and backup of one group on one host, and a user who may not write to /run: each daemon's
/// socket has a name of its own, in the directory that the variable names.
#[test]
fn control_sockets_do_not_clash() {
    let spec = "remus:127.0.0.1:9000|aio:/srv/vm1.img";
    for (mut command, name) in [(primary(), "vm1.sock"), (backup(), "vm1.backup.sock")] {
        command.args(["-n", spec, "--check-config"]);
        let said = |command: &mut Command| {
            let output = command.output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        command.env_remove("BLOCKREP_RUNTIME_DIR");
        let line = format!("control = \"/run/blockrep/{name}\"\n");
        assert!(said(&mut command).contains(&line), "{line}");
        command.env("BLOCKREP_RUNTIME_DIR", "/srv/run");
        let line = format!("control = \"/srv/run/{name}\"\n");
        assert!(said(&mut command).contains(&line), "{line}");
    }
}

/// A test hook that is mistyped would test nothing.
#[test]
fn a_wrong_fault_plan_is_refused() {
    let mut command = primary();
    command
        .args(["-n", "aio:/x"])
        .env(FAULTS, "disk=sync:1=EIO");
    refused(&mut command, code::USAGE, &[FAULTS, "disk", "image"]);
}

/// Images that are not there, or cannot be a disk.
#[test]
fn unusable_images_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    for (image, size) in [("a.img", 0), ("a.img", 1000), ("b.img", 0), ("b.img", 513)] {
        let file = File::create(pair.path(image)).unwrap();
        file.set_len(size).unwrap();
        let mut command = if image == "a.img" {
            pair.primary_command().unwrap()
        } else {
            pair.backup_command().unwrap()
        };
        let bytes = format!("{size} bytes");
        let path = pair.path(image).display().to_string();
        let words = [path.as_str(), &bytes, "multiple of 512", "truncate"];
        refused(&mut command, code::STORE, &words);
    }
    for image in ["a.img", "b.img"] {
        fs::remove_file(pair.path(image)).unwrap();
    }
    for image in ["a.img", "b.img"] {
        let command = || match image {
            "a.img" => pair.primary_command().unwrap(),
            _ => pair.backup_command().unwrap(),
        };
        let path = pair.path(image).display().to_string();
        let words = [path.as_str(), "No such file", "truncate"];
        refused(&mut command(), code::STORE, &words);
        fs::create_dir(pair.path(image)).unwrap();
        let words = [
            path.as_str(),
            "neither a regular file nor a block device",
            "it is a directory: name the image file in it",
        ];
        refused(&mut command(), code::STORE, &words);
    }
}

/// Somebody grew one image: the volume's other copy, and its journal, are of the old size.
#[test]
fn an_image_that_changed_its_size_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    // A backup that never held an epoch takes the image that it finds.
    ends_with(&mut pair.start_backup().unwrap(), code::OK);
    let image = File::options()
        .write(true)
        .open(pair.path("b.img"))
        .unwrap();
    image.set_len(9 << 20).unwrap();
    ends_with(&mut pair.start_backup().unwrap(), code::OK);
    image.set_len(8 << 20).unwrap();

    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", super::LIMIT).unwrap();
    ends_with(&mut primary, code::OK);
    ends_with(&mut backup, code::OK);
    for (image, mut command) in [
        ("a.img", pair.primary_command().unwrap()),
        ("b.img", pair.backup_command().unwrap()),
    ] {
        let file = File::options().write(true).open(pair.path(image)).unwrap();
        file.set_len(9 << 20).unwrap();
        let words = ["9437184", "8388608", "give the right image"];
        refused(&mut command, code::STORE, &words);
        file.set_len(8 << 20).unwrap();
    }
    // Nothing was touched: both go on as they were.
    ends_with(&mut pair.start_backup().unwrap(), code::OK);
    ends_with(&mut pair.start_primary().unwrap(), code::OK);
}

/// Addresses that somebody else has.
#[test]
fn addresses_in_use_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = small(dir.path());
    let taken = TcpListener::bind(("127.0.0.1", pair.port)).unwrap();
    let port = pair.port.to_string();
    let mut command = pair.backup_command().unwrap();
    let words = [port.as_str(), "in use", "stop what uses it"];
    refused(&mut command, code::IN_USE, &words);
    drop(taken);

    let taken = UnixListener::bind(pair.path("a.nbd")).unwrap();
    let path = pair.path("a.nbd").display().to_string();
    let mut command = pair.primary_command().unwrap();
    let words = [path.as_str(), "another process", "stop it"];
    refused(&mut command, code::IN_USE, &words);
    drop(taken);

    fs::remove_file(pair.path("a.nbd")).unwrap();
    fs::write(pair.path("a.nbd"), "precious").unwrap();
    let mut command = pair.primary_command().unwrap();
    let words = [path.as_str(), "is no socket"];
    refused(&mut command, code::IN_USE, &words);
    assert_eq!(fs::read(pair.path("a.nbd")).unwrap(), b"precious");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    pair.nbd_ports = Some([port, free_port().unwrap()]);
    let mut command = pair.primary_command().unwrap();
    let port = port.to_string();
    let words = [port.as_str(), "in use"];
    refused(&mut command, code::IN_USE, &words);
}

/// State directories mixed up between hosts: an epoch counter or a journal would be overwritten.
#[test]
fn state_of_the_other_role_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    ends_with(&mut pair.start_primary().unwrap(), code::OK);
    ends_with(&mut pair.start_backup().unwrap(), code::OK);
    fs::rename(pair.path("a.state"), pair.path("x")).unwrap();
    fs::rename(pair.path("b.state"), pair.path("a.state")).unwrap();
    fs::rename(pair.path("x"), pair.path("b.state")).unwrap();
    let words = ["a.state", "belongs to a backup", "start blockrep-backup"];
    refused(&mut pair.primary_command().unwrap(), code::STORE, &words);
    let words = [
        "belongs to a primary",
        ".old) and start again",
        "start blockrep on it",
    ];
    refused(&mut pair.backup_command().unwrap(), code::STORE, &words);
}

/// Two backups whose journals were swapped: one would look empty, and acknowledged epochs be gone.
#[test]
fn the_journal_of_another_volume_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let other = small(&dir.path().join("other"));
    ends_with(&mut pair.start_backup().unwrap(), code::OK);
    ends_with(&mut other.start_backup().unwrap(), code::OK);
    let journal = |p: &blockrep_tests::harness::Pair| p.path("b.state").join("journal");
    fs::rename(journal(&pair), dir.path().join("x")).unwrap();
    fs::rename(journal(&other), journal(&pair)).unwrap();
    fs::rename(dir.path().join("x"), journal(&other)).unwrap();
    for pair in [&pair, &other] {
        let mut command = pair.backup_command().unwrap();
        let words = ["journal-0", "is not the one of volume 0", "--journal"];
        refused(&mut command, code::STORE, &words);
    }
    // The right journal with the wrong size.
    fs::rename(journal(&other), dir.path().join("x")).unwrap();
    fs::rename(journal(&pair), journal(&other)).unwrap();
    let mut other = other;
    other.backup_flags = ["--journal-size", "64MiB"].map(String::from).to_vec();
    let mut command = other.backup_command().unwrap();
    refused(
        &mut command,
        code::STORE,
        &["volume 0", "--journal-size 32MiB"],
    );
}

/// Parts of a backup that are gone were called damaged, another one's, or a matter of flags.
#[test]
fn what_is_gone_is_called_missing() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", super::LIMIT).unwrap();
    ends_with(&mut primary, code::OK);
    ends_with(&mut backup, code::OK);
    let segment = "b.state/journal/journal-0/segment-0001.brj";
    for (name, words) in [
        (
            "a.state/group.meta",
            ["group.meta is missing beside", "volume-0.meta"],
        ),
        (
            "b.state/group.meta",
            ["group.meta is missing beside", "volume-0.meta"],
        ),
        ("b.state/journal", ["the journal of volume 0", "is missing"]),
        (segment, ["segment-0001.brj is missing", "volume 0"]),
    ] {
        fs::rename(pair.path(name), pair.path("x")).unwrap();
        let mut command = if name.starts_with('a') {
            pair.primary_command().unwrap()
        } else {
            pair.backup_command().unwrap()
        };
        let said = refused(&mut command, code::STORE, &words);
        assert!(said.contains(".old) and start again"), "{said}");
        fs::rename(pair.path("x"), pair.path(name)).unwrap();
    }
    ends_with(&mut pair.start_backup().unwrap(), code::OK);
    ends_with(&mut pair.start_primary().unwrap(), code::OK);
}

/// A directory that cannot be made: which flag names another.
#[test]
fn a_directory_that_cannot_be_made_names_its_flag() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    fs::write(pair.path("file"), "").unwrap();
    let under = |name: &str| pair.path("file").join(name);
    for (flag, path) in [
        ("--state", under("state")),
        ("--journal", under("journal")),
        ("--control", under("x.sock")),
    ] {
        let mut command = backup();
        let link = format!("127.0.0.1:{}", pair.port);
        command.args(["--listen", &link, "--journal-size", "32MiB", "--image"]);
        command.arg(pair.path("b.img"));
        command.arg(flag).arg(path);
        for (other, name) in [("--state", "fresh"), ("--control", "c.sock")] {
            if other != flag {
                command.arg(other).arg(pair.path(name));
            }
        }
        let another = format!("give another {flag}");
        refused(
            &mut command,
            code::STORE,
            &["cannot make the directory", &another],
        );
    }
}

/// Metadata rotted in both places: starting anew over it would forget who wrote what.
#[test]
fn damaged_metadata_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    ends_with(&mut pair.start_primary().unwrap(), code::OK);
    ends_with(&mut pair.start_backup().unwrap(), code::OK);
    for (host, file) in [
        ("a", "group.meta"),
        ("b", "group.meta"),
        ("b", "volume-0.meta"),
    ] {
        let path = pair.path(&format!("{host}.state")).join(file);
        let good = fs::read(&path).unwrap();
        fs::write(&path, vec![0x5a; good.len()]).unwrap();
        let mut command = if host == "a" {
            pair.primary_command().unwrap()
        } else {
            pair.backup_command().unwrap()
        };
        refused(&mut command, code::STORE, &["damaged", "begin a"]);
        fs::write(&path, good).unwrap();
    }
    ends_with(&mut pair.start_backup().unwrap(), code::OK);
}

/// The disk of the journal is too small: said at the start, not in the middle of the night.
#[test]
fn no_space_for_the_journal_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let Some(mut command) = super::failing::on_small_disk(&pair, "b.state", "8m") else {
        return;
    };
    command.arg(binary("blockrep-backup").unwrap());
    let inner = pair.backup_command().unwrap();
    command.args(inner.get_args()).args(["--log", "error"]);
    let ended = blockrep_tests::programs::run(&mut command, super::LIMIT).unwrap();
    assert_eq!(ended.code, code::STORE, "{}", ended.text);
    assert_eq!(ended.text.trim_end().lines().count(), 1, "{}", ended.text);
    super::is_for_people(&ended.text);
    for word in ["segment-", "No space left", "--journal-size"] {
        assert!(ended.text.contains(word), "{}", ended.text);
    }
}
