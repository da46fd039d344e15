//! The guest's memory and the hypervisor that pauses it.
//!
//! A transaction is a write that was flushed at a disk, a change of a page, and a reply to whoever asked. A page holds
//! the number of the transaction that changed it last, so what memory knows of can be read off it. What the disks
//! answer while the guest stands still is seen by it when it goes on.

use super::Step;
use crate::sim::guest::{Ask, Outstanding};
use crate::sim::plan::MS;
use crate::sim::world::{Event, World, say};
use checkpointer::sequence::{Attempt, Event as Told, Order, Part};

/// Pages of the guest.
pub const PAGES: usize = 6;
/// What each page holds.
pub type Pages = [u64; PAGES];
/// Which of them.
pub type Set = [bool; PAGES];

/// What the guest has done and replied to.
#[derive(Clone, Copy, Debug)]
pub struct Transaction {
    /// Numbers grow.
    pub number: u64,
    /// Life of the guest.
    pub life: u32,
    /// Disk that was written.
    pub volume: usize,
    /// Writes of that disk that it depends on.
    pub position: usize,
}

/// The virtual machine of the first host.
#[derive(Debug, Default)]
pub struct Machine {
    /// Which guest: its life.
    pub life: u32,
    /// The process of the hypervisor is there.
    pub is_there: bool,
    /// The guest switched itself off.
    pub is_off: bool,
    /// Memory.
    pub pages: Pages,
    /// Pages that changed since they were collected.
    pub dirty: Set,
    /// It has begun, and nobody was beside it yet.
    pub(super) is_afresh: bool,
    is_running: bool,
    /// It is to stand still for a checkpoint.
    is_paused: bool,
    /// An operator has stopped it.
    pub(super) is_stopped: bool,
    /// Somebody let it run within a pause.
    is_disturbed: bool,
    /// It is to stand still, and requests are under way.
    draining: Option<(u32, Attempt)>,
    /// Orders are carried out one after the other.
    busy_until: u64,
    /// Answers of the disks that the guest has not seen.
    waiting: Vec<Transaction>,
}

impl World {
    /// A guest starts at the first host: fresh memory, and a checkpointer of its own.
    pub fn machine_starts(&mut self) {
        if !self.memory.on {
            return;
        }
        let number = self.memory.number();
        self.memory.machine = Machine {
            life: self.guest.life,
            is_there: true,
            pages: [number; PAGES],
            is_afresh: true,
            is_running: true,
            ..Machine::default()
        };
        self.guest.paused = false;
        self.guest_begins();
        self.checkpointer_dies();
        self.after(MS / 10, Event::Memory(Step::CheckpointerStarts));
    }

    /// The hypervisor is gone, and the guest with it.
    pub fn machine_stops(&mut self) {
        if !self.memory.on || !self.memory.machine.is_there {
            return;
        }
        say!(self, "the hypervisor is gone");
        let machine = &mut self.memory.machine;
        (machine.is_there, machine.is_running) = (false, false);
        machine.waiting.clear();
        machine.draining = None;
        if self.guest.lives_on == Some(0) {
            self.guest.lives_on = None;
            self.guest.life += 1;
            self.guest.paused = false;
        }
        let why = "its process has ended".to_owned();
        self.tell_after(MS, Told::HypervisorEnded(why));
    }

    /// An operator starts the guest of the first host anew, if it is gone.
    pub(super) fn machine_is_started(&mut self) {
        let is_free = self.guest.lives_on.is_none() && self.oracle.promoted.is_none();
        if self.hosts[0].up && is_free {
            self.guest_starts(0);
        }
    }

    /// A request of the guest was answered: perhaps a transaction is done, perhaps the last request before a pause.
    pub fn memory_sees_reply(&mut self, request: &Outstanding, is_done: bool) {
        if !self.memory.on || self.guest.lives_on != Some(0) {
            return;
        }
        let is_mine = is_done && request.host == 0 && request.life == self.guest.life;
        let history = &self.oracle.volumes[request.volume];
        let position = match request.ask {
            Ask::Flush => Some(history.answered_position(request.submitted)),
            Ask::Write { fua: true, .. } => request.step.map(|step| step + 1),
            _ => None,
        };
        if let Some(position) = position.filter(|_| is_mine) {
            let transaction = Transaction {
                number: 0,
                life: request.life,
                volume: request.volume,
                position,
            };
            if self.memory.machine.is_running {
                self.transact(transaction);
            } else {
                self.memory.machine.waiting.push(transaction);
            }
        }
        self.look_at_drain();
    }

    fn transact(&mut self, transaction: Transaction) {
        let number = self.memory.number();
        let machine = &mut self.memory.machine;
        let page = usize::try_from(number).expect("few") % PAGES;
        machine.pages[page] = number;
        machine.dirty[page] = true;
        self.guest_says(Transaction {
            number,
            ..transaction
        });
    }

    fn look_at_drain(&mut self) {
        let Some((life, attempt)) = self.memory.machine.draining else {
            return;
        };
        let mut open = self.guest.outstanding.values();
        if open.any(|o| o.host == 0) {
            return;
        }
        self.memory.machine.draining = None;
        say!(self, "the guest stands still: {:?}", self.moment());
        self.answer(life, Told::Paused(attempt, Ok(())));
    }

    /// An order for the hypervisor is on its way.
    pub(super) fn order_machine(&mut self, order: Order) {
        let most = if self.is_unlucky(16) { 8 * MS } else { MS / 4 };
        let at = self.now + self.rng.u64(20_000..most);
        let life = self.memory.checkpointer.life;
        let machine = &mut self.memory.machine;
        machine.busy_until = machine.busy_until.max(at);
        let (at, guest) = (machine.busy_until, machine.life);
        self.at(at, Event::Memory(Step::Machine { guest, life, order }));
    }

    /// The hypervisor carries it out.
    pub(super) fn machine_obeys(&mut self, guest: u32, life: u32, order: &Order) {
        let machine = &mut self.memory.machine;
        if machine.life != guest || !machine.is_there {
            return;
        }
        if machine.busy_until > self.now {
            // It hangs since.
            let (at, order) = (machine.busy_until, order.clone());
            self.at(at, Event::Memory(Step::Machine { guest, life, order }));
            return;
        }
        match *order {
            Order::Pause(attempt) if self.is_unlucky(100) => {
                self.answer(life, Told::Paused(attempt, Err("no".to_owned())));
            }
            Order::Pause(attempt) => {
                self.memory.machine.is_paused = true;
                self.stand_still();
                self.memory.machine.draining = Some((life, attempt));
                self.look_at_drain();
            }
            Order::Resume(attempt) if self.is_unlucky(2000) => {
                self.answer(life, Told::Resumed(attempt, Err("no".to_owned())));
            }
            Order::Resume(attempt) => self.goes_on_for(life, attempt),
            Order::StopGuest => {
                self.memory.machine.is_stopped = true;
                self.stand_still();
            }
            _ => unreachable!("no order for a hypervisor"),
        }
    }

    fn stand_still(&mut self) {
        self.memory.machine.is_running = false;
        if self.guest.lives_on == Some(0) {
            self.guest.paused = true;
        }
    }

    fn goes_on_for(&mut self, life: u32, attempt: Attempt) {
        let was_disturbed = std::mem::take(&mut self.memory.machine.is_disturbed);
        self.memory.machine.is_paused = false;
        self.let_run();
        if self.memory.checkpointer.life != life || !self.memory.checkpointer.up {
            return;
        }
        // Its own answer the process does not lose, if the hypervisor does not hang.
        if was_disturbed {
            let part = Part::Memory;
            let why = "somebody let the guest run within a pause".to_owned();
            self.tell_sequence(Told::Lost { part, why });
        }
        self.tell_sequence(Told::Resumed(attempt, Ok(())));
        if was_disturbed && self.memory.checkpointer.session.is_some() {
            let has_base = self.memory.checkpointer.generation != 0;
            let part = Part::Memory;
            self.tell_sequence(Told::Back { part, has_base });
        }
    }

    /// The guest goes on, unless somebody else has stopped it.
    pub(super) fn let_run(&mut self) {
        let machine = &mut self.memory.machine;
        machine.draining = None;
        if machine.is_stopped || machine.is_off || !machine.is_there {
            return;
        }
        machine.is_running = true;
        if self.guest.lives_on == Some(0) {
            self.guest.paused = false;
        }
        for transaction in std::mem::take(&mut self.memory.machine.waiting) {
            self.transact(transaction);
        }
    }

    /// The guardian of a checkpointer that was killed.
    pub(super) fn guardian_acts(&mut self, guest: u32) {
        let machine = &self.memory.machine;
        if machine.life != guest || !machine.is_there || machine.is_running {
            return;
        }
        if machine.busy_until > self.now {
            let at = machine.busy_until;
            self.at(at, Event::Memory(Step::Guardian { guest }));
            return;
        }
        say!(self, "the guardian lets the guest go on");
        self.memory.machine.is_paused = false;
        self.let_run();
    }

    /// Whether the guest stands still.
    pub(super) fn stands_still(&self) -> bool {
        !self.memory.machine.is_running
    }

    /// The guest starts anew within its machine: another memory, and protection goes on.
    pub(super) fn guest_reboots(&mut self) {
        let number = self.memory.number();
        let machine = &mut self.memory.machine;
        if machine.is_running && machine.is_there {
            say!(self, "the guest reboots");
            machine.pages = [number; PAGES];
            machine.dirty = [true; PAGES];
            machine.waiting.clear();
        }
    }

    /// The guest switches itself off.
    pub(super) fn guest_goes_off(&mut self) {
        let machine = &mut self.memory.machine;
        if !machine.is_running || !machine.is_there || self.guest.lives_on != Some(0) {
            return;
        }
        say!(self, "the guest switches itself off");
        (machine.is_running, machine.is_off) = (false, true);
        self.guest.lives_on = None;
        self.guest.life += 1;
        self.tell_after(MS, Told::GuestOff);
        // Whoever wants it again starts it, whatever became of its end.
        let again = self.rng.u64(60 * MS..120 * MS);
        self.after(again, Event::Memory(Step::MachineStarts));
    }

    /// The hypervisor does nothing for a while.
    pub(super) fn machine_hangs(&mut self, ns: u64) {
        let machine = &mut self.memory.machine;
        machine.busy_until = machine.busy_until.max(self.now + ns);
    }

    /// Somebody types `stop`.
    pub(super) fn operator_stops(&mut self) {
        self.memory.machine.is_stopped = true;
        self.stand_still();
    }

    /// Somebody types `cont`; within a pause that is not his, too.
    pub(super) fn operator_conts(&mut self) {
        let machine = &mut self.memory.machine;
        machine.is_stopped = false;
        if !machine.is_running && machine.is_there && !machine.is_off {
            machine.is_disturbed = machine.is_paused;
            say!(self, "somebody lets the guest go on");
            self.let_run();
        }
    }
}
