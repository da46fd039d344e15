//! `blockrepctl pages`: the record of guest pages, for checkpointers and for looking at it.

use std::io::Write;

use blkback_proto::ctl::{
    PageRegion, PagesArmAnswer, PagesArmRequest, PagesDisarmRequest, PagesTakeAnswer,
    PagesTakeRequest, one_line,
};
use serde::Serialize;

use super::actions::ANSWER_S;
use super::args::{PagesCommand, TargetArgs};
use super::failure::Failure;
use super::target::connect;
use super::units::{bytes, counted};

pub(super) fn pages(
    target: &TargetArgs,
    command: &PagesCommand,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut client = connect(target, target.timeout_or(ANSWER_S))?;
    match command {
        PagesCommand::Arm(args) => {
            let volume = args.volume.clone();
            let answer = client.pages_arm(PagesArmRequest { volume })?;
            tell(out, args.json, &answer, armed(&answer))
        }
        PagesCommand::Take(args) => {
            let answer = client.pages_take(PagesTakeRequest {
                volume: args.pages.volume.clone(),
                record: args.record.clone(),
                turn: args.turn,
                from_page: 0,
            })?;
            tell(out, args.pages.json, &answer, taken(&answer))
        }
        PagesCommand::Disarm(args) => {
            let volume = args.volume.clone();
            let answer = client.pages_disarm(PagesDisarmRequest { volume })?;
            let text = match answer.was_armed {
                true => "the record has ended\n",
                false => "no record was kept\n",
            };
            tell(out, args.json, &answer, text.to_owned())
        }
    }
}

fn tell(
    out: &mut dyn Write,
    is_json: bool,
    answer: &impl Serialize,
    text: String,
) -> Result<(), Failure> {
    if is_json {
        let json = serde_json::to_value(answer).expect("answers are plain data with text keys");
        writeln!(out, "{json:#}")?;
    } else {
        out.write_all(text.as_bytes())?;
    }
    Ok(())
}

fn armed(answer: &PagesArmAnswer) -> String {
    let record = one_line(&answer.record);
    format!(
        "record {record} of {}\nnext: blockrepctl pages take {record} 1\n",
        memory(&answer.regions)
    )
}

/// One line about the turn, then one a run.
fn taken(answer: &PagesTakeAnswer) -> String {
    let mut text = one_line(&format!(
        "turn {} of record {}: {} of {}",
        answer.turn,
        answer.record,
        counted(answer.pages, "page"),
        memory(&answer.regions)
    ));
    if !answer.complete {
        let reason = answer
            .reason
            .as_deref()
            .unwrap_or("the daemon gave no reason");
        text += &one_line(&format!("; not complete: {reason}"));
    }
    text.push('\n');
    for (first, count) in &answer.runs {
        text += &format!("  {first:#x} {count}\n");
    }
    text
}

fn memory(regions: &[PageRegion]) -> String {
    if regions.is_empty() {
        return "no memory: no guest is connected".to_owned();
    }
    let all = regions.iter().map(|region| region.size_bytes);
    let all = all.fold(0u64, u64::saturating_add);
    let count = u64::try_from(regions.len()).unwrap_or(u64::MAX);
    format!("{} in {}", bytes(all), counted(count, "region"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever reads a turn by hand must not take an incomplete one for all there is.
    #[test]
    fn a_turn_that_is_not_complete_says_so_first() {
        let mut answer = PagesTakeAnswer {
            record: "9f0c".into(),
            turn: 3,
            complete: false,
            reason: Some("a VMM\nwent".into()),
            pages: 9,
            runs: vec![(256, 1), (300, 8)],
            next_page: None,
            regions: vec![PageRegion {
                size_bytes: 1 << 28,
                ..PageRegion::default()
            }],
        };
        assert_eq!(
            taken(&answer),
            "turn 3 of record 9f0c: 9 pages of 256.0 MiB in 1 region; not complete: a VMM went\n  \
             0x100 1\n  0x12c 8\n"
        );
        answer.complete = true;
        assert!(!taken(&answer).contains("complete"));
        answer.regions.clear();
        assert!(taken(&answer).contains("no guest is connected"));
    }
}
