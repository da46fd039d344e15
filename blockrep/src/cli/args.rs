//! The flags of both daemons.
//!
//! Values are plain text here: what they mean is checked once, for flags and file alike, in
//! [`crate::config`]. Defaults stand in the help texts; a test compares them with the constants.

use std::path::PathBuf;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Args, Parser, ValueHint};

use super::exit::ExitCode;
use crate::config::{AckMode, Key, LogLevel, LossPolicy, Settings};

/// Serve replicated disks: the side where the guest runs.
///
/// Every write goes to the local image and, in epochs, to the backup. Disks are named by the same
/// specs on both sides; HOST is always the backup's address.
#[derive(Debug, Clone, Parser)]
#[command(name = "blockrep", version, after_help = ExitCode::help())]
pub struct PrimaryArgs {
    /// Disk to serve; once per volume of the group [no default: needed].
    ///
    /// 'remus:HOST:PORT|aio:/PATH' has its backup at HOST:PORT (port 9000 when left out);
    /// 'aio:/PATH' has none. 'tap:' and 'tap2:' may stand in front.
    #[arg(short = 'n', long = "disk", value_name = "SPEC", value_hint = ValueHint::FilePath)]
    pub disk: Vec<String>,

    /// Time from cut to cut, 1ms to 10s, or 'manual': only when asked [default: 25ms].
    #[arg(long, value_name = "TIME|manual")]
    pub epoch: Option<String>,

    /// When a write is answered to the guest [default: flush; local while a checkpointer holds
    /// the guest's output].
    ///
    /// local: after the local write. flush: FLUSH and FUA wait until everything before them is
    /// durable at the backup. write: every write waits for the backup.
    #[arg(long, value_name = "MODE", value_parser = Words(AckMode::NAMES))]
    pub ack: Option<String>,

    /// What to do without a backup: hold the guest's writes, or go on unprotected
    /// [default: degrade].
    #[arg(long, value_name = "POLICY", value_parser = Words(LossPolicy::NAMES))]
    pub on_backup_loss: Option<String>,

    /// How long a slow backup may hold the guest's writes before --on-backup-loss acts
    /// [default: 30s].
    #[arg(long, value_name = "TIME")]
    pub backpressure_timeout: Option<String>,

    /// Skip the first comparison, of this one start: both images are known to hold the same. Leave it
    /// out again afterwards [default: compare].
    #[arg(long)]
    pub assume_identical: bool,

    #[command(flatten)]
    pub common: CommonArgs,
}

/// Keep the copy of replicated disks, and take over when told to.
///
/// Name the volumes by the specs of the primary (-n), or by pairs of --listen and --image.
#[derive(Debug, Clone, Parser)]
#[command(name = "blockrep-backup", version, after_help = ExitCode::help())]
pub struct BackupArgs {
    /// Disk to keep, by the primary's spec; once per volume of the group [default: --listen
    /// and --image].
    ///
    /// 'remus:HOST:PORT|aio:/PATH': listens on HOST:PORT (port 9000 when left out) and keeps
    /// the copy in /PATH.
    #[arg(short = 'n', long = "disk", value_name = "SPEC", value_hint = ValueHint::FilePath)]
    pub disk: Vec<String>,

    /// Address for the primary of one volume; once per --image, in the same order
    /// [default: the address of -n].
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,

    /// Image of one volume; once per --listen [default: the path of -n].
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub image: Vec<String>,

    /// Directory of the journals [default: STATE/journal].
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub journal: Option<String>,

    /// Most that is written to each image from its journal, such as 2MB/s [default: no limit].
    #[arg(long, value_name = "RATE")]
    pub throttle_apply: Option<String>,

    /// Most that is received for each volume, such as 2MB/s [default: no limit].
    #[arg(long, value_name = "RATE")]
    pub throttle_link: Option<String>,

    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of both daemons.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// Name of the group of these volumes [default: file name of the first image,
    /// without its extension].
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,

    /// Serve NBD clients there: unix:/PATH or tcp:IP:PORT [default: nowhere].
    #[arg(long, value_name = "ADDR")]
    pub nbd: Option<String>,

    /// Serve a VMM's vhost-user-blk device there: unix:/PATH, and with several volumes unix:/PATH.0,
    /// unix:/PATH.1 and so on [default: nowhere].
    #[arg(long, value_name = "ADDR")]
    pub vhost_user: Option<String>,

    /// Control socket, for blockrepctl; the variable BLOCKREP_RUNTIME_DIR names another directory
    /// [default: /run/blockrep/GROUP.sock, of a backup /run/blockrep/GROUP.backup.sock].
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub control: Option<String>,

    /// Directory of the metadata [default: IMAGE.blockrep beside the first image; a block device
    /// needs it given].
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state: Option<String>,

    /// Size of each volume's journal, 32MiB to 1TiB in whole segments of 4MiB, larger ones beyond
    /// 4GiB [default: 1GiB]. Only a backup keeps one: a primary takes the flag so that both hosts
    /// can be given the same settings.
    #[arg(long, value_name = "SIZE")]
    pub journal_size: Option<String>,

    /// Take an image that is not the file the state directory was made with: it was moved or
    /// restored, and holds the same bytes [default: refuse it]. Leave it out again afterwards.
    ///
    /// Whoever says this of an image that holds anything else gets it served as the volume.
    #[arg(long)]
    pub same_image: bool,

    /// Allow listeners that other hosts can reach, though nothing is encrypted
    /// [default: loopback only].
    #[arg(long)]
    pub insecure_plaintext: bool,

    /// Read settings from a TOML file: the long flags are its keys, and flags win over it
    /// [default: none].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    /// Least important lines to log on standard error [default: info].
    #[arg(long, value_name = "LEVEL", value_parser = Words(LogLevel::NAMES))]
    pub log: Option<String>,

    /// Check the settings, print them as a configuration file and end [default: run].
    #[arg(long)]
    pub check_config: bool,
}

/// Offers words to help, man pages and shells, and takes any text: a wrong word gets its message
/// where the rest of the configuration gets its own.
#[derive(Debug, Clone, Copy)]
struct Words(&'static [&'static str]);

impl TypedValueParser for Words {
    type Value = String;

    fn parse_ref(
        &self,
        cmd: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(cmd, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(
            self.0.iter().map(|word| PossibleValue::new(*word)),
        ))
    }
}

/// Flags that can be completed by a file.
pub(super) trait Flags: Parser {
    /// What the flags say.
    fn settings(&self) -> Settings;
    /// The flags of both daemons.
    fn common(&self) -> &CommonArgs;
}

fn switch(on: bool) -> Option<String> {
    on.then(|| "true".to_owned())
}

impl CommonArgs {
    fn add_to(&self, settings: &mut Settings) {
        settings.add_flags(Key::Group, self.group.clone());
        settings.add_flags(Key::Nbd, self.nbd.clone());
        settings.add_flags(Key::VhostUser, self.vhost_user.clone());
        settings.add_flags(Key::Control, self.control.clone());
        settings.add_flags(Key::State, self.state.clone());
        settings.add_flags(Key::JournalSize, self.journal_size.clone());
        settings.add_flags(Key::SameImage, switch(self.same_image));
        settings.add_flags(Key::InsecurePlaintext, switch(self.insecure_plaintext));
        settings.add_flags(Key::Log, self.log.clone());
    }
}

impl Flags for PrimaryArgs {
    fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.add_flags(Key::Disk, self.disk.clone());
        settings.add_flags(Key::Epoch, self.epoch.clone());
        settings.add_flags(Key::Ack, self.ack.clone());
        settings.add_flags(Key::OnBackupLoss, self.on_backup_loss.clone());
        settings.add_flags(Key::BackpressureTimeout, self.backpressure_timeout.clone());
        settings.add_flags(Key::AssumeIdentical, switch(self.assume_identical));
        self.common.add_to(&mut settings);
        settings
    }

    fn common(&self) -> &CommonArgs {
        &self.common
    }
}

impl Flags for BackupArgs {
    fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.add_flags(Key::Disk, self.disk.clone());
        settings.add_flags(Key::Listen, self.listen.clone());
        settings.add_flags(Key::Image, self.image.clone());
        settings.add_flags(Key::Journal, self.journal.clone());
        settings.add_flags(Key::ThrottleApply, self.throttle_apply.clone());
        settings.add_flags(Key::ThrottleLink, self.throttle_link.clone());
        self.common.add_to(&mut settings);
        settings
    }

    fn common(&self) -> &CommonArgs {
        &self.common
    }
}
