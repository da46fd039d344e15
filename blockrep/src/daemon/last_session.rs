//! When the other side was heard of last, and when it was lost: what an operator asks before a
//! promotion. Kept in memory only: a daemon that was started again has had no session yet.

use crate::engine::Nanos;

/// The last session that both sides agreed on. Times of the wall clock are milliseconds since 1970.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum LastSession {
    /// There was none since the daemon started.
    #[default]
    Never,
    /// It goes on.
    Up {
        /// When the peer was heard of.
        heard: Nanos,
    },
    /// It has ended.
    Lost {
        /// When the peer was heard of.
        heard_unix_ms: u64,
        /// When it ended.
        lost_unix_ms: u64,
    },
}

impl LastSession {
    /// Both sides have agreed.
    pub(super) fn begin(&mut self, now: Nanos) {
        *self = Self::Up { heard: now };
    }

    /// Something came in; before a session it does not count.
    pub(super) fn hear(&mut self, now: Nanos) {
        if let Self::Up { heard } = self {
            *heard = now;
        }
    }

    /// The connection has ended; one that never became a session changes nothing.
    pub(super) fn end(&mut self, now: Nanos, unix_ms: u64) {
        if let Some(heard_unix_ms) = self.heard_unix_ms(now, unix_ms)
            && self.is_up()
        {
            *self = Self::Lost {
                heard_unix_ms,
                lost_unix_ms: unix_ms,
            };
        }
    }

    /// It goes on.
    pub(super) fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }

    /// When the peer was heard of last.
    pub(super) fn heard_unix_ms(&self, now: Nanos, unix_ms: u64) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::Up { heard } => {
                Some(unix_ms.saturating_sub(now.saturating_sub(*heard) / 1_000_000))
            }
            Self::Lost { heard_unix_ms, .. } => Some(*heard_unix_ms),
        }
    }

    /// When it ended; none while it goes on.
    pub(super) fn lost_unix_ms(&self) -> Option<u64> {
        match self {
            Self::Lost { lost_unix_ms, .. } => Some(*lost_unix_ms),
            Self::Never | Self::Up { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A primary that was refused, or a stranger at the port, must not make the loss look recent:
    /// what was answered since is not at the backup.
    #[test]
    fn only_a_session_counts() {
        const MS: Nanos = 1_000_000;
        let mut last = LastSession::default();
        last.hear(5 * MS);
        last.end(6 * MS, 1_006);
        assert_eq!(last, LastSession::Never);
        assert_eq!(last.heard_unix_ms(7 * MS, 1_007), None);
        last.begin(10 * MS);
        last.hear(20 * MS);
        assert_eq!(last.heard_unix_ms(25 * MS, 1_025), Some(1_020));
        assert_eq!(last.lost_unix_ms(), None);
        last.end(30 * MS, 1_030);
        for later in [40, 50] {
            last.hear(later * MS);
            last.end(later * MS, 1_000 + later);
            assert_eq!(last.heard_unix_ms(later * MS, 9_999), Some(1_020));
            assert_eq!(last.lost_unix_ms(), Some(1_030));
        }
        last.begin(60 * MS);
        assert_eq!(last.lost_unix_ms(), None);
    }
}
