//! One image and the state directories that want it.

use super::*;
use crate::journal::ring::Geometry;
use crate::reactor::{Access, open_image};
use std::fs;

/// A state directory with nothing in it.
fn made(state: PathBuf) -> Layout {
    fs::create_dir_all(&state).unwrap();
    Layout {
        journal: state.join("journal"),
        state,
        geometry: Geometry {
            segment_bytes: 4 << 20,
            segment_count: 4,
        },
    }
}

fn record(layout: &Layout, index: usize, image: &OpenedFile) -> Result<(), FileError> {
    let claim = claim(layout, index, Path::new("/disk.img"), image)?;
    claim.expect("a file").mark();
    Ok(())
}

/// State A, then state B, then A again on one image: a promotion would have served the bytes of
/// B as an epoch of A.
#[test]
fn an_image_goes_to_one_state_directory_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(4096).unwrap();
    let image = open_image(&path, Access::ReadWrite).unwrap();
    let layout = |name: &str| made(dir.path().join(name));
    let (a, b) = (layout("a"), layout("b"));
    let try_with = |layout: &Layout, same| check(layout, 0, &path, &image, true, same);
    // State directories of before know no mark, nor does a fresh image.
    assert!(!try_with(&a, false).unwrap());
    record(&a, 0, &image).unwrap();
    if attribute(&image.fd).is_none() {
        // Without attributes nothing is checked, and nothing refused.
        record(&b, 0, &image).unwrap();
        assert!(!try_with(&a, false).unwrap());
        return;
    }
    assert!(!try_with(&a, false).unwrap());
    // A promoted disk must not become a fresh backup's by a forgotten --state.
    let error = try_with(&b, false).unwrap_err().text;
    let owner = a.state.display();
    assert!(error.contains(&format!("give --state {owner};")), "{error}");
    assert!(try_with(&b, true).unwrap());
    record(&b, 0, &image).unwrap();
    assert!(!try_with(&b, false).unwrap());
    // Whose it is is known: nobody is asked for his word.
    let error = try_with(&a, false).unwrap_err().text;
    let (state_a, state_b) = (a.state.display(), b.state.display());
    for word in [
        format!("belongs to volume 0 of the state directory {state_b} ("),
        format!("is not known to {state_a} ("),
        format!("give --state {state_b} with this image"),
    ] {
        assert!(error.contains(&word), "{error}");
    }
    assert!(!error.contains("--same-image"), "{error}");
    assert!(try_with(&a, true).unwrap());
    record(&a, 0, &image).unwrap();
    assert!(!try_with(&a, false).unwrap());
    assert!(try_with(&b, false).is_err());

    // A state directory that was moved is the same one.
    fs::rename(&a.state, dir.path().join("moved")).unwrap();
    let moved = layout("moved");
    assert!(!try_with(&moved, false).unwrap());
    // Another one in its place has the same name.
    let again = layout("a");
    record(&again, 0, &image).unwrap();
    fs::rename(&again.state, dir.path().join("again")).unwrap();
    fs::rename(&moved.state, &again.state).unwrap();
    fs::write(dir.path().join("again/group.meta"), "").unwrap();
    let error = try_with(&a, false).unwrap_err().text;
    let again = dir.path().join("again");
    let word = format!("give --state {} with", again.display());
    assert!(error.contains(&word), "moved aside, it is found: {error}");
    assert!(!error.contains("--same-image"), "{error}");
    fs::remove_dir_all(again).unwrap();
    let error = try_with(&a, false).unwrap_err().text;
    for word in [
        format!("one that stood at {} before the one", a.state.display()),
        "put it back in the place of this one".to_owned(),
        "type --same-image".to_owned(),
    ] {
        assert!(error.contains(&word), "{error}");
    }
}

/// Two images in the wrong order are each other's: --same-image would have ruined both.
#[test]
fn the_image_of_another_volume_is_called_so() {
    let dir = tempfile::tempdir().unwrap();
    let image = |name: &str| {
        let path = dir.path().join(name);
        File::create(&path).unwrap().set_len(4096).unwrap();
        (open_image(&path, Access::ReadWrite).unwrap(), path)
    };
    let images = [image("0.img"), image("1.img")];
    let layout = made(dir.path().join("state"));
    for (index, (image, path)) in images.iter().enumerate() {
        record(&layout, index, image).unwrap();
        super::super::exchanged::record(&layout, index, path, image).unwrap();
    }
    let marked = attribute(&images[0].0.fd).is_some();
    for same in [false, true] {
        let (image, path) = &images[1];
        let by_facts = super::super::exchanged::check(&layout, 0, path, image, same);
        let mut errors = vec![by_facts.unwrap_err().text];
        if marked {
            errors.push(check(&layout, 0, path, image, true, same).unwrap_err().text);
        }
        for error in errors {
            let word = "1.img is that of volume 1 of this group, and was given as volume 0";
            assert!(error.contains(word), "{error}");
            assert!(!error.contains("--same-image"), "{error}");
        }
    }
}

/// A backup was started by mistake while the state directory was away: that one came back to an
/// image that was said to belong to the mistake, with the advice to remove the only journal.
#[test]
fn a_backup_that_never_held_anything_leaves_the_image_to_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(4096).unwrap();
    let image = open_image(&path, Access::ReadWrite).unwrap();
    let state = dir.path().join("state");
    let right = made(state.clone());
    record(&right, 0, &image).unwrap();
    if attribute(&image.fd).is_none() {
        return;
    }
    fs::rename(&state, dir.path().join("kept")).unwrap();
    let mistake = made(state.clone());
    fs::write(dir.path().join("kept/group.meta"), "").unwrap();
    for _ in 0..2 {
        assert!(!check(&mistake, 0, &path, &image, false, false).unwrap());
        let claim = claim(&mistake, 0, &path, &image).unwrap().unwrap().wait();
        let said = claim.former().unwrap();
        for word in ["/state (now ", "/kept (", "put it back", "overwrites"] {
            assert!(said.contains(word), "{said}");
        }
    }
    fs::rename(&state, dir.path().join("mistake")).unwrap();
    fs::rename(dir.path().join("kept"), &state).unwrap();
    assert!(!check(&right, 0, &path, &image, true, false).unwrap());
    // Nor does the mistake get the image while its owner is there.
    let mistake = made(dir.path().join("mistake"));
    let error = check(&mistake, 0, &path, &image, false, false)
        .unwrap_err()
        .text;
    assert!(error.contains("may know of epochs"), "{error}");
    // In the wrong order the first line says so.
    record(&right, 1, &image).unwrap();
    let error = check(&mistake, 0, &path, &image, false, false)
        .unwrap_err()
        .text;
    let word = "is that of volume 1 of the state directory";
    assert!(
        error.contains(word) && error.contains("in the order"),
        "{error}"
    );
}
