//! Status, answers and events as people read them.

use blkback_proto::ctl::{Event, NetDone, NetGuest, NetInterface, NetStatus, Request, one_line};
use blkback_proto::moment::utc_text;
use blkback_proto::units::human_bytes;
use std::io::{self, Write};

pub(super) fn status(status: &NetStatus, out: &mut dyn Write) -> io::Result<()> {
    let line = format!(
        "{} {} (process {}) holds by the {}: {}",
        status.daemon.name, status.daemon.version, status.daemon.pid, status.mechanism, status.why
    );
    writeln!(out, "{}", one_line(&line))?;
    let limit = human_bytes(status.limit_bytes);
    writeln!(
        out,
        "limit   {limit} for each interface; at it {}",
        status.at_limit
    )?;
    if status.guests.is_empty() {
        writeln!(out, "no guests; type netbuf attach GUEST DEVICE")?;
    }
    status.guests.iter().try_for_each(|of| guest(of, out))
}

fn guest(guest: &NetGuest, out: &mut dyn Write) -> io::Result<()> {
    let alarm = if guest.alarm { ", NEAR ITS LIMIT" } else { "" };
    writeln!(out, "\n{}  {}{alarm}", guest.guest, guest.state)?;
    let since = utc_text(guest.since_unix_ms);
    for (name, text) in [
        ("why", guest.reason.clone()),
        ("since", since),
        ("next", guest.next.clone()),
        ("epochs", epochs(guest)),
        ("lineage", lineage(guest)),
    ] {
        writeln!(out, "  {name:9}{}", one_line(&text))?;
    }
    if guest.announcements_left > 0 {
        writeln!(
            out,
            "  {:9}{} rounds left",
            "announce", guest.announcements_left
        )?;
    }
    guest
        .interfaces
        .iter()
        .try_for_each(|of| interface(of, out))
}

fn epochs(guest: &NetGuest) -> String {
    let cut = guest
        .last_cut
        .map_or("none cut".to_owned(), |epoch| format!("{epoch} cut last"));
    let (have, max) = (guest.epochs_in_flight, guest.epochs_in_flight_max);
    format!("{cut}, {have} of at most {max} unreleased")
}

fn lineage(guest: &NetGuest) -> String {
    let heard = guest.lineage.clone();
    heard.unwrap_or_else(|| "the authority has not been heard".to_owned())
}

fn interface(interface: &NetInterface, out: &mut dyn Write) -> io::Result<()> {
    let held = match (interface.held_frames, interface.held_bytes) {
        (Some(frames), Some(bytes)) => format!("{frames} frames, {} held", human_bytes(bytes)),
        _ => "what it holds is not known".to_owned(),
    };
    let oldest = interface
        .oldest_held_ms
        .map(|ms| format!(", the oldest {ms} ms"));
    let bridge = interface
        .bridge
        .as_ref()
        .map(|bridge| format!(", bridge {bridge}"));
    let failed = interface
        .failed
        .as_ref()
        .map(|why| format!("; FAILED: {why}"));
    let line = format!(
        "  {:9}by {}{}: {held}{}, {} dropped{}",
        interface.interface,
        interface.by,
        bridge.unwrap_or_default(),
        oldest.unwrap_or_default(),
        interface.dropped_frames.unwrap_or(0),
        failed.unwrap_or_default()
    );
    writeln!(out, "{}", one_line(&line))
}

pub(super) fn done(request: &Request, done: &NetDone, out: &mut dyn Write) -> io::Result<()> {
    let already = if done.already { " already" } else { "" };
    let held = match (done.held_frames, done.held_bytes) {
        (Some(frames), Some(bytes)) => format!("; {frames} frames, {} held", human_bytes(bytes)),
        _ => String::new(),
    };
    let name = request.name().trim_start_matches("net-");
    writeln!(out, "{name}{already}: output is {}{held}", done.state)?;
    if done.limit_reached {
        let dropped = done.dropped_frames;
        writeln!(
            out,
            "warning: the limit was reached; {dropped} frames were dropped since attach"
        )?;
    }
    if !done.note.is_empty() {
        writeln!(out, "note: {}", one_line(&done.note))?;
    }
    Ok(())
}

pub(super) fn event(event: &Event) -> String {
    let change = match (&event.old_state, &event.new_state) {
        (Some(old), Some(new)) => format!(" {old} -> {new}:"),
        _ => String::new(),
    };
    let next = if event.next.is_empty() {
        String::new()
    } else {
        format!("; next: {}", event.next)
    };
    one_line(&format!(
        "{}  {}  {}  {}:{change} {}{next}",
        event.seq,
        utc_text(event.unix_ms),
        event.group,
        event.kind,
        event.reason
    ))
}
