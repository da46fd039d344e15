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
            as_typed(&lines(&seen, now), target)
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
/// a line too many would scroll, and the next page would not begin where this one did.
fn screen(page: &str, size: Option<(u16, u16)>) -> String {
    let (rows, columns) = match size {
        Some((rows, columns)) if rows > 1 && columns > 0 => (rows.into(), columns.into()),
        _ => (usize::MAX, usize::MAX),
    };
    let mut text = HOME.to_owned();
    // The cursor ends on a row of its own.
    for line in page.lines().take(rows - 1) {
        text.extend(line.chars().take(columns));
        text += CLEAR_TO_END_OF_LINE;
        text.push('\n');
    }
    text + CLEAR_TO_END_OF_SCREEN
}

#[cfg(test)]
mod tests {
    use super::*;

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
