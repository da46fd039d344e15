//! `blockrepctl watch`: the status again each second, until Ctrl-C.
//!
//! Not on a terminal it is a line each second, for a log; in front of it stands whatever happened
//! since the last one, with its reason, also what came and went between two looks.
//!
//! A daemon that goes away while it is watched is waited for: that is when somebody watches.

use std::io::{IsTerminal, Write, stdout};
use std::time::Duration;

use blkback_proto::ctl::{Event, Status};
use blockrep_host::clock::{unix_ms, utc_text};
use blockrep_host::ctl::Client;
use blockrep_host::signals::Shutdown;
use rustix::termios::tcgetwinsize;

use super::actions::ANSWER_S;
use super::args::TargetArgs;
use super::failure::{Exit, Failure};
use super::render;
use super::target::{as_typed, connect};

const PERIOD: Duration = Duration::from_secs(1);

pub(super) fn watch(target: &TargetArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let shutdown = Shutdown::install()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot catch Ctrl-C: {error}")))?;
    let timeout = target.timeout_or(ANSWER_S);
    // A mistake in the command line shows at once; what happens later is waited out.
    let mut client = Some(connect(target, timeout)?);
    let on_terminal = stdout().is_terminal();
    let mut past = Past::default();
    let mut links = Links::default();
    if on_terminal {
        out.write_all(CLEAR.as_bytes())?;
    }
    loop {
        let now = unix_ms();
        let seen = look(
            &mut client,
            target,
            timeout,
            (!on_terminal).then_some(&mut past),
        );
        let text = if on_terminal {
            let size = tcgetwinsize(stdout())
                .ok()
                .map(|size| (size.ws_row, size.ws_col));
            screen(&as_typed(&page(&seen, now), target), size)
        } else {
            let text = lines(&seen, now) + &links.news(&seen, now);
            as_typed(&text, target)
        };
        out.write_all(text.as_bytes())?;
        out.flush()?;
        if shutdown.wait_within(PERIOD) {
            return Ok(());
        }
    }
}

/// What a look found.
#[derive(Debug)]
struct Seen {
    status: Status,
    /// First look at this run of the daemon.
    is_first: bool,
    /// What happened since the look before.
    events: Vec<Event>,
}

/// How far the events of a daemon were seen.
#[derive(Debug, Default)]
struct Past {
    /// Which run of the daemon; none before the first look.
    log: Option<String>,
    next_seq: u64,
}

impl Past {
    /// Events since the last look, and whether another run of the daemon answers. Of the first run
    /// what happened before is not news, of a later one all of it is.
    fn news(&mut self, client: &mut Client) -> Result<(Vec<Event>, bool), Failure> {
        let mut from = match self.log {
            None => u64::MAX,
            Some(_) => self.next_seq,
        };
        let mut events = Vec::new();
        let mut is_first = self.log.is_none();
        loop {
            let answer = client.events(from)?;
            let is_other = self.log.as_ref().is_some_and(|log| *log != answer.log);
            self.log = Some(answer.log);
            self.next_seq = answer.next_seq;
            if is_other {
                (from, is_first) = (0, true);
                events.clear();
                continue;
            }
            events.extend(answer.events);
            if !answer.more {
                return Ok((events, is_first));
            }
            from = answer.next_seq;
        }
    }
}

/// What was told of links that are not up. Their trouble is no event: a backup that is away is tried
/// again all the time.
#[derive(Debug, Default)]
struct Links {
    told: Vec<String>,
}

impl Links {
    /// A line for every link that is not up and says something new.
    fn news(&mut self, seen: &Result<Seen, Failure>, now_unix_ms: u64) -> String {
        let Ok(seen) = seen else {
            return String::new();
        };
        let lines = render::link_lines(&seen.status);
        let new = lines.iter().filter(|line| !self.told.contains(line));
        let text = new.map(|line| format!("{} {line}\n", utc_text(now_unix_ms)));
        let text = text.collect();
        self.told = lines;
        text
    }
}

/// Asks for the status, connecting anew if the last attempt failed.
fn look(
    client: &mut Option<Client>,
    target: &TargetArgs,
    timeout: Duration,
    past: Option<&mut Past>,
) -> Result<Seen, Failure> {
    let mut connected = match client.take() {
        Some(connected) => connected,
        None => connect(target, timeout)?,
    };
    // What happened is asked for first: a state that is shown has had its reason by then.
    let (events, is_first) = match past {
        Some(past) => past.news(&mut connected)?,
        None => (Vec::new(), false),
    };
    let status = connected.status()?;
    *client = Some(connected);
    Ok(Seen {
        status,
        is_first,
        events,
    })
}

fn page(seen: &Result<Seen, Failure>, now_unix_ms: u64) -> String {
    match seen {
        Ok(seen) => render::status(&seen.status, now_unix_ms),
        Err(failure) => format!("{failure}\ntrying again each second; Ctrl-C to end\n"),
    }
}

fn lines(seen: &Result<Seen, Failure>, now_unix_ms: u64) -> String {
    match seen {
        Ok(seen) => {
            let mut text = String::new();
            for event in &seen.events {
                text += &format!("{}\n", render::event(event));
            }
            if seen.is_first {
                text += &format!("{}\n", render::standing_line(&seen.status));
            }
            text + &format!("{}\n", render::status_line(&seen.status, now_unix_ms))
        }
        Err(failure) => format!("{} {failure}\n", utc_text(now_unix_ms)),
    }
}

const CLEAR: &str = "\x1b[2J";
const HOME: &str = "\x1b[H";
const CLEAR_TO_END_OF_LINE: &str = "\x1b[K";
const CLEAR_TO_END_OF_SCREEN: &str = "\x1b[J";

/// The page over what is there, without flicker, cut to the size (rows, columns) of the terminal:
/// a line too many would scroll, and the next page would not begin where this one did. What is wrong
/// and what to do about it is wrapped instead: cut, it was just the end that was missing.
fn screen(page: &str, size: Option<(u16, u16)>) -> String {
    let (rows, columns) = match size {
        Some((rows, columns)) if rows > 1 && columns > 0 => (rows.into(), columns.into()),
        _ => (usize::MAX, usize::MAX),
    };
    let mut text = HOME.to_owned();
    // The cursor ends on a row of its own.
    let lines = page.lines().flat_map(|line| wrapped(line, columns));
    for line in lines.take(rows - 1) {
        text.extend(line.chars().take(columns));
        text += CLEAR_TO_END_OF_LINE;
        text.push('\n');
    }
    text + CLEAR_TO_END_OF_SCREEN
}

/// Rows that are shown whole.
const WHOLE: [&str; 4] = ["  reason ", "  next ", "  loss ", "  refused "];
/// Where the text of a row begins.
const INDENT: usize = 12;

/// A line as it is shown on so many columns: one, or several between words. A word longer than a
/// line goes on in the next.
fn wrapped(line: &str, columns: usize) -> Vec<String> {
    let is_row = WHOLE.iter().any(|label| line.starts_with(label));
    if columns <= 2 * INDENT || line.chars().count() <= columns {
        return vec![line.to_owned()];
    }
    if !is_row && line.starts_with(' ') {
        return vec![line.to_owned()];
    }
    let indent = if is_row { INDENT } else { 0 };
    let mut chars: Vec<char> = line.chars().collect();
    let mut lines = Vec::new();
    while chars.len() > columns {
        let fits = &chars[..=columns];
        let blank = fits
            .iter()
            .rposition(|c| *c == ' ')
            .filter(|at| *at > indent);
        let rest = chars.split_off(blank.unwrap_or(columns));
        lines.push(chars.into_iter().collect::<String>());
        chars = vec![' '; indent];
        chars.extend(rest.into_iter().skip_while(|c| *c == ' '));
    }
    lines.push(chars.into_iter().collect());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On 80 columns the reason ended before it said anything, and the advice was not there.
    #[test]
    fn reason_and_advice_are_wrapped() {
        let page = "vm1, primary: standalone\n  reason    one two three four five six seven\n  \
                    rates     one two three four five six seven\n";
        let page = screen(page, Some((9, 30)));
        let lines: Vec<&str> = page.split("\x1b[K\n").collect();
        assert_eq!(
            lines,
            [
                "\x1b[Hvm1, primary: standalone",
                "  reason    one two three four",
                "            five six seven",
                "  rates     one two three four",
                "\x1b[J"
            ]
        );
        let long = format!("  next      {}", "x".repeat(50));
        assert_eq!(
            wrapped(&long, 30).concat().replace(' ', ""),
            long.replace(' ', "")
        );
        assert!(
            wrapped(&long, 30)
                .iter()
                .all(|line| line.chars().count() <= 30)
        );
    }

    /// A log that said "standalone" each second, and never why.
    #[test]
    fn the_trouble_of_a_link_is_told_once() {
        let mut status: Status =
            serde_json::from_str(include_str!("testdata/status.json")).unwrap();
        let mut links = Links::default();
        let mut news = |status: &Status| {
            let seen = Seen {
                status: status.clone(),
                is_first: false,
                events: Vec::new(),
            };
            links.news(&Ok(seen), 1_763_759_245_000)
        };
        assert_eq!(news(&status), "");
        for volume in &mut status.volumes {
            volume.link = None;
        }
        status.link.stated.state = blkback_proto::ctl::LinkState::Connecting;
        status.link.stated.reason = "backup h:1 does not answer: Connection refused".into();
        status.link.stated.next = "tried again".into();
        assert_eq!(
            news(&status),
            "2025-11-21 21:07:25 UTC vm1 primary: link connecting: backup h:1 does not answer: \
             Connection refused; next: tried again\n"
        );
        assert_eq!(news(&status), "");
        status.link.stated.reason = "something else".into();
        assert!(news(&status).contains("something else"));
    }

    /// A page taller or wider than the window scrolls away the line that matters: the first.
    #[test]
    fn page_is_cut_to_the_window() {
        let shown = |size| screen("one two\nthree\nfour\n", size);
        assert_eq!(
            shown(Some((3, 5))),
            "\x1b[Hone t\x1b[K\nthree\x1b[K\n\x1b[J"
        );
        assert_eq!(
            shown(None),
            "\x1b[Hone two\x1b[K\nthree\x1b[K\nfour\x1b[K\n\x1b[J"
        );
        assert_eq!(
            shown(Some((0, 0))),
            shown(None),
            "a terminal that does not know its size"
        );
    }
}
