//! Asking a daemon for cuts.

use std::path::Path;
use std::time::Duration;

use blkback_proto::ctl::CutRequest;
use blockrep_host::ctl::{Client, ClientError};

/// Longest wait for the handshake, and for the answer to one cut.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Why a cut gave no epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CutError {
    /// The daemon answered that it will not; the run goes on.
    Refused(String),
    /// Nobody answers any more.
    Lost(String),
}

/// Something that can cut an epoch now. Called on a thread of its own, one cut at a time; it may
/// block, but not for ever.
pub trait Cutter: Send {
    /// Cuts and returns the number of the epoch that ended: everything acknowledged before the
    /// call is in it or earlier, nothing submitted after the return is.
    fn cut(&mut self) -> Result<u64, CutError>;
}

/// A daemon at its control socket.
#[derive(Debug)]
pub struct DaemonCutter(Client);

impl DaemonCutter {
    /// Connects to the daemon's control socket.
    ///
    /// # Errors
    /// One line for the user.
    pub fn connect(path: &Path) -> Result<DaemonCutter, ClientError> {
        let name = concat!("blockrep-load ", env!("CARGO_PKG_VERSION"));
        Client::connect(path, name, ANSWER_LIMIT).map(DaemonCutter)
    }
}

impl Cutter for DaemonCutter {
    fn cut(&mut self) -> Result<u64, CutError> {
        match self.0.cut(CutRequest::default()) {
            Ok(answer) => Ok(answer.epoch),
            Err(ClientError::Daemon(reply)) => Err(CutError::Refused(reply.message)),
            Err(error) => Err(CutError::Lost(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use blkback_proto::ctl::{Answer, CutAnswer, ErrorCode, Request};
    use blockrep_host::ctl::{EventLog, Limits, PeerCred, ReplyHandle, Server, ServerConfig};

    use super::*;

    /// Ends epochs 1, 3, 5 and refuses every other cut.
    struct Daemon(u64);

    impl blockrep_host::ctl::Handler for Daemon {
        fn handle(&mut self, request: Request, _: PeerCred, reply: ReplyHandle) {
            self.0 += 1;
            match request {
                Request::Cut(_) if self.0 % 2 == 1 => {
                    let answer = CutAnswer {
                        epoch: self.0,
                        committed: false,
                        ..CutAnswer::default()
                    };
                    reply.ok(Answer::Cut(answer));
                }
                _ => reply.error(ErrorCode::Refused, "not now"),
            }
        }
    }

    /// Production: a refused cut that ends the run, or a dead daemon taken for a refusal, spoils a
    /// crash test.
    #[test]
    fn a_daemon_that_refuses_is_not_one_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        assert!(DaemonCutter::connect(&path).is_err());
        let config = ServerConfig {
            path: path.clone(),
            daemon: "test".into(),
            limits: Limits::default(),
        };
        let server = Server::start(config, EventLog::new().unwrap(), Daemon(0)).unwrap();
        let mut cutter = DaemonCutter::connect(&path).unwrap();
        assert_eq!(cutter.cut(), Ok(1));
        assert_eq!(cutter.cut(), Err(CutError::Refused("not now".into())));
        assert_eq!(cutter.cut(), Ok(3));
        drop(server);
        assert!(matches!(cutter.cut(), Err(CutError::Lost(_))));
    }
}
