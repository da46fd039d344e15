//! What the guest says: its devices here, and what is announced of it.

use super::super::place::Place;
use super::super::{Output, raw};
use super::{Checked, INTERFACES_MAX, absolute};
use blkback_proto::ctl::{NET_ADDRESSES_MAX, NET_DEVICE_BYTES_MAX, NetStation};
use std::net::IpAddr;

pub(super) fn output(raw: Option<raw::Output>, place: &Place<'_>) -> Checked<Output> {
    const INTERFACES: &str = "write interfaces = [\"tap0\"] under [output], or interfaces = [] for a guest without a network";
    let Some(raw) = raw else {
        return Err(place.at(
            &["output"],
            format!("what the guest says has no place; {INTERFACES}"),
        ));
    };
    let path = ["output", "interfaces"];
    let Some(interfaces) = raw.interfaces else {
        return Err(place.at(&path, format!("interfaces is missing; {INTERFACES}")));
    };
    if interfaces.len() > INTERFACES_MAX {
        let what = format!(
            "{} interfaces are too many; write at most {INTERFACES_MAX}",
            interfaces.len()
        );
        return Err(place.at(&path, what));
    }
    for (at, name) in interfaces.iter().enumerate() {
        device(place, &path, name)?;
        if interfaces[..at].contains(name) {
            return Err(place.at(&path, format!("{name} stands there twice; write it once")));
        }
    }
    if let Some(bridge) = &raw.bridge {
        device(place, &["output", "bridge"], bridge)?;
    }
    stations(&raw.stations, place)?;
    let control = raw
        .control
        .unwrap_or_else(|| "/run/blockrep/netbuf.sock".into());
    Ok(Output {
        control: absolute(place, &["output", "control"], &control)?,
        interfaces,
        bridge: raw.bridge,
        stations: raw.stations,
        is_held: raw.held.unwrap_or(true),
    })
}

fn device(place: &Place<'_>, path: &[&str], name: &str) -> Checked<()> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
    let good = !name.is_empty()
        && name.len() <= NET_DEVICE_BYTES_MAX
        && !matches!(name, "." | "..")
        && name.chars().all(plain);
    if good {
        return Ok(());
    }
    let what = format!(
        "\"{}\" is no name of a network device; write one of ip link, 1 to {NET_DEVICE_BYTES_MAX} characters",
        name.escape_debug()
    );
    Err(place.at(path, what))
}

fn stations(stations: &[NetStation], place: &Place<'_>) -> Checked<()> {
    let path = ["output", "stations"];
    let all: usize = stations
        .iter()
        .map(|station| 1 + station.addresses.len())
        .sum();
    if all > NET_ADDRESSES_MAX {
        let what = format!(
            "{all} addresses are too many; write at most {NET_ADDRESSES_MAX}, MAC addresses among them"
        );
        return Err(place.at(&path, what));
    }
    for station in stations {
        if !is_station_mac(&station.mac) {
            let what = format!(
                "mac \"{}\" is none of a guest; write six bytes like \"02:00:00:aa:bb:cc\", the first of them even",
                station.mac.escape_debug()
            );
            return Err(place.at(&path, what));
        }
        if let Some(bad) = station
            .addresses
            .iter()
            .find(|a| a.parse::<IpAddr>().is_err())
        {
            let what = format!(
                "address \"{}\" is none; write an IPv4 or IPv6 address without a mask, like \"192.0.2.7\"",
                bad.escape_debug()
            );
            return Err(place.at(&path, what));
        }
        if let Some(interface) = &station.interface {
            device(place, &path, interface)?;
        }
        if station.vlan.is_some_and(|vlan| !(1..=4094).contains(&vlan)) {
            return Err(place.at(&path, "vlan is out of bounds; write 1 to 4094"));
        }
    }
    Ok(())
}

fn is_station_mac(text: &str) -> bool {
    let bytes: Vec<&str> = text.split(':').collect();
    let byte = |text: &&str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let first = bytes
        .first()
        .and_then(|first| u8::from_str_radix(first, 16).ok());
    // The lowest bit is that of groups.
    bytes.len() == 6 && bytes.iter().all(byte) && first.is_some_and(|first| first & 1 == 0)
}
