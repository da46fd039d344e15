//! Daemons built with planted bugs, apart from those that everybody runs.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::checkout::Checkout;
use crate::demo;
use crate::lab::Programs;
use crate::process::Process;
use crate::stop::minutes;
use crate::ui;

/// Where they stand, in cargo's target directory.
const DIR: &str = "planted";

/// The programs as [`demo::build`] makes them, but for a `blockrep` in which bugs can be switched on. It is
/// copied away and built again without them, so that nobody finds it in the place of the other.
pub(super) fn build(checkout: &Checkout, release: bool) -> Result<Programs> {
    ui::note("building a daemon with planted bugs");
    let mut cargo = checkout.cargo();
    cargo.args(["build", "--bins", "-p", "blockrep", "-p", "blockrep-tools"]);
    cargo.args(["--features", "blockrep/mutants"]);
    if release {
        cargo.arg("--release");
    }
    let built = Process::spawn_shown(&mut cargo, "cargo build")?.wait(minutes(20))?;
    let target = checkout.metadata()?.target_dir()?;
    let planted = target.join(DIR);
    fs::create_dir_all(&planted).with_context(|| format!("create {}", planted.display()))?;
    let profile = target.join(if release { "release" } else { "debug" });
    let copied = copy(&profile.join("blockrep"), &planted.join("blockrep"));
    // Whatever became of it: the one without bugs stands in its place again.
    let programs = demo::build(checkout, release)?;
    if !built.success() {
        bail!("cargo build failed; its messages stand above");
    }
    copied?;
    for name in ["blockrep-backup", "blockrepctl", "blockrep-load"] {
        copy(&programs.dir.join(name), &planted.join(name))?;
    }
    Ok(Programs { dir: planted })
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    // A program that runs cannot be written to; another run may be using it.
    let fresh = to.with_extension("new");
    fs::copy(from, &fresh)
        .and_then(|_| fs::rename(&fresh, to))
        .with_context(|| format!("copy {}", from.display()))
}
