//! The client's process, in the clients' network.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::stage::{GUEST, PORT, Stage};
use crate::lab::{Place, Programs};
use crate::process::{self, Process};
use crate::stop;

/// A guest that answers nothing for this long is lost.
const STALL_SECONDS: u64 = 30;
/// The last answers, the ledger read back, and a guest that is silent meanwhile.
const END_LIMIT: Duration = Duration::from_secs(4 * STALL_SECONDS);
const BEGIN_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Client {
    process: Process,
    log: PathBuf,
    out: PathBuf,
}

/// What it asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) run: u64,
    pub(super) seed: u64,
    pub(super) window: u64,
}

impl Client {
    /// Starts it; returns when the guest has answered.
    pub(super) fn start(
        stage: &Stage,
        programs: &Programs,
        place: &Place,
        kept: &Path,
        load: Load,
    ) -> Result<Self> {
        let (log, out) = (place.log("client"), kept.join("client.json"));
        let mut command = programs.command("teller");
        command.args(["client", "--address", &format!("{GUEST}:{PORT}")]);
        for (name, number) in [
            ("--run", load.run),
            ("--seed", load.seed),
            ("--window", load.window),
            ("--stall-seconds", STALL_SECONDS),
        ] {
            command.args([name, &number.to_string()]);
        }
        command.arg("--out").arg(&out);
        stage.client.place(&mut command);
        let process = Process::spawn(&mut command, "teller client", &log)?;
        let mut client = Self { process, log, out };
        stop::wait_for("the client's first answer", BEGIN_LIMIT, || {
            client.process.must_be_alive()?;
            Ok((client.answered()? > 0).then_some(()))
        })?;
        Ok(client)
    }

    /// Transactions that were answered, by what it said last.
    pub(super) fn answered(&self) -> Result<u64> {
        let text = std::fs::read_to_string(&self.log);
        let text = text.with_context(|| format!("read {}", self.log.display()))?;
        Ok(answered(&text))
    }

    /// False when it has given the connection up.
    pub(super) fn goes_on(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// Lets it end in order; gives what it has seen and judged.
    pub(super) fn finish(mut self) -> Result<Value> {
        self.process.signal(libc::SIGTERM);
        let status = self.process.wait(END_LIMIT)?;
        // 1 is its verdict, and stands in what it wrote.
        if !matches!(status.code(), Some(0 | 1)) {
            let how = process::describe(status);
            bail!("teller client: {how}{}", process::tail_of(&self.log));
        }
        let text = std::fs::read_to_string(&self.out);
        let text = text.with_context(|| format!("read {}", self.out.display()))?;
        serde_json::from_str(&text).with_context(|| format!("read {}", self.out.display()))
    }
}

/// From "answered 17 silent_ms 3 …" in the last whole line.
fn answered(log: &str) -> u64 {
    let whole = log.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let words = whole
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("answered "));
    let number = words.and_then(|words| words.split(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    //! A count that is cut in the middle of being written would end a round too early.

    use super::*;

    #[test]
    fn only_whole_lines_count() {
        assert_eq!(answered(""), 0);
        assert_eq!(answered("answered 9"), 0);
        assert_eq!(
            answered("answered 9 silent_ms 1\nanswered 12 silent_ms 1\nanswered 3"),
            12
        );
        assert_eq!(
            answered("answered 9 silent_ms 1\nanswered 8 of 8 sent\n"),
            8
        );
    }
}
