//! Golden files: bytes of a format that are frozen with its version.
//!
//! `BLOCKREP_BLESS=1 cargo test -p blkback-proto` writes them anew; that is right only together
//! with a new version number.

use std::path::Path;

/// Compares with the file of that name in `golden/`.
pub(crate) fn check(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name);
    if std::env::var_os("BLOCKREP_BLESS").is_some() {
        std::fs::write(&path, bytes).unwrap();
        return;
    }
    let golden = std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}: bless it first", path.display()));
    assert!(
        golden == bytes,
        "{name} changed: a format change needs a new version"
    );
}
