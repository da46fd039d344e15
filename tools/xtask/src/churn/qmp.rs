//! QEMU's monitor protocol: one command after the other on a Unix socket, each answered within a limit.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::stop;

/// QEMU answers within this time or not at all.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A monitor that takes commands.
#[derive(Debug)]
pub(super) struct Monitor {
    reader: BufReader<UnixStream>,
}

/// QEMU's arguments for a monitor on that socket.
pub(super) fn arguments(socket: &Path) -> [String; 4] {
    let path = socket.display().to_string().replace(',', ",,");
    [
        "-chardev".to_owned(),
        format!("socket,id=qmp,path={path},server=on,wait=off"),
        "-mon".to_owned(),
        "chardev=qmp,mode=control".to_owned(),
    ]
}

impl Monitor {
    /// Connects, as soon as QEMU listens.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let stream = stop::wait_for("QEMU's monitor", ANSWER_LIMIT, || {
            Ok(UnixStream::connect(socket).ok())
        })?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let mut monitor = Self {
            reader: BufReader::new(stream),
        };
        let greeting = monitor.line()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU's monitor begins with {greeting}");
        }
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// What a command returns.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        let stream = self.reader.get_mut();
        stream
            .write_all(format!("{request}\n").as_bytes())
            .with_context(|| format!("send {command} to QEMU"))?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {}", error["desc"]);
            }
            // Events come in between.
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        if read.context("hear QEMU's monitor")? == 0 {
            bail!("QEMU's monitor has hung up");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU's monitor says {line}"))
    }
}
