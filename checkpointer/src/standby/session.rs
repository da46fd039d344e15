//! The primary's connection: one at a time, the newest that says a proper hello.

use crate::inbox::Once;
use crate::memory::store::Store;
use crate::memory::stream::frames::set_limits;
use crate::memory::stream::{Got, Link, serve};
use blkback_proto::memory::{Hello, RefuseCode};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Connections that say nothing yet.
const GREETING_MAX: usize = 8;
/// How long a session that was superseded may take to end.
const END: Duration = Duration::from_secs(2);

/// What a session says.
#[derive(Debug)]
pub(super) enum Told {
    Got {
        session: u64,
        got: Got,
        link: Link<TcpStream>,
    },
    /// The primary is alive: one that waits to be heard is enough.
    Heard(Once),
    Ended {
        session: u64,
        why: String,
    },
}

#[derive(Debug, Default)]
struct Current {
    session: u64,
    stream: Option<TcpStream>,
    greeting: usize,
}

/// Takes connections in.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    current: Arc<(Mutex<Current>, Condvar)>,
    /// Nobody is taken in any more.
    is_closed: Arc<AtomicBool>,
}

impl Sessions {
    /// Starts the thread that listens.
    ///
    /// # Errors
    /// Of starting it.
    pub(super) fn start(
        listener: TcpListener,
        limit: Duration,
        is_closed: Arc<AtomicBool>,
        store: Arc<Mutex<Store>>,
        admit: impl Fn(&Hello) -> Result<(), (RefuseCode, String)> + Clone + Send + 'static,
        told: impl Fn(Told) -> bool + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let sessions = Self {
            current: Arc::default(),
            is_closed,
        };
        let mine = sessions.clone();
        let run = move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else {
                    thread::sleep(Duration::from_millis(100));
                    continue;
                };
                let (mine, store, admit, told) = (
                    mine.clone(),
                    Arc::clone(&store),
                    admit.clone(),
                    told.clone(),
                );
                if !mine.greets() {
                    continue;
                }
                let run = move || mine.one(stream, limit, &store, &admit, &told);
                // Without a thread the connection closes, and the primary tries again.
                let _ = thread::Builder::new()
                    .name("memory-session".to_owned())
                    .spawn(run);
            }
        };
        thread::Builder::new()
            .name("memory-listen".to_owned())
            .spawn(run)?;
        Ok(sessions)
    }

    /// Ends the session and takes no other: what comes after is not acknowledged.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.supersede(None);
    }

    /// Takes sessions in again.
    pub(super) fn reopen(&self) {
        self.is_closed.store(false, Ordering::SeqCst);
    }

    fn greets(&self) -> bool {
        let mut current = self
            .current
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let has_room = current.greeting < GREETING_MAX;
        current.greeting += usize::from(has_room);
        has_room
    }

    /// The number of the new session, once the one before has ended.
    fn supersede(&self, stream: Option<TcpStream>) -> Option<u64> {
        let (lock, ended) = &*self.current;
        let mut current = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = &current.stream {
            let _ = old.shutdown(Shutdown::Both);
        }
        let until = Instant::now() + END;
        while current.stream.is_some() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = ended.wait_timeout(current, left);
            current = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        current.session += 1;
        current.stream = stream;
        Some(current.session)
    }

    fn one(
        &self,
        stream: TcpStream,
        limit: Duration,
        store: &Arc<Mutex<Store>>,
        admit: &impl Fn(&Hello) -> Result<(), (RefuseCode, String)>,
        told: &impl Fn(Told) -> bool,
    ) {
        let session = std::cell::Cell::new(0);
        let pair = set_limits(&stream, limit)
            .and_then(|()| Ok((stream.try_clone()?, stream.try_clone()?)));
        let Ok((from, known)) = pair else {
            self.greeted();
            return;
        };
        let admit = |hello: &Hello| {
            let stopping = |text: &str| Err((RefuseCode::Busy, text.to_owned()));
            if self.is_closed.load(Ordering::SeqCst) {
                return stopping("the standby takes the guest over, or has");
            }
            admit(hello)?;
            match self.supersede(Some(known)) {
                Some(number) => {
                    session.set(number);
                    Ok(())
                }
                None => stopping("the session before has not ended yet"),
            }
        };
        let heard = Once::default();
        let lost = serve(from, stream, store, admit, |got, link| {
            if self.is_closed.load(Ordering::SeqCst) {
                return false;
            }
            match got {
                Got::Quiet => true,
                // With every frame.
                Got::Heard | Got::Pong(_) | Got::CopyBegun { .. } => {
                    !heard.is_due() || told(Told::Heard(heard.clone()))
                }
                got => told(Told::Got {
                    session: session.get(),
                    got,
                    link: link.clone(),
                }),
            }
        });
        self.greeted();
        let session = session.get();
        if session == 0 {
            tracing::info!("a connection was not taken in: {lost}");
            return;
        }
        let (lock, ended) = &*self.current;
        let mut current = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if current.session == session {
            current.stream = None;
        }
        ended.notify_all();
        drop(current);
        let why = lost.to_string();
        // Without the owner nobody wants to know.
        let _ = told(Told::Ended { session, why });
    }

    fn greeted(&self) {
        let mut current = self
            .current
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        current.greeting = current.greeting.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    //! A primary that says more than a busy owner hears: the words pile up until the host has no memory, or the owner
    //! waits for the session and the session for the owner.
    use super::*;
    use crate::inbox::inbox;
    use crate::memory::stream::{Sender, Settings};
    use blkback_proto::ids::SessionId;
    use blkback_proto::memory::{Block, StateKind};

    fn hello() -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            incarnation: 5,
            generation: 0,
            guest: "vm".to_owned(),
            machine: "m".to_owned(),
            state_kind: StateKind::SaveDevices,
            blocks: vec![Block {
                id: "a".to_owned(),
                size_bytes: 1 << 20,
            }],
        }
    }

    /// Sessions whose words nobody hears, and a primary.
    struct Deaf {
        sessions: Sessions,
        sender: Sender<TcpStream>,
        inbox: std::sync::mpsc::Receiver<Told>,
        _dir: tempfile::TempDir,
    }

    fn deaf(room: usize) -> Deaf {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path(), crate::memory::store::Limits::default());
        let store = Arc::new(Mutex::new(store.expect("a store")));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("its address");
        let (outbox, inbox) = inbox(room);
        let closed = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&closed);
        let told = move |told| outbox.put_unless(told, || is_over.load(Ordering::SeqCst));
        let limit = Duration::from_secs(20);
        let sessions = Sessions::start(listener, limit, closed, store, |_| Ok(()), told);
        let stream = TcpStream::connect(at).expect("connected");
        let from = stream.try_clone().expect("both ways");
        let connected = Sender::connect(from, stream, &hello(), SessionId(7), Settings::default());
        let (sender, ..) = connected.expect("welcome");
        Deaf {
            sessions: sessions.expect("threads"),
            sender,
            inbox,
            _dir: dir,
        }
    }

    #[test]
    fn a_sign_of_life_waits_once() {
        let Deaf {
            sessions,
            mut sender,
            inbox,
            _dir,
        } = deaf(1000);
        for token in 0..500 {
            sender.ping(token).expect("sent");
        }
        // Closed, it has taken in what came.
        sender.bye("enough").expect("sent");
        let mut told = Vec::new();
        loop {
            let word = inbox
                .recv_timeout(Duration::from_secs(20))
                .expect("its end");
            let is_end = matches!(word, Told::Ended { .. });
            told.push(word);
            if is_end {
                break;
            }
        }
        assert!(matches!(
            told[0],
            Told::Got {
                got: Got::Hello(_),
                ..
            }
        ));
        assert_eq!(told.len(), 3, "hello, one sign of life, the end: {told:?}");
        sessions.close();
    }

    #[test]
    fn an_owner_that_closes_does_not_wait_for_who_waits_for_it() {
        // The hello takes all the room; the sign of life waits.
        let Deaf {
            sessions,
            mut sender,
            inbox,
            _dir,
        } = deaf(1);
        sender.ping(1).expect("sent");
        let closes = thread::spawn(move || {
            sessions.close();
            sessions
        });
        let sessions = closes.join().expect("closed");
        let current = sessions.current.0.lock().expect("nobody panics");
        assert!(current.stream.is_none(), "the session is over");
        drop(inbox);
    }
}
