//! Connections: what is sent arrives in order, late, or not at all; the end of a connection is
//! told to a side or not.

use super::host::{Engine, Group, MEMORY_KEPT};
use super::plan::MS;
use super::world::{Event, World, say};
use blkback_proto::ids::SessionId;
use blkback_proto::link::{Frame, Hello, RefuseCode};
use blockrep::engine::Outgoing;
use blockrep::io::{HeapMemory, Memory};
use std::collections::VecDeque;

enum Message {
    Frame(Vec<u8>),
    Record(Vec<u8>),
    Eof,
}

/// One end of a connection.
struct Side {
    host: usize,
    boot: u32,
    /// What is on its way to this side.
    inbox: VecDeque<(u64, Message)>,
    last_at: u64,
    /// This side still uses the connection.
    open: bool,
}

/// A connection of a volume: side 0 is the primary's.
pub struct Conn {
    volume: usize,
    session: SessionId,
    sides: [Side; 2],
    /// Nothing sent from now on arrives.
    severed: bool,
}

impl World {
    /// A primary volume tries to connect.
    pub fn connect(&mut self, host: usize, volume: usize) {
        let boot = self.hosts[host].boot;
        let again = self.rng.u64(MS..30 * MS);
        self.after(again, Event::Connect { host, boot, volume });
        let peer = 1 - host;
        let wants = match &self.hosts[host].group {
            Group::Primary(group) => group.wants_links(),
            _ => false,
        };
        let slot = &self.hosts[host].slots[volume];
        let free = slot.conn.is_none() && matches!(slot.engine, Engine::Primary(_));
        if !wants || !free || !self.hosts[peer].up || self.now < self.partition_until {
            return;
        }
        let session = SessionId(self.rng.u64(1..));
        let side = |host: usize, boot: u32| Side {
            host,
            boot,
            inbox: VecDeque::new(),
            last_at: 0,
            open: true,
        };
        let sides = [side(host, boot), side(peer, self.hosts[peer].boot)];
        self.conns.push(Conn {
            volume,
            session,
            sides,
            severed: false,
        });
        self.hosts[host].slots[volume].conn = Some(self.conns.len() - 1);
        say!(
            self,
            "host {host} volume {volume} connects, session {session}"
        );
        self.drive(host, volume, |engine, now, _, fx| {
            let Engine::Primary(engine) = engine else {
                unreachable!("looked at just now")
            };
            engine.link_connected(now, session, fx);
        });
    }

    /// Something of an engine goes out.
    pub fn send(&mut self, host: usize, volume: usize, outgoing: Outgoing<HeapMemory>) {
        let Some(conn) = self.hosts[host].slots[volume].conn else {
            return;
        };
        let session = self.conns[conn].session;
        let message = match outgoing {
            Outgoing::Frame(frame) => {
                if !matches!(frame, Frame::Ping(_) | Frame::Pong(_)) {
                    say!(self, "host {host} volume {volume} sends {frame:?}");
                }
                let mut bytes = Vec::new();
                frame.encode(session, &mut bytes);
                Message::Frame(bytes)
            }
            Outgoing::Record(bufs) => {
                let mut bytes = Vec::with_capacity(bufs.iter().map(|b| b.as_ref().len()).sum());
                bufs.iter()
                    .for_each(|b| bytes.extend_from_slice(b.as_ref()));
                Message::Record(bytes)
            }
        };
        self.put(conn, self.side_of(conn, host), message);
    }

    fn side_of(&self, conn: usize, host: usize) -> usize {
        usize::from(self.conns[conn].sides[0].host != host)
    }

    /// Puts something on its way from `from` to the other side.
    fn put(&mut self, conn: usize, from: usize, message: Message) {
        let delay = self.rng.u64(10_000..150_000);
        let other = &mut self.conns[conn].sides[1 - from];
        other.last_at = other.last_at.max(self.now + delay);
        let at = other.last_at;
        if self.conns[conn].severed && !matches!(message, Message::Eof) {
            return;
        }
        self.conns[conn].sides[1 - from]
            .inbox
            .push_back((at, message));
        self.at(
            at,
            Event::Wire {
                conn,
                side: 1 - from,
            },
        );
    }

    /// A side ends the connection once everything it sent is out.
    pub fn close(&mut self, host: usize, volume: usize) {
        let Some(conn) = self.hosts[host].slots[volume].conn.take() else {
            return;
        };
        let side = self.side_of(conn, host);
        self.conns[conn].sides[side].open = false;
        self.put(conn, side, Message::Eof);
    }

    /// The host of a side died; a lost power tells nobody.
    pub fn conn_died(&mut self, conn: usize, host: usize, power: bool) {
        let side = self.side_of(conn, host);
        self.conns[conn].sides[side].open = false;
        self.lose_some(conn, 1 - side);
        if power {
            self.conns[conn].severed = true;
        } else {
            self.put(conn, side, Message::Eof);
        }
    }

    /// The network breaks a connection.
    pub fn sever(&mut self, conn: usize, silent: bool) {
        if self.conns[conn].severed {
            return;
        }
        self.conns[conn].severed = true;
        for side in 0..2 {
            self.lose_some(conn, side);
            if !silent {
                self.put(conn, 1 - side, Message::Eof);
            }
        }
    }

    /// The last part of what is on its way does not arrive.
    fn lose_some(&mut self, conn: usize, side: usize) {
        let inbox = &mut self.conns[conn].sides[side].inbox;
        let keep = self.rng.usize(..=inbox.len());
        inbox.truncate(keep);
    }

    /// Something arrives.
    pub fn wire(&mut self, conn: usize, side: usize) {
        loop {
            let end = &self.conns[conn].sides[side];
            let (host, volume) = (end.host, self.conns[conn].volume);
            if !end.open || !self.runs(host, end.boot) {
                return;
            }
            let Some((at, message)) = self.conns[conn].sides[side].inbox.front() else {
                return;
            };
            if *at > self.now {
                return;
            }
            let ready = match message {
                Message::Record(bytes) => self.has_room(host, volume, conn, bytes.len()),
                Message::Frame(_) => self.has_room(host, volume, conn, 0),
                Message::Eof => true,
            };
            if !ready {
                self.after(500_000, Event::Wire { conn, side });
                return;
            }
            let (_, message) = self.conns[conn].sides[side]
                .inbox
                .pop_front()
                .expect("seen");
            match message {
                Message::Frame(bytes) => match Frame::decode(&bytes) {
                    Ok((frame, session)) => self.frame(conn, host, volume, session, frame),
                    Err(error) => self.violated(format!("a frame does not decode: {error}")),
                },
                Message::Record(bytes) => self.record(conn, host, volume, &bytes),
                Message::Eof => {
                    self.conns[conn].sides[side].open = false;
                    self.lost(host, volume, conn);
                }
            }
        }
    }

    /// The engine can take more, and memory is left for what is first in its queue.
    fn has_room(&self, host: usize, volume: usize, conn: usize, bytes: usize) -> bool {
        let slot = &self.hosts[host].slots[volume];
        match &slot.engine {
            Engine::Backup(engine) if slot.conn == Some(conn) => {
                let left = self.plan.memory_bytes[host].saturating_sub(slot.memory.used());
                engine.can_receive() && (bytes == 0 || left >= bytes + MEMORY_KEPT)
            }
            _ => true,
        }
    }

    fn lost(&mut self, host: usize, volume: usize, conn: usize) {
        if self.hosts[host].slots[volume].conn != Some(conn) {
            return;
        }
        self.drive(host, volume, |engine, _, _, fx| {
            let reason = "the connection ended".to_owned();
            match engine {
                Engine::Primary(engine) => engine.link_lost(reason, fx),
                Engine::Backup(engine) => engine.link_lost(reason, fx),
                Engine::Off => {}
            }
        });
        // An engine that had no session has nothing to close.
        self.close(host, volume);
    }

    fn frame(&mut self, conn: usize, host: usize, volume: usize, session: SessionId, frame: Frame) {
        if let Frame::Hello(hello) = frame {
            self.hello(conn, host, volume, *hello);
            return;
        }
        if self.hosts[host].slots[volume].conn != Some(conn) {
            return;
        }
        self.oracle_sees_frame(host, volume, &frame);
        self.drive(host, volume, |engine, now, mem, fx| match engine {
            Engine::Primary(engine) => engine.link_frame(now, mem, session, frame, fx),
            Engine::Backup(engine) => engine.link_frame(now, mem, session, frame, fx),
            Engine::Off => {}
        });
    }

    /// The first frame of a connection: one session at a time, backups only.
    fn hello(&mut self, conn: usize, host: usize, volume: usize, hello: Hello) {
        let slot = &mut self.hosts[host].slots[volume];
        let refusal = match &slot.engine {
            Engine::Backup(engine) if !engine.has_session() && slot.conn.is_none() => None,
            Engine::Backup(_) => Some(RefuseCode::Busy),
            _ => Some(RefuseCode::Superseded),
        };
        if let Some(code) = refusal {
            let mut bytes = Vec::new();
            let frame = Frame::Refuse {
                code,
                text: "not now or never".to_owned(),
            };
            frame.encode(hello.session, &mut bytes);
            self.conns[conn].sides[1].open = false;
            self.put(conn, 1, Message::Frame(bytes));
            self.put(conn, 1, Message::Eof);
            return;
        }
        slot.conn = Some(conn);
        self.drive(host, volume, |engine, now, _, fx| {
            let Engine::Backup(engine) = engine else {
                unreachable!("looked at just now")
            };
            engine.link_hello(now, hello, fx);
        });
    }

    /// From now on the epochs of the backup are those of this start of the primary; not so of a session that is refused.
    pub(super) fn backup_follows(&mut self, volume: usize) {
        if let Some(conn) = self.hosts[1].slots[volume].conn {
            self.hosts[1].slots[volume].era = self.conns[conn].sides[0].boot;
        }
    }

    fn record(&mut self, conn: usize, host: usize, volume: usize, bytes: &[u8]) {
        let slot = &mut self.hosts[host].slots[volume];
        if slot.conn != Some(conn) {
            return;
        }
        let mut record = slot.memory.alloc(bytes.len()).expect("room was looked for");
        record.as_mut().copy_from_slice(bytes);
        self.drive(host, volume, |engine, now, mem, fx| {
            let Engine::Backup(engine) = engine else {
                unreachable!("backups receive records")
            };
            engine.link_record(now, mem, record, fx);
        });
    }
}
