//! What QEMU's own means cost, without us: the same guest by its monitor alone.

use super::super::qmp::Qmp;
use anyhow::{Context, Result};
use serde_json::json;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// More than a migration ever takes here, in bytes per second.
const BANDWIDTH: u64 = 1 << 40;

/// One pause, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) stop: u64,
    pub(super) state: u64,
    pub(super) cont: u64,
}

impl Pause {
    pub(super) fn all(self) -> u64 {
        self.stop + self.state + self.cont
    }
}

/// How device state is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Devices,
    Migrate,
}

fn us(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Pauses the guest so many times, one epoch apart.
///
/// # Errors
/// What QEMU says.
pub(super) fn pauses(qmp: &mut Qmp, dir: &Path, way: Way, count: usize) -> Result<Vec<Pause>> {
    let file = dir.join("bare-state");
    let sink = Sink::new(&dir.join("bare-migration"))?;
    if way == Way::Migrate {
        set(qmp, true)?;
    }
    let mut pauses = Vec::with_capacity(count);
    for _ in 0..count {
        thread::sleep(Duration::from_millis(super::EPOCH_MS));
        let begun = Instant::now();
        qmp.run("stop", json!({}))?;
        let stop = us(begun);
        let begun = Instant::now();
        match way {
            Way::Devices => {
                let arguments = json!({"filename": file, "live": false});
                qmp.run("xen-save-devices-state", arguments)?;
            }
            Way::Migrate => sink.migrate(qmp)?,
        }
        let state = us(begun);
        let begun = Instant::now();
        go_on(qmp)?;
        let cont = us(begun);
        pauses.push(Pause { stop, state, cont });
    }
    if way == Way::Migrate {
        set(qmp, false)?;
    }
    Ok(pauses)
}

/// QEMU's own live migration of the running guest, memory and all, into nothing: its time without guest, and all of
/// it, in milliseconds.
///
/// # Errors
/// What QEMU says.
pub(super) fn live_migration(qmp: &mut Qmp, dir: &Path) -> Result<(f64, f64)> {
    let sink = Sink::new(&dir.join("live-migration"))?;
    let on = json!({"capabilities": [{"capability": "events", "state": true}]});
    qmp.run("migrate-set-capabilities", on)?;
    qmp.run(
        "migrate-set-parameters",
        json!({"max-bandwidth": BANDWIDTH}),
    )?;
    sink.migrate(qmp)?;
    let told = qmp.run("query-migrate", json!({}))?;
    go_on(qmp)?;
    set(qmp, false)?;
    let figure = |name: &str| told[name].as_f64().with_context(|| name.to_owned());
    Ok((figure("downtime")?, figure("total-time")?))
}

/// A migration is told to be completed a moment before the guest may go on.
fn go_on(qmp: &mut Qmp) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        match qmp.run("cont", json!({})) {
            Err(_) if Instant::now() < until => thread::sleep(Duration::from_micros(100)),
            done => return done.map(drop),
        }
    }
}

fn set(qmp: &mut Qmp, on: bool) -> Result<()> {
    let all = ["events", "x-ignore-shared"].map(|name| json!({"capability": name, "state": on}));
    qmp.run("migrate-set-capabilities", json!({"capabilities": all}))?;
    let bandwidth = if on { BANDWIDTH } else { 128 << 20 };
    qmp.run(
        "migrate-set-parameters",
        json!({"max-bandwidth": bandwidth}),
    )?;
    Ok(())
}

/// Takes migrations in and forgets them.
#[derive(Debug)]
struct Sink(PathBuf);

impl Sink {
    fn new(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
        thread::spawn(move || {
            let mut bytes = vec![0; 1 << 20];
            while let Ok((mut stream, _)) = listener.accept() {
                let mut came = 0;
                while let Ok(read @ 1..) = stream.read(&mut bytes) {
                    came += read;
                }
                if came == 0 {
                    return;
                }
            }
        });
        Ok(Self(path.to_owned()))
    }

    fn migrate(&self, qmp: &mut Qmp) -> Result<()> {
        qmp.migrate(&format!("unix:{}", self.0.display()))
    }
}

impl Drop for Sink {
    /// Who says nothing ends it.
    fn drop(&mut self) {
        let _ = UnixStream::connect(&self.0);
        let _ = std::fs::remove_file(&self.0);
    }
}
