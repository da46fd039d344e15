//! The loss of a host: from the decision until the guest runs.

use super::Run;
use super::pauses::{LARGE, ms};
use super::stage::Stage;
use anyhow::{Context, Result};
use blkback_proto::ctl::GuestPromoteAnswer;
use std::time::{Duration, Instant};

/// As many as were asked for.
///
/// # Errors
/// A guest does not go on.
pub(super) fn all(run: &Run) -> Result<Vec<GuestPromoteAnswer>> {
    let mut all = Vec::new();
    let begun = Instant::now();
    for number in 1..=run.options.failovers {
        run.check_stop()?;
        let answer = one(run).with_context(|| format!("failover {number}"))?;
        let steps = &answer.steps;
        run.say(&format!(
            "failover {number} of {}: {:.1} ms (decide {:.1}, network {:.1}, disks {:.1}, memory {:.1}, load {:.1}, \
             cont {:.1}){}",
            run.options.failovers,
            ms(answer.duration_us),
            ms(steps.decide_us),
            ms(steps.announce_us),
            ms(steps.disk_us),
            ms(steps.memory_us),
            ms(steps.load_us),
            ms(steps.cont_us),
            left(begun.elapsed(), number, run.options.failovers),
        ));
        all.push(answer);
    }
    Ok(all)
}

/// About how long the others will take, in words.
fn left(passed: Duration, done: u32, of: u32) -> String {
    match of.saturating_sub(done) {
        0 => String::new(),
        more => format!(", {} s left", (passed * more / done.max(1)).as_secs()),
    }
}

fn one(run: &Run) -> Result<GuestPromoteAnswer> {
    let mut stage = Stage::boot(LARGE, &run.options.out)?;
    stage.protect()?;
    stage.memory.write_pages(200)?;
    std::thread::sleep(Duration::from_secs(1));
    stage.fail_over()
}
