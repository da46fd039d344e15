//! `cargo xtask demo-disk`: a guest loses its host and carries on from the backup's disk.

mod judge;
mod load;
pub(crate) mod plant;
mod round;
pub(crate) mod whole;

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::checkout::{Checkout, Scratch};
use crate::guest::{self, Accelerator};
use crate::kernel::{self, GuestKernel};
use crate::lab::{JOURNAL_SIZE, Place, Programs, Setup};
use crate::netns::Host;
use crate::packages::{self, Purpose};
use crate::process::Process;
use crate::stop::minutes;
use crate::{stop, ui};

pub(crate) use judge::{Verdict, aligned, widths};

/// When the primary answers a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ack {
    /// After its own disk has it: what follows the last committed epoch may be lost.
    Local,
    /// FLUSH waits for the backup: what the guest has synced is never lost.
    Flush,
    /// Every write waits for the backup.
    Write,
}

impl Ack {
    fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Flush => "flush",
            Self::Write => "write",
        }
    }

    /// Whether an entry reported by the guest must survive, however late it was.
    fn promises_all(self) -> bool {
        self != Self::Local
    }
}

/// Damage done on purpose, which the demo has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Plant {
    /// One byte of the backup's image is changed between promotion and check.
    Flip,
    /// An older copy of the backup's disk stands in for it.
    OlderEpoch,
}

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// How often to do it all, each time on fresh disks
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rounds: u32,
    /// Decides the random moments; without it a new one is taken and printed
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// When the primary answers a write
    #[arg(long, value_enum, default_value = "flush")]
    pub(crate) ack: Ack,
    /// Do damage on purpose; the demo must then fail
    #[arg(long, value_enum)]
    pub(crate) plant: Option<Plant>,
    /// Only print the command that would install what is missing
    #[arg(long)]
    pub(crate) no_install: bool,
    /// Without QEMU: a load generator in the guest's place
    #[arg(long)]
    pub(crate) no_guest: bool,
    /// Build and use optimised daemons
    #[arg(long)]
    pub(crate) release: bool,
}

/// What the command line says where no daemon of ours takes part.
#[derive(Debug, Clone, Args)]
pub(crate) struct SelftestOptions {
    /// How often to do it all, each time on a fresh disk
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Decides the random moments; without it a new one is taken and printed
    #[arg(long)]
    seed: Option<u64>,
    /// Do damage on purpose; the selftest must then fail
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    /// Only print the command that would install what is missing
    #[arg(long)]
    no_install: bool,
}

impl From<SelftestOptions> for Options {
    /// One image loses nothing that was synced, which is what `flush` promises.
    fn from(options: SelftestOptions) -> Self {
        let SelftestOptions {
            rounds,
            seed,
            plant,
            no_install,
        } = options;
        Self {
            rounds,
            seed,
            ack: Ack::Flush,
            plant,
            no_install,
            no_guest: false,
            release: false,
        }
    }
}

/// What runs under the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Under {
    Blockrep,
    /// Nothing of ours: the lab is tested, not the product.
    QemuNbd,
}

/// Everything the rounds of one command share.
#[derive(Debug)]
struct Stage<'a> {
    options: &'a Options,
    seed: u64,
    under: Under,
    scratch: Scratch,
    programs: Option<Programs>,
    guest: Option<(GuestKernel, Accelerator)>,
    /// Two network namespaces per round, or loopback.
    namespaces: bool,
}

/// Runs it all; prints the table.
pub(crate) fn run(checkout: &Checkout, options: &Options, under: Under) -> Result<Verdict> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let scratch = Scratch::new(checkout)?;
    packages::provide(checkout, &purposes(options), options.no_install)?;
    packages::require(&purposes(options))?;
    let programs = match under {
        Under::Blockrep => Some(build(checkout, options.release)?),
        Under::QemuNbd => None,
    };
    let guest = match options.no_guest {
        true => None,
        false => {
            let kernel = kernel::provide(checkout)?;
            let accelerator = guest::accelerator(checkout, &kernel)?;
            Some((kernel, accelerator))
        }
    };
    let namespaces = under == Under::Blockrep && can_have_namespaces();
    let stage = Stage {
        options,
        seed,
        under,
        scratch,
        programs,
        guest,
        namespaces,
    };
    ui::note(stage.headline());
    let mut rows = Vec::new();
    for round in 1..=options.rounds {
        if options.rounds > 1 {
            ui::note(format!("round {round} of {}", options.rounds));
        }
        rows.push(stage.round(round)?);
    }
    let verdict = judge::print(&stage.headline(), &rows, options.ack.promises_all());
    if let Some(plant) = options.plant {
        let name = plant
            .to_possible_value()
            .map(|value| value.get_name().to_owned());
        let found = if verdict == Verdict::Failed {
            "was found"
        } else {
            "WAS NOT FOUND"
        };
        println!("planted damage ({}): {found}", name.unwrap_or_default());
    }
    Ok(verdict)
}

impl Stage<'_> {
    fn headline(&self) -> String {
        let under = match (self.under, self.namespaces) {
            (Under::QemuNbd, _) => "lab alone, qemu-nbd on one image".to_owned(),
            (Under::Blockrep, true) => {
                format!(
                    "ack {}, hosts are two network namespaces",
                    self.options.ack.name()
                )
            }
            (Under::Blockrep, false) => {
                format!(
                    "ack {}, both hosts on loopback (not root)",
                    self.options.ack.name()
                )
            }
        };
        let guest = match &self.guest {
            Some((kernel, accelerator)) => {
                format!(
                    "guest Linux {} under {}",
                    kernel.version,
                    accelerator.name()
                )
            }
            None => "no guest".to_owned(),
        };
        format!("{under}; {guest}; seed {}", self.seed)
    }

    /// One round in a directory of its own, which is gone afterwards; logs stay if it failed.
    fn round(&self, number: u32) -> Result<judge::Row> {
        let dir = self.scratch.round(&format!("round-{number}"))?;
        let place = Place {
            dir: dir.clone(),
            sockets: self.scratch.socket(&format!("{number}-")),
        };
        let random = fastrand::Rng::with_seed(self.seed.wrapping_add(u64::from(number)));
        let row = match self.guest {
            Some(_) => round::run(self, &place, random),
            None => load::run(self, &place, random),
        };
        if row
            .as_ref()
            .map_or_else(|error| !error.is::<stop::Interrupted>(), |row| !row.holds())
        {
            let kept = self.scratch.keep_logs(&dir)?;
            ui::note(format!(
                "the logs of this round are kept in {}",
                kept.display()
            ));
        }
        std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        row
    }

    /// How to start the product on `image`; none when the lab is tested alone.
    fn setup(&self, image: &Path) -> Option<Setup> {
        let programs = self.programs.clone()?;
        Some(Setup {
            programs,
            ack: self.options.ack.name(),
            image: image.to_owned(),
            vhost_user: false,
            journal_size: JOURNAL_SIZE,
            faults: None,
            mutant: None,
        })
    }

    fn hosts(&self) -> Result<Option<[Host; 2]>> {
        self.namespaces.then(Host::pair).transpose()
    }
}

fn purposes(options: &Options) -> Vec<Purpose> {
    match (options.no_guest, options.plant) {
        (false, _) => vec![Purpose::Guest],
        (true, Some(Plant::OlderEpoch)) => vec![Purpose::Hosts, Purpose::Images],
        (true, _) => vec![Purpose::Hosts],
    }
}

/// Root alone is not enough: a container may forbid it.
fn can_have_namespaces() -> bool {
    match Host::pair() {
        Ok(_) => true,
        Err(error) => {
            ui::note(format!("no network namespaces here ({error:#})"));
            false
        }
    }
}

/// Builds the daemons and tools; cargo's own lines show how far it is.
pub(crate) fn build(checkout: &Checkout, release: bool) -> Result<Programs> {
    let metadata = checkout.metadata()?;
    for (package, program) in [
        ("blockrep", "blockrep"),
        ("blockrep", "blockrep-backup"),
        ("blockrep-tools", "blockrepctl"),
        ("blockrep-tools", "blockrep-load"),
    ] {
        if !metadata.has_program(package, program) {
            bail!(
                "this checkout does not build the program {program}; \
                 `cargo xtask guest-selftest` runs the same rounds on qemu-nbd"
            );
        }
    }
    ui::note("building the daemons and tools");
    let mut cargo = checkout.cargo();
    cargo.args(["build", "--bins", "-p", "blockrep", "-p", "blockrep-tools"]);
    if release {
        cargo.arg("--release");
    }
    let status = Process::spawn_shown(&mut cargo, "cargo build")?.wait(BUILD_LIMIT)?;
    if !status.success() {
        bail!("cargo build failed; its messages stand above");
    }
    let profile = if release { "release" } else { "debug" };
    Ok(Programs {
        dir: metadata.target_dir()?.join(profile),
    })
}

const BUILD_LIMIT: std::time::Duration = minutes(20);

/// Makes a file of zeros that takes no room until it is written.
pub(crate) fn sparse_file(path: &Path, bytes: u64) -> Result<()> {
    std::fs::File::create(path)
        .and_then(|file| file.set_len(bytes))
        .with_context(|| format!("create {}", path.display()))
}
