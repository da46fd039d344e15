//! What cannot be protected has to be told before anybody relies on it, and a guest that can has to pass.

use crate::guest::{Guest, boot_disk, dir, limits, plain_args, program, wait_for};
use checkpointer::hypervisor::qemu::Qemu;
use checkpointer::hypervisor::qemu::check::{Finding, Served, Weight, check};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A QEMU with words that a description would refuse; killed when it goes.
pub(crate) struct Bare {
    pub(crate) qemu: Qemu,
    child: Child,
}

impl Bare {
    pub(crate) fn start(program: &Path, dir: &Path, args: &[String]) -> Self {
        let socket = dir.join("bare");
        let child = Command::new(program)
            .args(args)
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .expect("started");
        let mut child = Some(child);
        let mut qemu = None;
        wait_for("its monitor", || {
            let ended = child
                .as_mut()
                .map(|child| child.try_wait().expect("a child"));
            assert!(matches!(ended, Some(None)), "it ended: {ended:?}");
            qemu = Qemu::attach(&socket, limits()).ok();
            qemu.is_some()
        });
        Self {
            qemu: qemu.expect("waited for"),
            child: child.take().expect("started"),
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn beside(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut all = std::env::split_paths(&path).map(|dir| dir.join(name));
    all.find(|program| program.is_file())
}

fn lines(findings: &[Finding]) -> String {
    let lines: Vec<_> = findings
        .iter()
        .map(|finding| format!("{:?} {finding}", finding.weight))
        .collect();
    lines.join("\n")
}

#[test]
fn a_guest_as_it_should_be_passes() {
    let Some(program) = program("a good guest") else {
        return;
    };
    let mut guest = Guest::start(&program, &[]);
    let findings = check(&mut guest.qemu, &[]).expect("told");
    let bad: Vec<_> = findings
        .iter()
        .filter(|finding| !finding.what.starts_with("QEMU "))
        .collect();
    assert!(bad.is_empty(), "{}", lines(&findings));
    let at = guest.memory.counter();
    guest.memory.wait_beyond(at);
}

#[test]
fn everything_wrong_is_found_at_once() {
    let Some(program) = program("a bad guest") else {
        return;
    };
    let dir = dir();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(dir.path().join("raw"), vec![0; 1 << 20]).expect("a disk");
    let mut args = plain_args(&boot_disk(dir.path()));
    let words = format!(
        "-m 32M,slots=2,maxmem=1G -object memory-backend-ram,id=hot,size=128M -device pc-dimm,memdev=hot,id=plugged \
         -drive if=none,id=raw,file={},format=raw,cache=unsafe -device virtio-blk-pci,drive=raw,id=local \
         -blockdev null-co,node-name=null,read-zeroes=on -device nvme,drive=null,serial=x,id=nv \
         -netdev user,id=n0 -device virtio-net-pci,netdev=n0,romfile= \
         -fsdev local,id=f,path={},security_model=none -device virtio-9p-pci,fsdev=f,mount_tag=t \
         -chardev socket,id=s,path={},server=on,wait=off -device isa-serial,chardev=s \
         -device virtio-serial-pci -chardev socket,id=ga,path={},server=on,wait=off \
         -device virtserialport,chardev=ga,name=org.qemu.guest_agent.0,id=agent",
        path("raw"),
        path(""),
        path("serial"),
        path("agent")
    );
    args.extend(words.split_whitespace().map(str::to_owned));
    if let Some(img) = beside("qemu-img") {
        let made = Command::new(img)
            .args(["create", "-q", "-f", "qcow2", &path("cow"), "1M"])
            .status();
        assert!(made.expect("run").success());
        let words = format!(
            "-drive if=none,id=cow,file={},format=qcow2 -device virtio-blk-pci,drive=cow,id=image",
            path("cow")
        );
        args.extend(words.split_whitespace().map(str::to_owned));
    } else {
        println!("a bad guest: without an image of qcow2, no qemu-img on the PATH");
    }
    let mut bare = Bare::start(&program, dir.path(), &args);
    let findings = check(&mut bare.qemu, &[]).expect("told");
    let told = lines(&findings);
    println!("{told}");
    let mut wanted = vec![
        ("Refused memory", "share=on"),
        ("Refused dimm plugged", "-m"),
        ("Refused disk", "not replicated"),
        ("Refused disk", "null-co"),
        ("Refused QEMU says", "nvme"),
        ("Warning -netdev user", "tap"),
        ("Warning virtio-9p", "network"),
        ("Warning isa-serial", "file"),
        ("Warning virtserialport", "network"),
    ];
    if beside("qemu-img").is_some() {
        wanted.push(("Refused disk", "qcow2"));
    }
    for (begin, part) in wanted {
        let found = told
            .lines()
            .any(|line| line.starts_with(begin) && line.contains(part));
        assert!(found, "{begin} … {part} in:\n{told}");
    }
    // The boot disk is only read.
    assert!(!told.contains("boot"), "{told}");
    let weights: Vec<_> = findings.iter().map(|finding| finding.weight).collect();
    assert!(weights.is_sorted() && weights.contains(&Weight::Warning));
    assert!(bare.qemu.status().expect("told").is_running);
}

#[test]
fn a_disk_of_ours_is_known() {
    let Some(program) = program("a disk over NBD") else {
        return;
    };
    let Some(nbd) = beside("qemu-nbd") else {
        println!("a disk over NBD: skipped, no qemu-nbd on the PATH");
        return;
    };
    let dir = dir();
    let (disk, socket) = (dir.path().join("disk"), dir.path().join("nbd"));
    std::fs::write(&disk, vec![0; 1 << 20]).expect("a disk");
    let mut server = Command::new(nbd)
        .args(["-t", "-f", "raw", "-x", "vol", "-k"])
        .args([&socket, &disk])
        .spawn()
        .expect("started");
    wait_for("an NBD server", || socket.exists());
    let blockdev = format!(
        "driver=nbd,node-name=d,server.type=unix,server.path={},export=vol",
        socket.display()
    );
    let mut guest = Guest::start(
        &program,
        &["-blockdev", &blockdev, "-device", "virtio-blk-pci,drive=d"],
    );
    let ours = [Served::Socket(socket)];
    let findings = check(&mut guest.qemu, &ours).expect("told");
    let other = check(&mut guest.qemu, &[Served::Socket("/run/other".into())]).expect("told");
    server.kill().expect("killed");
    server.wait().expect("waited for");
    let told = lines(&findings);
    assert!(!told.contains("disk"), "{told}");
    let told = lines(&other);
    assert!(
        told.contains("Refused disk") && told.contains("not replicated"),
        "{told}"
    );
}
