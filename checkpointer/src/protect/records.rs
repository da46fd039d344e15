//! Pages that a vhost-user disk writes into the guest's memory through a mapping of its own: no tracker sees those,
//! so the disks' daemon remembers them, turn by turn (PROTOCOL.md §2, "Record of guest pages").

use crate::hypervisor::qemu::ram::Layout;
use crate::memory::dirty::Pages;
use blkback_proto::ctl::{
    Answer, DriveRequest, ErrorCode, PagesArmRequest, PagesTakeRequest, Request,
};
use blockrep_host::ctl::{Client, ClientError};
use std::path::PathBuf;
use std::time::Duration;

const NAME: &str = concat!("checkpointer ", env!("CARGO_PKG_VERSION"));
/// Within a pause.
const LIMIT: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Record {
    volume: String,
    record: String,
    turn: u64,
}

/// The records of all volumes that are served by vhost-user.
#[derive(Debug)]
pub(super) struct Records {
    control: Option<PathBuf>,
    client: Option<Client>,
    records: Vec<Record>,
}

impl Records {
    /// `control` is the socket of the disks' daemon, if there is one.
    #[must_use]
    pub(super) fn new(control: Option<PathBuf>) -> Self {
        Self {
            control,
            client: None,
            records: Vec::new(),
        }
    }

    /// Begins records of all volumes that write the guest's memory themselves; before any page is copied.
    ///
    /// # Errors
    /// The daemon does not answer, or keeps no record, one line.
    pub(super) fn arm(&mut self) -> Result<(), String> {
        self.records.clear();
        let Some(control) = &self.control else {
            return Ok(());
        };
        let told = |e: ClientError| e.to_string();
        let mut client = Client::connect(control, NAME, LIMIT).map_err(told)?;
        let request = Request::Drive(DriveRequest::default());
        let Answer::Drive(standing) = client.request(&request, LIMIT).map_err(told)? else {
            return Err("the disks' daemon answered something else".to_owned());
        };
        for volume in standing.volumes {
            let request = Request::PagesArm(PagesArmRequest {
                volume: Some(volume.clone()),
            });
            match client.request(&request, LIMIT) {
                Ok(Answer::PagesArm(armed)) => self.records.push(Record {
                    volume,
                    record: armed.record,
                    turn: 0,
                }),
                // Served by NBD alone: QEMU writes those pages, and its tracker sees them.
                Err(ClientError::Daemon(reply))
                    if reply.code == ErrorCode::Refused && is_not_served(&reply.message) => {}
                Err(error) => return Err(error.to_string()),
                Ok(_) => return Err("the disks' daemon answered something else".to_owned()),
            }
        }
        self.client = Some(client);
        Ok(())
    }

    /// Adds what was written since the last time; the guest stands still.
    ///
    /// # Errors
    /// Something may be missing: everything has to be copied anew.
    pub(super) fn take(&mut self, layout: &Layout, pages: &mut Pages) -> Result<(), String> {
        for record in &mut self.records {
            let client = self
                .client
                .as_mut()
                .ok_or("no record of the disks' pages is kept")?;
            record.turn += 1;
            take_turn(client, record, layout, pages)?;
        }
        Ok(())
    }
}

fn is_not_served(message: &str) -> bool {
    message.contains("not served by vhost-user")
}

fn take_turn(
    client: &mut Client,
    record: &Record,
    layout: &Layout,
    pages: &mut Pages,
) -> Result<(), String> {
    let mut from_page = 0;
    loop {
        let request = Request::PagesTake(PagesTakeRequest {
            volume: Some(record.volume.clone()),
            record: record.record.clone(),
            turn: record.turn,
            from_page,
        });
        let taken = match client.request(&request, LIMIT) {
            Ok(Answer::PagesTake(taken)) => taken,
            Ok(_) => return Err("the disks' daemon answered something else".to_owned()),
            Err(error) => return Err(format!("pages that {} wrote: {error}", record.volume)),
        };
        if !taken.complete {
            let why = taken.reason.unwrap_or_default();
            return Err(format!(
                "pages that {} wrote are not all known: {why}",
                record.volume
            ));
        }
        layout.insert_guest_runs(&taken.regions, &taken.runs, pages)?;
        match taken.next_page {
            Some(next) if next > from_page => from_page = next,
            Some(_) => return Err("a turn of pages that does not end".to_owned()),
            None => return Ok(()),
        }
    }
}
