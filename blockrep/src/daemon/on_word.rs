//! What stands on an operator's word, or on a name alone, when a session begins: images that nobody
//! compared, and a primary and a backup whose groups go by different names. Said in the log, by
//! an event, and in status as long as it is so.

use super::role::Group;
use super::thread::VolumeThread;
use blkback_proto::ctl::EventKind;
use blkback_proto::ids::Epoch;
use blkback_proto::meta::VolumeMeta;
use blockrep_host::ctl::NewEvent;

/// Why the images are taken for equal.
pub(super) fn text(is_primary: bool) -> &'static str {
    if is_primary {
        "the images were not compared, on your word (--assume-identical)"
    } else {
        "the images were not compared, on the word given to the primary (--assume-identical)"
    }
}

/// A volume of a backup that took its primary in without a comparison: only the end of one makes it
/// consistent from an epoch on.
pub(super) fn stands_on_word(meta: &VolumeMeta) -> bool {
    !meta.volume.is_none() && !meta.inconsistent && meta.consistent_from == Epoch::NONE
}

impl VolumeThread {
    /// A session begins, with a comparison or without.
    pub(super) fn note_comparison(&mut self, is_compared: bool) {
        self.about.on_word = !is_compared;
        if is_compared {
            return;
        }
        let index = self.about.index;
        let why = text(self.about.is_primary_daemon);
        let reason = format!("volume {index} ({}): {why}", self.exports[index].name());
        let next = if self.about.is_primary_daemon {
            "leave --assume-identical out from now on; if the images may differ, start this daemon again \
             without it: they are compared then"
        } else {
            "if the images may differ, start the primary again without --assume-identical: they are \
             compared then"
        };
        self.tell_of_word(reason, next);
    }

    /// The name that the other side's group goes by, where this daemon was given another one.
    pub(super) fn other_name<'a>(&'a self, group: &'a Group) -> Option<&'a str> {
        let (is_known, name) = match group {
            Group::Backup(backup) => (!backup.meta().group.is_none(), &backup.meta().name),
            // Known as long as the backup that said it is connected.
            Group::Primary(_) => {
                let name = &self.net.peer_group;
                (self.net.link.is_some() && !name.is_empty(), name)
            }
        };
        (is_known && *name != self.about.group_name).then_some(name)
    }

    /// A session begins: the identity decides whom a backup takes in, and who mistyped a port reads so
    /// in the names only.
    pub(super) fn note_names(&self) {
        let Some(name) = self.group.as_ref().and_then(|group| self.other_name(group)) else {
            return;
        };
        let link = self.net.link.as_ref();
        let peer = link.map_or("another host", |link| link.peer.as_str());
        let own = &self.about.group_name;
        let (reason, next) = if self.about.is_primary_daemon {
            (
                format!(
                    "backup of group {name} at {peer} has taken in primary of group {own}: it is this \
                     primary's from now on"
                ),
                "if that is meant, give both the same --group; if not, stop this primary and correct the \
                 address; on the backup's host stop blockrep-backup, move its state directory away and \
                 start it again",
            )
        } else {
            (
                format!(
                    "primary of group {name} at {peer} is taken in by backup of group {own}: this backup \
                     is that primary's from now on"
                ),
                "if that is meant, give both the same --group; if not, stop the primary, which has a \
                 wrong address, stop this backup, move its state directory away and start it again",
            )
        };
        self.tell_of_word(reason, next);
    }

    fn tell_of_word(&self, reason: String, next: &str) {
        let group = self.about.group_name.clone();
        self.publish(NewEvent::new(group, EventKind::LinkState, reason, next));
    }
}
