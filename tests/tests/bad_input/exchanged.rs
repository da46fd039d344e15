//! An image that was exchanged between two starts: its state directory is not about it.

use super::damaged::contents;
use super::{LIMIT, code, ends_with, refused, small, wait_reason};
use blockrep_tests::harness::Pair;
use std::fs::{self, File};

/// Puts an empty image of the same size in the place of another one, which is kept.
fn exchange(pair: &Pair, name: &str) {
    fs::rename(pair.path(name), pair.path(&format!("{name}.kept"))).unwrap();
    let file = File::create(pair.path(name)).unwrap();
    file.set_len(pair.size_bytes).unwrap();
}

fn put_back(pair: &Pair, name: &str) {
    fs::rename(pair.path(&format!("{name}.kept")), pair.path(name)).unwrap();
}

/// A promotion of an exchanged image served zeros as an epoch, and said that nothing was dropped.
#[test]
fn an_exchanged_image_is_refused_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    ends_with(&mut primary, code::OK);
    ends_with(&mut backup, code::OK);

    for (host, image) in [("a", "a.img"), ("b", "b.img")] {
        let command = || match host {
            "a" => pair.primary_command().unwrap(),
            _ => pair.backup_command().unwrap(),
        };
        let state = pair.path(&format!("{host}.state"));
        let before = contents(&state);
        exchange(&pair, image);
        let said = refused(&mut command(), code::STORE, &[" now)"]);
        let (head, tail) = (said.find(" (inode ").unwrap(), said.find(" now)").unwrap());
        let program = if host == "a" {
            "blockrep"
        } else {
            "blockrep-backup"
        };
        let path = pair.path(image).display().to_string();
        assert_eq!(
            format!("{}{}", &said[..head], &said[tail + 5..]),
            format!(
                "{program}: the image {path} is not the file this state directory was made with: \
                 put that one back; if this one holds the same bytes (moved, restored at the same \
                 epoch) type --same-image; to begin anew move the state directory away (mv {0} \
                 {0}.old) and start again",
                state.display()
            )
        );
        assert!(
            contents(&state) == before,
            "the state of {host} was changed"
        );
        put_back(&pair, image);
        ends_with(&mut pair.launch(host, &mut command()).unwrap(), code::OK);
    }

    // A copy, said to be one, is the image from then on.
    fs::copy(pair.path("b.img"), pair.path("copy")).unwrap();
    fs::rename(pair.path("copy"), pair.path("b.img")).unwrap();
    let words = ["is not the file", "--same-image"];
    refused(&mut pair.backup_command().unwrap(), code::STORE, &words);
    let mut command = pair.backup_command().unwrap();
    command.arg("--same-image");
    ends_with(&mut pair.launch("b", &mut command).unwrap(), code::OK);
    let _backup = pair.start_backup().unwrap();
    let promoted = pair.ctl_json("b", &["promote"]).unwrap();
    assert_ne!(promoted["epoch"], 0, "{promoted}");
}

/// One image under two state directories in turn is the same file each time: what came in under the
/// second would be served as an epoch of the first.
#[test]
fn an_image_used_with_another_state_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    ends_with(&mut backup, code::OK);
    let (state, kept) = (pair.path("b.state"), pair.path("kept"));
    fs::rename(&state, &kept).unwrap();
    let mut backup = pair.start_backup().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    ends_with(&mut primary, code::OK);
    ends_with(&mut backup, code::OK);

    let old = || {
        let mut command = pair.backup_command().unwrap();
        command.arg("--same-image");
        command
    };
    fs::rename(&state, pair.path("second")).unwrap();
    fs::rename(&kept, &state).unwrap();
    let mut command = pair.backup_command().unwrap();
    if !carries_mark(&pair.path("b.img")) {
        ends_with(&mut pair.launch("b", &mut command).unwrap(), code::OK);
        return;
    }
    let second = format!("--state {} with", pair.path("second").display());
    let words = ["belongs to volume 0 of the state directory", &second];
    let said = refused(&mut command, code::STORE, &words);
    assert!(!said.contains("--same-image"), "{said}");
    let mut backup = pair.launch("b", &mut old()).unwrap();
    let reason = &pair.status("b").unwrap()["volumes"][0]["reason"];
    let told = "--same-image was given";
    assert!(reason.as_str().unwrap().contains(told), "{reason}");
    ends_with(&mut backup, code::OK);
    ends_with(&mut pair.start_backup().unwrap(), code::OK);
}

/// The state directory was elsewhere when the backup was started: it is told of at the new one until
/// a primary is taken in, and may come back to its image as long as none was.
#[test]
fn a_state_directory_that_was_away_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    ends_with(&mut primary, code::OK);
    ends_with(&mut backup, code::OK);
    if !carries_mark(&pair.path("b.img")) {
        return;
    }
    let (state, away, mistake) = (
        pair.path("b.state"),
        pair.path("away"),
        pair.path("mistake"),
    );
    fs::rename(&state, &away).unwrap();
    for _ in 0..2 {
        let mut backup = pair.start_backup().unwrap();
        let place = format!("now {} (holds epoch", away.display());
        wait_reason(
            &pair,
            "b",
            &["no primary was taken in yet", &place, "put it back"],
        );
        assert!(
            backup.text().contains("was last used with"),
            "{}",
            backup.text()
        );
        ends_with(&mut backup, code::OK);
    }
    fs::rename(&state, &mistake).unwrap();
    fs::rename(&away, &state).unwrap();
    let mut backup = pair.start_backup().unwrap();
    let status = pair.status("b").unwrap();
    let reason = status["group"]["reason"].as_str().unwrap();
    assert_eq!(reason, "no primary is connected");
    ends_with(&mut backup, code::OK);
    // Moved away for good, as after a failover: the image goes to the new one with its first primary.
    fs::rename(&state, &away).unwrap();
    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    let status = pair.status("b").unwrap();
    assert_eq!(status["group"]["reason"], "a primary is connected");
    ends_with(&mut primary, code::OK);
    ends_with(&mut backup, code::OK);
    let second = pair.path("second");
    fs::rename(&state, &second).unwrap();
    fs::rename(&away, &state).unwrap();
    let words = ["(holds epoch", "is not known to", "give --state"];
    refused(&mut pair.backup_command().unwrap(), code::STORE, &words);
}

/// Whether the file system of the image has the attribute that tells.
pub(crate) fn carries_mark(image: &std::path::Path) -> bool {
    let path = std::ffi::CString::new(image.as_os_str().as_encoded_bytes()).unwrap();
    let name = c"user.blockrep.state";
    // SAFETY: two C strings, and a size of zero: nothing is written.
    let bytes = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    bytes > 0
}

/// A backup that never held anything takes what it is given, and remembers that.
#[test]
fn a_blank_backup_takes_any_image() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    ends_with(&mut pair.start_backup().unwrap(), code::OK);
    exchange(&pair, "b.img");
    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    ends_with(&mut primary, code::OK);
    ends_with(&mut backup, code::OK);
    put_back(&pair, "b.img");
    let words = ["is not the file", "--same-image"];
    refused(&mut pair.backup_command().unwrap(), code::STORE, &words);
    // A state directory of before, which does not know its image, learns it.
    fs::remove_file(pair.path("b.state/volume-0.image")).unwrap();
    ends_with(&mut pair.start_backup().unwrap(), code::OK);
    assert!(pair.path("b.state/volume-0.image").exists());
}
