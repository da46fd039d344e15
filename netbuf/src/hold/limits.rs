//! What a hold sees when it looks: devices that went or were renamed, limits that come near.

use super::{Hold, HoldError, Notice};
use crate::gate::{Event, Interface, State};
use std::time::{Duration, Instant};

/// How long a paused guest's last frames may take on their way through an open plug.
const DRAIN_MAX: Duration = Duration::from_millis(50);

/// Whether it comes true within [`DRAIN_MAX`].
pub(super) fn wait_for(mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + DRAIN_MAX;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

impl Hold {
    /// Compares what is held with the limit. To be called about every 100 ms while something is held: the
    /// kernel's plug tells nobody.
    pub fn poll(&mut self) -> Vec<Notice> {
        let limit_bytes = u64::from(self.gate.limit_bytes());
        let mut notices = Vec::new();
        for port in self.ports.values_mut() {
            let Some(held) = port.held(&mut self.netlink) else {
                continue;
            };
            if port.weigh(held, limit_bytes) {
                notices.push(Notice::Alarm {
                    interface: port.name.clone(),
                    on: port.alarm,
                    held_bytes: held.bytes,
                });
            }
            let frames = held.dropped_frames.saturating_sub(port.told_drops);
            if frames > 0 {
                port.told_drops = held.dropped_frames;
                notices.push(Notice::Dropped {
                    interface: port.name.clone(),
                    frames,
                });
            }
        }
        notices
    }

    /// Looks whether the devices are there, under which names, and whether what holds their frames is
    /// whole. To be called when links change, or what stands at them.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn look(&mut self) -> Result<Vec<Notice>, HoldError> {
        let mut notices = Vec::new();
        let indices: Vec<Interface> = self.ports.keys().copied().collect();
        for index in indices {
            let Some(link) = self.netlink.link_of(index.0)? else {
                let port = self.ports.remove(&index).expect("listed above");
                let interface = port.name.clone();
                self.tell(Event::Gone(index))?;
                port.bury(&mut self.netlink)?;
                notices.push(Notice::Gone { interface });
                continue;
            };
            let port = self.ports.get_mut(&index).expect("listed above");
            if port.name != link.name {
                let new = link.name.clone();
                let old = std::mem::replace(&mut port.name, link.name);
                notices.push(Notice::Renamed { old, new });
            }
            if port.failed.is_some() {
                continue;
            }
            if let Some(why) = port.broken(&mut self.netlink)? {
                let interface = port.name.clone();
                let is_open = *self.gate.state() == State::Open;
                // What cannot be put back is told as what it is: broken.
                if port.mend(&mut self.netlink, is_open).unwrap_or(false) {
                    notices.push(Notice::Mended { interface, why });
                    continue;
                }
                let why = match port.close(&mut self.netlink) {
                    Ok(closed) => format!("{why}; {closed}"),
                    Err(error) => {
                        format!("{why}; what it says may pass, it cannot be closed: {error}")
                    }
                };
                port.failed = Some(why.clone());
                notices.push(Notice::Failed {
                    interface,
                    why: why.clone(),
                });
                let what = why;
                self.tell(Event::OrderFailed { of: index, what })?;
            }
        }
        Ok(notices)
    }
}
