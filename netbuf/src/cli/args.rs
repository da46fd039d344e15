//! The command line.

use super::failure::{EXIT_CODES, Exit};
use crate::daemon::{Choice, LIMIT_BYTES_MAX, LIMIT_BYTES_MIN};
use crate::gate::Lineage;
use blkback_proto::units::{human_bytes, parse_bytes};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Hold what guests say until their state is safe at the backup.
///
/// `netbuf run` is the daemon; one serves all guests of a host. The other commands are typed to it.
#[derive(Debug, Parser)]
#[command(name = "netbuf", version, after_help = Exit::help(&EXIT_CODES))]
pub struct Cli {
    /// Control socket of the daemon [default: /run/blockrep/netbuf.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) control: Option<PathBuf>,
    /// How long to wait for an answer
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    pub(super) timeout: u64,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Be the daemon, until SIGTERM
    Run(RunArgs),
    /// Show what is held, why, and what leads on
    Status(StatusArgs),
    /// Hold the output of network devices as their guest's state says
    Attach(AttachArgs),
    /// Leave network devices alone; what is held of them is dropped
    Detach(DevicesArgs),
    /// Close an epoch: what is said from now on is of a later one
    Cut(EpochArgs),
    /// Let go everything up to the end of an epoch
    Release(EpochArgs),
    /// Let nothing more leave
    Hold(HoldArgs),
    /// Say who writes the guest, as the authority names it
    Authority(LineageArgs),
    /// Let everything leave; takes the lineage that the authority named
    Open(LineageArgs),
    /// Count anew from the end of an epoch, with the guest paused there
    Resync(ResyncArgs),
    /// Tell the network that the guest is here
    Announce(AnnounceArgs),
    /// Show what happened
    Events(EventsArgs),
    /// Without a daemon: remove everything that one ever made here; held output is dropped, and passes then
    Cleanup(CleanupArgs),
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// What an interface holds at most; then the newest frames are dropped [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_limit)]
    pub(super) limit: Option<u32>,
    /// What holds the frames
    #[arg(long, value_enum, default_value_t = MechanismArg::Auto)]
    pub(super) mechanism: MechanismArg,
    /// Network devices of a guest, attached from the start
    #[arg(long, value_name = "GUEST=DEVICE[,DEVICE]", value_parser = parse_attach)]
    pub(super) attach: Vec<(String, Vec<String>)>,
    /// Level of the log on stderr: off, error, warn, info, debug, trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(super) log: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum MechanismArg {
    /// The plug where the kernel has it, else the relay
    Auto,
    /// The kernel's sch_plug
    Plug,
    /// Threads of the daemon
    Relay,
}

impl From<MechanismArg> for Choice {
    fn from(argument: MechanismArg) -> Self {
        match argument {
            MechanismArg::Auto => Self::Auto,
            MechanismArg::Plug => Self::Plug,
            MechanismArg::Relay => Self::Relay,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Of this guest only
    pub(super) guest: Option<String>,
    /// As the daemon sent it
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    pub(super) guest: String,
    #[arg(required = true)]
    pub(super) devices: Vec<String>,
    /// For the relay: the bridge to speak to [default: the one the device is a port of]
    #[arg(long, value_name = "NAME")]
    pub(super) bridge: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct DevicesArgs {
    pub(super) guest: String,
    #[arg(required = true)]
    pub(super) devices: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct EpochArgs {
    pub(super) guest: String,
    pub(super) epoch: u64,
}

#[derive(Debug, Args)]
pub(super) struct HoldArgs {
    pub(super) guest: String,
    /// Why, for status and events
    #[arg(long, default_value = "asked for by an operator")]
    pub(super) reason: String,
}

#[derive(Debug, Args)]
pub(super) struct LineageArgs {
    pub(super) guest: String,
    /// 32 hexadecimal digits
    #[arg(value_parser = parse_lineage)]
    pub(super) lineage: String,
}

#[derive(Debug, Args)]
pub(super) struct ResyncArgs {
    pub(super) guest: String,
    pub(super) epoch: u64,
    /// The guest is paused, and stays so until this is done
    #[arg(long)]
    pub(super) paused: bool,
    /// The highest epoch that the backup has whole
    #[arg(long, value_name = "EPOCH")]
    pub(super) committed: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct AnnounceArgs {
    pub(super) guest: String,
    /// MAC address of the guest
    #[arg(long)]
    pub(super) mac: String,
    /// IPv4 and IPv6 addresses of the guest; without any, switches are told
    pub(super) addresses: Vec<String>,
    /// The guest's device on this host, where it has several
    #[arg(long, value_name = "DEVICE")]
    pub(super) interface: Option<String>,
    /// VLAN the guest tags for
    #[arg(long, value_name = "ID")]
    pub(super) vlan: Option<u16>,
}

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Begin at this number; 0 is the oldest kept
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub(super) from: u64,
    /// Wait for more, until Ctrl-C
    #[arg(long, short)]
    pub(super) follow: bool,
    /// One JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Clone, Copy, Args)]
pub(super) struct CleanupArgs {
    /// Also beside a daemon that runs
    #[arg(long)]
    pub(super) force: bool,
}

fn parse_limit(text: &str) -> Result<u32, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    if bytes < LIMIT_BYTES_MIN {
        return Err(format!("type at least {}", human_bytes(LIMIT_BYTES_MIN)));
    }
    let within = Some(bytes).filter(|bytes| *bytes <= LIMIT_BYTES_MAX);
    within
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| format!("type at most {}", human_bytes(LIMIT_BYTES_MAX)))
}

fn parse_attach(text: &str) -> Result<(String, Vec<String>), String> {
    let (guest, devices) = text.split_once('=').ok_or("type GUEST=DEVICE")?;
    crate::hold::check_guest(guest).map_err(|error| error.to_string())?;
    let devices: Vec<String> = devices.split(',').map(str::to_owned).collect();
    for device in &devices {
        crate::hold::check_device(device).map_err(|error| error.to_string())?;
    }
    Ok((guest.to_owned(), devices))
}

fn parse_lineage(text: &str) -> Result<String, String> {
    let lineage = Lineage::parse(text).ok_or("type its 32 hexadecimal digits")?;
    Ok(lineage.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// A limit that is read wrong silences a guest.
    #[test]
    fn limits_and_devices_are_read_whole_or_not_at_all() {
        assert_eq!(parse_limit("64MiB"), Ok(64 << 20));
        for bad in ["0", "1KiB", "4GiB", "many"] {
            assert!(parse_limit(bad).is_err(), "{bad}");
        }
        let two = (
            "vm1".to_owned(),
            vec!["vif1.0".to_owned(), "vif1.1".to_owned()],
        );
        assert_eq!(parse_attach("vm1=vif1.0,vif1.1"), Ok(two));
        for bad in [
            "vm1",
            "vm1=",
            "=vif1.0",
            "vm1=a,,b",
            "vm 1=a",
            "vm1=a/b",
            "vm1=0123456789abcdef",
        ] {
            assert!(parse_attach(bad).is_err(), "{bad}");
        }
    }
}
