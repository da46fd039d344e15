//! What a daemon finds at its start that somebody has to know.

use super::role::Group;
use super::thread::VolumeThread;
use crate::group::State;
use blkback_proto::ctl::EventKind;
use blockrep_host::ctl::NewEvent;

impl VolumeThread {
    /// A damaged journal; and a side that comes up promoted, which is no backup, whatever its program is
    /// called.
    pub(super) fn tell_start(&self) {
        let Some(standing) = self.group.as_ref().map(Group::standing) else {
            return;
        };
        let group = self.about.group_name.clone();
        if let Some(Group::Backup(backup)) = &self.group
            && let Some(reason) = backup.damage()
        {
            let kind = EventKind::JournalDamage;
            self.publish(NewEvent::new(group.clone(), kind, reason, standing.next));
        }
        if standing.state == State::Promoted {
            let reason = format!("comes up {}: it is the primary", standing.reason);
            let kind = EventKind::RoleChanged;
            self.publish(NewEvent::new(group, kind, reason, standing.next));
        }
    }
}
