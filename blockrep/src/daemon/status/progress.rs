//! How far a comparison is, for people: a bar on a terminal, a line now and then in a log.

use crate::engine::Nanos;
use blkback_proto::ctl::SyncProgress;
use indicatif::{ProgressBar, ProgressStyle};

/// How often a sync is told of in the log when there is no terminal.
const LOG_NS: Nanos = 5_000_000_000;

/// How a long job is told to people.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Progress {
    bar: Option<ProgressBar>,
    began: Nanos,
    logged: Nanos,
}

impl Progress {
    /// `is_linked`: the backup is there; a comparison that is over without it was broken off.
    pub(super) fn update(
        &mut self,
        volume: usize,
        now: Nanos,
        progress: Option<(u64, u64)>,
        is_linked: bool,
    ) {
        let Some((done, total)) = progress else {
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
                let text = end_text(is_linked, bar.position(), bar.length().unwrap_or(0));
                tracing::info!("volume {volume}: {text}");
            }
            return;
        };
        if self.bar.is_none() {
            let style = ProgressStyle::with_template(
                "volume {msg} compared {bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
            )
            .expect("the template is right");
            let bar = ProgressBar::new(total)
                .with_style(style)
                .with_message(volume.to_string());
            self.bar = Some(bar);
            self.began = now;
            self.logged = now;
        }
        let bar = self.bar.as_ref().expect("just made");
        bar.set_position(done);
        if bar.is_hidden() && now.saturating_sub(self.logged) >= LOG_NS {
            self.logged = now;
            let status = self.status(now, done, total);
            let eta = status
                .eta_s
                .map_or("unknown".to_owned(), |s| format!("{s} s"));
            tracing::info!("volume {volume}: compared {done} of {total} bytes, ETA {eta}");
        }
    }

    pub(super) fn status(&self, now: Nanos, done_bytes: u64, total_bytes: u64) -> SyncProgress {
        let elapsed_ms = now.saturating_sub(self.began) / 1_000_000;
        let bytes_per_s = done_bytes.saturating_mul(1000) / elapsed_ms.max(1);
        SyncProgress {
            done_bytes,
            total_bytes,
            bytes_per_s,
            eta_s: (bytes_per_s > 0).then(|| (total_bytes - done_bytes) / bytes_per_s),
        }
    }
}

fn end_text(is_linked: bool, done_bytes: u64, total_bytes: u64) -> String {
    if is_linked {
        "compared with the backup".to_owned()
    } else {
        format!(
            "comparison broken off at {done_bytes} of {total_bytes} bytes: it begins again when the \
             backup answers"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "compared with the backup" stood in the log of a comparison that the loss of the link had ended.
    #[test]
    fn a_comparison_that_was_broken_off_is_none() {
        let mut progress = Progress::default();
        progress.update(0, 1, Some((1 << 20, 4 << 20)), true);
        progress.update(0, 2, None, false);
        assert!(progress.bar.is_none(), "told once");
        assert_eq!(
            end_text(false, 1 << 20, 4 << 20),
            "comparison broken off at 1048576 of 4194304 bytes: it begins again when the backup answers"
        );
        assert_eq!(end_text(true, 4 << 20, 4 << 20), "compared with the backup");
    }
}
