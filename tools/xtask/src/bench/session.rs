//! One stack, started anew, and the guest that measures it.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::image;
use super::point::{Figures, Point};
use crate::churn::Ground;
use crate::guest::{self, BOOT_LIMIT, Boot, Guest, Word};
use crate::lab::{Blockrep, Lab, Place, Setup};
use crate::ui;

/// Written from end to end, and anywhere on it requests go.
const DISK_MIB: u64 = 256;
const JOURNAL_MIB: u64 = 512;
const JOURNAL: &str = "512MiB";
/// What a point that writes writes at most. Headers and the reserve of the front end take room, too.
const WRITE_MIB: u64 = JOURNAL_MIB * 3 / 10;
/// What a point may take besides its seconds; a guest that is emulated needs some to start fio.
const POINT_LIMIT: Duration = Duration::from_secs(60);
/// A daemon that ended is noticed within this.
const LOOK: Duration = Duration::from_millis(500);

/// How the guest has its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stack {
    /// The protected disk by vhost-user-blk.
    VhostUser,
    /// The protected disk by QEMU's NBD client.
    Nbd,
    /// An image without protection, by QEMU alone.
    Image,
}

impl Stack {
    pub(super) const ALL: [Self; 3] = [Self::VhostUser, Self::Nbd, Self::Image];

    /// All of them, another one first in every round.
    pub(super) fn in_round(round: u32) -> [Self; 3] {
        let mut stacks = Self::ALL;
        let first = round.saturating_sub(1) as usize % stacks.len();
        stacks.rotate_left(first);
        stacks
    }

    /// In files and JSON.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::VhostUser => "vhost-user",
            Self::Nbd => "nbd",
            Self::Image => "image",
        }
    }

    fn is_protected(self) -> bool {
        self != Self::Image
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VhostUser => "protected, vhost-user",
            Self::Nbd => "protected, NBD",
            Self::Image => "unprotected image",
        })
    }
}

/// Sizes, for whoever reads the figures later.
pub(super) fn sizes() -> Value {
    json!({"disk_mib": DISK_MIB, "journal_mib": JOURNAL_MIB, "write_mib_max": WRITE_MIB})
}

/// What a stack is started with.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) ground: &'a Ground,
    pub(super) stack: Stack,
    pub(super) place: &'a Place,
    pub(super) seconds: u64,
}

impl Session<'_> {
    /// Measures every point; `take` is given each as it comes.
    pub(super) fn play(&self, round: u32, mut take: impl FnMut(Point, Figures)) -> Result<()> {
        let step = ui::step(format!("round {round}, {}: starting", self.stack));
        let image = self.place.dir.join("a.img");
        image::write(&image, DISK_MIB)?;
        let mut lab = match self.stack.is_protected() {
            true => Some(self.protect(|state| step.now(state))?),
            false => None,
        };
        step.now("the guest boots");
        let mut guest = self.boot(lab.as_ref())?;
        let word = hear(&mut guest, &mut lab, "to begin", BOOT_LIMIT)?;
        if word != Word::Ready {
            bail!("the guest says {word:?} before it begins");
        }
        step.done("the guest runs");
        let limit = Duration::from_secs(self.seconds) + POINT_LIMIT;
        for point in Point::ALL {
            let what = format!("to measure {point}");
            match hear(&mut guest, &mut lab, &what, limit)? {
                Word::Point { name, terse } if name == point.word() => {
                    let figures = point.read(&terse).with_context(|| point.to_string())?;
                    take(point, figures);
                }
                other => bail!("the guest says {other:?} for {point}"),
            }
        }
        let word = hear(&mut guest, &mut lab, "to end", BOOT_LIMIT)?;
        if word != Word::Done {
            bail!("the guest says {word:?} after the last point");
        }
        guest.wait_for_power_off()
    }

    /// Starts primary and backup.
    fn protect(&self, progress: impl Fn(&str)) -> Result<Blockrep> {
        let setup = Setup {
            programs: self.ground.programs.clone(),
            ack: "local",
            image: self.place.dir.join("a.img"),
            vhost_user: true,
            journal_size: JOURNAL,
            faults: None,
            mutant: None,
        };
        Blockrep::start(self.place.clone(), &setup, None, progress)
    }

    fn boot(&self, lab: Option<&Blockrep>) -> Result<Guest> {
        let memory_mib = self.ground.memory_mib;
        let (devices, disk_socket) = match (self.stack, lab) {
            (Stack::VhostUser, Some(lab)) => {
                let disk = guest::vhost_disk(lab.vhost_sockets()[0], memory_mib);
                (disk.to_vec(), None)
            }
            (_, Some(lab)) => (Vec::new(), Some(lab.primary_socket())),
            (_, None) => {
                let image = self.place.dir.join("a.img");
                (guest::image_disk(&image).to_vec(), None)
            }
        };
        let points = Point::ALL.map(Point::word).join(",");
        let seconds = self.seconds;
        Guest::boot(&Boot {
            kernel: &self.ground.kernel,
            accelerator: self.ground.accelerator,
            arguments: format!(
                "role=points points={points} seconds={seconds} write-mib={WRITE_MIB}"
            ),
            memory_mib,
            disk_socket,
            devices: &devices,
            dir: &self.place.dir,
            name: "guest",
            host: None,
            half_line: Vec::new(),
        })
    }
}

/// The guest's next word, as long as the daemons live.
fn hear(
    guest: &mut Guest,
    lab: &mut Option<Blockrep>,
    what: &str,
    limit: Duration,
) -> Result<Word> {
    let end = Instant::now() + limit;
    loop {
        let heard = guest.next(LOOK);
        // A guest whose daemon ended fails, too, and says less of why.
        if let Some(lab) = lab {
            lab.check()?;
        }
        if let Some(heard) = heard? {
            return Ok(heard.word);
        }
        if Instant::now() >= end {
            bail!("waited {} s in vain for the guest {what}", limit.as_secs());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A stack that is always first would always find the machine as the last round left it.
    #[test]
    fn every_stack_is_first_in_turn() {
        let first = |round| Stack::in_round(round)[0];
        assert_eq!([first(1), first(2), first(3)], Stack::ALL);
        assert_eq!(first(4), first(1));
    }

    // Past the window writes would wait for the backup's disk, and that is another measurement.
    #[test]
    fn all_that_is_written_fits_into_the_journal() {
        assert_eq!(JOURNAL, format!("{JOURNAL_MIB}MiB"));
        let writes = Point::ALL.iter().filter(|point| point.writes).count() as u64;
        assert!(writes * WRITE_MIB * 10 <= JOURNAL_MIB * 6);
    }
}
