//! The guest's devices: those whose memory or state is out of reach, and those through which it speaks unheard.

use super::super::{Error, Qemu};
use super::{Finding, Served, text};
use serde_json::{Value, json};
use std::path::Path;

/// Most devices that are looked at.
const DEVICES_MAX: usize = 4096;
/// Where QEMU has its devices.
const PLACES: [&str; 3] = [
    "/machine/peripheral",
    "/machine/peripheral-anon",
    "/machine/unattached",
];
const NOT_HELD: &str = "what the guest says there leaves before the backup has it";

pub(super) fn check(
    qemu: &mut Qemu,
    served: &[Served],
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    let chardevs = qemu.ask("query-chardev", None)?;
    for place in PLACES {
        let Ok(list) = qemu.ask("qom-list", Some(json!({"path": place}))) else {
            continue;
        };
        for entry in list.as_array().into_iter().flatten().take(DEVICES_MAX) {
            let kind = text(entry, "type").strip_prefix("child<");
            let Some(kind) = kind.and_then(|kind| kind.strip_suffix('>')) else {
                continue;
            };
            let path = format!("{place}/{}", text(entry, "name"));
            let chardev = if has_chardev(kind) {
                let label = qemu.property(&path, "chardev")?;
                let label = label.as_ref().and_then(Value::as_str).unwrap_or_default();
                filename(&chardevs, label)
            } else {
                String::new()
            };
            let name = path.strip_prefix("/machine/").unwrap_or(&path);
            findings.extend(device(kind, name, &chardev, served));
        }
    }
    for netdev in netdevs(&qemu.told("info network")?) {
        findings.extend(network(&netdev));
    }
    for (command, what) in [("query-vnc", "VNC"), ("query-spice", "SPICE")] {
        // A QEMU without it refuses the question.
        match qemu.ask(command, None) {
            Ok(told) if told["enabled"] == true => findings.push(Finding::warning(
                format!("{what} screen"),
                NOT_HELD,
                "look at it through the guest's own network",
            )),
            Ok(_) | Err(Error::Refused { .. }) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

fn has_chardev(kind: &str) -> bool {
    let speaks = [
        "serial",
        "virtconsole",
        "vhost-user",
        "isa-parallel",
        "debugcon",
    ];
    speaks.iter().any(|part| kind.contains(part))
}

fn filename(chardevs: &Value, label: &str) -> String {
    let mut all = chardevs.as_array().into_iter().flatten();
    let found = all.find(|one| one["label"] == label && !label.is_empty());
    found.map_or("", |one| text(one, "filename")).to_owned()
}

/// The path in `unix:PATH,server=on` or `disconnected:unix:PATH,server=on`.
fn socket(filename: &str) -> Option<&Path> {
    let bare = filename.strip_prefix("disconnected:").unwrap_or(filename);
    let path = bare.strip_prefix("unix:")?;
    let end = path.find(",server=").unwrap_or(path.len());
    // A client's shows both ends.
    let path = path[..end].split(" <-> ").next().unwrap_or_default();
    Some(Path::new(path))
}

fn device(kind: &str, name: &str, chardev: &str, served: &[Served]) -> Option<Finding> {
    let what = format!("{kind} {name}");
    let starts = |prefix: &str| kind.starts_with(prefix);
    if starts("vfio-") {
        let why = "the device writes to the guest's memory unseen";
        return Some(Finding::refused(what, why, "use a virtio device instead"));
    }
    if starts("vhost-vdpa") {
        let why = "the device writes to the guest's memory unseen";
        return Some(Finding::refused(
            what,
            why,
            "use a virtio device of QEMU's own",
        ));
    }
    if starts("vhost-user-blk") || starts("vhost-user-scsi") {
        let is_ours = |one: &Served| match one {
            Served::Socket(path) => socket(chardev) == Some(path),
            Served::Tcp { .. } => false,
        };
        if served.iter().any(is_ours) {
            return None;
        }
        return Some(Finding::refused(
            format!("{what} at {chardev}"),
            "its back end is no blockrep: it writes to the guest's memory unseen, and its disk is not replicated",
            "attach the disk of blockrep's socket: -chardev socket,id=C,path=SOCKET",
        ));
    }
    if starts("vhost-user-") {
        let why = "its back end writes to the guest's memory unseen";
        return Some(Finding::refused(what, why, "use a device of QEMU's own"));
    }
    if starts("ivshmem") {
        let why = "others write to that memory";
        return Some(Finding::refused(what, why, "take it out"));
    }
    let change = if starts("vhost-vsock") {
        "use the guest's network"
    } else if starts("virtio-9p") {
        // QEMU refuses the migration while it is mounted, and says so itself.
        "use a disk or the guest's network"
    } else if is_outward(chardev) {
        "use the guest's network, or a file: -chardev file,id=C,path=FILE"
    } else {
        return None;
    };
    let what = if chardev.is_empty() {
        what
    } else {
        format!("{what} at {chardev}")
    };
    Some(Finding::warning(what, NOT_HELD, change))
}

/// Leads to a program that may be elsewhere.
fn is_outward(chardev: &str) -> bool {
    let bare = chardev.strip_prefix("disconnected:").unwrap_or(chardev);
    [
        "unix:",
        "tcp:",
        "telnet:",
        "tn3270:",
        "websocket:",
        "udp:",
        "pty:",
        "spice",
    ]
    .iter()
    .any(|kind| bare.starts_with(kind))
}

/// Name and type of each network back end. The monitor has no other list of them.
fn netdevs(text: &str) -> Vec<(String, String)> {
    let one = |line: &str| {
        let (name, facts) = line.split_once(": ")?;
        let mut facts = facts.trim().split(',');
        let kind = facts.find_map(|fact| fact.strip_prefix("type="))?;
        let name = name.trim().trim_start_matches('\\').trim();
        Some((name.to_owned(), kind.to_owned()))
    };
    text.lines().filter_map(one).collect()
}

fn network((name, kind): &(String, String)) -> Option<Finding> {
    let what = format!("-netdev {kind},id={name}");
    match kind.as_str() {
        "vhost-user" | "vhost-vdpa" => Some(Finding::refused(
            what,
            "its back end writes to the guest's memory unseen",
            format!("-netdev tap,id={name},ifname=TAP,script=no,downscript=no"),
        )),
        // The devices themselves, ports of hubs, and what netbuf can stand before.
        "nic" | "hubport" | "tap" | "bridge" => None,
        _ => Some(Finding::warning(
            what,
            "it goes past what holds the output, so what the guest says there leaves before the backup has it",
            format!("-netdev tap,id={name},ifname=TAP,script=no,downscript=no"),
        )),
    }
}

#[cfg(test)]
mod tests {
    //! A device that writes past the tracker is memory that is silently old at the backup.
    use super::*;

    fn told(kind: &str, chardev: &str) -> Option<super::super::Weight> {
        let served = [Served::Socket("/run/ours".into())];
        device(kind, "peripheral/d0", chardev, &served).map(|finding| finding.weight)
    }

    #[test]
    fn devices_by_their_kind() {
        use super::super::Weight::{Refused, Warning};
        for (kind, chardev, weight) in [
            ("vfio-pci", "", Some(Refused)),
            ("vhost-vdpa-device-pci", "", Some(Refused)),
            ("vhost-user-blk-pci", "unix:/run/ours", None),
            (
                "vhost-user-blk-pci",
                "disconnected:unix:/run/ours,server=on",
                None,
            ),
            ("vhost-user-blk-pci", "unix:/run/ours2", Some(Refused)),
            ("vhost-user-fs-pci", "unix:/run/ours", Some(Refused)),
            ("ivshmem-plain", "", Some(Refused)),
            ("vhost-vsock-pci", "", Some(Warning)),
            ("virtio-9p-pci", "", Some(Warning)),
            ("virtserialport", "unix:/run/agent,server=on", Some(Warning)),
            ("isa-serial", "tcp:0.0.0.0:4444", Some(Warning)),
            ("isa-serial", "file", None),
            ("isa-serial", "stdio", None),
            ("virtio-net-pci", "", None),
        ] {
            assert_eq!(told(kind, chardev), weight, "{kind} {chardev}");
        }
    }

    #[test]
    fn networks_as_the_monitor_prints_them() {
        let text = "\
virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56
 \\ n0: index=0,type=user,net=10.0.2.0,restrict=off
n1: index=0,type=tap,ifname=tap0,script=no,downscript=no
v: index=0,type=vhost-user,status=up
";
        let found: Vec<_> = netdevs(text).iter().filter_map(network).collect();
        let short: Vec<_> = found.iter().map(|one| one.what.as_str()).collect();
        assert_eq!(short, ["-netdev user,id=n0", "-netdev vhost-user,id=v"]);
    }
}
