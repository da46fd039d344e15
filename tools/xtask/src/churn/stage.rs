//! What the commands of this folder share: daemons, kernel, the guest's program, and the survey of a
//! disk by a second guest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::ground::Ground;
use super::turns::THREADS;
use crate::checkout::{Checkout, Scratch};
use crate::demo::{self, Verdict};
use crate::guest::{self, BOOT_LIMIT, Boot, Guest, GuestFailed, Word};
use crate::lab::{JOURNAL_SIZE, Place, Programs, Setup};
use crate::{stop, ui};

/// What fio writes and verifies on the disk that is surveyed.
pub(super) const SURVEY_MIB: u64 = 8;

/// Faults that are printed one by one: a disk that is too old has one for every thread.
const FAULTS_SHOWN: usize = 5;

/// What every command line of this folder says.
#[derive(Debug, Clone, Args)]
pub(super) struct Common {
    /// Decides the random moments; without it a new one is taken and printed
    #[arg(long)]
    seed: Option<u64>,
    /// Only print the command that would install what is missing
    #[arg(long)]
    no_install: bool,
    /// Build and use optimised daemons
    #[arg(long)]
    pub(super) release: bool,
}

/// A stretch of the disk, in MiB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    pub(super) offset_mib: u64,
    pub(super) size_mib: u64,
}

/// How the disk is shared out. The churn's blocks are in front.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) disk_mib: u64,
    /// What fio writes once, at the beginning.
    pub(super) settled: Option<Area>,
    /// What fio writes and verifies over and over.
    pub(super) live: Option<Area>,
    /// Pause of the churn's threads between their turns.
    pub(super) pause_ms: u64,
}

/// Where a guest finds its disk.
#[derive(Debug, Clone, Copy)]
pub(super) enum Disk<'a> {
    VhostUser(&'a Path),
    Nbd(&'a Path),
    /// A raw image, served by QEMU itself.
    Image(&'a Path),
}

/// Everything that is there before the daemons start.
#[derive(Debug)]
pub(super) struct Stage {
    scratch: Scratch,
    ground: Ground,
    pub(super) place: Place,
    layout: Layout,
    pub(super) seed: u64,
}

/// What a second guest found on a disk.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Blocks of the churn that were ever written.
    pub(super) blocks: u64,
    pub(super) faults: Vec<String>,
}

impl Stage {
    /// Builds and provides it all; `build` makes the daemons.
    pub(super) fn prepare(
        checkout: &Checkout,
        common: &Common,
        layout: Layout,
        build: impl FnOnce() -> Result<Programs>,
    ) -> Result<Self> {
        let seed = common.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
        let scratch = Scratch::new(checkout)?;
        let ground = Ground::provide(checkout, layout.has_fio(), common.no_install, build)?;
        let place = Place {
            dir: scratch.round("churn")?,
            sockets: scratch.socket("c-"),
        };
        Ok(Self {
            scratch,
            ground,
            place,
            layout,
            seed,
        })
    }

    /// The start of a headline, and its end.
    pub(super) fn headline(&self, what: &str, planted: Option<&str>) -> String {
        let under = self.ground.accelerator.name();
        let version = &self.ground.kernel.version;
        let planted = planted.map_or(String::new(), |plant| format!("; planted: {plant}"));
        let seed = self.seed;
        format!("{what}; guest Linux {version} under {under}; seed {seed}{planted}")
    }

    /// A pair with a fresh disk and both sides on vhost-user.
    pub(super) fn setup(&self) -> Result<Setup> {
        let image = self.place.dir.join("a.img");
        demo::sparse_file(&image, self.layout.disk_mib << 20)?;
        Ok(Setup {
            programs: self.ground.programs.clone(),
            ack: "flush",
            image,
            vhost_user: true,
            journal_size: JOURNAL_SIZE,
            faults: None,
            mutant: None,
        })
    }

    /// Boots the guest that churns.
    pub(super) fn boot(&self, disk: Disk<'_>) -> Result<Guest> {
        self.boot_or_resume("churn", disk, Vec::new(), Vec::new())
    }

    /// As [`Stage::boot`], with further devices, and in the middle of a line.
    pub(super) fn boot_or_resume(
        &self,
        name: &str,
        disk: Disk<'_>,
        more: Vec<String>,
        half_line: Vec<u8>,
    ) -> Result<Guest> {
        let words = format!("role=churn{}", self.layout.arguments());
        self.boot_with(name, words, disk, more, half_line)
    }

    fn boot_with(
        &self,
        name: &str,
        arguments: String,
        disk: Disk<'_>,
        more: Vec<String>,
        half_line: Vec<u8>,
    ) -> Result<Guest> {
        let memory_mib = self.ground.memory_mib;
        let (mut devices, disk_socket) = match disk {
            Disk::VhostUser(socket) => (guest::vhost_disk(socket, memory_mib).to_vec(), None),
            Disk::Nbd(socket) => (Vec::new(), Some(socket)),
            Disk::Image(image) => (guest::own_disk(image, memory_mib), None),
        };
        devices.extend(more);
        Guest::boot(&Boot {
            kernel: &self.ground.kernel,
            accelerator: self.ground.accelerator,
            arguments,
            memory_mib,
            disk_socket,
            devices: &devices,
            dir: &self.place.dir,
            name,
            host: None,
            half_line,
        })
    }

    /// Lets a second guest look at every block, where each thread has to be as far as its last answered
    /// flush in `safe`; with fio in the layout it verifies, writes and verifies once more.
    pub(super) fn survey(&self, disk: Disk<'_>, safe: &BTreeMap<u64, u64>) -> Result<Survey> {
        let layout = Layout {
            // What a guest overwrites that goes on need not be all of it.
            live: self.layout.live.map(|live| Area {
                size_mib: SURVEY_MIB,
                ..live
            }),
            ..self.layout
        };
        let words = format!("role=survey{}", layout.arguments());
        let mut guest = self.boot_with("survey", words, disk, Vec::new(), Vec::new())?;
        let mut survey = Survey::default();
        let mut found = BTreeMap::new();
        let mut fio = Vec::new();
        loop {
            match guest.expect_word("to survey the disk", BOOT_LIMIT) {
                Err(error) if error.is::<GuestFailed>() => {
                    survey.faults.push(error.to_string());
                    return Ok(survey);
                }
                Err(error) => return Err(error),
                Ok(Word::Found {
                    thread,
                    turn,
                    blocks,
                }) => {
                    found.insert(thread, turn);
                    survey.blocks += blocks;
                    // The rest need not be heard: the guest is gone with this function.
                    if let Some(fault) = too_old(thread, turn, safe) {
                        survey.faults.push(fault);
                    }
                }
                Ok(Word::Fio { .. }) => {}
                Ok(word @ (Word::FioVerified | Word::FioWritten)) => fio.push(word),
                Ok(Word::Done) => break,
                Ok(other) => bail!("the second guest says {other:?}"),
            }
        }
        if found.len() as u64 != THREADS || fio != self.layout.expected() {
            bail!("the survey is not whole: {} threads, {fio:?}", found.len());
        }
        guest.wait_for_power_off()?;
        Ok(survey)
    }

    /// Cleans up, keeps the logs of what failed, and prints what was found.
    pub(super) fn conclude<T>(
        self,
        headline: &str,
        result: Result<T>,
        judge: impl FnOnce(T) -> Vec<String>,
    ) -> Result<Conclusion> {
        let faults = match result {
            Ok(seen) => {
                println!("\n{headline}");
                Ok(judge(seen))
            }
            Err(error) if error.is::<GuestFailed>() => {
                println!("\n{headline}");
                Ok(vec![error.to_string()])
            }
            Err(error) => Err(error),
        };
        let keep = match &faults {
            Ok(faults) => !faults.is_empty(),
            Err(error) => !error.is::<stop::Interrupted>(),
        };
        if keep {
            let kept = self.scratch.keep_logs(&self.place.dir)?;
            ui::note(format!("the logs are kept in {}", kept.display()));
        }
        remove(&self.place.dir)?;
        Ok(Conclusion { faults: faults? })
    }
}

/// What does not hold.
#[derive(Debug)]
pub(super) struct Conclusion {
    faults: Vec<String>,
}

impl Conclusion {
    /// Prints it. With something planted only a fault that `is_it` knows counts: any other would hide
    /// that what is planted is not found any more.
    pub(super) fn verdict(&self, planted: Option<&str>, is_it: impl Fn(&str) -> bool) -> Verdict {
        for fault in self.faults.iter().take(FAULTS_SHOWN) {
            println!("FAILED: {fault}");
        }
        if let Some(more @ 1..) = self.faults.len().checked_sub(FAULTS_SHOWN) {
            println!("FAILED: and {more} more like these");
        }
        let Some(name) = planted else {
            return match self.faults.is_empty() {
                true => Verdict::Holds,
                false => Verdict::Failed,
            };
        };
        match self.faults.iter().any(|fault| is_it(fault)) {
            true => {
                println!("planted damage ({name}): was found");
                Verdict::Failed
            }
            false => {
                println!("planted damage ({name}): WAS NOT FOUND");
                Verdict::Holds
            }
        }
    }
}

/// What is wrong when a thread's blocks are as after `turn`.
fn too_old(thread: u64, turn: u64, safe: &BTreeMap<u64, u64>) -> Option<String> {
    let promised = *safe.get(&thread)?;
    (turn < promised).then(|| {
        format!(
            "lost: thread {thread} had its flush of turn {promised} answered, and the disk is as it \
             was after turn {turn}"
        )
    })
}

fn remove(dir: &PathBuf) -> Result<()> {
    std::fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))
}

impl Layout {
    pub(super) fn has_fio(&self) -> bool {
        self.settled.is_some() || self.live.is_some()
    }

    /// Words for the guest's program.
    fn arguments(&self) -> String {
        let word = |key: &str, area: Option<Area>| match area {
            Some(area) => format!(" {key}={}+{}", area.offset_mib, area.size_mib),
            None => String::new(),
        };
        let pause = format!(" pause-ms={}", self.pause_ms);
        word("settled", self.settled) + &word("live", self.live) + &pause
    }

    /// What a whole survey says of fio.
    fn expected(&self) -> Vec<Word> {
        let settled = self.settled.map(|_| Word::FioVerified);
        let live = self.live.map(|_| Word::FioWritten);
        settled.into_iter().chain(live).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The disk may be ahead of what was told, never behind.
    #[test]
    fn a_disk_behind_an_answered_flush_is_a_loss() {
        let safe = BTreeMap::from([(3, 128)]);
        assert_eq!(too_old(3, 128, &safe), None);
        assert_eq!(too_old(3, 500, &safe), None);
        assert_eq!(too_old(4, 0, &safe), None);
        let fault = too_old(3, 127, &safe).expect("a loss");
        assert!(fault.starts_with("lost:"), "{fault}");
    }

    // A guest that does not boot would look as if planted damage was noticed.
    #[test]
    fn planted_damage_is_found_by_its_own_fault_only() {
        let conclusion = |faults: &[&str]| Conclusion {
            faults: faults.iter().map(|fault| (*fault).to_owned()).collect(),
        };
        let verdict = |faults: &[&str], planted| {
            conclusion(faults).verdict(planted, |fault| fault.starts_with("lost:"))
        };
        assert_eq!(verdict(&[], None), Verdict::Holds);
        assert_eq!(verdict(&["no disk"], None), Verdict::Failed);
        assert_eq!(verdict(&["no disk"], Some("x")), Verdict::Holds);
        assert_eq!(verdict(&["lost: 1"], Some("x")), Verdict::Failed);
    }
}
