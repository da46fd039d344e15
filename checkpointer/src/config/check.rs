//! What the file means: defaults, bounds, contradictions. Pure.

mod output;

use self::output::output;
use super::place::Place;
use super::raw::{self, Raw};
use super::{
    AuthorityChoice, Config, ConfigError, Epochs, Interval, Memory, Promote, Side, Standby,
};
use crate::authority::is_host_name;
use crate::sequence::OnLoss;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Endings that the sockets of a guest's daemons have.
const ENDINGS: [&str; 3] = [".backup", ".checkpointer", ".standby"];
const INTERVAL_MS: RangeInclusive<u64> = 5..=10_000;
const INTERFACES_MAX: usize = 16;
const STATE_DIR: &str = "/var/lib/blockrep";

type Checked<T> = Result<T, ConfigError>;

pub(super) fn check(raw: Raw, place: &Place<'_>, side: Side, host: &str) -> Checked<Config> {
    let guest = raw.guest;
    if !is_host_name(&guest) || ENDINGS.iter().any(|ending| guest.ends_with(ending)) {
        let what = format!(
            "guest \"{}\" is not usable; write 1 to 64 letters, digits, '-', '_' or '.', beginning with a letter or \
             digit, not ending in .backup, .checkpointer or .standby",
            guest.escape_debug()
        );
        return Err(place.at(&["guest"], what));
    }
    let host = raw.host.unwrap_or_else(|| host.to_owned());
    if !is_host_name(&host) {
        let what = format!(
            "host \"{}\" is not usable; write host = \"a\"",
            host.escape_debug()
        );
        return Err(place.at(&["host"], what));
    }
    let disks = disks(&raw.disks, place, side, &guest)?;
    let output = output(raw.output, place)?;
    let memory = memory(raw.memory, place, side)?;
    let authority = authority(raw.authority, place, &guest)?;
    let epochs = epochs(&raw.epochs, place, output.is_held)?;
    let standby = standby(&raw.standby, place, output.is_held, &authority)?;
    Ok(Config {
        guest,
        host,
        disks,
        output,
        memory,
        epochs,
        standby,
        authority,
        qemu: raw.qemu,
    })
}

fn disks(raw: &raw::Disks, place: &Place<'_>, side: Side, guest: &str) -> Checked<Option<PathBuf>> {
    match (&raw.control, raw.none) {
        (Some(_), true) => {
            let what = "none = true contradicts control; leave out one of the two";
            Err(place.at(&["disks", "none"], what))
        }
        (None, true) => Ok(None),
        (Some(control), false) => Ok(Some(absolute(place, &["disks", "control"], control)?)),
        (None, false) => {
            let ending = match side {
                Side::Protect => "sock",
                Side::Standby => "backup.sock",
            };
            Ok(Some(PathBuf::from(format!(
                "/run/blockrep/{guest}.{ending}"
            ))))
        }
    }
}

fn memory(raw: raw::Memory, place: &Place<'_>, side: Side) -> Checked<Memory> {
    let path = |key| ["memory", key];
    for (key, value) in [("backup", &raw.backup), ("listen", &raw.listen)] {
        if let Some(value) = value
            && !is_address(value)
        {
            let what = format!(
                "{key} \"{}\" is no address with a port; write {key} = \"10.0.0.2:7100\"",
                value.escape_debug()
            );
            return Err(place.at(&path(key), what));
        }
    }
    match side {
        Side::Protect if raw.backup.is_none() => {
            let what = "backup is missing; write backup = \"10.0.0.2:7100\" under [memory], the standby's listen";
            return Err(place.at(&path("backup"), what));
        }
        Side::Standby if raw.listen.is_none() => {
            let what = "listen is missing; write listen = \"0.0.0.0:7100\" under [memory]";
            return Err(place.at(&path("listen"), what));
        }
        _ => {}
    }
    let address = raw
        .backup
        .as_ref()
        .and_then(|backup| backup.rsplit_once(':'));
    let known = address.map_or("", |(host, _)| host.trim_matches(['[', ']']));
    let backup_host = raw.backup_host.unwrap_or_else(|| known.replace(':', "-"));
    if side == Side::Protect && !is_host_name(&backup_host) {
        let what = format!(
            "backup_host \"{}\" is not usable; write backup_host = \"b\", the standby's host",
            backup_host.escape_debug()
        );
        return Err(place.at(&path("backup_host"), what));
    }
    let store = raw.store.unwrap_or_else(|| "/dev/shm/blockrep".into());
    Ok(Memory {
        backup: raw.backup,
        backup_host,
        listen: raw.listen,
        store: absolute(place, &path("store"), &store)?,
        copy_mib_per_s: bounded(
            place,
            &path("copy_mib_per_s"),
            raw.copy_mib_per_s,
            400,
            1..=100_000,
        )?,
        buffer_mib: bounded(place, &path("buffer_mib"), raw.buffer_mib, 256, 16..=65_536)?,
        cache_mib: bounded(place, &path("cache_mib"), raw.cache_mib, 64, 0..=65_536)?,
    })
}

/// `HOST:PORT`, `IPV4:PORT` or `[IPV6]:PORT`.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let is_host = match bracketed {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_host_name(host),
    };
    is_port && is_host
}

fn epochs(raw: &raw::Epochs, place: &Place<'_>, is_held: bool) -> Checked<Epochs> {
    let path = |key| ["epochs", key];
    let (interval, longest_ms) = interval(raw, place)?;
    let answer_max_ms = bounded(
        place,
        &path("answer_max_ms"),
        raw.answer_max_ms,
        2_000,
        100..=60_000,
    )?;
    if answer_max_ms <= longest_ms && raw.answer_max_ms.is_some() {
        let what = format!(
            "answer_max_ms = {answer_max_ms} is not longer than the interval of {longest_ms} ms; write {} or more",
            longest_ms + 100
        );
        return Err(place.at(&path("answer_max_ms"), what));
    }
    let on_loss = match raw.on_loss.map(OnLoss::from) {
        Some(OnLoss::Hold) if !is_held => {
            let what = "on_loss = \"hold\" contradicts held = false: nothing is held; write on_loss = \"degrade\"";
            return Err(place.at(&path("on_loss"), what));
        }
        Some(on_loss) => on_loss,
        None if is_held => OnLoss::Hold,
        None => OnLoss::Degrade,
    };
    let in_flight_max = bounded(place, &path("in_flight_max"), raw.in_flight_max, 2, 1..=64)?;
    Ok(Epochs {
        interval,
        early_ms: bounded(place, &path("early_ms"), raw.early_ms, 5, 0..=10_000)?,
        pause_max_ms: bounded(
            place,
            &path("pause_max_ms"),
            raw.pause_max_ms,
            1_000,
            10..=10_000,
        )?,
        // An interval of many seconds has a default that is longer.
        answer_max_ms: answer_max_ms.max(longest_ms + 100),
        in_flight_max: usize::try_from(in_flight_max).expect("at most 64"),
        on_loss,
    })
}

/// And the longest that it can be.
fn interval(raw: &raw::Epochs, place: &Place<'_>) -> Checked<(Interval, u64)> {
    let Some(adaptive) = &raw.adaptive else {
        let path = ["epochs", "interval_ms"];
        let interval_ms = bounded(place, &path, raw.interval_ms, 25, INTERVAL_MS)?;
        return Ok((Interval::Fixed { interval_ms }, interval_ms));
    };
    let path = |key| ["epochs", "adaptive", key];
    if raw.interval_ms.is_some() {
        let what = "interval_ms contradicts [epochs.adaptive]; leave out one of the two";
        return Err(place.at(&["epochs", "interval_ms"], what));
    }
    let min_ms = bounded(place, &path("min_ms"), adaptive.min_ms, 25, INTERVAL_MS)?;
    let max_ms = bounded(
        place,
        &path("max_ms"),
        adaptive.max_ms,
        min_ms.max(200),
        INTERVAL_MS,
    )?;
    if min_ms > max_ms {
        let what = format!("min_ms = {min_ms} is above max_ms = {max_ms}; write {max_ms} or less");
        return Err(place.at(&path("min_ms"), what));
    }
    let percent = bounded(
        place,
        &path("pause_percent"),
        adaptive.pause_percent,
        5,
        1..=50,
    )?;
    let interval = Interval::Adaptive {
        min_ms,
        max_ms,
        pause_percent: percent,
    };
    Ok((interval, max_ms))
}

fn standby(
    raw: &raw::Standby,
    place: &Place<'_>,
    is_held: bool,
    authority: &AuthorityChoice,
) -> Checked<Standby> {
    let path = |key| ["standby", key];
    // Without held output the primary speaks on in silence: only one that was fenced does not.
    let why_not = match authority {
        AuthorityChoice::Manual { .. } => Some("the authority is an operator"),
        AuthorityChoice::File(_) if !is_held => Some("held = false needs a fence"),
        _ => None,
    };
    let promote = match (raw.promote, why_not) {
        (Some(raw::Promote::Auto), Some(why)) => {
            let what = format!(
                "promote = \"auto\" cannot be: {why}; write promote = \"by-hand\", or command = [\"/path/of/a/fence\"] \
                 under [authority]"
            );
            return Err(place.at(&path("promote"), what));
        }
        (Some(raw::Promote::ByHand), _) | (None, Some(_)) => Promote::ByHand,
        (Some(raw::Promote::Auto) | None, None) => Promote::Auto,
    };
    let silence_ms = bounded(
        place,
        &path("silence_ms"),
        raw.silence_ms,
        300,
        100..=600_000,
    )?;
    Ok(Standby {
        promote,
        silence_ms,
    })
}

fn authority(raw: raw::Authority, place: &Place<'_>, guest: &str) -> Checked<AuthorityChoice> {
    let path = |key| ["authority", key];
    const ONE: &str =
        "write one of manual = true, command = [\"/path/of/a/fence\"] and file = \"/path\"";
    let named = [
        raw.file.is_some(),
        raw.command.is_some(),
        raw.manual == Some(true),
    ];
    if named.iter().filter(|is| **is).count() > 1 {
        return Err(place.at(
            &["authority"],
            format!("there is more than one authority; {ONE}"),
        ));
    }
    if raw.manual == Some(false) && !named.contains(&true) {
        return Err(place.at(&path("manual"), format!("nobody is the authority; {ONE}")));
    }
    if let Some(file) = raw.file {
        if raw.record.is_some() {
            let what = "record contradicts file, which is the record; leave out one of the two";
            return Err(place.at(&path("record"), what));
        }
        return Ok(AuthorityChoice::File(absolute(
            place,
            &path("file"),
            &file,
        )?));
    }
    let record = raw
        .record
        .unwrap_or_else(|| Path::new(STATE_DIR).join(format!("{guest}.authority")));
    let record = absolute(place, &path("record"), &record)?;
    let Some(command) = raw.command else {
        return Ok(AuthorityChoice::Manual { record });
    };
    match command.first() {
        Some(program) if Path::new(program).is_absolute() => {
            Ok(AuthorityChoice::Command { command, record })
        }
        _ => {
            let what = "command begins with no whole path of a program; write command = [\"/path/of/a/fence\"]";
            Err(place.at(&path("command"), what))
        }
    }
}

fn bounded(
    place: &Place<'_>,
    path: &[&str],
    value: Option<u64>,
    default: u64,
    bounds: RangeInclusive<u64>,
) -> Checked<u64> {
    let value = value.unwrap_or(default);
    if bounds.contains(&value) {
        return Ok(value);
    }
    let key = path.last().copied().unwrap_or_default();
    let what = format!(
        "{key} = {value} is out of bounds; write {} to {}",
        bounds.start(),
        bounds.end()
    );
    Err(place.at(path, what))
}

/// A daemon's own directory is nobody's business.
fn absolute(place: &Place<'_>, path: &[&str], value: &Path) -> Checked<PathBuf> {
    if value.is_absolute() {
        return Ok(value.to_owned());
    }
    let key = path.last().copied().unwrap_or_default();
    let what = format!(
        "{key} = \"{}\" is no whole path; write one that begins with /",
        value.display().to_string().escape_debug()
    );
    Err(place.at(path, what))
}
