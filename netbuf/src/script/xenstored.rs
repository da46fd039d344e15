//! The store of a Xen host, by xenstored's socket or the kernel's device.
//!
//! The client waits for as long as it takes, and its connection is not to be had to say otherwise. So it
//! stands on a thread of its own, and who asks waits for a bounded time. A store that was silent once, or
//! answered out of step, is asked no more: its next answer would be the one to an earlier question.

use super::store::{Store, StoreError};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use xenstore_rs::Xs;
use xenstore_rs::unix::XsUnix;

/// For one answer. libxl ends a script after 40 s.
pub const PATIENCE: Duration = Duration::from_secs(5);

enum Ask {
    Read(String),
    Write(String, String),
    Remove(String),
    List(String),
}

impl Ask {
    fn text(&self) -> String {
        match self {
            Self::Read(path) => format!("read {path}"),
            Self::Write(path, _) => format!("write {path}"),
            Self::Remove(path) => format!("remove {path}"),
            Self::List(path) => format!("list {path}"),
        }
    }

    /// The value of a key, or the names in a directory.
    fn of(&self, client: &XsUnix) -> io::Result<Vec<String>> {
        Ok(match self {
            Self::Read(path) => vec![client.read(path)?.into()],
            Self::Write(path, value) => client.write(path, value).map(|()| Vec::new())?,
            Self::Remove(path) => client.rm(path).map(|()| Vec::new())?,
            Self::List(path) => {
                let names = client.directory(path)?;
                names.into_iter().map(Into::into).collect()
            }
        })
    }
}

/// A connection to the store.
#[derive(Debug)]
pub struct Xenstored {
    asks: Sender<Ask>,
    answers: Receiver<io::Result<Vec<String>>>,
    patience: Duration,
    /// No answer of it can be believed any more.
    spent: bool,
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}

impl Xenstored {
    /// As `XENSTORED_PATH` names the socket, else `/run/xenstored/socket`, else `/dev/xen/xenbus`.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`], [`StoreError::Silent`].
    pub fn connect(patience: Duration) -> Result<Self, StoreError> {
        let (asks, inbox) = channel::<Ask>();
        let (outbox, answers) = channel();
        // It ends with the process, or with the store: whoever waits for it does not.
        std::thread::spawn(move || {
            let client = match XsUnix::new() {
                Ok(client) => client,
                Err(error) => return drop(outbox.send(Err(error))),
            };
            let mut answer = Ok(Vec::new());
            while outbox.send(answer).is_ok() {
                let Ok(ask) = inbox.recv() else { return };
                answer = ask.of(&client);
            }
        });
        let store = Self {
            asks,
            answers,
            patience,
            spent: false,
        };
        let connected = store.answers.recv_timeout(patience);
        match connected {
            Ok(Ok(_)) => Ok(store),
            Ok(Err(error)) => Err(StoreError::Unreachable(error)),
            Err(_) => Err(StoreError::Silent {
                what: "connect".into(),
                after: patience,
            }),
        }
    }

    /// `None` for what is not there.
    fn ask(&mut self, ask: Ask) -> Result<Option<Vec<String>>, StoreError> {
        let what = ask.text();
        let after = self.patience;
        let gone = || io::Error::other("it did not answer as it should before");
        if self.spent {
            let source = gone();
            return Err(StoreError::Refused { what, source });
        }
        let answer = match self.asks.send(ask) {
            Ok(()) => match self.answers.recv_timeout(self.patience) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => {
                    self.spent = true;
                    return Err(StoreError::Silent { what, after });
                }
                Err(RecvTimeoutError::Disconnected) => Err(gone()),
            },
            Err(_) => Err(gone()),
        };
        match answer {
            Ok(values) => Ok(Some(values)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => {
                // Refusals leave the connection in step; after anything else nobody knows.
                self.spent = matches!(
                    source.kind(),
                    io::ErrorKind::InvalidData
                        | io::ErrorKind::Unsupported
                        | io::ErrorKind::UnexpectedEof
                );
                Err(StoreError::Refused { what, source })
            }
        }
    }
}

impl Store for Xenstored {
    fn read(&mut self, path: &str) -> Result<Option<String>, StoreError> {
        let value = self.ask(Ask::Read(path.to_owned()))?;
        Ok(value.and_then(|mut values| values.pop()))
    }

    fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError> {
        match self.ask(Ask::Write(path.to_owned(), value.to_owned()))? {
            Some(_) => Ok(()),
            None => Err(StoreError::Refused {
                what: format!("write {path}"),
                source: io::ErrorKind::NotFound.into(),
            }),
        }
    }

    fn remove(&mut self, path: &str) -> Result<(), StoreError> {
        self.ask(Ask::Remove(path.to_owned())).map(drop)
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, StoreError> {
        Ok(self.ask(Ask::List(path.to_owned()))?.unwrap_or_default())
    }
}
