//! Status and events as text for people. Pure: the clock comes in.
//!
//! Whatever text the daemon sent is made one line without control characters before it reaches a
//! terminal.

use std::fmt::Write as _;

use blkback_proto::ctl::{
    AckMode, Event, GroupState, GuestMemoryStatus, GuestState, GuestStatus, LinkState, LinkStatus,
    OutputClass, QueueBound, Role, Stated, Status, VolumeStatus, one_line,
};
use blockrep_host::clock::{utc_text, utc_text_ms};

use super::units::{bar, bytes, counted, micros, millis, percent, seconds};

/// Lines of `label  text`, under headings.
#[derive(Debug, Default)]
pub(super) struct Page(pub(super) String);

impl Page {
    pub(super) fn heading(&mut self, text: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.push_line(text);
    }

    pub(super) fn row(&mut self, label: &str, text: &str) {
        self.push_line(&format!("  {label:<9} {}", one_line(text)));
    }

    pub(super) fn push_line(&mut self, text: &str) {
        self.0.push_str(one_line(text).trim_end());
        self.0.push('\n');
    }

    /// Since, reason, next.
    pub(super) fn stated<S>(&mut self, stated: &Stated<S>, now_unix_ms: u64) {
        self.row("since", &since(stated.since_unix_ms, now_unix_ms));
        self.row("reason", &stated.reason);
        self.row("next", &stated.next);
    }
}

/// The whole status, several lines.
pub(super) fn status(status: &Status, now_unix_ms: u64) -> String {
    let mut page = Page::default();
    group(&mut page, status, now_unix_ms);
    for (of, link) in links(status) {
        link_rows(&mut page, &of, link, now_unix_ms);
    }
    for volume in &status.volumes {
        volume_rows(&mut page, volume, now_unix_ms);
    }
    limits(&mut page, status);
    daemon(&mut page, status);
    page.0
}

fn group(page: &mut Page, status: &Status, now_unix_ms: u64) {
    let group = &status.group;
    page.heading(&format!(
        "{}, {}: {}",
        group.name,
        group.role,
        group.stated.state.as_str()
    ));
    page.stated(&group.stated, now_unix_ms);
    let stages = [
        ("open", status.epochs.open),
        ("sealed", status.epochs.sealed),
        ("committed", status.epochs.committed),
        ("released", status.epochs.released),
        ("applied", status.epochs.applied),
    ];
    let known: Vec<String> = stages
        .iter()
        .filter_map(|(name, epoch)| epoch.map(|epoch| format!("{name} {epoch}")))
        .collect();
    page.row(
        "epochs",
        &if known.is_empty() {
            "none yet".to_owned()
        } else {
            known.join(", ")
        },
    );
    if let Some(text) = disk(status, now_unix_ms) {
        page.row("disk", &text);
    }
    if let Some(memory) = &status.guest_memory {
        page.row("memory", &guest_memory(memory));
    }
    if let Some(text) = unsent(status) {
        page.row("unsent", &text);
    }
    if let Some(count) = status.unapplied_bytes {
        let is_epoch = status.disk.is_some() || status.group.role == Role::Primary;
        page.row("unapplied", &unapplied(count, is_epoch));
    }
    if let (Some(p50), Some(p99)) = (status.commit_latency.p50_us, status.commit_latency.p99_us) {
        let text = format!(
            "half within {}, 99 in 100 within {}, from cut to commit",
            micros(p50),
            micros(p99)
        );
        page.row("commits", &text);
    }
    let rates = &status.rates;
    let text = format!(
        "in {}/s, out {}/s, {:.1} epochs/s",
        bytes(rates.in_bytes_per_s),
        bytes(rates.out_bytes_per_s),
        rates.epochs_per_s
    );
    page.row("rates", &text);
    page.row("ack mode", &ack_mode(status));
    page.row(
        "output",
        &explained(
            status.output.class.as_str(),
            output_text(&status.output.class),
        ),
    );
    page.row("loss", &status.output.possible_loss);
}

/// The links, each with the name of its volume where there are several.
fn links(status: &Status) -> Vec<(String, &LinkStatus)> {
    let named = status.volumes.iter().filter_map(|volume| {
        let link = volume.link.as_ref()?;
        Some((format!(" of {}", volume.name), link))
    });
    let named: Vec<_> = named.collect();
    match named.len() {
        0 | 1 => vec![(String::new(), &status.link)],
        _ => named,
    }
}

/// What is wrong with links that are not up, in one line each.
pub(super) fn link_lines(status: &Status) -> Vec<String> {
    let troubled = links(status).into_iter().filter(|(_, link)| {
        matches!(
            link.stated.state,
            LinkState::Connecting | LinkState::Refused
        )
    });
    let line = |(of, link): (String, &LinkStatus)| {
        one_line(&format!(
            "{} {}: link{of} {}: {}; next: {}",
            status.group.name,
            status.group.role,
            link.stated.state.as_str(),
            link.stated.reason,
            link.stated.next
        ))
    };
    troubled.map(line).collect()
}

fn link_rows(page: &mut Page, of: &str, link: &LinkStatus, now_unix_ms: u64) {
    let peer = link.peer.as_deref().unwrap_or("no peer");
    let state = link.stated.state.as_str();
    page.heading(&format!("link{of} to {peer}: {state}"));
    page.stated(&link.stated, now_unix_ms);
    let mut known = Vec::new();
    if let Some(rtt_us) = link.rtt_us {
        known.push(format!("round trip {}", micros(rtt_us)));
    }
    if let Some(credit) = link.credit_bytes {
        known.push(format!("credit {}", bytes(credit)));
    }
    if let Some(session) = &link.session {
        known.push(format!("session {session}"));
    }
    if !known.is_empty() {
        page.row("now", &known.join(", "));
    }
    if let Some(heard) = link.heard_unix_ms {
        page.row("heard", &since(heard, now_unix_ms));
    }
    if let Some(lost) = link.lost_unix_ms {
        page.row("lost", &since(lost, now_unix_ms));
    }
    if let Some(refused) = &link.refused {
        let when = since(refused.unix_ms, now_unix_ms);
        let text = format!("{}, last {when}: {}", refused.peer, refused.reason);
        page.row("refused", &text);
    }
}

fn volume_rows(page: &mut Page, volume: &VolumeStatus, now_unix_ms: u64) {
    let state = volume.stated.state.as_str();
    page.heading(&format!(
        "disk {}, {}: {state}",
        volume.name,
        bytes(volume.size_bytes)
    ));
    page.stated(&volume.stated, now_unix_ms);
    page.row("image", &volume.image);
    if let Some(sync) = &volume.sync {
        let done = percent(sync.done_bytes, sync.total_bytes);
        let eta = sync.eta_s.map_or_else(
            || "not moving".to_owned(),
            |eta_s| format!("{} to go", seconds(eta_s)),
        );
        let text = format!(
            "{} {done} %, {} of {}, {}/s, {eta}",
            bar(done),
            bytes(sync.done_bytes),
            bytes(sync.total_bytes),
            bytes(sync.bytes_per_s)
        );
        page.row("sync", &text);
    }
    if let Some(journal) = &volume.journal {
        let text = format!(
            "{} {} %, {} of {}, {} not yet applied",
            bar(journal.percent.into()),
            journal.percent,
            bytes(journal.bytes_used),
            bytes(journal.bytes_total),
            counted(journal.extents, "extent")
        );
        page.row("journal", &text);
    }
    if let Some(guest) = &volume.guest {
        page.row("guest", &guest_text(guest, now_unix_ms));
    }
    let counters = &volume.counters;
    let flushes = if counters.flushes == 1 {
        "1 flush"
    } else {
        &format!("{} flushes", counters.flushes)
    };
    let text = format!(
        "{} ({}), {} ({}), {flushes}, {} ({}), {}",
        counted(counters.reads, "read"),
        bytes(counters.bytes_read),
        counted(counters.writes, "write"),
        bytes(counters.bytes_written),
        counted(counters.discards, "discard"),
        bytes(counters.bytes_discarded),
        counted(counters.errors, "error"),
    );
    page.row("requests", &text);
    if let Some(uuid) = &volume.uuid {
        page.row("uuid", uuid);
    }
}

/// What serves a guest by vhost-user, in one line.
fn guest_text(guest: &GuestStatus, now_unix_ms: u64) -> String {
    let Stated {
        state,
        reason,
        since_unix_ms,
        next,
    } = &guest.stated;
    let mut text = format!(
        "{state} since {}: {reason}",
        since(*since_unix_ms, now_unix_ms)
    );
    if guest.queues_running > 0 {
        text += &format!(
            "; {} running",
            counted(guest.queues_running.into(), "queue")
        );
    }
    if !guest.features.is_empty() {
        text += &format!("; with {}", guest.features.join(", "));
    }
    if *state != GuestState::Connected {
        text += &format!("; next: {next}");
    }
    text
}

fn limits(page: &mut Page, status: &Status) {
    let bounds = &status.bounds;
    page.heading("limits");
    let parts: Vec<String> = bounds
        .memory
        .iter()
        .map(|part| format!("{} {}", part.name, bytes(part.bytes_max)))
        .collect();
    let of = if parts.is_empty() {
        String::new()
    } else {
        format!(": {}", parts.join(", "))
    };
    page.row(
        "memory",
        &format!("at most {}{of}", bytes(bounds.memory_bytes_max)),
    );
    for queue in &bounds.queues {
        let text = format!("{} in use; at the limit: {}", fill(queue), queue.at_limit);
        page.row(&queue.name, &text);
    }
}

/// `1.2 MiB of 64.0 MiB`, `3 of 128 requests`.
fn fill(queue: &QueueBound) -> String {
    match queue.unit.as_str() {
        "bytes" => format!("{} of {}", bytes(queue.used), bytes(queue.limit)),
        "ms" => format!("{} of {}", millis(queue.used), millis(queue.limit)),
        unit => format!("{} of {} {unit}", queue.used, queue.limit),
    }
}

fn daemon(page: &mut Page, status: &Status) {
    let daemon = &status.daemon;
    page.heading("daemon");
    let text = format!(
        "{} {}, process {}, up for {}",
        daemon.name,
        daemon.version,
        daemon.pid,
        seconds(daemon.uptime_s)
    );
    page.row("program", &text);
    if let Some(uuid) = &status.group.uuid {
        page.row("group", uuid);
    }
    for entry in &status.lineage {
        let text = format!(
            "{} from epoch {}, {}: {}",
            entry.id,
            entry.first_epoch,
            utc_text(entry.unix_ms),
            entry.why
        );
        page.row("lineage", &text);
    }
}

/// Why the group stands as it does, in one line, for logs that begin in the middle.
pub(super) fn standing_line(status: &Status) -> String {
    let group = &status.group;
    one_line(&format!(
        "{} {} {}: {} since then: {}; next: {}",
        utc_text(group.stated.since_unix_ms),
        group.name,
        group.role,
        group.stated.state.as_str(),
        group.stated.reason,
        group.stated.next
    ))
}

/// The most important of a status in one line, for logs.
pub(super) fn status_line(status: &Status, now_unix_ms: u64) -> String {
    let group = &status.group;
    let mut line = format!(
        "{} {} {}: {}",
        utc_text(now_unix_ms),
        group.name,
        group.role,
        group.stated.state.as_str()
    );
    let mut add = |text: String| write!(line, ", {text}").expect("writing to a String");
    if let Some(committed) = status.epochs.committed {
        add(format!("committed {committed}"));
    }
    if status.ack_in_force
        && let Some(count) = status.unsent_bytes
    {
        add(format!("unsent {}", bytes(count)));
        add(format!(
            "uncommitted {}",
            millis(status.uncommitted_ms.unwrap_or(0))
        ));
    }
    if let Some(ns) = status.disk.as_ref().and_then(|disk| disk.cut_unix_ns) {
        add(format!("disk of {}", moment(ns / 1_000_000, now_unix_ms)));
    }
    if let Some(count) = status.unapplied_bytes {
        add(format!("unapplied {}", bytes(count)));
    }
    for (of, link) in links(status) {
        if link.stated.state != LinkState::Up {
            add(format!("link{of} {}", link.stated.state.as_str()));
        }
    }
    for volume in &status.volumes {
        let guest = volume.guest.as_ref().map(|guest| &guest.stated.state);
        if guest == Some(&GuestState::Broken) {
            add(format!("guest of {} broken", volume.name));
        }
        if let Some(journal) = &volume.journal {
            add(format!("journal of {} {} %", volume.name, journal.percent));
        }
        if let Some(sync) = &volume.sync {
            add(format!(
                "sync of {} {} %",
                volume.name,
                percent(sync.done_bytes, sync.total_bytes)
            ));
        }
    }
    one_line(&line)
}

/// One event in one line.
pub(super) fn event(event: &Event) -> String {
    let mut line = format!(
        "{} {:>5}  {}  {}: ",
        utc_text(event.unix_ms),
        event.seq,
        event.group,
        event.kind
    );
    match (&event.old_state, &event.new_state) {
        (Some(old), Some(new)) if old == new => line += &format!("still {}: ", new),
        (Some(old), Some(new)) => line += &format!("{} -> {}: ", old, new),
        _ => {}
    }
    line += &event.reason;
    if !event.next.is_empty() {
        line += &format!("; next: {}", event.next);
    }
    for (i, (key, value)) in event.detail.iter().enumerate() {
        line += &format!("{}{key}={value}", if i == 0 { "; " } else { " " });
    }
    one_line(&line)
}

/// The mode, and whether it means anything now.
fn ack_mode(status: &Status) -> String {
    let mode = status.ack_mode.as_str();
    if status.group.role == Role::Backup {
        let text = match status.group.stated.state {
            GroupState::Following => "the primary's to set; see its status",
            _ => "not known here: the primary's to set (--ack, flush by default)",
        };
        return text.to_owned();
    }
    if status.ack_in_force {
        return explained(mode, ack_mode_text(&status.ack_mode));
    }
    let why = match status.group.stated.state {
        GroupState::Resyncing => "until the comparison has ended",
        GroupState::Failed => "the store failed",
        _ => "no backup",
    };
    format!("{mode}, not in force: {why}")
}

/// Of when the disk of a backup is, and whether that goes on: what decides a promotion.
fn disk(status: &Status, now_unix_ms: u64) -> Option<String> {
    use GroupState::{Following, Inconsistent, Promoting, Suspect, WaitingForPrimary};
    if status.group.role != Role::Backup {
        return None;
    }
    let Some(disk) = &status.disk else {
        return match status.group.stated.state {
            Inconsistent => Some("of no moment: the image is no epoch".to_owned()),
            WaitingForPrimary | Following | Suspect | Promoting => {
                Some("of no moment: it never held an epoch".to_owned())
            }
            _ => None,
        };
    };
    let moment = match disk.cut_unix_ns {
        Some(ns) => format!("of {}", moment(ns / 1_000_000, now_unix_ms)),
        None => "of a time that is not known any more".to_owned(),
    };
    let link = match (status.link.lost_unix_ms, status.link.heard_unix_ms) {
        (Some(lost), _) => format!("link lost at {}", since(lost, now_unix_ms)),
        (None, Some(_)) => "the link is up".to_owned(),
        (None, None) => {
            let started = now_unix_ms.saturating_sub(status.daemon.uptime_s * 1000);
            format!(
                "no link since this daemon started at {}",
                since(started, now_unix_ms)
            )
        }
    };
    Some(format!("{moment} (epoch {}); {link}", disk.epoch))
}

/// `2025-11-21 20:55:03.123 UTC, 40 ms ago`: of a cut, that is by the primary's clock.
fn moment(unix_ms: u64, now_unix_ms: u64) -> String {
    let ago = millis(now_unix_ms.saturating_sub(unix_ms));
    format!("{}, {ago} ago", utc_text_ms(unix_ms))
}

/// What is not at the backup yet; nothing to say where no backup was given.
fn unsent(status: &Status) -> Option<String> {
    let count = status.unsent_bytes?;
    if !status.ack_in_force {
        return Some("not known: no backup follows".to_owned());
    }
    let sent = match count {
        0 => "nothing".to_owned(),
        count => bytes(count),
    };
    Some(match status.uncommitted_ms.unwrap_or(0) {
        0 => format!("{sent}; every epoch that was cut is committed"),
        ms => format!(
            "{sent}; the oldest epoch not committed was cut {} ago",
            millis(ms)
        ),
    })
}

/// Of the guest, which is committed and promoted with the disks.
fn guest_memory(memory: &GuestMemoryStatus) -> String {
    if !memory.joined {
        return "of the guest: its holder has not said what it has since this daemon started"
            .to_owned();
    }
    let waiting = match memory.waiting {
        0 => String::new(),
        count => format!(", {count} more wait for the disks"),
    };
    match memory.epoch {
        Some(epoch) => format!("of the guest: epoch {epoch}{waiting}"),
        None => format!("of the guest: none that goes with these disks{waiting}"),
    }
}

/// What is at the backup and not in its image: safe, and part of the disk all the same.
fn unapplied(count: u64, is_epoch: bool) -> String {
    match count {
        0 if is_epoch => "nothing: the image alone is the disk".to_owned(),
        0 => "nothing".to_owned(),
        count => format!("{}, safe in the journal", bytes(count)),
    }
}

pub(super) fn since(unix_ms: u64, now_unix_ms: u64) -> String {
    let ago = seconds(now_unix_ms.saturating_sub(unix_ms) / 1000);
    format!("{}, {ago} ago", utc_text(unix_ms))
}

fn explained(word: &str, text: &str) -> String {
    if text.is_empty() {
        word.to_owned()
    } else {
        format!("{word}: {text}")
    }
}

fn ack_mode_text(mode: &AckMode) -> &'static str {
    match mode {
        AckMode::Local => "a write is answered after the local write",
        AckMode::Flush => "a flush is answered after everything before it is safe at the backup",
        AckMode::Write => "a write is answered after it is safe at the backup",
        AckMode::Other(_) => "",
    }
}

fn output_text(class: &OutputClass) -> &'static str {
    match class {
        OutputClass::Held => "what the guest says leaves after its epoch is committed",
        OutputClass::Open => "others may see writes before they are committed",
        OutputClass::Other(_) => "",
    }
}

#[cfg(test)]
mod tests;
