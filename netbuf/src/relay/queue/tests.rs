//! What could go wrong: a frame let out before its epoch, lost below the limit, out of order, or damaged
//! where the ring wraps.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::{Amount, EpochQueue, Pushed, QueueError, charge};
use proptest::prelude::*;

const FRAME_MAX: usize = 70_000;
const LIMIT: usize = 200_000;
const EPOCHS_MAX: usize = 5;

/// The obvious queue.
#[derive(Default)]
struct Model {
    ready: Vec<Vec<u8>>,
    cut: Vec<(u64, Vec<Vec<u8>>)>,
    running: Vec<Vec<u8>>,
    open: bool,
    last_cut: u64,
    last_released: u64,
    dropped: u64,
}

impl Model {
    fn charged(&self) -> usize {
        let held = self.cut.iter().flat_map(|(_, frames)| frames);
        let all = self.ready.iter().chain(held).chain(&self.running);
        all.map(|frame| charge(frame.len())).sum()
    }

    fn push(&mut self, frame: Vec<u8>) -> Pushed {
        if frame.len() > FRAME_MAX || self.charged() + charge(frame.len()) > LIMIT {
            self.dropped += 1;
            return Pushed::Dropped;
        }
        let to = if self.open {
            &mut self.ready
        } else {
            &mut self.running
        };
        to.push(frame);
        Pushed::Kept
    }

    fn cut(&mut self, epoch: u64) -> bool {
        if epoch <= self.last_cut || self.cut.len() == EPOCHS_MAX {
            return false;
        }
        self.cut.push((epoch, std::mem::take(&mut self.running)));
        self.last_cut = epoch;
        self.open = false;
        true
    }

    fn release(&mut self, epoch: u64) -> bool {
        if epoch == self.last_released && epoch > 0 {
            return true;
        }
        let Some(index) = self.cut.iter().position(|(number, _)| *number == epoch) else {
            return false;
        };
        for (_, frames) in self.cut.drain(..=index) {
            self.ready.extend(frames);
        }
        self.last_released = epoch;
        true
    }

    fn open(&mut self) {
        for (_, frames) in self.cut.drain(..) {
            self.ready.extend(frames);
        }
        self.ready.append(&mut self.running);
        self.last_released = self.last_cut.max(self.last_released);
        self.open = true;
    }
}

#[derive(Debug, Clone)]
enum Step {
    Push(usize),
    Cut(u64),
    /// This much below the number cut last.
    Release(u64),
    Send(usize),
    Hold,
    Open,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => prop_oneof![14usize..100, 14usize..3000, 60_000usize..=FRAME_MAX + 1].prop_map(Step::Push),
        3 => (0u64..4).prop_map(Step::Cut),
        3 => (0u64..8).prop_map(Step::Release),
        4 => (1usize..8).prop_map(Step::Send),
        1 => Just(Step::Hold),
        1 => Just(Step::Open),
    ];
    prop::collection::vec(step, 1..300)
}

fn run(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut queue = EpochQueue::new(LIMIT, FRAME_MAX, EPOCHS_MAX);
    let mut model = Model::default();
    // Numbers begin at 1, so that the model needs no word for none.
    prop_assert!(queue.cut(1).is_ok() && model.cut(1));
    prop_assert!(queue.release(1).is_ok() && model.release(1));
    queue.open();
    model.open();
    for (turn, step) in steps.iter().enumerate() {
        match *step {
            Step::Push(bytes) => {
                let frame: Vec<u8> = (0..bytes).map(|i| (turn * 31 + i * 7) as u8).collect();
                let pushed = queue.push(&frame, turn as u64);
                prop_assert_eq!(pushed, model.push(frame));
            }
            Step::Cut(gap) => {
                let epoch = model.last_cut + gap;
                prop_assert_eq!(queue.cut(epoch).is_ok(), model.cut(epoch));
            }
            Step::Release(back) => {
                let epoch = (model.last_cut + 1).saturating_sub(back);
                prop_assert_eq!(queue.release(epoch).is_ok(), model.release(epoch));
            }
            Step::Send(frames) => {
                let frames = frames.min(model.ready.len());
                queue.consume(frames);
                model.ready.drain(..frames);
            }
            Step::Hold => {
                queue.hold();
                model.open = false;
            }
            Step::Open => {
                queue.open();
                model.open();
            }
        }
        let ready: Vec<&[u8]> = queue.ready().collect();
        prop_assert!(ready == model.ready, "turn {turn}: what may go differs");
        let stats = queue.stats(turn as u64);
        let held: usize = model.cut.iter().map(|(_, frames)| frames.len()).sum();
        prop_assert_eq!(stats.held.frames as usize, held + model.running.len());
        prop_assert_eq!(stats.ready.frames as usize, model.ready.len());
        prop_assert_eq!(stats.charged_bytes, model.charged());
        prop_assert_eq!(stats.dropped.frames, model.dropped);
        prop_assert_eq!(stats.epochs_in_flight, model.cut.len());
        prop_assert_eq!(stats.open, model.open);
    }
    queue.open();
    model.open();
    prop_assert!(queue.ready().eq(model.ready.iter().map(Vec::as_slice)));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn is_the_obvious_queue(steps in steps()) {
        run(&steps)?;
    }
}

/// Epochs that are in flight and empty when the ring begins anew: a release of one of them let go what was said later.
#[test]
fn an_empty_queue_begins_anew_and_keeps_its_epochs() {
    let mut queue = EpochQueue::new(LIMIT, FRAME_MAX, 4);
    queue.hold();
    queue.push(&[1; 60], 0);
    queue.cut(1).unwrap();
    queue.cut(2).unwrap();
    queue.release(1).unwrap();
    queue.consume(1);
    queue.push(&[3; 60], 0);
    queue.cut(3).unwrap();
    queue.release(2).unwrap();
    assert!(!queue.has_ready(), "epoch 2 was empty");
    queue.release(3).unwrap();
    assert!(queue.ready().eq([[3; 60].as_slice()]));
}

/// A checkpointer that releases what it never cut has lost count; a frame must not pay for it.
#[test]
fn numbers_only_grow_and_a_refusal_changes_nothing() {
    let mut queue = EpochQueue::new(LIMIT, FRAME_MAX, 2);
    assert_eq!(
        queue.release(0),
        Err(QueueError::NotCut { epoch: 0 }),
        "nothing was cut"
    );
    queue.hold();
    queue.push(&[5; 60], 0);
    queue.cut(5).unwrap();
    queue.push(&[8; 60], 0);
    queue.cut(8).unwrap();
    let refused = queue.release(6).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Epoch 6 cannot be released: it was not cut"
    );
    assert_eq!(queue.release(9), Err(QueueError::NotCut { epoch: 9 }));
    assert_eq!(
        queue.cut(8),
        Err(QueueError::CutGoesBack { epoch: 8, last: 8 })
    );
    assert_eq!(
        queue.cut(9),
        Err(QueueError::TooManyEpochs {
            epoch: 9,
            epochs_max: 2
        })
    );
    assert!(!queue.has_ready());
    queue.release(8).unwrap();
    assert_eq!(queue.release(8), Ok(Amount::default()), "asked again");
    assert_eq!(
        queue.release(5),
        Err(QueueError::ReleaseGoesBack { epoch: 5, last: 8 })
    );
    assert_eq!(
        queue.ready().map(|frame| frame[0]).collect::<Vec<_>>(),
        [5, 8]
    );
}

/// An operator has to hear of a queue that fills before it drops.
#[test]
fn the_alarm_comes_before_the_first_drop_and_goes_at_half() {
    let frame = [0u8; 112];
    let mut queue = EpochQueue::new(100 * charge(frame.len()), FRAME_MAX, 4);
    queue.hold();
    for count in 1..=100 {
        assert_eq!(queue.push(&frame, count), Pushed::Kept);
        assert_eq!(queue.stats(count).alarm, count >= 75, "{count} frames");
    }
    assert_eq!(queue.push(&frame, 101), Pushed::Dropped);
    let stats = queue.stats(101);
    assert_eq!((stats.dropped.frames, stats.dropped.bytes), (1, 112));
    assert_eq!(stats.oldest_ns, Some(100));
    queue.cut(1).unwrap();
    queue.release(1).unwrap();
    queue.consume(50);
    assert!(queue.stats(101).alarm);
    queue.consume(1);
    assert!(!queue.stats(101).alarm);
    assert_eq!(queue.stats(101).oldest_ns, Some(49));
}
