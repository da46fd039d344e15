//! `cargo xtask bench memory`: gets a Linux for the idle guest, and leaves the measuring to the program of the tests package.

use std::ffi::OsString;

use anyhow::Result;

use crate::checkout::Checkout;
use crate::kernel::{self, Contents};
use crate::packages::{self, Purpose};
use crate::{parcel, ui};

/// Sleeps for longer than anybody measures.
const WORDS: &str =
    "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off no_timer_check arguments=1000000";

/// Words that name the idle guest's kernel; none where the caller names his own, asks for help, or it cannot be had: then
/// another guest is idle, and the report says so.
pub(crate) fn kernel_words(checkout: &Checkout, told: &[OsString]) -> Result<Vec<OsString>> {
    let is_told = |word: &str| told.iter().any(|one| one == word);
    let only_help = is_told("--help") || is_told("-h");
    packages::provide(checkout, &[Purpose::Guest], only_help)?;
    if only_help || is_told("--kernel") {
        return Ok(Vec::new());
    }
    match provided(checkout) {
        Ok(words) => Ok(words),
        Err(error) => {
            ui::note(format!("no Linux for the idle guest: {error:#}"));
            Ok(Vec::new())
        }
    }
}

fn provided(checkout: &Checkout) -> Result<Vec<OsString>> {
    let files = parcel::of_the_system("sleep")?;
    let contents = Contents {
        program: "program",
        modules: &[],
        files: &files,
    };
    let kernel = kernel::provide_with(checkout, &contents)?;
    let append = format!("{WORDS} program=/bin/sleep");
    Ok(vec![
        "--kernel".into(),
        kernel.image.into(),
        "--initramfs".into(),
        kernel.initramfs.into(),
        "--append".into(),
        append.into(),
    ])
}
