//! A journal is made with a bar for whom a terminal is there, and with lines of the log for whom not.

use super::StartError;
use crate::daemon::files::{self, Layout};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// Between two lines of the log.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// Makes the journal of a volume that has none.
pub(super) fn make_journal(layout: &Layout, index: usize) -> Result<(), StartError> {
    let style = ProgressStyle::with_template(
        "volume {msg} journal {bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
    )
    .expect("the template is right");
    let bar = ProgressBar::new(0)
        .with_style(style)
        .with_message(index.to_string());
    let mut told: Option<Instant> = None;
    files::make_journal(layout, index, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        match told {
            None => tracing::info!("volume {index}: making a journal of {total} bytes"),
            Some(at) if bar.is_hidden() && at.elapsed() >= TOLD_EVERY => {
                let left = bar.eta().as_secs();
                tracing::info!("volume {index}: made {done} of {total} bytes, ETA {left} s");
            }
            Some(_) => return,
        }
        told = Some(Instant::now());
    })?;
    bar.finish_and_clear();
    Ok(())
}
