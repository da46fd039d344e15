//! A guest's status and timeline as text for people. Pure: the clock comes in.

use blkback_proto::ctl::{
    EpochFigures, GuestAuthority, GuestReport, GuestStandby, GuestTimeline, GuestTimelineAnswer,
    IntervalMode, one_line,
};
use blockrep_host::clock::{utc_text, utc_text_ms};

use super::super::render::{Page, since};
use super::super::units::{bar, bytes, counted, micros, millis, percent, seconds};

/// The whole status, several lines.
pub(super) fn report(report: &GuestReport, now_unix_ms: u64) -> String {
    let mut page = Page::default();
    page.heading(&format!(
        "{}, {} at {}: {}",
        report.guest, report.side, report.host, report.stated.state
    ));
    page.stated(&report.stated, now_unix_ms);
    page.row("epochs", &epochs(report));
    if let Some(copy) = &report.first_copy {
        let done = percent(copy.done_bytes, copy.total_bytes);
        let eta = copy.eta_s.map_or_else(
            || "not moving".to_owned(),
            |eta_s| format!("{} to go", seconds(eta_s)),
        );
        let text = format!(
            "{} {done} %, {} of {}, {}/s, {eta}",
            bar(done),
            bytes(copy.done_bytes),
            bytes(copy.total_bytes),
            bytes(copy.bytes_per_s)
        );
        page.row("copy", &text);
    }
    if let Some(standby) = &report.standby {
        standby_rows(&mut page, standby);
    }
    interval(&mut page, report);
    authority(&mut page, &report.authority);
    parts(&mut page, report, now_unix_ms);
    if let Some(timeline) = &report.timeline {
        timeline_rows(&mut page, timeline);
    }
    limits(&mut page, report);
    page.0
}

fn epochs(report: &GuestReport) -> String {
    let stages = [
        ("cut", report.epochs.cut),
        ("sent", report.epochs.sent),
        ("whole", report.epochs.whole),
        ("committed", report.epochs.committed),
        ("released", report.epochs.released),
    ];
    let known: Vec<String> = stages
        .iter()
        .filter_map(|(name, epoch)| epoch.map(|epoch| format!("{name} {epoch}")))
        .collect();
    if known.is_empty() {
        "none yet".to_owned()
    } else {
        known.join(", ")
    }
}

fn standby_rows(page: &mut Page, standby: &GuestStandby) {
    page.row("promotion", &standby.if_promoted);
    let age = standby
        .promotable_age_ms
        .map_or_else(String::new, |ms| format!(", whole for {}", millis(ms)));
    let text = match standby.promotable_epoch {
        Some(epoch) => format!("epoch {epoch}{age}"),
        None => "no checkpoint to go on from".to_owned(),
    };
    page.row("would be", &text);
    let waits = standby.pid.map_or_else(
        || "no hypervisor waits".to_owned(),
        |pid| format!("hypervisor {pid} waits"),
    );
    page.row("waiting", &format!("{waits}; copy {}", standby.generation));
}

fn interval(page: &mut Page, report: &GuestReport) {
    if let Some(interval) = &report.interval {
        let how = match interval.mode {
            IntervalMode::Fixed => "fixed".to_owned(),
            _ => format!(
                "{}, {} to {}",
                interval.mode,
                millis(interval.min_ms),
                millis(interval.max_ms)
            ),
        };
        let kept = interval
            .pause_percent_max
            .map_or_else(String::new, |max| format!(", kept to {max:.1} %"));
        let text = format!(
            "{} ({how}); paused {:.1} % of the time{kept}",
            millis(interval.now_ms),
            interval.pause_percent
        );
        page.row("interval", &text);
    }
    if let Some(clock) = &report.clock {
        let text = format!(
            "the guest's is {} behind by its pauses, {:.1} %",
            millis(clock.lost_ms),
            clock.lost_percent
        );
        page.row("clock", &text);
    }
    if report.given_up.count > 0 {
        let text = format!(
            "{}, the last: {}",
            counted(report.given_up.count, "checkpoint"),
            report.given_up.last_reason
        );
        page.row("given up", &text);
    }
}

fn authority(page: &mut Page, authority: &GuestAuthority) {
    page.heading(&format!("authority: {}", authority.words));
    if let Some(failed) = &authority.failed {
        page.row("failed", failed);
    }
    match &authority.record {
        Some(record) => {
            page.row("primary", &record.primary);
            page.row("in sync", &record.in_sync.join(", "));
            page.row("lineage", &record.lineage);
            let text = format!(
                "generation {}, {}: {}",
                record.generation,
                utc_text(record.unix_ms),
                record.note
            );
            page.row("changed", &text);
        }
        None => page.row("record", "none that is known"),
    }
}

/// What protection is made of, a line each.
fn parts(page: &mut Page, report: &GuestReport, now_unix_ms: u64) {
    page.heading("parts");
    if let Some(hypervisor) = &report.hypervisor {
        let pid = hypervisor
            .pid
            .map_or_else(String::new, |pid| format!(", process {pid}"));
        let path = hypervisor.state_path.as_ref().map_or_else(
            || "device state not read yet".to_owned(),
            |path| format!("device state by {path}"),
        );
        let text = format!("{}{pid}; {path}: {}", hypervisor.version, hypervisor.why);
        page.row("runs in", &text);
    }
    if let Some(tracker) = &report.tracker {
        let scan = tracker
            .last_scan_us
            .map_or_else(String::new, |us| format!("; last scan {}", micros(us)));
        page.row("pages", &format!("{}: {}{scan}", tracker.kind, tracker.why));
    }
    if let Some(disks) = &report.disks {
        let state = disks.state.as_deref().unwrap_or("not known");
        let text = format!("{state}: {} ({})", disks.reason, disks.control);
        page.row("disks", &text);
    } else {
        page.row("disks", "none of ours");
    }
    if let Some(output) = &report.output {
        let state = output
            .state
            .as_ref()
            .map_or("not known", |state| state.as_str());
        let by = output
            .mechanism
            .as_ref()
            .map_or_else(String::new, |mechanism| format!(" by {mechanism}"));
        page.row("output", &format!("{state}{by}: {}", output.reason));
    } else {
        page.row(
            "output",
            "not held: others may see what is lost with this host",
        );
    }
    if let Some(link) = &report.memory_link {
        let peer = link.peer.as_deref().unwrap_or("no peer");
        let rtt = link
            .rtt_us
            .map_or_else(String::new, |us| format!(", round trip {}", micros(us)));
        let text = format!(
            "{} to {peer} since {}: {}; sent {}, received {}{rtt}",
            link.stated.state,
            since(link.stated.since_unix_ms, now_unix_ms),
            link.stated.reason,
            bytes(link.sent_bytes),
            bytes(link.received_bytes)
        );
        page.row("memory", &text);
    }
}

fn timeline_rows(page: &mut Page, timeline: &GuestTimeline) {
    let count = counted(timeline.epochs, "epoch");
    page.heading(&format!("last {count}: half within, 99 in 100 within"));
    let us = &timeline.us;
    let pause = [
        ("pause", us.pause),
        ("ours", us.ours),
        ("stop", us.stop),
        ("disk cut", us.disk_cut),
        ("scan", us.scan),
        ("copy", us.copy),
        ("devices", us.device_state),
        ("net cut", us.output_cut),
        ("start", us.cont),
        ("encode", us.encode),
        ("send", us.send),
    ];
    let later = [
        ("whole", us.whole),
        ("committed", us.committed),
        ("released", us.released),
    ];
    let later = later
        .into_iter()
        .filter_map(|(name, spread)| Some((name, spread?)));
    for (name, spread) in pause.into_iter().chain(later) {
        page.row(
            name,
            &format!("{:>9}  {:>9}", micros(spread.p50), micros(spread.p99)),
        );
    }
    let pages = timeline.dirty_pages;
    page.row("pages", &format!("{:>9}  {:>9}", pages.p50, pages.p99));
    for (name, spread) in [
        ("raw", timeline.raw_bytes),
        ("on wire", timeline.wire_bytes),
    ] {
        page.row(
            name,
            &format!("{:>9}  {:>9}", bytes(spread.p50), bytes(spread.p99)),
        );
    }
}

fn limits(page: &mut Page, report: &GuestReport) {
    page.heading("daemon");
    let daemon = &report.daemon;
    let text = format!(
        "{} {}, process {}, up for {}",
        daemon.name,
        daemon.version,
        daemon.pid,
        seconds(daemon.uptime_s)
    );
    page.row("program", &text);
    let parts: Vec<String> = report
        .bounds
        .memory
        .iter()
        .map(|part| format!("{} {}", part.name, bytes(part.bytes_max)))
        .collect();
    let of = if parts.is_empty() {
        String::new()
    } else {
        format!(": {}", parts.join(", "))
    };
    let text = format!("at most {}{of}", bytes(report.bounds.memory_bytes_max));
    page.row("memory", &text);
}

const COLUMNS: &str = "seq epoch time pause stop disk-cut scan copy devices net-cut start encode send whole committed \
                       released pages raw wire";

/// One line a checkpoint, with a line of names above the first.
pub(super) fn batch(batch: &GuestTimelineAnswer, is_first: bool) -> String {
    let mut text = String::new();
    if is_first {
        text += COLUMNS;
        text.push('\n');
    }
    if batch.lost > 0 {
        text += &format!("({} no longer kept)\n", counted(batch.lost, "checkpoint"));
    }
    for figures in &batch.epochs {
        text += &line(figures);
        text.push('\n');
    }
    text
}

/// Times in microseconds and sizes in bytes, as numbers: for a spreadsheet.
fn line(figures: &EpochFigures) -> String {
    let us = &figures.us;
    let or_dash =
        |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let time = utc_text_ms(figures.unix_ms).replace(' ', "_");
    let mut words = vec![figures.seq.to_string(), or_dash(figures.epoch), time];
    let pause = [
        us.pause,
        us.stop,
        us.disk_cut,
        us.scan,
        us.copy,
        us.device_state,
        us.output_cut,
        us.cont,
        us.encode,
        us.send,
    ];
    words.extend(pause.map(|us| us.to_string()));
    words.extend([us.whole, us.committed, us.released].map(or_dash));
    words.extend(
        [figures.dirty_pages, figures.raw_bytes, figures.wire_bytes].map(|n| n.to_string()),
    );
    if let Some(reason) = &figures.given_up {
        words.push(format!("given up: {reason}"));
    }
    one_line(&words.join(" "))
}
