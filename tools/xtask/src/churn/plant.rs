//! The daemon of the disk with planted bugs, among the others.

use anyhow::Result;

use crate::checkout::Checkout;
use crate::lab::Programs;
use crate::{demo, planted};

/// The programs as [`demo::build`] makes them, but for a `blockrep` in which bugs can be switched on.
pub(super) fn build(checkout: &Checkout, release: bool) -> Result<Programs> {
    let mut cargo = checkout.cargo();
    cargo.args(["build", "--bins", "-p", "blockrep", "-p", "blockrep-tools"]);
    cargo.args(["--features", "blockrep/mutants"]);
    if release {
        cargo.arg("--release");
    }
    let again = || demo::build(checkout, release);
    let (dir, programs) = planted::build(checkout, cargo, "blockrep", release, again)?;
    for name in ["blockrep-backup", "blockrepctl", "blockrep-load"] {
        planted::copy(&programs.dir.join(name), &dir.join(name))?;
    }
    Ok(Programs { dir })
}
