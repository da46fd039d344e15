//! The guest: requests, and what it was told. It lives on the host that serves, and dies with it.

use super::host::{Engine, MEMORY_KEPT};
use super::model::{fill, ids};
use super::world::{Event, World, say};
use blkback_proto::ids::UNIT_BYTES;
use blockrep::io::{HeapMemory, Memory, Op, Reply, Request, RequestId};
use std::collections::BTreeMap;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Read.
    Read,
    /// Write, or zeroes and discards when `id` is 0.
    Write { id: u64, fua: bool },
    /// Flush.
    Flush,
}

/// A request that is not answered yet.
#[derive(Clone, Debug)]
pub struct Outstanding {
    /// Where it was sent.
    pub host: usize,
    /// Volume.
    pub volume: usize,
    /// What.
    pub ask: Ask,
    /// First sector and number of sectors.
    pub first: u64,
    /// See `first`.
    pub count: u64,
    /// When it was sent.
    pub submitted: u64,
    /// Step of the volume's history.
    pub step: Option<usize>,
    /// The engine handed it to the image.
    pub handed: bool,
    /// Life of the guest when it was sent.
    pub life: u32,
    /// What a read of a backup showed when it was sent.
    pub shows: Option<(usize, usize)>,
}

/// The guest.
pub struct Guest {
    /// Requests not answered, by number.
    pub outstanding: BTreeMap<u64, Outstanding>,
    /// Host it lives on; none: it is dead.
    pub lives_on: Option<usize>,
    /// Counts its lives.
    pub life: u32,
    /// It stands still.
    pub paused: bool,
    /// It asks for nothing more.
    pub silent: bool,
    next: u64,
    volumes: usize,
}

impl Guest {
    /// A guest that is not there yet.
    #[must_use]
    pub fn new(volumes: usize) -> Self {
        let outstanding = BTreeMap::new();
        Self {
            outstanding,
            lives_on: None,
            life: 0,
            paused: false,
            silent: false,
            next: 0x1000,
            volumes,
        }
    }

    /// A number for a request or for contents.
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn busy(&self, volume: usize) -> usize {
        let mine = |o: &&Outstanding| o.volume == volume && Some(o.host) == self.lives_on;
        self.outstanding.values().filter(mine).count()
    }
}

impl World {
    /// A guest starts on a host.
    pub fn guest_starts(&mut self, host: usize) {
        self.guest.lives_on = Some(host);
        self.guest.life += 1;
        let boot = self.guest.life;
        for volume in 0..self.guest.volumes {
            self.after(1000, Event::Guest { boot, volume });
        }
        if host == 0 {
            self.machine_starts();
        }
    }

    /// A host died, and who had requests there.
    pub fn guest_dies(&mut self, host: usize) {
        self.guest.outstanding.retain(|_, o| o.host != host);
        if self.guest.lives_on == Some(host) {
            self.guest.lives_on = None;
            self.guest.life += 1;
        }
    }

    /// The guest may ask for something; somebody may read the backup.
    pub fn guest_acts(&mut self, life: u32, volume: usize) {
        let Some(host) = self.guest.lives_on.filter(|_| life == self.guest.life) else {
            return;
        };
        if self.guest.silent {
            return;
        }
        let think = self.plan.think_ns;
        let pause = self.rng.u64(think / 4..think * 2);
        self.after(pause, Event::Guest { boot: life, volume });
        if self.rng.u8(..8) == 0 && host == 0 && self.hosts[1].up {
            self.ask(1, volume, Ask::Read);
        }
        if self.guest.paused {
            return;
        }
        if self.guest.busy(volume) >= self.plan.depth {
            return;
        }
        let ask = match self.rng.u8(..100) {
            n if n < self.plan.reads => Ask::Read,
            n if n < self.plan.reads + 8 => Ask::Flush,
            n => {
                let id = if n > 90 { 0 } else { self.guest.number() };
                Ask::Write {
                    id,
                    fua: self.rng.u8(..8) == 0,
                }
            }
        };
        self.ask(host, volume, ask);
    }

    fn place(&mut self, volume: usize) -> (u64, u64) {
        let sectors = self.oracle.volumes[volume].sectors as u64;
        let count = match self.rng.u8(..4) {
            0 => 1,
            1 => self.rng.u64(1..=self.plan.write_sectors.min(8)),
            _ => self.rng.u64(1..=self.plan.write_sectors),
        };
        let hot = self.plan.hot_sectors.min(sectors);
        let within = if self.rng.u8(..4) == 0 {
            sectors
        } else {
            hot.max(count).min(sectors)
        };
        let count = count.min(within);
        (self.rng.u64(0..=within - count), count)
    }

    /// Sends a request.
    pub fn ask(&mut self, host: usize, volume: usize, ask: Ask) {
        let (first, count) = self.place(volume);
        self.ask_at(host, volume, ask, first, count);
    }

    /// Sends a request for that range; gives its number unless memory is short.
    pub fn ask_at(
        &mut self,
        host: usize,
        volume: usize,
        ask: Ask,
        first: u64,
        count: u64,
    ) -> Option<u64> {
        let offset = first * UNIT_BYTES;
        let length = count * UNIT_BYTES;
        let limit = self.plan.memory_bytes[host];
        let slot = &mut self.hosts[host].slots[volume];
        let bytes = usize::try_from(length).expect("small");
        if limit < slot.memory.used() + bytes + MEMORY_KEPT {
            return None;
        }
        let shows = slot.shows;
        let request = match ask {
            Ask::Read => Request::Read {
                offset,
                buf: slot.memory.alloc(bytes)?,
            },
            Ask::Flush => Request::Flush,
            Ask::Write { id: 0, fua } => Request::Zero {
                offset,
                length,
                discard: self.rng.bool(),
                fua,
            },
            Ask::Write { id, fua } => {
                let mut buf = slot.memory.alloc(bytes)?;
                fill(buf.as_mut(), first, id);
                Request::Write {
                    offset,
                    buf: slot.memory.freeze(buf),
                    fua,
                }
            }
        };
        let number = self.guest.number();
        let serving = matches!(slot.engine, Engine::Backup(_)) && self.oracle.serves(host);
        let mut new = Outstanding {
            host,
            volume,
            ask,
            first,
            count,
            submitted: self.now,
            step: None,
            handed: false,
            life: self.guest.life,
            shows,
        };
        if let (true, Ask::Write { id, .. }) = (serving, ask) {
            // A promoted side takes them in the order they come.
            let now = self.now;
            new.step = Some(self.oracle.volumes[volume].stamp(first, count, id, now));
        }
        say!(
            self,
            "host {host} volume {volume} asked {number}: {ask:?} {first}+{count}"
        );
        self.guest.outstanding.insert(number, new);
        self.drive(host, volume, |engine, now, mem, fx| {
            let id = RequestId(number);
            match engine {
                Engine::Primary(engine) => engine.request(now, mem, id, request, fx),
                Engine::Backup(engine) => engine.request(now, mem, id, request, fx),
                Engine::Off => {}
            }
        });
        Some(number)
    }

    /// An engine hands something to an image: on a primary this is the stamp.
    pub fn oracle_sees_io(&mut self, host: usize, volume: usize, op: &Op<HeapMemory>) {
        use blockrep::io::Target;
        if !matches!(self.hosts[host].slots[volume].engine, Engine::Primary(_)) {
            return;
        }
        let (offset, length, id) = match op {
            Op::Write {
                target: Target::Image,
                offset,
                bufs,
            } => {
                let buf = bufs.as_slice()[0].as_ref();
                let id = ids(buf, offset / UNIT_BYTES).next().expect("not empty");
                (*offset, buf.len() as u64, id)
            }
            Op::Zero { offset, length } | Op::Discard { offset, length } => (*offset, *length, 0),
            _ => return,
        };
        let (first, count) = (offset / UNIT_BYTES, length / UNIT_BYTES);
        let found = self.guest.outstanding.values_mut().find(|o| {
            let same = matches!(o.ask, Ask::Write { id: asked, .. } if asked == id);
            let place = (o.volume, o.first, o.count) == (volume, first, count);
            o.host == host && !o.handed && same && place
        });
        match found {
            Some(request) => {
                request.handed = true;
                if request.step.is_none() && self.oracle.serves(host) {
                    let history = &mut self.oracle.volumes[volume];
                    request.step = Some(history.stamp(first, count, id, request.submitted));
                }
            }
            None if !self.oracle.serves(host) => {}
            None => self.violated(format!(
                "volume {volume}: a write at {first} nobody asked for"
            )),
        }
    }

    /// A request is answered.
    pub fn guest_reply(&mut self, host: usize, volume: usize, reply: Reply<HeapMemory>) {
        let Some(request) = self.guest.outstanding.remove(&reply.id.0) else {
            if self.oracle.serves(host) {
                self.violated(format!("request {} was answered twice", reply.id.0));
            }
            return;
        };
        self.stats.replies += 1;
        say!(
            self,
            "host {host} volume {volume} answers {} {:?}",
            reply.id.0,
            reply.result
        );
        if reply.result.is_ok() {
            match request.ask {
                Ask::Read => {
                    let buf = reply.buf.expect("a read that succeeded brings its buffer");
                    self.check_read(&request, buf.as_ref());
                }
                Ask::Write { fua, .. } => self.check_write(&request, fua),
                Ask::Flush => self.check_flush(&request),
            }
        }
        self.memory_sees_reply(&request, reply.result.is_ok());
    }
}
