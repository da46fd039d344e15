//! `blockrepctl events`: what happened, and what happens.

use std::io::Write;
use std::time::Duration;

use blkback_proto::ctl::{Event, EventBody, EventsAnswer, Lost};

use super::actions::ANSWER_S;
use super::args::{EventsArgs, TargetArgs};
use super::failure::Failure;
use super::render;
use super::target::{as_typed, connect};
use super::units::counted;

/// How long one wait for the next event takes; then the next one begins.
const WAIT: Duration = Duration::from_secs(60);

pub(super) fn events(
    target: &TargetArgs,
    args: &EventsArgs,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut client = connect(target, target.timeout_or(ANSWER_S))?;
    if args.follow {
        let (answer, mut stream) = client.follow(args.from)?;
        write_answer(answer, args.json, target, out)?;
        loop {
            // What was printed must be seen before the wait for more.
            out.flush()?;
            if let Some(body) = stream.next_within(WAIT)? {
                write_body(&body, args.json, target, out)?;
            }
        }
    }
    let mut from = args.from;
    loop {
        let answer = client.events(from)?;
        let (more, next_seq) = (answer.more, answer.next_seq);
        write_answer(answer, args.json, target, out)?;
        if !more {
            return Ok(());
        }
        from = next_seq;
    }
}

fn write_answer(
    answer: EventsAnswer,
    json: bool,
    target: &TargetArgs,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    if answer.lost > 0 {
        let next_seq = answer.next_seq - answer.events.len() as u64;
        write_body(
            &EventBody::Lost(Lost {
                count: answer.lost,
                next_seq,
            }),
            json,
            target,
            out,
        )?;
    }
    for event in answer.events {
        write_body(&EventBody::Event(event), json, target, out)?;
    }
    Ok(())
}

fn write_body(
    body: &EventBody,
    json: bool,
    target: &TargetArgs,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    match body {
        EventBody::Event(event) if json => writeln!(out, "{}", event_json(event))?,
        EventBody::Event(event) => writeln!(out, "{}", as_typed(&render::event(event), target))?,
        EventBody::Lost(_) if json => {
            writeln!(out, "{}", serde_json::to_string(body).expect("plain data"))?;
        }
        EventBody::Lost(lost) => {
            writeln!(out, "({} no longer kept)", counted(lost.count, "event"))?;
        }
    }
    Ok(())
}

fn event_json(event: &Event) -> String {
    serde_json::to_string(event).expect("plain data with text keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(answer: EventsAnswer, json: bool) -> String {
        let mut out = Vec::new();
        write_answer(answer, json, &TargetArgs::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// A gap that is not shown reads as a quiet night.
    #[test]
    fn gaps_are_shown_where_they_are() {
        let answer = || EventsAnswer {
            lost: 3,
            next_seq: 4,
            ..EventsAnswer::default()
        };
        assert_eq!(written(answer(), false), "(3 events no longer kept)\n");
        assert_eq!(
            written(answer(), true),
            "{\"lost\":{\"count\":3,\"next_seq\":4}}\n"
        );
    }
}
