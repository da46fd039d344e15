//! Reads of the committed view: the overlay over the image.

use super::{BackupVolume, Io, Mode};
use crate::engine::Effect;
use crate::io::{Done, IoError, Memory, Op, RequestId, Target};
use crate::overlay::{Piece, Source};

/// A guest's read that is put together from pieces.
pub(super) struct GuestRead<M: Memory> {
    request: RequestId,
    offset: u64,
    buf: Option<M::BufMut>,
    pieces: Vec<Piece>,
    parts: Vec<Option<M::BufMut>>,
    left: usize,
    result: Result<(), IoError>,
}

/// Part number of the read that fills the whole buffer from the image.
const WHOLE: usize = usize::MAX;

impl<M: Memory> BackupVolume<M> {
    pub(super) fn guest_read(
        &mut self,
        id: RequestId,
        offset: u64,
        buf: M::BufMut,
        fx: &mut Vec<Effect<M>>,
    ) {
        self.counters.reads += 1;
        self.counters.read_bytes += buf.as_ref().len() as u64;
        if self.is_inconsistent() && !matches!(self.mode, Mode::Serving) {
            self.reply(id, Err(IoError { errno: libc::EIO }), None, fx);
            return;
        }
        self.read_queue.push_back((id, offset, buf));
    }

    pub(super) fn advance_reads(&mut self, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        while let Some((id, offset, buf)) = self.read_queue.pop_front() {
            if let Err(buf) = self.start_read(mem, id, offset, buf, fx) {
                self.read_queue.push_front((id, offset, buf));
                return;
            }
        }
    }

    fn start_read(
        &mut self,
        mem: &mut M,
        request: RequestId,
        offset: u64,
        buf: M::BufMut,
        fx: &mut Vec<Effect<M>>,
    ) -> Result<(), M::BufMut> {
        let mut pieces = Vec::new();
        self.overlay
            .lookup(offset, buf.as_ref().len() as u64, &mut pieces);
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            parts.push(match piece.source {
                Some(Source::Journal(_)) => {
                    let length = usize::try_from(piece.length).expect("inside a buffer");
                    match mem.alloc(length) {
                        Some(part) => Some(part),
                        None => return Err(buf),
                    }
                }
                Some(Source::Zero { .. }) | None => None,
            });
        }
        let from_image = pieces.iter().any(|p| p.source.is_none());
        let from_journal = parts.iter().flatten().count();
        let read = self.reads.insert(GuestRead {
            request,
            offset,
            buf: None,
            pieces,
            parts: Vec::new(),
            left: from_journal + usize::from(from_image),
            result: Ok(()),
        });
        for (part, slot) in parts.iter_mut().enumerate() {
            let Some(buf) = slot.take() else { continue };
            let Some(Source::Journal(place)) = self.reads[read].pieces[part].source else {
                unreachable!("only journal pieces have a buffer")
            };
            *self.pins.entry(place.serial).or_default() += 1;
            let target = Target::Segment(self.settings.geometry.file_of(place.serial));
            let op = Op::Read {
                target,
                offset: place.offset,
                buf,
            };
            self.io(Io::Guest { read, part }, op, fx);
        }
        self.reads[read].parts = parts;
        if from_image {
            let op = Op::Read {
                target: Target::Image,
                offset,
                buf,
            };
            self.io(Io::Guest { read, part: WHOLE }, op, fx);
        } else {
            self.reads[read].buf = Some(buf);
            if self.reads[read].left == 0 {
                self.finish_read(read, fx);
            }
        }
        Ok(())
    }

    pub(super) fn guest_read_done(
        &mut self,
        read: usize,
        part: usize,
        done: Done<M>,
        fx: &mut Vec<Effect<M>>,
    ) {
        let state = &mut self.reads[read];
        if done.result.is_err() {
            state.result = done.result;
        }
        if part == WHOLE {
            state.buf = done.buf;
        } else {
            state.parts[part] = done.buf;
            if let Some(Source::Journal(place)) = state.pieces[part].source {
                self.unpin(place.serial);
            }
        }
        let state = &mut self.reads[read];
        state.left -= 1;
        if state.left == 0 {
            self.finish_read(read, fx);
        }
    }

    fn unpin(&mut self, serial: u64) {
        let count = self
            .pins
            .get_mut(&serial)
            .expect("pinned when the read began");
        *count -= 1;
        if *count == 0 {
            self.pins.remove(&serial);
            self.free_segments();
        }
    }

    fn finish_read(&mut self, read: usize, fx: &mut Vec<Effect<M>>) {
        let state = self.reads.remove(read);
        if state.result.is_err() {
            self.reply(state.request, state.result, None, fx);
            return;
        }
        let mut buf = state.buf.expect("filled, or never read");
        let bytes = buf.as_mut();
        for (piece, part) in state.pieces.iter().zip(&state.parts) {
            let start = usize::try_from(piece.offset - state.offset).expect("inside a buffer");
            let length = usize::try_from(piece.length).expect("inside a buffer");
            let to = &mut bytes[start..start + length];
            match (piece.source, part) {
                (Some(Source::Journal(_)), Some(part)) => to.copy_from_slice(part.as_ref()),
                (Some(Source::Zero { .. }), _) => to.fill(0),
                _ => {}
            }
        }
        self.reply(state.request, Ok(()), Some(buf), fx);
    }
}
