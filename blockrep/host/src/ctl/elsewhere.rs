//! Whom to ask what this daemon does not do.

use super::paths::runtime_dir;
use blkback_proto::ctl::{GuestSide, Request, guest_socket_name};

/// One line: which daemon a request is for, and where that listens.
#[must_use]
pub fn elsewhere(request: &Request) -> String {
    let (daemon, sockets) = if request.is_for_netbuf() {
        ("netbuf", vec!["netbuf.sock".to_owned()])
    } else if request.is_for_checkpointer() {
        let sides = [GuestSide::Primary, GuestSide::Standby];
        let sockets = sides.map(|side| guest_socket_name("GUEST", &side));
        ("a checkpointer", sockets.to_vec())
    } else {
        let sockets = ["GROUP.sock", "GROUP.backup.sock"];
        ("a blockrep daemon", sockets.map(str::to_owned).to_vec())
    };
    let dir = runtime_dir();
    let paths: Vec<String> = sockets
        .iter()
        .map(|socket| dir.join(socket).display().to_string())
        .collect();
    format!(
        "\"{}\" is for {daemon}: ask at {}",
        request.name(),
        paths.join(" or ")
    )
}

#[cfg(test)]
mod tests {
    //! An operator who asked the wrong daemon is sent to another wrong one.

    use super::*;
    use blkback_proto::ctl::{GuestStatusRequest, NetStatusRequest, StatusRequest};

    #[test]
    fn every_request_is_sent_to_its_own_daemon() {
        let dir = runtime_dir().display().to_string();
        let told = |request: Request| elsewhere(&request).replace(&dir, "DIR");
        assert_eq!(
            told(Request::NetStatus(NetStatusRequest::default())),
            "\"net-status\" is for netbuf: ask at DIR/netbuf.sock"
        );
        assert_eq!(
            told(Request::GuestStatus(GuestStatusRequest::default())),
            "\"guest-status\" is for a checkpointer: ask at DIR/GUEST.checkpointer.sock or DIR/GUEST.standby.sock"
        );
        assert_eq!(
            told(Request::Status(StatusRequest::default())),
            "\"status\" is for a blockrep daemon: ask at DIR/GROUP.sock or DIR/GROUP.backup.sock"
        );
    }
}
