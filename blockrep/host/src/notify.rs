//! Messages to the service manager (sd_notify). Without one, every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

use blkback_proto::ctl::one_line;

/// The service may be used.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// One line for `systemctl status`.
pub fn status(status: &str) {
    send(&[NotifyState::Status(&one_line(status))]);
}

/// The service is ending.
pub fn stopping(status: &str) {
    send(&[
        NotifyState::Stopping,
        NotifyState::Status(&one_line(status)),
    ]);
}

/// Sign of life; to be sent every [`watchdog_interval`].
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// How often to send [`watchdog`]: half of what the manager waits, or `None` if it does not watch.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|wait| wait / 2)
}

fn send(states: &[NotifyState<'_>]) {
    // A manager that cannot be told must not end a daemon that holds a guest's disk.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("service manager was not told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;
    use std::time::Duration;

    const CHILD: &str = "BLOCKREP_TEST_NOTIFY_CHILD";

    /// A daemon that never says READY is killed by the manager during its start-up; a status with
    /// a line end in it would be read as another message.
    #[test]
    fn manager_hears_ready_status_and_watchdog() {
        if std::env::var_os(CHILD).is_some() {
            super::ready("serving\nSTOPPING=1");
            assert_eq!(
                super::watchdog_interval(),
                Some(Duration::from_millis(1500))
            );
            super::watchdog();
            super::stopping("drained");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "notify::tests::manager_hears_ready_status_and_watchdog",
            ])
            .env(CHILD, "1")
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "3000000")
            .env_remove("WATCHDOG_PID")
            .status()
            .unwrap();
        assert!(status.success());
        manager.set_nonblocking(true).unwrap();
        let mut heard = Vec::new();
        let mut buffer = [0; 512];
        while let Ok(bytes) = manager.recv(&mut buffer) {
            heard.push(String::from_utf8_lossy(&buffer[..bytes]).into_owned());
        }
        assert_eq!(
            heard,
            [
                "READY=1\nSTATUS=serving STOPPING=1\n",
                "WATCHDOG=1\n",
                "STOPPING=1\nSTATUS=drained\n"
            ]
        );
    }
}
