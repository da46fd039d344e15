//! The guest's disks as QEMU's block layer has them: each that is written has to be raw, on a disk of ours.

use super::super::{Error, Qemu};
use super::{Finding, Served, text};
use serde_json::Value;

pub(super) fn check(
    qemu: &mut Qemu,
    served: &[Served],
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    let disks = qemu.ask("query-block", None)?;
    for disk in disks.as_array().into_iter().flatten() {
        findings.extend(one(disk, served));
    }
    Ok(())
}

fn one(disk: &Value, served: &[Served]) -> Option<Finding> {
    let inserted = disk
        .get("inserted")
        .filter(|inserted| inserted.is_object())?;
    // What is only read is the same at both hosts, or is no state.
    if inserted["ro"] == true {
        return None;
    }
    let names = [
        text(disk, "device"),
        text(disk, "qdev"),
        text(inserted, "node-name"),
    ];
    let name = names.into_iter().find(|name| !name.is_empty());
    let what = format!("disk {}", name.unwrap_or("without a name"));
    let kind = text(inserted, "drv");
    if !["raw", "nbd"].contains(&kind) {
        return Some(Finding::refused(
            what,
            &format!("it is {kind}: an image file is no disk of blockrep's"),
            "convert it (qemu-img convert -O raw) and attach blockrep's: -blockdev \
             nbd,node-name=N,server.type=unix,server.path=SOCKET,export=NAME",
        ));
    }
    let file = text(inserted, "file");
    if served.iter().any(|one| is_at(file, one)) {
        return None;
    }
    Some(Finding::refused(
        what,
        &format!("it is {file}, which is not replicated"),
        "attach it through blockrep, or add read-only=on",
    ))
}

/// Whether a name of QEMU's block layer is that of an export there: `nbd+unix:///name?socket=PATH`,
/// `nbd://host:port/name`, or options as `json:{…}` where it has no other way to write them.
fn is_at(file: &str, served: &Served) -> bool {
    if let Some(json) = file.strip_prefix("json:") {
        let options: Value = serde_json::from_str(json).unwrap_or_default();
        return is_at_options(&options, served);
    }
    match served {
        Served::Socket(path) => {
            let is_unix = file.starts_with("nbd+unix:");
            let socket = file.split_once("socket=").map(|(_, path)| path);
            let socket = socket.map(|path| path.split('&').next().unwrap_or_default());
            is_unix && socket.map(decoded).as_deref() == path.to_str()
        }
        Served::Tcp { host, port } => {
            let rest = file.strip_prefix("nbd://");
            let place = rest.map(|rest| rest.split('/').next().unwrap_or_default());
            // The port that NBD has is left out.
            let is_plain = *port == 10809 && place == Some(host.as_str());
            is_plain || place == Some(format!("{host}:{port}").as_str())
        }
    }
}

fn is_at_options(options: &Value, served: &Served) -> bool {
    if options["driver"] == "raw" {
        return is_at_options(&options["file"], served);
    }
    // Flat or nested, as it was given.
    let field = |name: &str| {
        let flat = text(options, &format!("server.{name}"));
        let nested = text(&options["server"], name);
        if flat.is_empty() {
            nested.to_owned()
        } else {
            flat.to_owned()
        }
    };
    options["driver"] == "nbd"
        && match served {
            Served::Socket(path) => path.to_str() == Some(&field("path")),
            Served::Tcp { host, port } => {
                field("host") == *host && field("port") == port.to_string()
            }
        }
}

/// Without the escapes of an address.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, behind @ ..] = rest {
        let digits = behind
            .get(..2)
            .and_then(|two| std::str::from_utf8(two).ok());
        let escaped = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        match escaped.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    //! A disk that is not replicated and is not noticed is another disk after failover.
    use super::*;
    use serde_json::json;

    fn told(drv: &str, file: &str, ro: bool) -> Option<String> {
        let served = [
            Served::Socket("/run/blockrep/vm 1.sock".into()),
            Served::Tcp {
                host: "127.0.0.1".to_owned(),
                port: 10809,
            },
        ];
        let disk = json!({
            "device": "", "qdev": "/machine/peripheral/d0/virtio-backend",
            "inserted": {"ro": ro, "drv": drv, "file": file, "node-name": "n"},
        });
        one(&disk, &served).map(|finding| finding.to_string())
    }

    #[test]
    fn disks_of_ours_are_told_from_others() {
        for file in [
            "nbd+unix:///a?socket=/run/blockrep/vm%201.sock",
            "nbd+unix:///?socket=/run/blockrep/vm 1.sock",
            "nbd://127.0.0.1:10809/a",
            "nbd://127.0.0.1/a",
            "json:{\"driver\": \"nbd\", \"server.path\": \"/run/blockrep/vm 1.sock\", \"server.type\": \"unix\"}",
            "json:{\"driver\": \"raw\", \"file\": {\"driver\": \"nbd\", \"server\": {\"host\": \"127.0.0.1\", \
             \"port\": \"10809\", \"type\": \"inet\"}}}",
        ] {
            assert_eq!(told("raw", file, false), None, "{file}");
        }
        for file in [
            "/var/lib/images/a.raw",
            "nbd+unix:///a?socket=/run/other.sock",
            "nbd://127.0.0.1:10810/a",
            "json:{\"driver\": \"file\", \"filename\": \"/run/blockrep/vm 1.sock\"}",
            "",
        ] {
            let told = told("raw", file, false).expect(file);
            assert!(
                told.contains("not replicated") && told.contains("d0"),
                "{told}"
            );
            assert_eq!(self::told("raw", file, true), None, "{file}");
        }
        let told = told("qcow2", "nbd://127.0.0.1:10809/a", false).expect("an image");
        assert!(
            told.contains("qcow2") && told.contains("qemu-img convert"),
            "{told}"
        );
    }
}
