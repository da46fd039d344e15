//! The lab with the product: `blockrep` and `blockrep-backup` as two hosts.
//!
//! As root the hosts are network namespaces joined by a cable, otherwise both run on loopback.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::{CommitLatency, Lab, Place, Promotion};
use crate::netns::Host;
use crate::process::{self, Process};
use crate::{fsck, stop};

/// Port of the backup where nobody else can hold it.
const PORT: u16 = 9000;
const GROUP: &str = "demo";
/// The default, 1 GiB written with zeros at every round, would be most of a round's time.
pub(crate) const JOURNAL_SIZE: &str = "128MiB";
const PROTECTED_LIMIT: Duration = Duration::from_secs(90);
/// The backup sees the primary's death by its connection, a moment after it.
const PROMOTE_LIMIT: Duration = Duration::from_secs(20);
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// The built programs.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) dir: PathBuf,
}

impl Programs {
    pub(crate) fn command(&self, name: &str) -> Command {
        Command::new(self.dir.join(name))
    }
}

/// How the pair is to be set up.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) programs: Programs,
    /// `local`, `flush` or `write`.
    pub(crate) ack: &'static str,
    /// The primary's image, ready; the backup's is made as large.
    pub(crate) image: PathBuf,
    /// Both sides serve vhost-user besides.
    pub(crate) vhost_user: bool,
    /// Of the backup.
    pub(crate) journal_size: &'static str,
    /// What goes wrong with the primary's storage, as its test hook takes it.
    pub(crate) faults: Option<&'static str>,
    /// The bug that is switched on in a primary built with planted bugs.
    pub(crate) mutant: Option<&'static str>,
}

/// A protected pair.
#[derive(Debug)]
pub(crate) struct Blockrep {
    setup: Setup,
    place: Place,
    address: SocketAddrV4,
    hosts: Option<[Host; 2]>,
    primary: Process,
    backup: Process,
    backup_image: PathBuf,
    sockets: Sockets,
}

#[derive(Debug)]
struct Sockets {
    primary_nbd: PathBuf,
    backup_nbd: PathBuf,
    primary_vhost: PathBuf,
    backup_vhost: PathBuf,
    primary_control: PathBuf,
    backup_control: PathBuf,
}

impl Blockrep {
    /// Starts both sides; returns when the volume is protected. `progress` is told how far it is.
    pub(crate) fn start(
        place: Place,
        setup: &Setup,
        hosts: Option<[Host; 2]>,
        progress: impl Fn(&str),
    ) -> Result<Self> {
        let sockets = Sockets {
            primary_nbd: place.socket("a"),
            backup_nbd: place.socket("b"),
            primary_vhost: place.socket("a.vu"),
            backup_vhost: place.socket("b.vu"),
            primary_control: place.socket("a.ctl"),
            backup_control: place.socket("b.ctl"),
        };
        let backup_image = make_backup_image(&place, &setup.image)?;
        let address = match &hosts {
            Some([_, backup]) => SocketAddrV4::new(backup.address, PORT),
            None => SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_port()?),
        };
        let mut command = setup.programs.command("blockrep-backup");
        command
            .args(["--listen", &address.to_string(), "--image"])
            .arg(&backup_image);
        command.arg("--state").arg(place.dir.join("backup-state"));
        command.args(["--group", GROUP, "--journal-size", setup.journal_size]);
        command.arg("--nbd").arg(unix(&sockets.backup_nbd));
        command.arg("--control").arg(&sockets.backup_control);
        if setup.vhost_user {
            command.arg("--vhost-user").arg(unix(&sockets.backup_vhost));
        }
        if let Some([_, host]) = &hosts {
            command.arg("--insecure-plaintext");
            host.place(&mut command);
        }
        let backup = Process::spawn(&mut command, "blockrep-backup", &place.log("backup"))?;
        let setup = setup.clone();
        let mut command = primary_command(&setup, &sockets, address, hosts.as_ref());
        let primary = Process::spawn(&mut command, "blockrep", &place.log("primary"))?;
        let mut lab = Self {
            setup,
            place,
            address,
            hosts,
            primary,
            backup,
            backup_image,
            sockets,
        };
        lab.wait_until_protected(progress)?;
        Ok(lab)
    }

    /// The vhost-user sockets of primary and backup.
    pub(crate) fn vhost_sockets(&self) -> [&Path; 2] {
        [&self.sockets.primary_vhost, &self.sockets.backup_vhost]
    }

    /// Starts the primary again after [`Lab::kill_primary`]; its log is the `number`th.
    pub(crate) fn start_primary_again(&mut self, number: u32) -> Result<PathBuf> {
        let hosts = self.hosts.as_ref();
        let mut command = primary_command(&self.setup, &self.sockets, self.address, hosts);
        let log = self.place.log(&format!("primary-{number}"));
        self.primary = Process::spawn(&mut command, "blockrep", &log)?;
        Ok(log)
    }

    pub(crate) fn primary_control(&self) -> &Path {
        &self.sockets.primary_control
    }

    pub(crate) fn wait_until_protected(&mut self, progress: impl Fn(&str)) -> Result<()> {
        let mut last = String::from("no answer yet");
        let waited = stop::wait_for("the volume to be protected", PROTECTED_LIMIT, || {
            self.check()?;
            let Ok(status) = self.status(&self.sockets.primary_control) else {
                return Ok(None);
            };
            let group = &status["group"];
            let state = group["state"]
                .as_str()
                .context("status names no group.state")?;
            last = format!(
                "{state} ({})",
                group["reason"].as_str().unwrap_or("no reason given")
            );
            let sync = &status["volumes"][0]["sync"];
            match (sync["done_bytes"].as_u64(), sync["total_bytes"].as_u64()) {
                (Some(done), Some(total)) if total > 0 => {
                    progress(&format!("{state}, {} % copied", done * 100 / total));
                }
                _ => progress(state),
            }
            Ok((state == "protected").then_some(()))
        });
        waited.map_err(|error| match error.is::<stop::Interrupted>() {
            true => error,
            false => error.context(format!("the primary's last word: {last}")),
        })
    }

    /// Asks one daemon; an error if it does not answer or refuses.
    fn control(&self, socket: &Path, arguments: &[&str]) -> Result<Value> {
        let mut command = self.setup.programs.command("blockrepctl");
        command.arg("--control").arg(socket).args(arguments);
        let output = process::ask(&mut command)?;
        if !output.status.success() {
            let verb = arguments.first().copied().unwrap_or_default();
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "blockrepctl {verb}: {}: {}",
                process::describe(output.status),
                said.trim()
            );
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("answer of blockrepctl {}", arguments.join(" ")))
    }

    fn status(&self, socket: &Path) -> Result<Value> {
        self.control(socket, &["status", "--json"])
    }
}

impl Lab for Blockrep {
    fn primary_socket(&self) -> &Path {
        &self.sockets.primary_nbd
    }

    fn backup_socket(&self) -> &Path {
        &self.sockets.backup_nbd
    }

    fn backup_image(&self) -> &Path {
        &self.backup_image
    }

    fn hosts(&self) -> Option<&[Host; 2]> {
        self.hosts.as_ref()
    }

    fn check(&mut self) -> Result<()> {
        self.backup.must_be_alive()?;
        self.primary.must_be_alive()
    }

    fn settle(&mut self) -> Result<()> {
        let epochs = |lab: &Self, which: &str| -> Result<u64> {
            let status = lab.status(&lab.sockets.primary_control)?;
            let number = status["epochs"][which].as_u64();
            number.with_context(|| format!("the primary's status names no epochs.{which}"))
        };
        let open = epochs(self, "open")?;
        stop::wait_for(&format!("the commit of epoch {open}"), SETTLE_LIMIT, || {
            self.check()?;
            Ok((epochs(self, "committed")? >= open).then_some(()))
        })
    }

    fn copy_backup_view(&mut self, to: &Path, log: &Path) -> Result<()> {
        fsck::copy_view(&self.sockets.backup_nbd, to, log)
    }

    fn commit_latency(&mut self) -> Result<Option<CommitLatency>> {
        let status = self.status(&self.sockets.primary_control)?;
        let figure = |name: &str| status["commit_latency"][name].as_u64();
        Ok(figure("p50_us")
            .zip(figure("p99_us"))
            .map(|(p50_us, p99_us)| CommitLatency { p50_us, p99_us }))
    }

    fn kill_primary(&mut self) {
        self.primary.kill();
    }

    fn promote(&mut self) -> Result<Promotion> {
        let since = Instant::now();
        let mut refused = anyhow!("promotion was not tried");
        let answer = stop::wait_for("the backup to be promoted", PROMOTE_LIMIT, || {
            self.backup.must_be_alive()?;
            match self.control(&self.sockets.backup_control, &["promote", "--json"]) {
                Ok(answer) => Ok(Some(answer)),
                Err(error) => {
                    refused = error;
                    Ok(None)
                }
            }
        });
        let answer = match answer {
            Err(error) if !error.is::<stop::Interrupted>() => {
                return Err(refused.context(error.to_string()));
            }
            other => other?,
        };
        let took = since.elapsed();
        let field = |name: &str| {
            answer[name]
                .as_u64()
                .with_context(|| format!("promote answered without {name}"))
        };
        Ok(Promotion {
            epoch: field("epoch")?,
            cut_unix_ns: field("cut_unix_ns")?,
            took,
        })
    }

    fn wait_until_applied(&mut self) -> Result<()> {
        stop::wait_for("the journal to be applied", SETTLE_LIMIT, || {
            self.backup.must_be_alive()?;
            let status = self.status(&self.sockets.backup_control)?;
            let journal = &status["volumes"][0]["journal"];
            // A promoted volume whose journal is drained has none any more.
            let applied = journal.is_null() || journal["extents"].as_u64() == Some(0);
            Ok(applied.then_some(()))
        })
    }
}

impl Drop for Blockrep {
    fn drop(&mut self) {
        // Logs of an orderly end say more than those of a kill.
        for process in [&mut self.primary, &mut self.backup] {
            process.stop(Duration::from_secs(3));
        }
    }
}

fn primary_command(
    setup: &Setup,
    sockets: &Sockets,
    address: SocketAddrV4,
    hosts: Option<&[Host; 2]>,
) -> Command {
    let mut command = setup.programs.command("blockrep");
    command
        .arg("-n")
        .arg(format!("tap:remus:{address}|aio:{}", setup.image.display()));
    command.arg("--nbd").arg(unix(&sockets.primary_nbd));
    command.arg("--control").arg(&sockets.primary_control);
    command.args(["--group", GROUP, "--epoch", "25ms", "--ack", setup.ack]);
    if setup.vhost_user {
        command
            .arg("--vhost-user")
            .arg(unix(&sockets.primary_vhost));
    }
    if let Some(faults) = setup.faults {
        command.env("BLOCKREP_FAULTS", faults);
    }
    if let Some(mutant) = setup.mutant {
        command.env("BLOCKREP_MUTANT", mutant);
    }
    if let Some([host, _]) = hosts {
        host.place(&mut command);
    }
    command
}

fn make_backup_image(place: &Place, image: &Path) -> Result<PathBuf> {
    // A directory of its own: what a daemon keeps beside its image stays apart.
    let dir = place.dir.join("b");
    fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
    let path = dir.join("b.img");
    let size = fs::metadata(image)
        .with_context(|| format!("look at {}", image.display()))?
        .len();
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    file.set_len(size)
        .with_context(|| format!("size {}", path.display()))?;
    Ok(path)
}

/// A port nobody holds at this moment.
fn free_port() -> Result<u16> {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(probe.local_addr()?.port())
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

#[cfg(test)]
mod tests;
