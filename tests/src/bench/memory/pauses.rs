//! Pauses of guests, without us and with us.

use super::bare::{self, Way};
use super::machine::{Inside, Machine};
use super::stage::Stage;
use super::{EPOCH_MS, Run};
use anyhow::{Context, Result};
use blkback_proto::ctl::EpochFigures;
use std::time::Duration;

/// Pages that the guest writes in each turn, which are as long as epochs.
pub(super) const DIRTY_PAGES: u32 = 2000;
/// What may be missing or more for a checkpoint to count as one of [`DIRTY_PAGES`].
const ABOUT: u64 = 100;
/// A guest of 1 GiB that has written all of it.
pub(super) const LARGE: Machine<'_> = Machine {
    inside: Inside::Sector,
    memory_mib: 1024,
    has_screen: false,
};
/// Pauses without us.
const BARE: usize = 120;

/// A guest of which both was measured.
#[derive(Debug, Clone)]
pub(super) struct Beside {
    pub(super) bare: Vec<bare::Pause>,
    pub(super) epochs: Vec<EpochFigures>,
    pub(super) tracker: String,
    pub(super) state_way: String,
}

/// Of one round.
#[derive(Debug, Clone)]
pub(super) struct Round {
    pub(super) devices: Beside,
    pub(super) migrate: Beside,
    /// 1 GiB, idle.
    pub(super) large: Vec<EpochFigures>,
    /// 1 GiB, [`DIRTY_PAGES`] in each.
    pub(super) dirty: Vec<EpochFigures>,
    /// QEMU's own live migration of that: milliseconds of standstill, and in all.
    pub(super) live: (f64, f64),
}

/// # Errors
/// Something does not come up.
pub(super) fn round(run: &Run) -> Result<Round> {
    let inside = match &run.kernel {
        Some(kernel) => Inside::Linux(kernel),
        None => Inside::Sector,
    };
    let machine = |has_screen| Machine {
        inside,
        memory_mib: 256,
        has_screen,
    };
    let devices =
        beside(run, machine(false), Way::Devices).context("idle guest, the devices alone saved")?;
    let migrate =
        beside(run, machine(true), Way::Migrate).context("idle guest, its state by a migration")?;
    let (live, large, dirty) = large(run).context("guest of 1 GiB")?;
    Ok(Round {
        devices,
        migrate,
        large,
        dirty,
        live,
    })
}

type Large = ((f64, f64), Vec<EpochFigures>, Vec<EpochFigures>);

fn time(run: &Run) -> Duration {
    Duration::from_secs(run.options.seconds)
}

fn beside(run: &Run, machine: Machine<'_>, way: Way) -> Result<Beside> {
    run.check_stop()?;
    run.say(&format!(
        "booting an idle guest of 256 MiB, {}",
        way.words()
    ));
    let mut stage = Stage::boot(machine, &run.options.out)?;
    run.say("pausing it without protection");
    let bare = {
        let mut qmp = stage.monitor()?;
        bare::pauses(&mut qmp, &stage.path("a"), way, BARE)?
    };
    run.check_stop()?;
    run.say("protecting it");
    stage.protect()?;
    std::thread::sleep(Duration::from_secs(1));
    let epochs = stage.checkpoints(time(run))?;
    let report = stage.report("a")?;
    let seen = Beside {
        bare,
        epochs,
        tracker: report
            .tracker
            .map_or(String::new(), |tracker| tracker.kind.to_string()),
        state_way: (report.hypervisor)
            .and_then(|hypervisor| Some(hypervisor.state_path?.to_string()))
            .unwrap_or_default(),
    };
    run.say(&format!(
        "{} checkpoints: pause p50 {:.1} ms; without us {:.1} ms",
        seen.epochs.len(),
        percentile(&pauses_of(&seen.epochs), 50),
        percentile(&seen.bare_ms(), 50),
    ));
    Ok(seen)
}

impl Beside {
    pub(super) fn bare_ms(&self) -> Vec<f64> {
        self.bare.iter().map(|pause| ms(pause.all())).collect()
    }
}

/// QEMU's own migration; checkpoints of the guest while it is idle, and while it writes.
fn large(run: &Run) -> Result<Large> {
    run.check_stop()?;
    run.say("booting a guest of 1 GiB, all of it written");
    let mut stage = Stage::boot(LARGE, &run.options.out)?;
    run.say("migrating it by QEMU's own means, for comparison");
    let live = {
        let mut qmp = stage.monitor()?;
        bare::live_migration(&mut qmp, &stage.path("a"))?
    };
    run.check_stop()?;
    run.say("protecting it");
    stage.protect()?;
    std::thread::sleep(Duration::from_secs(1));
    let idle = stage.checkpoints(time(run))?;
    stage.memory.write_pages(DIRTY_PAGES)?;
    std::thread::sleep(Duration::from_millis(20 * EPOCH_MS));
    let mut dirty = stage.checkpoints(time(run))?;
    let wanted = u64::from(DIRTY_PAGES);
    let all = dirty.len();
    dirty.retain(|one| one.dirty_pages.abs_diff(wanted) <= ABOUT);
    run.say(&format!(
        "{} of {all} checkpoints have about {wanted} pages: ours p50 {:.2} ms",
        dirty.len(),
        percentile(&of(&dirty, |one| one.us.ours), 50),
    ));
    Ok((live, idle, dirty))
}

impl Way {
    fn words(self) -> &'static str {
        match self {
            Self::Devices => "whose devices alone are saved",
            Self::Migrate => "with a screen, whose state is saved by a migration",
        }
    }
}

/// Milliseconds.
#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
pub(super) fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

/// A figure of each checkpoint, in milliseconds.
pub(super) fn of(epochs: &[EpochFigures], pick: impl Fn(&EpochFigures) -> u64) -> Vec<f64> {
    epochs.iter().map(|one| ms(pick(one))).collect()
}

pub(super) fn pauses_of(epochs: &[EpochFigures]) -> Vec<f64> {
    of(epochs, |one| one.us.pause)
}

/// By nearest rank; 0 of no values.
pub(super) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100).max(1) - 1;
    values.get(rank).copied().unwrap_or(0.0)
}
