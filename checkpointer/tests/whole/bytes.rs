//! Byte for byte: a guest that writes all the time is kept standing at one cut after the other, and each time the standby
//! must have all of its memory; at the last one its host dies, and what runs at the standby has that memory, too.
//!
//! A page that is missed stands wrong in the standby until the guest writes it again, so it shows at once or never.

use super::fake_netbuf::FakeNetbuf;
use super::guest::{LIMIT, Memory, program, wait_for};
use super::held::Held;
use super::stage::Stage;
use blkback_proto::ctl::{GuestPromoteRequest, GuestProtection, Request};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
/// Cuts that are compared.
const CUTS: u32 = 12;
/// The guest counts so far between two of them: many times through all of its pages.
const WRITES: u32 = 20_000;

/// Pages in which two files of memory differ.
fn differing(one: &Path, other: &Path) -> Vec<usize> {
    let (one, other) = (
        fs::read(one).expect("memory"),
        fs::read(other).expect("memory"),
    );
    assert_eq!((one.len(), other.len()), (32 << 20, 32 << 20));
    let pages = one.chunks(PAGE).zip(other.chunks(PAGE)).enumerate();
    pages
        .filter(|(_, (one, other))| one != other)
        .map(|(page, _)| page)
        .collect()
}

pub(super) struct Cuts {
    pub(super) stage: Stage,
    held: Held,
    here: PathBuf,
    there: PathBuf,
    /// Ends of pauses that made a checkpoint, as far as they were compared.
    epochs: Vec<u64>,
}

impl Cuts {
    fn start(program: &Path, standby: &str, tracker: &str, planted: Option<(&Path, &str)>) -> Self {
        let (stage, held) = Stage::start_held(program, standby, tracker, planted);
        assert_eq!(stage.qemu, held.pid(), "the monitor is taken for QEMU's");
        Self {
            here: stage.dir.path().join("a/vm1.ram"),
            there: stage.standby_file(),
            stage,
            held,
            epochs: Vec::new(),
        }
    }

    /// With something that holds its output.
    pub(super) fn start_with_output(program: &Path) -> (Self, FakeNetbuf) {
        let (stage, held, output) = Stage::start_held_with_output(program);
        let cuts = Self {
            here: stage.dir.path().join("a/vm1.ram"),
            there: stage.standby_file(),
            stage,
            held,
            epochs: Vec::new(),
        };
        (cuts, output)
    }

    /// Another checkpointer for the guest; its number of epochs may begin anew.
    pub(super) fn succeed(&mut self, program: &Path, variable: Option<(&str, &str)>) {
        self.stage.primary.kill();
        self.stage.primary = self.stage.protect_as(program, variable);
        self.epochs.clear();
    }

    /// The standby has a new copy of the memory, in a file of its own.
    pub(super) fn find_copy(&mut self) {
        wait_for("the copy before to be gone", || {
            self.stage.standby_files().len() == 1
        });
        self.there = self.stage.standby_file();
    }

    /// Until it runs: QEMU does not read what it was told by somebody who has hung up since.
    pub(super) fn let_go(&self) {
        let memory = self.stage.memory();
        let counted = memory.counter();
        self.held.let_go();
        memory.wait_beyond(counted);
    }

    /// Keeps the guest standing at a cut, waits until that is committed, and compares.
    pub(super) fn compare(&mut self) -> Vec<usize> {
        let memory = self.stage.memory();
        memory.wait_beyond(memory.counter() + WRITES);
        self.held.keep();
        let last = self.epochs.last().copied();
        // The daemon says of it a moment later than the pause ends.
        let report = self.stage.primary.until("the cut to be sent", |report| {
            report.epochs.cut > last && report.epochs.sent == report.epochs.cut
        });
        let cut = report.epochs.cut;
        self.stage
            .standby
            .until("that epoch", |report| report.epochs.committed == cut);
        let counted = memory.counter();
        let pages = differing(&self.here, &self.there);
        assert_eq!(memory.counter(), counted, "it stands still meanwhile");
        self.epochs.extend(cut);
        pages
    }

    fn all_are_equal(&mut self) {
        for number in 1..=CUTS {
            let pages = self.compare();
            let epoch = self.epochs.last();
            assert_eq!(pages, [0; 0], "pages of cut {number}, epoch {epoch:?}");
            if number < CUTS {
                self.held.let_go();
            }
        }
    }
}

/// Where the guest begins its next turn, and words for it: it waits there, and writes nothing, until a byte says go on.
///
/// ```text
/// 7c13: jmp 7c60
/// 7c60: cmp byte [0x60a], 0;  je 7c60;  inc dword [0x600];  jmp 7c18
/// ```
const WAITS: [(u64, &[u8]); 2] = [
    (0x7c13, &[0xeb, 0x4b]),
    (
        0x7c60,
        &[
            0x80, 0x3e, 0x0a, 0x06, 0x00, 0x74, 0xf9, 0x66, 0xff, 0x06, 0x00, 0x06, 0xeb, 0xaa,
        ],
    ),
];
const GO_ON: u64 = 0x60a;

/// The memory of a guest that stands still, with those words in it.
fn let_wait(memory: &Path) {
    let file = File::options().write(true).open(memory).expect("memory");
    for (at, code) in WAITS {
        file.write_all_at(code, at).expect("written");
    }
}

/// Its host dies at the last cut; what runs at the standby has its memory, but for the turn that it was in.
fn the_standby_goes_on_with_it(mut cuts: Cuts, promote: impl FnOnce(&Stage)) {
    let epoch = cuts.epochs.last().copied();
    // It would hand over a guest whose QEMU ended before it.
    cuts.stage.primary.freeze();
    cuts.held.kill();
    cuts.stage.primary.kill();
    // Nobody has the one any more; the other's guest has not run yet.
    for memory in [&cuts.here, &cuts.there] {
        let_wait(memory);
    }
    assert_eq!(differing(&cuts.here, &cuts.there), [0; 0]);
    promote(&cuts.stage);
    let report = cuts
        .stage
        .standby
        .until("the guest at the standby", |report| {
            report.stated.state == GuestProtection::Promoted
        });
    assert_eq!(report.epochs.committed, epoch, "it goes on from that cut");
    let memory = Memory::open(&cuts.there);
    let before = Memory::open(&cuts.here).counter();
    // The rest of its turn is some instructions: the count, and one page of 64 from the second 64 KiB on.
    let own = |counter: u32| 0x10 + usize::try_from(counter & 63).expect("small");
    let may = [0, own(before), own(before + 1)];
    // As long as nothing is found: what the loading of devices writes would be there at once.
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        let pages = differing(&cuts.here, &cuts.there);
        let wrong: Vec<_> = pages.iter().filter(|page| !may.contains(page)).collect();
        assert!(wrong.is_empty(), "pages {wrong:?} differ where it runs");
        assert!(memory.counter() - before <= 1, "it waits");
    }
    let file = File::options().write(true).open(&cuts.there);
    let file = file.expect("its memory");
    file.write_all_at(&[1], GO_ON).expect("written");
    memory.wait_beyond(before + WRITES);
    wait_for("every page to be written again", || {
        (0..64).all(|page| {
            let mut word = [0; 4];
            let at = 0x1_0000 + page * PAGE as u64;
            file_of(&cuts.there)
                .read_exact_at(&mut word, at)
                .expect("read");
            u32::from_le_bytes(word) > before
        })
    });
}

fn file_of(memory: &Path) -> File {
    File::open(memory).expect("its memory")
}

/// By an operator's word.
#[test]
fn memory_at_each_cut_is_the_standbys_by_userfaultfd() {
    let Some(program) = program("memory_at_each_cut_is_the_standbys_by_userfaultfd") else {
        return;
    };
    let mut cuts = Cuts::start(&program, "promote = \"by-hand\"", "userfaultfd", None);
    cuts.all_are_equal();
    the_standby_goes_on_with_it(cuts, |stage| {
        let request = GuestPromoteRequest {
            force: true,
            by_hand: false,
            reason: "a test".to_owned(),
        };
        let answer = stage.standby.ask(&Request::GuestPromote(request));
        answer.expect("promoted");
    });
}

/// By the silence of the dead.
#[test]
fn memory_at_each_cut_is_the_standbys_by_comparing() {
    let Some(program) = program("memory_at_each_cut_is_the_standbys_by_comparing") else {
        return;
    };
    let standby = "promote = \"auto\"\nsilence_ms = 3000";
    let mut cuts = Cuts::start(&program, standby, "compare", None);
    cuts.all_are_equal();
    the_standby_goes_on_with_it(cuts, |_| ());
}

/// The checkpointer with planted bugs; without one the test is left out, in one line.
pub(super) fn planted(test: &str) -> Option<PathBuf> {
    let own = cfg!(feature = "plants").then(|| env!("CARGO_BIN_EXE_checkpointer").into());
    let planted = own.or_else(|| std::env::var_os("CHECKPOINTER_PLANTED"));
    if planted.is_none() {
        println!("{test}: skipped, CHECKPOINTER_PLANTED names no build with the feature plants");
    }
    planted.map(PathBuf::from)
}

/// A comparison that finds nothing where a page was left out proves nothing. The checkpointer with planted bugs is another
/// build (feature `plants`), and `CHECKPOINTER_PLANTED` names it; the suite does.
#[test]
fn a_page_that_is_left_out_is_found() {
    let Some(program) = program("a_page_that_is_left_out_is_found") else {
        return;
    };
    let Some(planted) = planted("a_page_that_is_left_out_is_found") else {
        return;
    };
    for tracker in ["userfaultfd", "compare"] {
        let bug = Some((planted.as_path(), "skip-page"));
        let mut cuts = Cuts::start(&program, "promote = \"by-hand\"", tracker, bug);
        let until = Instant::now() + LIMIT;
        // In the first that is looked at, as a rule.
        while cuts.compare().is_empty() {
            assert!(Instant::now() < until, "no page was missing, by {tracker}");
            cuts.held.let_go();
        }
    }
}
