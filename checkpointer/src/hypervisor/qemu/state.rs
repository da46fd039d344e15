//! A guest's device state while it stands still: two ways to save it, one way to load it.
//!
//! | way | how | when |
//! |---|---|---|
//! | [`Kind::Devices`] | `xen-save-devices-state` (nothing in it needs Xen) into a file in memory | all memory outside the shared files is constant |
//! | [`Kind::Whole`] | `migrate` with `x-ignore-shared` into a pipe | otherwise: it carries that memory, each time |
//!
//! Saved the first way the state has neither the machine's name nor the firmware, and a standby does not load its
//! own: it would run on, and hang at the next reboot. So one migration stream is taken when protection begins, and
//! cut before the first device: [`Saver::constant`]. It goes to the standby once, and together with each saved
//! state it is a whole migration stream, which also makes QEMU compare machine and memory blocks when it loads.
//!
//! Saving is begun and finished apart, so that memory can be copied meanwhile: QEMU does not write to the guest's
//! memory while it saves. An operator's migration is not disturbed: what is set at QEMU for a stream is set before the
//! pause and set back after it.

use super::ram::Layout;
use super::{Error, Qemu, Stopped};
use capture::{Capture, Settings};
use devices::DeviceFile;
use std::time::{Duration, Instant};

pub(super) mod capture;
mod devices;
pub(super) mod framing;

/// Most bytes of a state.
pub const STATE_BYTES_MAX: u64 = 64 << 20;

/// How device state is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The devices alone; the constant part was taken before.
    Devices,
    /// All of it, each time.
    Whole,
}

/// What one way showed when it was tried.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The way.
    pub kind: Kind,
    /// Bytes of one state.
    pub bytes: usize,
    /// How long it took.
    pub took: Duration,
}

/// Saves device state, epoch after epoch.
#[derive(Debug)]
pub struct Saver {
    kind: Kind,
    why: String,
    constant: Vec<u8>,
    trials: Vec<Trial>,
    devices: Option<DeviceFile>,
    settings: Settings,
    under_way: Option<UnderWay>,
    /// QEMU's settings are ours yet.
    is_set: bool,
}

#[derive(Debug)]
enum UnderWay {
    Devices(super::Ticket),
    /// QEMU is set for it.
    Prepared(Capture),
    Whole(Capture),
}

impl Saver {
    /// Pauses the guest, tries both ways, and takes the cheap one where it is allowed and gives what it should.
    ///
    /// # Errors
    /// Of the monitor, or no way works, in words. The guest goes on in every case that lets it.
    pub fn choose(qemu: &mut Qemu, layout: &Layout) -> Result<Self, Error> {
        let settings = Settings::read(qemu)?;
        qemu.stop()?;
        let tried = Self::try_both(qemu, layout, settings);
        let resumed = qemu.cont();
        let saver = tried?;
        if resumed?.was_disturbed {
            return Err(Error::Unfit(
                "somebody let the guest go on while its device state was saved; try again"
                    .to_owned(),
            ));
        }
        Ok(saver)
    }

    fn try_both(qemu: &mut Qemu, layout: &Layout, settings: Settings) -> Result<Self, Error> {
        let mut saver = Self {
            kind: Kind::Whole,
            why: String::new(),
            constant: Vec::new(),
            trials: Vec::new(),
            devices: None,
            settings,
            under_way: None,
            is_set: false,
        };
        let mut whole = Vec::new();
        saver.trial(qemu, &mut whole)?;
        let outside: Vec<&str> = layout
            .mutable_outside()
            .map(|block| block.name.as_str())
            .collect();
        if !outside.is_empty() {
            let names = outside.join(", ");
            saver.why = format!(
                "memory outside the shared file changes ({names}), so all is saved each time"
            );
            return Ok(saver);
        }
        match saver.try_devices(qemu, &whole) {
            Ok(()) => {
                saver.why =
                    "no memory outside the shared file changes, so the devices alone are saved"
                        .to_owned();
            }
            // Whatever it is, the other way has just worked; unless QEMU is gone.
            Err(e @ (Error::Gone(_) | Error::Nonsense(_) | Error::Late { .. })) => return Err(e),
            Err(e) => {
                saver.kind = Kind::Whole;
                saver.devices = None;
                saver.why = format!("the devices alone cannot be saved, so all is, each time: {e}");
            }
        }
        Ok(saver)
    }

    fn try_devices(&mut self, qemu: &mut Qemu, whole: &[u8]) -> Result<(), Error> {
        self.devices = Some(DeviceFile::new(qemu)?);
        self.kind = Kind::Devices;
        let mut bytes = Vec::new();
        self.trial(qemu, &mut bytes)?;
        let constant = framing::constant_part(whole, &bytes);
        self.constant = constant.map_err(Error::Unfit)?.to_vec();
        Ok(())
    }

    fn trial(&mut self, qemu: &mut Qemu, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let begun = Instant::now();
        self.save(qemu, bytes)?;
        self.trials.push(Trial {
            kind: self.kind,
            bytes: bytes.len(),
            took: begun.elapsed(),
        });
        Ok(())
    }

    /// The way that was taken.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Why, for people.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }

    /// What the ways cost when they were tried.
    #[must_use]
    pub fn trials(&self) -> &[Trial] {
        &self.trials
    }

    /// What a standby needs once, besides the state of an epoch. It holds for this saver's states alone.
    #[must_use]
    pub fn constant(&self) -> &[u8] {
        &self.constant
    }

    /// Takes the other way from now on, which works always and costs more.
    pub fn use_whole(&mut self, why: String) {
        self.kind = Kind::Whole;
        self.why = why;
        self.constant = Vec::new();
    }

    /// What can be done before the pause. [`Saver::settle`] is to follow, whatever becomes of it.
    ///
    /// # Errors
    /// Of the monitor.
    ///
    /// # Panics
    /// While another is under way.
    pub fn prepare(&mut self, qemu: &mut Qemu) -> Result<(), Error> {
        assert!(self.under_way.is_none(), "one state at a time");
        if self.kind == Kind::Whole || self.devices.is_none() {
            self.is_set = true;
            let capture = Capture::prepare(qemu, &self.settings)?;
            self.under_way = Some(UnderWay::Prepared(capture));
        }
        Ok(())
    }

    /// Whether saving may be begun behind the order to pause, before that is answered: in a pause of somebody else's it
    /// leaves no trace.
    #[must_use]
    pub fn may_follow(&self) -> bool {
        self.kind == Kind::Devices && self.devices.is_some()
    }

    /// Whether it has begun.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        matches!(
            self.under_way,
            Some(UnderWay::Devices(_) | UnderWay::Whole(_))
        )
    }

    /// Begins to save; the guest stands still until it is finished or given up.
    ///
    /// # Errors
    /// Of the monitor.
    ///
    /// # Panics
    /// While another is under way.
    pub fn begin(&mut self, qemu: &mut Qemu) -> Result<(), Error> {
        assert!(!self.is_begun(), "one state at a time");
        if let (Kind::Devices, Some(file)) = (self.kind, &self.devices) {
            self.under_way = Some(UnderWay::Devices(file.begin(qemu)?));
            return Ok(());
        }
        if self.under_way.is_none() {
            self.prepare(qemu)?;
        }
        let Some(UnderWay::Prepared(mut capture)) = self.under_way.take() else {
            unreachable!("it was just prepared");
        };
        let begun = capture.begin(qemu);
        self.under_way = Some(UnderWay::Whole(capture));
        begun
    }

    /// Waits until it is saved. `bytes` is overwritten.
    ///
    /// # Errors
    /// Of the monitor; or the state is none, in words.
    ///
    /// # Panics
    /// When none was begun.
    pub fn finish(&mut self, qemu: &mut Qemu, bytes: &mut Vec<u8>) -> Result<(), Error> {
        bytes.clear();
        let limit = qemu.limits().pause;
        match self.under_way.take().expect("a state was begun") {
            UnderWay::Devices(ticket) => {
                qemu.qmp().finish(ticket, limit)?;
                let file = self.devices.as_ref().expect("it was begun with it");
                file.read(bytes)?;
            }
            UnderWay::Whole(mut capture) => {
                let ended = capture.finish(qemu, bytes);
                capture.end(qemu, ended.is_ok());
                ended?;
            }
            UnderWay::Prepared(_) => unreachable!("a state was begun"),
        }
        framing::plausible(self.kind, bytes)
            .map_err(|why| Error::Unfit(format!("the device state: {why}")))
    }

    /// Sets QEMU back to what it was; outside of the pause, where that is to be short.
    pub fn settle(&mut self, qemu: &mut Qemu) {
        if std::mem::take(&mut self.is_set) {
            Capture::settle(qemu, &self.settings);
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// As those do.
    pub fn save(&mut self, qemu: &mut Qemu, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let begun = self.begin(qemu);
        let done = begun.and_then(|()| self.finish(qemu, bytes));
        self.settle(qemu);
        done
    }

    /// Gives up what is under way, so that the guest can go on.
    ///
    /// # Errors
    /// Of the monitor: QEMU is still at it.
    pub fn give_up(&mut self, qemu: &mut Qemu) -> Result<(), Error> {
        let limit = qemu.limits().pause;
        match self.under_way.take() {
            None => Ok(()),
            // It cannot be broken off, and takes a millisecond.
            Some(UnderWay::Devices(ticket)) => match qemu.qmp().finish(ticket, limit) {
                Ok(_) | Err(Error::Refused { .. }) => Ok(()),
                Err(other) => Err(other),
            },
            Some(UnderWay::Prepared(capture)) => {
                capture.unused(qemu);
                Ok(())
            }
            Some(UnderWay::Whole(capture)) => {
                capture.end(qemu, false);
                Ok(())
            }
        }
    }
}

/// Whether a pause of ours is one in which a state may be saved: the guest ran until then.
///
/// # Errors
/// In words: a guest that stood still before would run at the standby.
pub fn may_save(stopped: Stopped) -> Result<(), String> {
    match stopped {
        Stopped::ByUs => Ok(()),
        Stopped::Before => Err("the guest was paused by somebody else".to_owned()),
    }
}
