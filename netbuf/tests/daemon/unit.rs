//! What could go wrong: more rights than are needed; a unit that systemd reads otherwise than meant.

use crate::namespace::{ip, ip_shows};
use crate::site::{Site, in_namespace};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every thread, not only the first.
#[test]
fn after_its_start_it_can_change_the_network_and_nothing_else() {
    in_namespace(|| {
        let site = Site::started(&[]);
        let tasks = std::fs::read_dir(format!("/proc/{}/task", site.pid())).unwrap();
        let mut threads = 0;
        for task in tasks {
            let text = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let field = |name: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name))
                    .unwrap()
                    .trim()
            };
            for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
                assert_eq!(field(set), "0000000000003000", "{set}");
            }
            assert_eq!(field("NoNewPrivs:"), "1");
            threads += 1;
        }
        assert!(threads >= 3, "main, ctl and a relay");
    });
}

/// What is tried must not stay, whether the kernel has it or not.
#[test]
fn the_mechanism_is_found_out_and_leaves_nothing() {
    in_namespace(|| {
        let mut site = Site::new();
        // As a process leaves it that was killed while it tried.
        ip("link add netbuf-probe type ifb");
        site.start(&["run"]);
        let status = site.status();
        println!("{}: {}", status.mechanism, status.why);
        assert!(status.why.contains("plug"), "{}", status.why);
        assert!(!ip_shows("-br link show").contains("netbuf-probe"));
        assert_eq!(site.end(), 0);
        // Said in one line where it is asked for and not there.
        if status.mechanism.as_str() == "relay" {
            let (code, text) = site.types(&["run", "--mechanism", "plug"]);
            assert_eq!((code, text.lines().count()), (2, 1), "{text}");
            assert!(text.contains("--mechanism relay"), "{text}");
        }
    });
}

/// A unit like the one that is installed; the program stands elsewhere here. `None`, with a line, without systemd.
fn unit() -> Option<(tempfile::TempDir, PathBuf)> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/netbuf.service");
    let text = std::fs::read_to_string(&unit).unwrap();
    let version = Command::new("systemd-analyze").arg("--version").output();
    if version.is_err() {
        eprintln!("skipped: needs systemd-analyze (Debian package systemd)");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().join("netbuf.service");
    let text = text.replace("/usr/sbin/netbuf", env!("CARGO_BIN_EXE_netbuf"));
    std::fs::write(&here, text).unwrap();
    Some((dir, here))
}

#[test]
fn systemd_reads_the_unit() {
    let Some((_dir, here)) = unit() else {
        return;
    };
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&here)
        .output()
        .unwrap();
    let found = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = found
        .lines()
        .filter(|line| line.contains("netbuf.service"))
        .collect();
    assert!(output.status.success() && ours.is_empty(), "{found}");
}

/// By systemd's own scale, of which 10.0 is a service without any bounds.
#[test]
fn the_unit_gives_no_more_than_systemd_calls_ok() {
    let Some((_dir, here)) = unit() else {
        return;
    };
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=yes", "--no-pager", "--threshold=30"])
        .arg(&here)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    if text.is_empty() && String::from_utf8_lossy(&output.stderr).contains("option") {
        eprintln!("skipped: this systemd-analyze cannot look at a unit that is not loaded");
        return;
    }
    let level = text.lines().find(|line| line.contains("exposure level"));
    println!("{}", level.unwrap_or("no level").trim());
    assert!(output.status.success() && level.is_some(), "{text}");
}
