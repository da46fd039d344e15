//! The way into a daemon's owner: bounded, with back-pressure on whoever says more than it takes.
//!
//! Nothing can stand still for good by it. A thread without room waits in [`Outbox::put`]; the owner alone makes room, and it
//! waits for none of those threads: to them it hands over by `try_send`, and what finds no room there is either found out
//! again (the store has what is whole) or lost as with the link. Where the owner does wait for a thread, for the end of a session
//! that it closes, that thread comes by [`Outbox::put_unless`] and gives up when it is closed. Clients of the control socket do
//! not wait here at all: one thread serves all of them, and says at once that the owner is busy. When the owner goes, its end of
//! the channel goes first, and whoever waits hears that.
//!
//! Words that mean the same twice are not said twice: see [`Once`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Words that may wait for an owner: more than all clients of a control socket may ask at once.
pub(crate) const ROOM: usize = 512;
/// Between two looks at whether it is over.
const LOOK: Duration = Duration::from_millis(1);

/// Both ends.
pub(crate) fn inbox<T>(room: usize) -> (Outbox<T>, Receiver<T>) {
    let (sender, receiver) = sync_channel(room);
    (Outbox(sender), receiver)
}

/// The end of those who say something.
#[derive(Debug)]
pub(crate) struct Outbox<T>(SyncSender<T>);

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Outbox<T> {
    /// Waits for room; false where the owner has gone.
    pub(crate) fn put(&self, word: T) -> bool {
        self.0.send(word).is_ok()
    }

    /// The same, but not beyond the moment from which nobody wants to hear it.
    pub(crate) fn put_unless(&self, mut word: T, is_over: impl Fn() -> bool) -> bool {
        loop {
            match self.0.try_send(word) {
                Ok(()) => return true,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(_)) if is_over() => return false,
                Err(TrySendError::Full(back)) => word = back,
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for nothing.
    ///
    /// # Errors
    /// The word, where there is no room, or no owner.
    pub(crate) fn offer(&self, word: T) -> Result<(), T> {
        self.0.try_send(word).map_err(|error| match error {
            TrySendError::Full(word) | TrySendError::Disconnected(word) => word,
        })
    }
}

/// A word of which one at a time is enough.
#[derive(Debug, Clone, Default)]
pub(crate) struct Once(Arc<AtomicBool>);

impl Once {
    /// Whether it is to be said: none waits to be heard.
    pub(crate) fn is_due(&self) -> bool {
        !self.0.swap(true, Ordering::SeqCst)
    }

    /// It was heard.
    pub(crate) fn heard(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    //! An owner that is busy for a while, and memory that grows with all that is said meanwhile; or two that wait for
    //! one another.
    use super::*;
    use std::thread;

    #[test]
    fn who_has_no_room_waits_and_is_heard_in_order() {
        let (outbox, inbox) = inbox(2);
        let say = thread::spawn(move || (0..100).all(|word| outbox.put(word)));
        thread::sleep(Duration::from_millis(20));
        let heard: Vec<i32> = inbox.iter().collect();
        assert_eq!(heard, (0..100).collect::<Vec<_>>());
        assert!(say.join().expect("it said all"));
    }

    #[test]
    fn who_waits_ends_with_the_owner_or_with_the_sense_of_it() {
        let (outbox, inbox) = inbox(1);
        assert_eq!(outbox.offer(1), Ok(()));
        assert_eq!(outbox.offer(2), Err(2));
        let is_over = Arc::new(AtomicBool::new(false));
        let (mine, over) = (outbox.clone(), Arc::clone(&is_over));
        let given_up = thread::spawn(move || mine.put_unless(3, || over.load(Ordering::SeqCst)));
        let waits = thread::spawn(move || outbox.put(4));
        is_over.store(true, Ordering::SeqCst);
        assert!(!given_up.join().expect("it gave up"));
        drop(inbox);
        assert!(!waits.join().expect("it heard"));
    }
}
