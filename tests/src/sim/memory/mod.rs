//! The guest's memory, in two of five seeds: who cuts its epochs, who holds them, and what must hold of them.
//!
//! Memory is a few pages, each of which holds the number of the transaction that changed it last. So memory of an epoch is
//! those that changed, what all of them were when the guest was paused, and how much of each volume it knew to be written.
//!
//! - [`checkpointer`] runs beside the primary: the real sequence of `checkpointer/src/sequence`, fed with what happens;
//!   [`carry`] has its orders carried out, each of which may be late, refused or unanswered, and the process killed at any.
//! - [`machine`] is the hypervisor: it pauses the guest, hangs, dies; the guest reboots, switches itself off, replies.
//! - [`netbuf`] holds the replies; what leaves, a witness outside notes.
//! - [`authority`] is one record, changed by the rules of `checkpointer/src/authority`.
//! - [`holder`] runs at the backup's host: it keeps whole epochs in shared memory, which survives every process and no
//!   power cut, and speaks with the backup's daemon as `checkpointer receive` does: one request after the other on
//!   one connection, waits for commits on another, answers that come late or never, and then it joins anew.
//! - [`judge`] compares.

pub mod authority;
pub mod carry;
pub mod checkpointer;
pub mod holder;
pub mod judge;
pub mod machine;
pub mod netbuf;
pub mod plants;
pub mod store;
mod trouble;

pub use trouble::Trouble;

use super::oracle::Position;
use super::plan::MS;
use super::world::{Event, World, say};
use ::checkpointer::authority::{Decision, Record};
use ::checkpointer::sequence::{Attempt, Event as Told, Order};
use authority::{OneRecord, Question};
use blkback_proto::ids::{Epoch, LineageId};
use checkpointer::Checkpointer;
use holder::Holder;
use judge::Witness;
use machine::{Machine, Pages};
use netbuf::Netbuf;
use store::{Image, Store};

/// What happens between the actors.
#[derive(Debug)]
pub enum Step {
    /// The checkpointer looks around.
    Checkpointer { life: u32 },
    /// The checkpointer is started.
    CheckpointerStarts,
    /// The sequence of that process hears of something.
    Told { life: u32, event: Told },
    /// The process hears that its link is down.
    LinkDown { life: u32, link: u64 },
    /// All memory is copied.
    Copied { life: u32, attempt: Attempt },
    /// An order arrives at the hypervisor of that guest.
    Machine { guest: u32, life: u32, order: Order },
    /// A guest that is gone is started anew.
    MachineStarts,
    /// A checkpointer was killed: the guest is let go on.
    Guardian { guest: u32 },
    /// An order for a cut arrives at the disks.
    CutDisks { token: u64 },
    /// An order arrives at netbuf.
    Netbuf {
        connection: u64,
        life: u32,
        order: Order,
    },
    /// A question arrives at the authority.
    Authority { life: u32, question: Question },
    /// Its answer, or none.
    Decided {
        life: u32,
        question: Question,
        decision: Option<Decision>,
    },
    /// An operator sees to a protection that has ended.
    LookAfter { life: u32, is_over: bool },
    /// Whoever stopped the guest lets it go on.
    OperatorConts,
    /// The holder looks around.
    Holder { life: u32 },
    /// The holder is started.
    HolderStarts,
    /// Something of the checkpointer arrives at the holder.
    ToHolder { link: u64, frame: Frame },
    /// Something of the holder arrives at the checkpointer.
    ToCheckpointer { link: u64, acked: Acked },
    /// A request of the holder arrives at the backup's daemon.
    Ask {
        life: u32,
        boot: u32,
        id: u64,
        ask: holder::Ask,
    },
    /// The answer arrives.
    Answer {
        life: u32,
        id: u64,
        answer: holder::Answer,
    },
}

/// From the checkpointer to the holder.
#[derive(Debug)]
pub enum Frame {
    /// A new copy begins.
    Copy(u64),
    /// All pages of it.
    Pages(Pages),
    /// An epoch, whole.
    Epoch(Box<Image>),
}

/// From the holder to the checkpointer.
#[derive(Clone, Copy, Debug)]
pub enum Acked {
    /// It is kept.
    Whole(Epoch),
    /// It is what the guest would go on from.
    Committed(Epoch),
}

/// What a promotion is asked for, where memory is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// By who does not know of memory.
    #[default]
    Plain,
    /// By the holder.
    WithMemory,
    /// Without it.
    DiskOnly,
}

/// All that concerns memory.
#[derive(Default)]
pub struct Memory {
    /// There is a checkpointer, and a holder.
    pub on: bool,
    /// What is kept, in shared memory.
    pub store: Store,
    /// Who keeps it.
    pub holder: Holder,
    /// Who makes it.
    pub checkpointer: Checkpointer,
    /// The guest beside it.
    pub machine: Machine,
    /// What holds its output.
    pub netbuf: Netbuf,
    /// Who may run it.
    pub record: OneRecord,
    /// Nobody reaches the record before that.
    pub authority_down_until: u64,
    /// The record before the backup was given the guest, until it runs there.
    pub taken_from: Option<Record>,
    /// Who sees what leaves.
    pub witness: Witness,
    /// Nothing is refused, lost or late but by a fault.
    pub is_calm: bool,
    /// The connection between the two.
    pub link: Option<u64>,
    /// No connection comes up before that.
    pub down_until: u64,
    /// How the operator promotes next; chosen at random where nothing is said.
    pub wish: Option<Wish>,
    /// How the operator has promoted.
    pub asked: Wish,
    /// Checkpoints that were ever whole at the holder.
    pub ever_whole: Vec<Image>,
    /// The backup's group is being told what the holder has.
    pub joining: bool,
    /// Epochs that the disks of the backup can be, from which and to which, as its daemon started.
    pub disks_can_be: (Epoch, Epoch),
    /// Who died with the power of their host, by host, and is started with it.
    lost_power: [bool; 2],
    links: u64,
    numbers: u64,
    /// Last arrival in each direction: a link keeps the order.
    last_at: [u64; 2],
    committed: Epoch,
    /// Of which start of the backup's daemon `committed` is, and whether the holder had joined then.
    seen: (u32, bool),
}

impl Memory {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

impl World {
    /// Starts who makes and who holds memory.
    pub fn start_memory(&mut self) {
        self.memory.on = true;
        self.memory.is_calm = self.plan.faults.is_empty();
        self.after(0, Event::Memory(Step::HolderStarts));
        if self.guest.lives_on == Some(0) {
            self.machine_starts();
        }
    }

    /// Once in `of` times something goes wrong, where it may.
    fn is_unlucky(&mut self, of: u32) -> bool {
        !self.memory.is_calm && self.rng.u32(..of) == 0
    }

    /// Something of memory happens.
    pub fn memory_step(&mut self, step: Step) {
        match step {
            Step::CheckpointerStarts => self.checkpointer_starts(),
            Step::Checkpointer { life } => self.checkpointer_acts(life),
            Step::Told { life, event } => self.checkpointer_is_told(life, event),
            Step::LinkDown { life, link } if self.memory.checkpointer.life == life => {
                self.checkpointer_lost_link(link);
            }
            Step::LinkDown { .. } => {}
            Step::Copied { life, attempt } => self.copy_ends(life, attempt),
            Step::Machine { guest, life, order } => self.machine_obeys(guest, life, &order),
            Step::MachineStarts => self.machine_is_started(),
            Step::Guardian { guest } => self.guardian_acts(guest),
            Step::CutDisks { token } => self.disks_are_cut(token),
            Step::Netbuf {
                connection,
                life,
                order,
            } => self.netbuf_obeys(connection, life, &order),
            Step::Authority { life, question } => self.authority_is_asked(life, question),
            Step::Decided {
                life,
                question,
                decision,
            } => self.authority_answers(life, question, decision),
            Step::LookAfter { life, is_over } => self.operator_looks_after(life, is_over),
            Step::OperatorConts => self.operator_conts(),
            Step::HolderStarts => self.holder_starts(),
            Step::Holder { life } => self.holder_acts(life),
            Step::ToHolder { link, frame } if self.memory.link == Some(link) => {
                self.holder_hears(frame);
            }
            Step::ToCheckpointer { link, acked } if self.memory.link == Some(link) => {
                self.checkpointer_hears(acked);
            }
            Step::ToHolder { .. } | Step::ToCheckpointer { .. } => {}
            Step::Ask {
                life,
                boot,
                id,
                ask,
            } => self.daemon_is_asked(life, boot, id, ask),
            Step::Answer { life, id, answer } => self.holder_is_answered(life, id, answer),
        }
    }

    /// The two are connected: what the holder has decides whether all is copied again.
    fn link_memory(&mut self) {
        self.memory.links += 1;
        let link = self.memory.links;
        say!(self, "memory link {link} is up");
        self.memory.link = Some(link);
        self.memory.last_at = [self.now; 2];
        self.memory.store.begin_session();
        let base = self.memory.store.base();
        self.checkpointer_linked(link, base);
        // What was committed while there was no link.
        self.holder_tells_committed();
    }

    /// The connection is lost, and what is on its way on it; whoever sends hears of it soon, or after a silence.
    pub fn cut_memory_link(&mut self, down_ns: u64) {
        self.memory.down_until = self.memory.down_until.max(self.now + down_ns);
        if let Some(link) = self.memory.link.take() {
            say!(self, "memory link {link} is lost");
            let most = if self.is_unlucky(4) { 20 * MS } else { MS / 2 };
            let delay = self.rng.u64(..most);
            let life = self.memory.checkpointer.life;
            self.after(delay, Event::Memory(Step::LinkDown { life, link }));
        }
    }

    fn send_memory(&mut self, direction: usize, step: impl FnOnce(u64) -> Step) {
        let Some(link) = self.memory.link else {
            return;
        };
        let most = if self.rng.u8(..8) == 0 { 10 * MS } else { MS };
        let delay = self.rng.u64(50_000..most);
        let at = self.memory.last_at[direction].max(self.now + delay);
        self.memory.last_at[direction] = at;
        self.at(at, Event::Memory(step(link)));
    }

    /// A host died, and with its power what is in its memory.
    pub fn memory_sees_crash(&mut self, host: usize, power: bool) {
        if !self.memory.on {
            return;
        }
        self.memory.lost_power[host] |= power;
        if host == 1 {
            if power {
                self.holder_dies();
                self.memory.store = Store::default();
                self.memory.asked = Wish::DiskOnly;
            } else {
                self.holder_lost_daemon();
            }
        } else {
            // The guest has gone with its host, or with its disks.
            self.machine_stops();
            if power {
                self.checkpointer_dies();
                self.netbuf_begins(netbuf::Begins::Held);
            }
        }
    }

    /// A host was started: so is what belongs to it.
    pub fn memory_sees_start(&mut self, host: usize) {
        if !self.memory.on || !std::mem::take(&mut self.memory.lost_power[host]) {
            return;
        }
        let delay = self.rng.u64(..5 * MS);
        if host == 1 && !self.memory.holder.up {
            self.after(delay, Event::Memory(Step::HolderStarts));
        }
        if host == 0 {
            self.after(delay, Event::Memory(Step::CheckpointerStarts));
        }
    }

    /// How much of each volume is written, in the history of now.
    fn moment(&self) -> Vec<Position> {
        let volumes = self.oracle.volumes.iter();
        volumes.map(|v| (v.era_start(), v.position())).collect()
    }

    fn tip(&self, host: usize) -> Option<LineageId> {
        use super::host::Group;
        match &self.hosts[host].group {
            Group::Primary(group) => group.meta().tip().map(|tip| tip.id),
            Group::Backup(group) => group.meta().tip().map(|tip| tip.id),
            Group::Off => None,
        }
    }

    /// Who promotes, and what they ask for: only the holder asks for memory, too.
    pub fn choose_wish(&mut self) -> Wish {
        if !self.memory.on {
            return Wish::Plain;
        }
        let wish = self.memory.wish.take();
        let wish = wish.unwrap_or_else(|| match self.rng.u8(..16) {
            0 => Wish::Plain,
            1 => Wish::DiskOnly,
            _ => Wish::WithMemory,
        });
        let wish = match wish {
            Wish::WithMemory
                if !self.memory.holder.up
                    || self.memory.store.committed() == Epoch::NONE
                    || self.memory.store.is_off() =>
            {
                Wish::DiskOnly
            }
            wish => wish,
        };
        if wish == Wish::WithMemory {
            // No session is taken in any more; then the authority.
            self.cut_memory_link(20 * MS);
            if !self.decide_for_backup() {
                self.stats.refused += 1;
                self.memory.asked = Wish::DiskOnly;
                return Wish::DiskOnly;
            }
        }
        self.memory.asked = wish;
        wish
    }

    /// No more faults: who is dead comes back.
    pub fn memory_in_peace(&mut self) {
        self.memory.is_calm = true;
        self.memory.down_until = 0;
        self.memory.authority_down_until = 0;
        self.memory.checkpointer.dies_after = None;
        if self.memory.on && self.oracle.promoted.is_none() {
            // A promotion that failed, and did not come true all the same.
            self.give_back();
            if self.memory.machine.is_stopped {
                self.operator_conts();
            }
        }
        self.memory.lost_power = [true; 2];
        self.memory_sees_start(0);
        self.memory_sees_start(1);
    }

    /// Whether checkpoints are made and let output go, in peace.
    pub fn checkpoints_go_on(&mut self) -> bool {
        if !self.memory.on {
            return true;
        }
        let enough = self.stats.checkpoints + 3;
        let until = self.now + 10_000 * MS;
        let is_good = self.run(until, |w| w.stats.checkpoints >= enough);
        if !is_good {
            self.violated("checkpoints let nothing go any more".to_owned());
        }
        is_good
    }

    /// Mostly a failover is one of a protected guest.
    pub fn wait_for_checkpoint(&mut self) {
        if !self.memory.on || self.rng.u8(..8) == 0 {
            return;
        }
        let before = self.stats.checkpoints;
        let until = self.now + 400 * MS;
        self.run(until, |w| w.stats.checkpoints > before && w.is_backup_in());
        let more = self.rng.u64(..8 * MS);
        self.run(self.now + more, |_| false);
    }
}
