//! Commands that are typed to a daemon.

use super::args::{AnnounceArgs, Command, EventsArgs, StatusArgs};
use super::failure::Failure;
use super::render;
use crate::netlink::Netlink;
use crate::script;
use blkback_proto::ctl::{
    Answer, EventBody, EventsAnswer, Lost, NetAnnounceRequest, NetAttachRequest, NetDetachRequest,
    NetDone, NetEpochRequest, NetHoldRequest, NetLineageRequest, NetResyncRequest, NetStation,
    NetStatusRequest, Request,
};
use blockrep_host::ctl::Client;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// How long one wait for the next event takes; then the next one begins.
const WAIT: Duration = Duration::from_secs(60);

pub(super) fn run(
    control: &Path,
    timeout: Duration,
    command: &Command,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let name = concat!("netbuf ", env!("CARGO_PKG_VERSION"));
    let mut client = Client::connect(control, name, timeout)?;
    match command {
        Command::Status(args) => return status(&mut client, args, timeout, out),
        Command::Events(args) => return events(client, args, out),
        _ => {}
    }
    for request in requests(command) {
        let answer = client.request(&request, timeout)?;
        if let Some(done) = done_of(&answer) {
            render::done(&request, done, out)?;
        }
    }
    Ok(())
}

fn requests(command: &Command) -> Vec<Request> {
    match command {
        Command::Attach(args) => {
            let attach = |device: &String| {
                Request::NetAttach(NetAttachRequest {
                    guest: args.guest.clone(),
                    interface: device.clone(),
                    bridge: args.bridge.clone(),
                })
            };
            args.devices.iter().map(attach).collect()
        }
        Command::Detach(args) => {
            let detach = |device: &String| {
                Request::NetDetach(NetDetachRequest {
                    guest: args.guest.clone(),
                    interface: device.clone(),
                })
            };
            args.devices.iter().map(detach).collect()
        }
        Command::Cut(args) => vec![Request::NetCut(NetEpochRequest {
            guest: args.guest.clone(),
            epoch: args.epoch,
        })],
        Command::Release(args) => vec![Request::NetRelease(NetEpochRequest {
            guest: args.guest.clone(),
            epoch: args.epoch,
        })],
        Command::Hold(args) => vec![Request::NetHold(NetHoldRequest {
            guest: args.guest.clone(),
            reason: args.reason.clone(),
        })],
        Command::Authority(args) => vec![Request::NetAuthority(NetLineageRequest {
            guest: args.guest.clone(),
            lineage: args.lineage.clone(),
        })],
        Command::Open(args) => vec![Request::NetOpen(NetLineageRequest {
            guest: args.guest.clone(),
            lineage: args.lineage.clone(),
        })],
        Command::Resync(args) => vec![Request::NetResync(NetResyncRequest {
            guest: args.guest.clone(),
            epoch: args.epoch,
            paused: args.paused,
            committed: args.committed,
        })],
        Command::Announce(args) => vec![announce(args)],
        Command::Run(_) | Command::Cleanup(_) | Command::Status(_) | Command::Events(_) => {
            Vec::new()
        }
    }
}

fn announce(args: &AnnounceArgs) -> Request {
    Request::NetAnnounce(NetAnnounceRequest {
        guest: args.guest.clone(),
        stations: vec![NetStation {
            interface: args.interface.clone(),
            mac: args.mac.clone(),
            addresses: args.addresses.clone(),
            vlan: args.vlan,
        }],
    })
}

fn done_of(answer: &Answer) -> Option<&NetDone> {
    match answer {
        Answer::NetAttach(done)
        | Answer::NetDetach(done)
        | Answer::NetCut(done)
        | Answer::NetRelease(done)
        | Answer::NetHold(done)
        | Answer::NetAuthority(done)
        | Answer::NetOpen(done)
        | Answer::NetResync(done)
        | Answer::NetAnnounce(done) => Some(done),
        _ => None,
    }
}

fn status(
    client: &mut Client,
    args: &StatusArgs,
    timeout: Duration,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let request = Request::NetStatus(NetStatusRequest {
        guest: args.guest.clone(),
    });
    if args.json {
        let json = client.request_json(&request, timeout)?;
        writeln!(out, "{json}")?;
        return Ok(());
    }
    if let Answer::NetStatus(status) = client.request(&request, timeout)? {
        render::status(&status, out)?;
    }
    // No daemon knows of these; the kernel does.
    let libxls = Netlink::open().and_then(|mut netlink| script::lines(&mut netlink));
    if let (Ok(lines), None) = (libxls, &args.guest) {
        for line in lines {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

fn events(mut client: Client, args: &EventsArgs, out: &mut dyn Write) -> Result<(), Failure> {
    if args.follow {
        let (answer, mut stream) = client.follow(args.from)?;
        write_events(answer, args.json, out)?;
        loop {
            // What was printed must be seen before the wait for more.
            out.flush()?;
            if let Some(body) = stream.next_within(WAIT)? {
                write_event(&body, args.json, out)?;
            }
        }
    }
    let mut from = args.from;
    loop {
        let answer = client.events(from)?;
        let (more, next_seq) = (answer.more, answer.next_seq);
        write_events(answer, args.json, out)?;
        if !more {
            return Ok(());
        }
        from = next_seq;
    }
}

fn write_events(answer: EventsAnswer, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if answer.lost > 0 {
        let next_seq = answer.next_seq - answer.events.len() as u64;
        let count = answer.lost;
        write_event(&EventBody::Lost(Lost { count, next_seq }), json, out)?;
    }
    for event in answer.events {
        write_event(&EventBody::Event(event), json, out)?;
    }
    Ok(())
}

fn write_event(body: &EventBody, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    match body {
        EventBody::Event(event) if json => {
            writeln!(out, "{}", serde_json::to_string(event).expect("plain data"))?
        }
        EventBody::Lost(_) if json => {
            writeln!(out, "{}", serde_json::to_string(body).expect("plain data"))?
        }
        EventBody::Event(event) => writeln!(out, "{}", render::event(event))?,
        EventBody::Lost(lost) => writeln!(out, "({} events no longer kept)", lost.count)?,
    }
    Ok(())
}
