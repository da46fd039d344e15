//! `blockrepctl guest`: a guest that is protected with its memory, by its two checkpointers.

mod render;
mod which;

use std::io::Write;
use std::time::Duration;

use blkback_proto::ctl::{
    Answer, GuestPromoteAnswer, GuestPromoteRequest, GuestSide, GuestStatusRequest,
    GuestStopAnswer, GuestStopRequest, GuestTimelineAnswer, GuestTimelineRequest, Request,
    one_line,
};
use blockrep_host::clock::unix_ms;
use blockrep_host::ctl::{Client, runtime_dir};

use super::actions::ANSWER_S;
use super::args::{GuestArgs, GuestCommand, GuestPromoteArgs, GuestStopArgs, TargetArgs};
use super::failure::{Exit, Failure};
use super::target::{as_typed, connect};
use super::units::micros;

/// Seconds to wait where a fence command may have to be waited for.
const FENCE_S: u64 = 120;

pub(super) fn guest(
    target: &TargetArgs,
    command: &GuestCommand,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    match command {
        GuestCommand::Status(args) => status(target, args, out),
        GuestCommand::Timeline(args) => timeline(target, &args.guest, args.from, out),
        GuestCommand::Stop(args) => stop(target, args, out),
        GuestCommand::Promote(args) => promote(target, args, out),
    }
}

/// One request and its answer, with the daemon of the guest that is meant.
struct Asked<'a> {
    client: Client,
    json: bool,
    timeout: Duration,
    out: &'a mut dyn Write,
}

impl<'a> Asked<'a> {
    fn of(
        target: &TargetArgs,
        args: &GuestArgs,
        side: Option<GuestSide>,
        default_s: u64,
        out: &'a mut dyn Write,
    ) -> Result<Self, Failure> {
        let timeout = target.timeout_or(default_s);
        let path = which::socket(target, args.guest.as_deref(), side, &runtime_dir())?;
        let named = TargetArgs {
            control: Some(path),
            ..TargetArgs::default()
        };
        Ok(Self {
            client: connect(&named, timeout)?,
            json: args.json,
            timeout,
            out,
        })
    }

    /// The answer; `None` where it was printed as JSON.
    fn ask(&mut self, request: &Request) -> Result<Option<Answer>, Failure> {
        if self.json {
            let json = self.client.request_json(request, self.timeout)?;
            writeln!(self.out, "{json:#}")?;
            return Ok(None);
        }
        Ok(Some(self.client.request(request, self.timeout)?))
    }
}

fn status(target: &TargetArgs, args: &GuestArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let mut asked = Asked::of(target, args, None, ANSWER_S, out)?;
    match asked.ask(&Request::GuestStatus(GuestStatusRequest {}))? {
        None => Ok(()),
        Some(Answer::GuestStatus(report)) => {
            let page = render::report(&report, unix_ms());
            asked.out.write_all(as_typed(&page, target).as_bytes())?;
            Ok(())
        }
        Some(_) => Err(wrong_answer()),
    }
}

/// All there are, batch by batch.
fn timeline(
    target: &TargetArgs,
    args: &GuestArgs,
    from: u64,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut asked = Asked::of(target, args, None, ANSWER_S, out)?;
    let mut from_seq = from;
    let mut is_first = true;
    loop {
        let request = Request::GuestTimeline(GuestTimelineRequest { from_seq });
        let answer = asked.client.request(&request, asked.timeout)?;
        let Answer::GuestTimeline(batch) = answer else {
            return Err(wrong_answer());
        };
        // A daemon that repeats itself must not be listened to for ever.
        let is_last = !batch.more || batch.next_seq <= from_seq;
        write_batch(&batch, args.json, is_first, asked.out)?;
        if is_last {
            return Ok(());
        }
        (from_seq, is_first) = (batch.next_seq, false);
    }
}

fn write_batch(
    batch: &GuestTimelineAnswer,
    is_json: bool,
    is_first: bool,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    if !is_json {
        out.write_all(render::batch(batch, is_first).as_bytes())?;
        return Ok(());
    }
    for figures in &batch.epochs {
        let line = serde_json::to_string(figures).expect("plain data with text keys");
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn stop(target: &TargetArgs, args: &GuestStopArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let request = Request::GuestStop(GuestStopRequest {
        reason: one_line(&args.reason),
        by_hand: args.by_hand,
    });
    let side = Some(GuestSide::Primary);
    let mut asked = Asked::of(target, &args.guest, side, FENCE_S, out)?;
    match asked.ask(&request)? {
        None => Ok(()),
        Some(Answer::GuestStop(answer)) => {
            writeln!(asked.out, "{}", as_typed(&stopped(&answer), target))?;
            Ok(())
        }
        Some(_) => Err(wrong_answer()),
    }
}

fn promote(
    target: &TargetArgs,
    args: &GuestPromoteArgs,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let request = Request::GuestPromote(GuestPromoteRequest {
        force: args.force,
        by_hand: args.stop.by_hand,
        reason: one_line(&args.stop.reason),
    });
    let side = Some(GuestSide::Standby);
    let mut asked = Asked::of(target, &args.stop.guest, side, FENCE_S, out)?;
    match asked.ask(&request)? {
        None => Ok(()),
        Some(Answer::GuestPromote(answer)) => {
            writeln!(asked.out, "{}", as_typed(&promoted(&answer), target))?;
            Ok(())
        }
        Some(_) => Err(wrong_answer()),
    }
}

fn stopped(answer: &GuestStopAnswer) -> String {
    let before = if answer.already { " before" } else { "" };
    let last = answer.committed.map_or_else(
        || "the backup has no checkpoint".to_owned(),
        |epoch| format!("the backup's last checkpoint is epoch {epoch}"),
    );
    let note = noted(&answer.note);
    one_line(&format!(
        "protection ended{before}: the guest is {}; {last}{note}",
        answer.state
    ))
}

fn promoted(answer: &GuestPromoteAnswer) -> String {
    let steps = &answer.steps;
    let parts = [
        ("authority", steps.decide_us),
        ("disks", steps.disk_us),
        ("memory", steps.memory_us),
        ("devices", steps.load_us),
        ("start", steps.cont_us),
        ("network told", steps.announce_us),
    ];
    let parts: Vec<String> = parts
        .iter()
        .map(|(name, us)| format!("{name} {}", micros(*us)))
        .collect();
    let clock = answer
        .clock_behind_ms
        .map_or_else(String::new, |ms| format!("; its clock is {ms} ms behind"));
    let verb = if answer.already {
        "promoted before: the guest went on"
    } else {
        "promoted: the guest goes on"
    };
    one_line(&format!(
        "{verb} from epoch {} under lineage {}, after {} ({}){clock}{}",
        answer.epoch,
        answer.lineage,
        micros(answer.duration_us),
        parts.join(", "),
        noted(&answer.note)
    ))
}

fn noted(note: &str) -> String {
    if note.is_empty() {
        String::new()
    } else {
        format!("; {note}")
    }
}

fn wrong_answer() -> Failure {
    let text = "the daemon answered something else than it was asked: its version is another; \
                type blockrepctl guest status --json";
    Failure::new(Exit::Failed, text)
}

#[cfg(test)]
mod tests;
