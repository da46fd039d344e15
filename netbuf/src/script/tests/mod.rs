//! On interfaces of the kernel's, in a namespace of the test's own, with the store in memory. Where the
//! kernel has no plug, a pfifo stands in its place: everything but the plug itself is the same.

mod ends;

use super::mark::{self, Asker, Mark};
use super::request::{Request, StorePath};
use super::store::Store;
use super::store::memory::Memory;
use super::work::{ScriptError, forget_keys, forget_lost, set_up, take_away};
use crate::gate::Order;
use crate::install::{Begin, Root, Standing, carry_out, ifb_name, install, look};
use crate::netlink::{Netlink, request};
use std::process::Command;

const ROOT: Root = Root::Pfifo { limit_frames: 1000 };
const PATH: &str = "/libxl/3/remus/netbuf/0";

/// Runs a body in a namespace of its own; says so and skips where that is not allowed.
fn in_namespace(body: impl FnOnce(&mut Netlink) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: no pointers; affects this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            let why = std::io::Error::last_os_error();
            println!("skipped: a network namespace takes root ({why})");
            return;
        }
        if Command::new("tc").arg("-V").output().is_err() {
            println!("skipped: the test network is made with ip(8) and tc(8), which are not here");
            return;
        }
        types("ip link add vif3.0 type veth peer name guest");
        body(&mut Netlink::open().unwrap());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[track_caller]
fn types(words: &str) {
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().unwrap());
    let output = command.args(words).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
}

fn asked() -> Request {
    Request {
        vif: "vif3.0".into(),
        path: StorePath::parse(PATH).unwrap(),
        limit_bytes: 1 << 20,
    }
}

/// The test program, which runs.
fn alive() -> Asker {
    let asker = Asker::of(std::process::id());
    assert!(asker.is_alive());
    asker
}

/// One that runs no more, as nothing was started with the host.
fn dead() -> Asker {
    let asker = Asker {
        started: u64::MAX,
        ..alive()
    };
    assert!(!asker.is_alive());
    asker
}

fn index(netlink: &mut Netlink, name: &str) -> u32 {
    netlink.link(name).unwrap().unwrap().index
}

/// The index of the IFB of vif3.0.
fn ifb(netlink: &mut Netlink) -> u32 {
    let name = ifb_name(index(netlink, "vif3.0"));
    index(netlink, &name)
}

fn is_whole(netlink: &mut Netlink, name: &str) -> bool {
    let vif = index(netlink, name);
    matches!(
        look(netlink, vif).unwrap().standing(),
        Standing::Whole { .. }
    )
}

/// Everything of the kernel's that could be left behind.
fn left(netlink: &mut Netlink) -> String {
    let mut text = String::new();
    for link in netlink.links().unwrap() {
        let qdiscs = netlink.qdiscs(link.index).unwrap();
        let kinds: Vec<String> = qdiscs.into_iter().map(|qdisc| qdisc.kind).collect();
        text.push_str(&format!("{} {kinds:?}; ", link.name));
    }
    text
}

/// The key that libxl reads is written when the redirect holds, and not before; nothing stays afterwards.
#[test]
fn what_is_set_up_is_answered_and_taken_away_again() {
    in_namespace(|netlink| {
        let (before, mut store) = (left(netlink), Memory::default());
        // Of a libxl that died: its presence alone is a failure to the next.
        store
            .write(&format!("{PATH}/hotplug-error"), "old")
            .unwrap();
        store.log.clear();
        let name = set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap();
        assert_eq!(name, ifb_name(index(netlink, "vif3.0")));
        assert!(is_whole(netlink, "vif3.0"));
        let log = [
            format!("-{PATH}/hotplug-error"),
            format!("+{PATH}/ifb {name}"),
            format!("+{PATH}/hotplug-status connected"),
        ];
        assert_eq!(store.log, log);
        let lines = super::lines(netlink).unwrap();
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0].starts_with("vif3.0: libxl's") && lines[0].contains("orders it"),
            "{lines:?}"
        );
        // A neighbour of the same domain keeps its directory.
        store.write("/libxl/3/remus/netbuf/1/ifb", "other").unwrap();
        take_away(netlink, &asked(), alive()).unwrap();
        forget_keys(&mut store, &asked()).unwrap();
        assert_eq!(left(netlink), before);
        assert_eq!(store.list("/libxl/3/remus/netbuf").unwrap(), ["1"]);
        store.remove("/libxl/3/remus/netbuf/1").unwrap();
        // Called without a set-up, and once more: the same.
        for _ in 0..2 {
            take_away(netlink, &asked(), alive()).unwrap();
            forget_keys(&mut store, &asked()).unwrap();
        }
        assert_eq!(store.list("/libxl/3").unwrap(), [] as [&str; 0]);
        assert_eq!(left(netlink), before);
    });
}

/// A set-up that fails half-way, wherever: libxl is told by its key, and the guest speaks as before.
#[test]
fn a_failure_leaves_its_reason_and_nothing_else() {
    in_namespace(|netlink| {
        let before = left(netlink);
        for refuses in ["/ifb", "/hotplug-status"] {
            let mut store = Memory {
                refuses: Some(refuses),
                ..Memory::default()
            };
            let error = set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap_err();
            assert!(matches!(error, ScriptError::Store(_)), "{error}");
            assert_eq!(left(netlink), before, "{refuses}");
            let told = store
                .read(&format!("{PATH}/hotplug-error"))
                .unwrap()
                .unwrap();
            assert_eq!(told, error.to_string());
            assert_eq!(store.read(&format!("{PATH}/ifb")).unwrap(), None);
        }
        let mut store = Memory::default();
        let absent = Request {
            vif: "vif9.0".into(),
            ..asked()
        };
        let error = set_up(netlink, &mut store, &absent, alive(), ROOT).unwrap_err();
        assert!(matches!(error, ScriptError::NoDevice(_)), "{error}");
        let read = |store: &mut Memory, key: &str| store.read(&format!("{PATH}/{key}")).unwrap();
        assert_eq!(read(&mut store, "hotplug-status").as_deref(), Some("error"));
        assert_eq!(read(&mut store, "hotplug-error"), Some(error.to_string()));
        // What libxl calls next, with what the failure left.
        take_away(netlink, &absent, alive()).unwrap();
        forget_keys(&mut store, &absent).unwrap();
        assert_eq!(store.list("/libxl/3").unwrap(), [] as [&str; 0]);
    });
}

/// With the kernel's plug, or without: never half of it.
#[test]
fn a_kernel_without_the_plug_is_told_in_one_line() {
    in_namespace(|netlink| {
        let (before, mut store) = (left(netlink), Memory::default());
        let has_plug = crate::hold::has_plug(netlink).unwrap().is_ok();
        let plug = Root::Plug {
            limit_bytes: 1 << 20,
        };
        let done = set_up(netlink, &mut store, &asked(), alive(), plug);
        if has_plug {
            done.unwrap();
            return;
        }
        let error = done.unwrap_err();
        assert!(matches!(error, ScriptError::NoPlug(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains("sch_plug") && !text.contains('\n'), "{text}");
        assert_eq!(left(netlink), before);
        assert_eq!(store.read(&format!("{PATH}/ifb")).unwrap(), None);
        assert_eq!(
            store.read(&format!("{PATH}/hotplug-error")).unwrap(),
            Some(text)
        );
    });
}

/// A plug under a process that runs is not taken from it, by a second `xl remus` or by its teardown.
#[test]
fn what_a_living_process_uses_stays_its_own() {
    in_namespace(|netlink| {
        let mut store = Memory::default();
        set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap();
        let (placed, keys) = (left(netlink), store.keys.clone());
        // The same once more, as after a lost answer: nothing is touched.
        let first = ifb(netlink);
        set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap();
        assert_eq!(ifb(netlink), first);
        assert_eq!((left(netlink), &store.keys), (placed.clone(), &keys));
        let other = dead();
        for path in [PATH, "/libxl/4/remus/netbuf/0"] {
            let path = StorePath::parse(path).unwrap();
            let request = Request { path, ..asked() };
            let error = set_up(netlink, &mut store, &request, other, ROOT).unwrap_err();
            assert!(matches!(error, ScriptError::InUse { .. }), "{error}");
        }
        let error = take_away(netlink, &asked(), other).unwrap_err();
        assert!(error.is_refusal(), "{error}");
        assert!(super::cleanup(netlink, false).is_err());
        assert_eq!((left(netlink), &store.keys), (placed, &keys));
        assert_eq!(super::cleanup(netlink, true).unwrap().len(), 1);
    });
}
