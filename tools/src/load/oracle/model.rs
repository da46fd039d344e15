//! The oracle against its definition: on small random histories every subset of requests is tried.

use proptest::prelude::*;

use super::*;
use crate::load::history::{Cut, NEVER, Request};
use crate::load::log::{Header, Kind};

const UNITS: u64 = 4;

/// One request as the generator of the test draws it.
#[derive(Debug, Clone, Copy)]
struct Draw {
    kind: Kind,
    first: u64,
    count: u64,
    fua: bool,
    /// Order of submission and of completion among all events.
    order: (u16, u16),
    ending: u8,
}

fn draw() -> impl Strategy<Value = Draw> {
    let kind = prop_oneof![
        5 => Just(Kind::Write),
        3 => Just(Kind::Zero),
        1 => Just(Kind::Discard),
        1 => Just(Kind::Flush),
    ];
    (
        kind,
        0..UNITS,
        1..3u64,
        prop::bool::weighted(0.2),
        any::<(u16, u16)>(),
        0..10u8,
    )
        .prop_map(|(kind, first, count, fua, order, ending)| {
            let count = count.min(UNITS - first);
            Draw {
                kind,
                first,
                count,
                fua,
                order,
                ending,
            }
        })
}

/// Puts drawn events in order and stamps them; the cut lies at `cut`.
fn history(draws: &[Draw], cut: (u16, u16)) -> History {
    let mut events: Vec<(u16, usize, bool)> = Vec::new();
    for (index, draw) in draws.iter().enumerate() {
        let (start, end) = (
            draw.order.0.min(draw.order.1),
            draw.order.0.max(draw.order.1),
        );
        events.push((start, index, false));
        events.push((end, index, true));
    }
    events.sort();
    let at = |order: u16| events.partition_point(|event| event.0 < order) as u64 * 4;
    let cut = Cut {
        sent: at(cut.0.min(cut.1)) + 2,
        replied: at(cut.0.max(cut.1)) + 3,
        epoch: 1,
    };
    let header = Header {
        run: 1,
        disk_bytes: UNITS * 512,
        span_bytes: UNITS * 512,
        seed: 0,
    };
    let mut requests: Vec<(usize, Request)> = Vec::new();
    for (position, (_, index, is_end)) in (1u64..).zip(events) {
        let draw = draws[index];
        // Cuts lie between: stamp 4n + 2 and 4n + 3 come before event n + 1.
        let stamp = position * 4;
        if is_end {
            let found = requests
                .iter_mut()
                .find(|(drawn, _)| *drawn == index)
                .unwrap();
            match draw.ending {
                0 => {}
                1 => found.1.failed = true,
                _ => found.1.completed = stamp,
            }
            continue;
        }
        let flush = draw.kind == Kind::Flush;
        let request = Request {
            submitted: stamp,
            completed: NEVER,
            offset: if flush { 0 } else { draw.first * 512 },
            len: if flush { 0 } else { draw.count as u32 * 512 },
            kind: draw.kind,
            fua: draw.fua && !flush,
            failed: false,
        };
        requests.push((index, request));
    }
    let requests = requests.into_iter().map(|(_, request)| request).collect();
    History {
        header,
        requests,
        cuts: vec![cut],
    }
}

fn before(a: &Request, b: &Request) -> bool {
    a.completed < b.submitted
}

/// The definition: pieces are (request, unit); every set of pieces is tried.
fn acceptable(history: &History, image: &[Content], rules: &Rules) -> bool {
    let requests = &history.requests;
    let pieces: Vec<(usize, u64)> = (0..requests.len())
        .flat_map(|index| requests[index].units().map(move |unit| (index, unit)))
        .collect();
    let cut = history.cuts[0];
    let promised = |request: &Request| {
        let flushed = |flush: &Request| {
            flush.kind == Kind::Flush && flush.completed != NEVER && before(request, flush)
        };
        let by_ack = match rules.ack {
            Ack::Local => false,
            Ack::Flush => request.fua || requests.iter().any(flushed),
            Ack::Write => true,
        };
        let by_epoch = rules.epoch.is_some_and(|n| n >= cut.epoch) && request.completed < cut.sent;
        request.completed != NEVER && (by_ack || by_epoch)
    };
    let forbidden = |request: &Request| {
        rules.epoch.is_some_and(|n| n <= cut.epoch) && request.submitted > cut.replied
    };
    (0u32..1 << pieces.len()).any(|set| {
        let has = |piece: usize| set & (1 << piece) != 0;
        let all = |index: usize| (0..pieces.len()).all(|p| pieces[p].0 != index || has(p));
        let none = |index: usize| (0..pieces.len()).all(|p| pieces[p].0 != index || !has(p));
        let sound = (0..requests.len()).all(|index| {
            let request = &requests[index];
            let whole = rules.split || request.failed || all(index) || none(index);
            let past = (0..requests.len()).all(|a| !before(&requests[a], request) || all(a));
            whole
                && (none(index) || past)
                && (!promised(request) || all(index))
                && (!forbidden(request) || none(index))
        });
        sound
            && (0..UNITS).all(|unit| explained(requests, &pieces, set, unit, image[unit as usize]))
    })
}

/// Some request of the set that nothing in the set came after left this content; or none covers the
/// unit.
fn explained(
    requests: &[Request],
    pieces: &[(usize, u64)],
    set: u32,
    unit: u64,
    content: Content,
) -> bool {
    let here: Vec<usize> = (0..pieces.len())
        .filter(|piece| set & (1 << piece) != 0 && pieces[*piece].1 == unit)
        .map(|piece| pieces[piece].0)
        .collect();
    let leaves = |index: usize| match requests[index].kind {
        Kind::Write => index as Content + 1,
        _ => ZERO,
    };
    let last = |index: usize| !here.iter().any(|x| before(&requests[index], &requests[*x]));
    match here.is_empty() {
        true => content == ZERO || content == EARLIER,
        false => here
            .iter()
            .any(|index| last(*index) && leaves(*index) == content),
    }
}

/// What a unit could show at all: a write that covers it, zero, or (rarely) earlier content.
fn candidate(history: &History, unit: u64, pick: u8) -> Content {
    let writes = (1..)
        .zip(&history.requests)
        .filter(|(_, request)| request.kind == Kind::Write);
    let mut all: Vec<Content> = writes
        .filter(|(_, request)| request.units().contains(&unit))
        .map(|(id, _)| id)
        .collect();
    all.push(ZERO);
    if pick > 250 {
        EARLIER
    } else {
        all[usize::from(pick) % all.len()]
    }
}

/// A disk that takes requests one after another, at some moment while each is in flight, and stops
/// at `stop`.
fn played(history: &History, moments: &[u16], stop: u64) -> Vec<Content> {
    let mut order: Vec<(u64, usize)> = Vec::new();
    for (index, request) in history.requests.iter().enumerate() {
        let end = request.completed.min(request.submitted + 60);
        let moment = u64::from(moments[index % moments.len()]) % (end - request.submitted);
        order.push((request.submitted + moment, index));
    }
    order.sort();
    let mut image = vec![ZERO; UNITS as usize];
    for (_, index) in order.into_iter().filter(|(moment, _)| *moment < stop) {
        let request = &history.requests[index];
        for unit in request.units() {
            let write = request.kind == Kind::Write;
            image[unit as usize] = if write { index as Content + 1 } else { ZERO };
        }
    }
    image
}

fn rules() -> impl Strategy<Value = Rules> {
    let ack = prop_oneof![Just(Ack::Local), Just(Ack::Flush), Just(Ack::Write)];
    (ack, prop::option::of(0..3u64), any::<bool>()).prop_map(|(ack, epoch, split)| Rules {
        ack,
        epoch,
        split,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20000))]

    /// Production: a clever algorithm that differs from the rule it stands for, in either
    /// direction: it hides data loss or cries wolf. Images here are arbitrary.
    #[test]
    fn any_image_gets_the_verdict_of_the_definition(
        draws in prop::collection::vec(draw(), 1..8), cut: (u16, u16), rules in rules(),
        picks in prop::array::uniform4(any::<u8>()),
    ) {
        let history = history(&draws, cut);
        let image: Vec<Content> =
            (0..UNITS).zip(picks).map(|(unit, pick)| candidate(&history, unit, pick)).collect();
        let accepted = judge(&history, &image, &rules).violations.is_empty();
        let expected = acceptable(&history, &image, &rules);
        prop_assert_eq!(accepted, expected, "{:?} {:?}", history, image);
    }

    /// Production: the same for images near the truth, where the boundary cases are: a real state
    /// of the disk with at most one unit changed.
    #[test]
    fn a_nearly_right_image_gets_the_verdict_of_the_definition(
        draws in prop::collection::vec(draw(), 1..8), cut: (u16, u16), rules in rules(),
        moments in prop::array::uniform8(any::<u16>()), stop in 0..80u64,
        change in prop::option::of((0..UNITS, any::<u8>())),
    ) {
        let history = history(&draws, cut);
        let mut image = played(&history, &moments, stop);
        if let Some((unit, pick)) = change {
            image[unit as usize] = candidate(&history, unit, pick);
        }
        let accepted = judge(&history, &image, &rules).violations.is_empty();
        let expected = acceptable(&history, &image, &rules);
        prop_assert_eq!(accepted, expected, "{:?} {:?}", history, image);
        if change.is_none() {
            let free = Rules { ack: Ack::Local, epoch: None, split: false };
            prop_assert!(judge(&history, &image, &free).violations.is_empty(), "{:?}", history);
        }
    }
}
