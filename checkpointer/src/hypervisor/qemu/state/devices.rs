//! Device state by `xen-save-devices-state`, into a file in memory that is used again and again.
//!
//! QEMU has the file as a descriptor set: it needs no path that its user or confinement may open. Each save
//! truncates it and writes at the descriptor's place, which both processes share; so that is set back before.

use super::super::{Error, Qemu, Ticket};
use super::STATE_BYTES_MAX;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::json;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

#[derive(Debug)]
pub(super) struct DeviceFile {
    reader: File,
    /// What QEMU writes to. A set gives its descriptor for writing only to who wants to write only.
    writer: File,
    set: u64,
}

impl DeviceFile {
    pub(super) fn new(qemu: &mut Qemu) -> Result<Self, Error> {
        let memory = memfd_create("blockrep-state", MemfdFlags::CLOEXEC);
        let memory = memory.map_err(|e| Error::io("a file in memory")(e.into()))?;
        let reader = File::from(memory);
        let again = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let writer = File::options().write(true).open(&again);
        let writer = writer.map_err(Error::io(again))?;
        let limit = qemu.limits().ask;
        let qmp = qemu.qmp();
        let ticket = qmp.begin("add-fd", Some(json!({})), Some(writer.as_fd()))?;
        let answer = qmp.finish(ticket, limit)?;
        let set = answer["fdset-id"].as_u64().ok_or_else(|| Error::Refused {
            command: "add-fd",
            why: "no set for a descriptor".to_owned(),
        })?;
        Ok(Self {
            reader,
            writer,
            set,
        })
    }

    pub(super) fn begin(&self, qemu: &mut Qemu) -> Result<Ticket, Error> {
        let start = (&self.writer).seek(SeekFrom::Start(0));
        start.map_err(Error::io("a file in memory"))?;
        let arguments = json!({"filename": format!("/dev/fdset/{}", self.set), "live": false});
        qemu.qmp()
            .begin("xen-save-devices-state", Some(arguments), None)
    }

    pub(super) fn read(&self, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let meta = self.reader.metadata();
        let size = meta.map_err(Error::io("a file in memory"))?.len();
        if size > STATE_BYTES_MAX {
            return Err(Error::Unfit(format!(
                "{size} bytes of device state; at most {STATE_BYTES_MAX} can be kept"
            )));
        }
        bytes.resize(usize::try_from(size).expect("at most 64 MiB"), 0);
        let read = self.reader.read_exact_at(bytes, 0);
        read.map_err(Error::io("a file in memory"))
    }
}
