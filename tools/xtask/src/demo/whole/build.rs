//! What the rounds run.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, anyhow, bail};

use super::{BUILD_LIMIT, Kind, Plant};
use crate::checkout::Checkout;
use crate::lab::Programs;
use crate::process::Process;
use crate::{planted, ui};

/// The client, and the daemons where a guest is protected.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Package and program.
    pub(super) client: Option<(&'static str, &'static str)>,
    pub(super) protection: Kind,
    pub(super) is_release: bool,
}

impl Wanted {
    /// The programs, and the checkpointer: with bugs that can be switched on, where one is planted.
    pub(super) fn build(
        self,
        checkout: &Checkout,
        plant: Option<Plant>,
    ) -> Result<(Programs, PathBuf)> {
        if plant.is_none() || self.protection != Kind::Checkpointer {
            let programs = self.built(checkout)?;
            let checkpointer = programs.dir.join("checkpointer");
            return Ok((programs, checkpointer));
        }
        let mut cargo = self
            .cargo(checkout)?
            .ok_or_else(|| anyhow!("nothing to be built"))?;
        cargo.args(["--features", "checkpointer/plants"]);
        let again = || self.built(checkout);
        let name = "checkpointer";
        let (dir, programs) = planted::build(checkout, cargo, name, self.is_release, again)?;
        Ok((programs, dir.join(name)))
    }

    fn built(self, checkout: &Checkout) -> Result<Programs> {
        let profile = if self.is_release { "release" } else { "debug" };
        let programs = Programs {
            dir: checkout.metadata()?.target_dir()?.join(profile),
        };
        let Some(mut cargo) = self.cargo(checkout)? else {
            return Ok(programs);
        };
        ui::note("building the client and the daemons");
        let status = Process::spawn_shown(&mut cargo, "cargo build")?.wait(BUILD_LIMIT)?;
        if !status.success() {
            return Err(anyhow!("cargo build failed; its messages stand above"));
        }
        Ok(programs)
    }

    /// Nothing where nothing is wanted.
    fn cargo(self, checkout: &Checkout) -> Result<Option<Command>> {
        let metadata = checkout.metadata()?;
        let mut wanted = Vec::from_iter(self.client);
        if self.protection == Kind::Checkpointer {
            wanted.extend([
                ("blockrep", "blockrep"),
                ("blockrep", "blockrep-backup"),
                ("netbuf", "netbuf"),
                ("blockrep-tools", "blockrepctl"),
                ("checkpointer", "checkpointer"),
            ]);
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        let mut cargo = checkout.cargo();
        cargo.arg("build");
        for (package, program) in wanted {
            if !metadata.has_program(package, program) {
                bail!(
                    "this checkout does not build the program {program}; \
                     `--protection none` shows guest, client and network without it"
                );
            }
            cargo.args(["-p", package, "--bin", program]);
        }
        if self.is_release {
            cargo.arg("--release");
        }
        Ok(Some(cargo))
    }
}
