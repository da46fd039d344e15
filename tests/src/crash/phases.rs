//! What befalls the hosts, phase by phase.
//!
//! Every phase ends with a promoted backup that was checked, killed, started and checked again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use blkback_proto::ctl::PromoteRequest;
use blockrep_host::ctl::Client;
use blockrep_tools::load::oracle::Ack;

use super::plan::Phase;
use super::round::{HALF_BYTES, Promise, Round, STEP_LIMIT, acknowledged, backlog, demand, writes};

/// The load's server went away.
const LOST: &[i32] = &[3];
/// An unapplied journal worth killing over, in bytes.
const BACKLOG_BYTES_MIN: u64 = 4 << 20;
/// How slowly a backup applies that is to have a backlog.
const SLOW_APPLY: &str = "512KiB/s";

impl Round<'_> {
    /// Runs the phase of the plan.
    pub(super) fn run(&mut self) -> Result<()> {
        match self.plan.phase {
            Phase::KillPrimary => self.kill_primary(),
            Phase::KillBackup => self.kill_backup(),
            Phase::KillBoth => self.kill_both(),
            Phase::StopPrimary => self.stop_primary(),
            Phase::StopBackup => self.stop_backup(),
            Phase::KillFirstSync => self.kill_first_sync(),
            Phase::KillApply => self.kill_apply(),
            Phase::KillDrain => self.kill_drain(),
            Phase::KillPromotion => self.kill_promotion(),
            Phase::RestartPrimary => self.restart_primary(),
            Phase::Terminate => self.terminate_daemons(),
        }
    }

    fn kill_primary(&mut self) -> Result<()> {
        self.start_both()?;
        let mut load = self.load("a", "load", &[])?;
        self.progress(&mut load, 1)?;
        self.kill("a")?;
        load.ended(LOST)?;
        self.check_image(&load.log, true, false)?;
        self.take_over(&load, false)
    }

    fn kill_backup(&mut self) -> Result<()> {
        self.start_both()?;
        let mut load = self.load("a", "load", &[])?;
        self.progress(&mut load, 2)?;
        self.kill("b")?;
        self.start_backup()?;
        self.wait("a", "protected")?;
        self.progress(&mut load, 1)?;
        self.kill("a")?;
        load.ended(LOST)?;
        self.take_over(&load, false)
    }

    fn kill_both(&mut self) -> Result<()> {
        self.start_both()?;
        let mut load = self.load("a", "load", &[])?;
        self.progress(&mut load, 1)?;
        let order = if self.plan.variant.is_multiple_of(2) {
            ["a", "b"]
        } else {
            ["b", "a"]
        };
        for host in order {
            self.signal(host, libc::SIGKILL)?;
        }
        for host in order {
            self.process(host)?.kill();
        }
        load.ended(LOST)?;
        self.check_image(&load.log, true, false)?;
        self.start_backup()?;
        self.take_over(&load, false)
    }

    fn stop_primary(&mut self) -> Result<()> {
        self.start_both()?;
        let mut load = self.load("a", "load", &[])?;
        self.progress(&mut load, 1)?;
        self.signal("a", libc::SIGSTOP)?;
        let force = self.plan.variant.is_multiple_of(2);
        if force {
            self.promotion_is_refused(false, "the link is up")?;
        } else {
            self.wait("b", "waiting-for-primary")?;
        }
        let epoch = self.promote(force)?;
        self.count(&load, epoch)?;
        let before = self.contents("b", 0)?;
        if !self.plan.pause {
            // By its policy the old primary will go on alone. What it answers then is a history of
            // its own, which only a fence could prevent; nobody may be told of it here.
            load.process.kill();
        }
        self.signal("a", libc::SIGCONT)?;
        self.old_primary_is_refused()?;
        let after = self.contents("b", 0)?;
        demand(before == after, || {
            "the old primary changed the promoted side".to_owned()
        })?;
        self.kill("a")?;
        if self.plan.pause {
            load.ended(LOST)?;
        }
        let promise = self.promise(epoch);
        self.check("b", &load.log, promise)?;
        self.restart_and_check(&load.log, promise)
    }

    /// An old primary that woke up must learn that it is one, and never count as protected again.
    fn old_primary_is_refused(&mut self) -> Result<()> {
        let end = Instant::now() + STEP_LIMIT;
        loop {
            let group = &self.pair.status("a")?["group"];
            let reason = group["reason"].as_str().unwrap_or("");
            if reason.contains("refused") {
                let state = group["state"].as_str().unwrap_or("");
                let expected = "superseded";
                return demand(state == expected, || {
                    format!("the refused primary is {group} and not {expected}")
                });
            }
            ensure!(
                Instant::now() < end,
                "the old primary was not refused: {group}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop_backup(&mut self) -> Result<()> {
        self.start_both()?;
        let mut load = self.load("a", "load", &[])?;
        self.progress(&mut load, 2)?;
        self.signal("b", libc::SIGSTOP)?;
        let state = if self.plan.pause {
            "paused"
        } else {
            "degraded"
        };
        self.wait("a", state)?;
        self.policy_holds()?;
        self.signal("b", libc::SIGCONT)?;
        self.wait("a", "protected")?;
        self.progress(&mut load, 1)?;
        self.kill("a")?;
        load.ended(LOST)?;
        self.take_over(&load, false)
    }

    /// Without the backup: `pause` lets no write in, `degrade` lets writes go on.
    fn policy_holds(&self) -> Result<()> {
        let before = writes(&self.pair.status("a")?);
        let end = Instant::now() + STEP_LIMIT;
        std::thread::sleep(Duration::from_millis(200));
        loop {
            let after = writes(&self.pair.status("a")?);
            if self.plan.pause {
                return demand(after == before, || {
                    format!("{} writes went on although paused", after - before)
                });
            }
            if after > before {
                return Ok(());
            }
            ensure!(Instant::now() < end, "no write went on although degraded");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill_first_sync(&mut self) -> Result<()> {
        // Slow enough that the kill comes before the end of the copy.
        let flags = self.pair.backup_flags.clone();
        self.pair
            .backup_flags
            .extend(["--throttle-link".into(), "1MiB/s".into()]);
        self.start_primary()?;
        let mut first = self.load("a", "first", &["--writes", "1000"])?;
        first.ended(&[0])?;
        self.start_backup()?;
        self.wait("b", "inconsistent")?;
        self.promotion_is_refused(true, "a sync runs")?;
        std::thread::sleep(Duration::from_millis(self.plan.delay_ms));
        let hosts: &[&str] = [&["a"][..], &["b"], &["a", "b"]][self.plan.variant as usize % 3];
        for host in hosts {
            self.kill(host)?;
        }
        self.pair.backup_flags = flags;
        if !hosts.contains(&"b") {
            // Only to get rid of the throttle.
            self.terminate("b")?;
        }
        self.start_backup()?;
        if hosts.contains(&"a") {
            self.wait("b", "inconsistent")?;
            self.promotion_is_refused(true, "a sync was cut off")?;
            self.start_primary()?;
        }
        self.wait("a", "protected")?;
        self.facts.acknowledged += acknowledged(&first.log)?;
        self.check_view(&first)?;
        let mut load = self.load("a", "second", &[])?;
        self.progress(&mut load, 1)?;
        self.kill("a")?;
        load.ended(LOST)?;
        self.take_over(&load, true)
    }

    /// A load has ended and the pair is protected: the backup's committed view has all of it.
    fn check_view(&mut self, load: &super::round::Load) -> Result<()> {
        let promise = Promise {
            ack: Ack::Write,
            epoch: None,
            split: false,
            earlier: false,
        };
        self.check("b", &load.log, promise)
    }

    /// A backup with a journal that is far from applied, whose primary was killed under load.
    fn with_backlog(&mut self) -> Result<super::round::Load> {
        let slow = ["--throttle-apply", SLOW_APPLY].map(String::from);
        self.pair.backup_flags.extend(slow);
        self.start_both()?;
        let mut load = self.load("a", "load", &[])?;
        self.progress(&mut load, 1)?;
        let end = Instant::now() + STEP_LIMIT;
        while backlog(&self.pair.status("b")?) < BACKLOG_BYTES_MIN {
            ensure!(Instant::now() < end, "no backlog grows");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill("a")?;
        load.ended(LOST)?;
        Ok(load)
    }

    fn kill_apply(&mut self) -> Result<()> {
        let load = self.with_backlog()?;
        self.kill("b")?;
        self.start_backup()?;
        let status = self.pair.status("b")?;
        ensure!(backlog(&status) > 0, "the backlog was gone before the kill");
        self.take_over(&load, false)
    }

    fn kill_drain(&mut self) -> Result<()> {
        let load = self.with_backlog()?;
        self.wait("b", "waiting-for-primary")?;
        let epoch = self.promote(false)?;
        self.count(&load, epoch)?;
        let promise = self.promise(epoch);
        self.check("b", &load.log, promise)?;
        let untouched = self.contents("b", HALF_BYTES)?;
        let span = HALF_BYTES.to_string();
        let mut second = self.load("b", "second", &["--span", &span])?;
        self.progress(&mut second, 2)?;
        self.facts.acknowledged += acknowledged(&second.log)?;
        let own = Promise {
            ack: Ack::Flush,
            epoch: None,
            split: true,
            earlier: true,
        };
        self.kill("b")?;
        second.ended(LOST)?;
        for _ in 0..2 {
            self.start_backup()?;
            self.wait("b", "promoted")?;
            self.check("b", &second.log, own)?;
            let now = self.contents("b", HALF_BYTES)?;
            demand(now == untouched, || {
                "what nobody wrote to after the promotion has changed".to_owned()
            })?;
            self.kill("b")?;
        }
        Ok(())
    }

    fn kill_promotion(&mut self) -> Result<()> {
        self.start_both()?;
        let mut load = self.load("a", "load", &[])?;
        self.progress(&mut load, 1)?;
        self.kill("a")?;
        load.ended(LOST)?;
        self.wait("b", "waiting-for-primary")?;
        let control = self.pair.path("b.ctl");
        let asking = std::thread::spawn(move || {
            let mut client = Client::connect(&control, "crash", STEP_LIMIT)?;
            client.promote(PromoteRequest::default())
        });
        // From before the request to after the answer.
        std::thread::sleep(Duration::from_micros(u64::from(self.plan.variant % 800)));
        self.kill("b")?;
        let answered = asking.join().is_ok_and(|answer| answer.is_ok());
        self.start_backup()?;
        let state = self.pair.status("b")?["group"]["state"].clone();
        demand(!answered || state == "promoted", || {
            format!("a promotion was answered and is not there after a kill: {state}")
        })?;
        let epoch = self.promote(false)?;
        self.count(&load, epoch)?;
        let promise = self.promise(epoch);
        self.check("b", &load.log, promise)?;
        self.restart_and_check(&load.log, promise)
    }

    fn restart_primary(&mut self) -> Result<()> {
        self.start_both()?;
        let mut first = self.load("a", "first", &[])?;
        self.progress(&mut first, 2)?;
        self.kill("a")?;
        first.ended(LOST)?;
        self.facts.acknowledged += acknowledged(&first.log)?;
        self.start_primary()?;
        self.wait("a", "protected")?;
        // What the old process had in flight may be half there, on both sides alike.
        let promise = Promise {
            ack: Ack::Write,
            epoch: None,
            split: true,
            earlier: false,
        };
        self.check("b", &first.log, promise)?;
        let mut load = self.load("a", "second", &[])?;
        self.progress(&mut load, 1)?;
        self.kill("a")?;
        load.ended(LOST)?;
        self.take_over(&load, true)
    }

    fn terminate_daemons(&mut self) -> Result<()> {
        self.start_both()?;
        let mut load = self.load("a", "load", &[])?;
        if self.plan.variant.is_multiple_of(2) {
            self.progress(&mut load, 2)?;
            self.terminate("b")?;
            let state = if self.plan.pause {
                "paused"
            } else {
                "degraded"
            };
            self.wait("a", state)?;
            self.start_backup()?;
            self.wait("a", "protected")?;
        }
        self.progress(&mut load, 1)?;
        self.terminate("a")?;
        load.ended(LOST)?;
        self.check_image(&load.log, false, false)?;
        self.wait("b", "waiting-for-primary")?;
        let epoch = self.promote(false)?;
        self.count(&load, epoch)?;
        let promise = self.promise(epoch);
        self.check("b", &load.log, promise)?;
        self.terminate("b")?;
        self.start_backup()?;
        self.wait("b", "promoted")?;
        self.check("b", &load.log, promise)
    }
}
