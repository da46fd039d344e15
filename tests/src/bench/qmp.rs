//! As much of QEMU's monitor protocol as a mirror and the measuring of pauses need.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Lines read in wait of an answer or an event.
const LINES_MAX: usize = 1000;

/// A monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
    /// Events that came while an answer was awaited.
    events: Vec<String>,
    /// How the last migration stood, as events told.
    migrations: Vec<String>,
}

fn migration(line: &Value) -> Option<String> {
    let status = line["data"]["status"].as_str();
    status
        .filter(|_| line["event"] == "MIGRATION")
        .map(str::to_owned)
}

impl Qmp {
    /// Connects and leaves negotiation.
    ///
    /// # Errors
    /// Nobody answers there within ten seconds.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("the monitor of QEMU")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut qmp = Self {
            reader: BufReader::new(stream),
            events: Vec::new(),
            migrations: Vec::new(),
        };
        qmp.line()?;
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command.
    ///
    /// # Errors
    /// What QEMU says, or that it says nothing.
    pub(super) fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let text = json!({"execute": command, "arguments": arguments}).to_string();
        writeln!(self.reader.get_mut(), "{text}").context("the monitor of QEMU")?;
        for _ in 0..LINES_MAX {
            let mut line = self.line()?;
            if let Some(error) = line.get("error") {
                bail!("{command}: {}", error["desc"]);
            }
            if let Some(value) = line.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(event) = line["event"].as_str() {
                self.events.push(event.to_owned());
                self.migrations.extend(migration(&line));
            }
        }
        bail!("{command}: QEMU talks of other things")
    }

    /// Runs `migrate`, and waits until it has come to its end.
    ///
    /// # Errors
    /// It fails.
    pub(super) fn migrate(&mut self, uri: &str) -> Result<()> {
        self.migrations.clear();
        self.run("migrate", json!({"uri": uri}))?;
        for _ in 0..LINES_MAX {
            let over = self.migrations.iter().find(|word| word.ends_with("ed"));
            match over.map(String::as_str) {
                Some("completed") => return Ok(()),
                Some(word) => bail!("migrate: {word}"),
                None => {
                    let line = self.line()?;
                    self.migrations.extend(migration(&line));
                }
            }
        }
        bail!("migrate: QEMU talks of other things")
    }

    /// Waits for an event, unless it has come already.
    ///
    /// # Errors
    /// It does not come.
    pub(super) fn wait_event(&mut self, name: &str) -> Result<()> {
        if self.events.iter().any(|event| event == name) {
            return Ok(());
        }
        for _ in 0..LINES_MAX {
            if self.line()?["event"] == name {
                return Ok(());
            }
        }
        bail!("{name}: QEMU talks of other things")
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.reader
            .read_line(&mut line)
            .context("the monitor of QEMU")?;
        serde_json::from_str(&line).context("the monitor of QEMU")
    }
}
