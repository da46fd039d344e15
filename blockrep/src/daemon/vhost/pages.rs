//! Requests of control clients about the record of guest pages.

use super::record::Record;
use crate::daemon::thread::{Mail, VolumeThread};
use blkback_proto::ctl::{
    Answer, ErrorCode, MemoryPart, PagesArmAnswer, PagesDisarmAnswer, PagesTakeRequest, Request,
};
use blockrep_host::ctl::ReplyHandle;

impl VolumeThread {
    /// Answers here, or hands on to the thread of the volume that is meant.
    pub(in crate::daemon) fn pages(&mut self, request: Request, reply: ReplyHandle) {
        let volume = match &request {
            Request::PagesArm(request) => request.volume.as_deref(),
            Request::PagesTake(request) => request.volume.as_deref(),
            Request::PagesDisarm(request) => request.volume.as_deref(),
            _ => unreachable!("asked for these only"),
        };
        match self.volume_meant(volume) {
            Err(text) => reply.error(ErrorCode::Refused, text),
            Ok(index) if index == self.about.index => self.pages_here(request, reply),
            Ok(index) => {
                // Without the thread the handle is dropped, which answers with an error.
                let _ = self.peers[index].try_send(Mail::Control(request, reply));
            }
        }
    }

    fn volume_meant(&self, name: Option<&str>) -> Result<usize, String> {
        let names = || {
            let names: Vec<&str> = self.exports.iter().map(|export| export.name()).collect();
            names.join(", ")
        };
        match name {
            None if self.exports.len() == 1 => Ok(0),
            None => Err(format!(
                "which volume: say --volume with one of {}",
                names()
            )),
            Some(name) => self
                .exports
                .iter()
                .position(|export| export.name() == name)
                .ok_or_else(|| format!("no volume is called {name:?}: there is {}", names())),
        }
    }

    fn pages_here(&mut self, request: Request, reply: ReplyHandle) {
        let volume = self.exports[self.about.index].name();
        let Some(rings) = &mut self.rings else {
            let text = format!(
                "volume {volume} is not served by vhost-user: start the daemon with --vhost-user"
            );
            reply.error(ErrorCode::Refused, text);
            return;
        };
        match request {
            Request::PagesArm(_) => match rings.arm() {
                Ok(record) => reply.ok(Answer::PagesArm(PagesArmAnswer {
                    record: record.id().to_owned(),
                    regions: record.regions().to_vec(),
                })),
                Err(error) => reply.error(ErrorCode::Refused, error.to_string()),
            },
            Request::PagesDisarm(_) => {
                let was_armed = rings.disarm();
                reply.ok(Answer::PagesDisarm(PagesDisarmAnswer { was_armed }));
            }
            Request::PagesTake(PagesTakeRequest {
                record,
                turn,
                from_page,
                ..
            }) => match rings.take(&record, turn, from_page) {
                Some(Ok(answer)) => reply.ok(Answer::PagesTake(answer)),
                Some(Err(error)) => reply.error(ErrorCode::Refused, error.to_string()),
                None => {
                    let text = format!(
                        "no record of guest pages is kept for volume {volume}: type `blockrepctl pages \
                         arm`, then compare everything"
                    );
                    reply.error(ErrorCode::Refused, text);
                }
            },
            _ => unreachable!("asked for these only"),
        }
    }

    /// What the record takes of memory, while one is kept.
    pub(in crate::daemon) fn record_part(&self) -> Option<MemoryPart> {
        let record = self.rings.as_ref()?.record.as_ref()?;
        Some(MemoryPart {
            name: format!("volume {}: record of guest pages", self.about.index),
            bytes_max: Record::bytes_max(record),
        })
    }
}
