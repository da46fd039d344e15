//! What a command looks like on the monitor, in two pieces.
//!
//! QEMU reads its monitor byte by byte, 6 us and more for each, so what a command says costs time of the pause. Therefore
//! what every command begins with is sent ahead, behind the command before; and commands are read while others
//! are carried out, which is QEMU's capability `oob` (none is carried out of order). A client that goes takes its
//! half command with it.

use serde_json::Value;

/// The command, behind its begin where that is out already; and the begin of the next one.
pub(super) fn line(id: u64, is_led: bool, command: &str, arguments: Option<&Value>) -> String {
    let mut line = if is_led { String::new() } else { begin(id) };
    line += command;
    match arguments {
        None => line += "\"}\n",
        Some(arguments) => line += &format!("\",\"arguments\":{arguments}}}\n"),
    }
    if leads(id) {
        line += &begin(id + 1);
    }
    line
}

/// Whether the begin of the next command follows this one. Not before negotiation is over, which is the first: until
/// then QEMU reads by other rules.
pub(super) fn leads(id: u64) -> bool {
    id > 1
}

fn begin(id: u64) -> String {
    format!("{{\"id\":{id},\"execute\":\"")
}
