//! Programs built with planted bugs, apart from those that everybody runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::checkout::Checkout;
use crate::lab::Programs;
use crate::process::Process;
use crate::stop::minutes;
use crate::ui;

/// Where they stand, in cargo's target directory.
const DIR: &str = "planted";

/// What this cargo builds of `program` has bugs that can be switched on. It is copied away and built `again` without
/// them, so that nobody finds it in the place of the other; the directory it was copied to comes back, too.
pub(crate) fn build(
    checkout: &Checkout,
    mut cargo: Command,
    program: &str,
    release: bool,
    again: impl FnOnce() -> Result<Programs>,
) -> Result<(PathBuf, Programs)> {
    ui::note(format!("building {program} with planted bugs"));
    let built = Process::spawn_shown(&mut cargo, "cargo build")?.wait(minutes(20))?;
    let target = checkout.metadata()?.target_dir()?;
    let planted = target.join(DIR);
    fs::create_dir_all(&planted).with_context(|| format!("create {}", planted.display()))?;
    let profile = target.join(if release { "release" } else { "debug" });
    let copied = match built.success() {
        true => copy(&profile.join(program), &planted.join(program)),
        false => Ok(()),
    };
    // Whatever became of it: the one without bugs stands in its place again.
    let programs = again()?;
    if !built.success() {
        bail!("cargo build failed; its messages stand above");
    }
    copied?;
    Ok((planted, programs))
}

/// # Errors
/// Of the file system.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    // A program that runs cannot be written to; another run may be using it.
    let fresh = to.with_extension("new");
    fs::copy(from, &fresh)
        .and_then(|_| fs::rename(&fresh, to))
        .with_context(|| format!("copy {}", from.display()))
}
