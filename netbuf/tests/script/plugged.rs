//! With the kernel's plug, and this program in libxl's place: it reads the key, looks for the root of that
//! device in a list of all, and sends the plug what libxl sends. Runs where the kernel has one (`cargo xtask
//! plug`); elsewhere each test says so and passes.

use crate::host::{Host, PATH, asked_by_another, end, in_namespace, until};
use crate::kinds::{frame, kinds};
use netbuf::netlink::request::{OUR_ROOT, PlugAction, TC_H_ROOT, change_plug};

const NOTHING: [Vec<u8>; 0] = [];

fn with_plug(body: impl FnOnce(Host) + Send + 'static) {
    in_namespace(|| {
        let mut host = Host::new();
        if let Err(why) = netbuf::hold::has_plug(&mut host.netlink).unwrap() {
            let asked_for = std::env::var("NETBUF_TEST_MECHANISM").as_deref() == Ok("plug");
            assert!(!asked_for, "{why}");
            eprintln!("skipped: this kernel has no plug");
            return;
        }
        body(host);
    });
}

/// What libxl keeps of a device after its set-up. Its messages are made by libnl where its tools are (Debian
/// package libnl-utils), by the same calls as libxl's, and by the tests' own hand elsewhere.
struct Libxl {
    ifb: u32,
    name: String,
}

impl Libxl {
    /// As libxl does it: the key, the link of that name, and its root in the list of all.
    fn reads(host: &mut Host) -> Self {
        assert_eq!(host.store.get(&format!("{PATH}/hotplug-error")), None);
        let name = host.store.get(&format!("{PATH}/ifb")).expect("the key");
        let ifb = host.index(&name);
        let roots = host.netlink.qdiscs(ifb).unwrap();
        let root = roots.iter().find(|root| root.parent == TC_H_ROOT).unwrap();
        assert_eq!((root.kind.as_str(), root.handle), ("plug", OUR_ROOT));
        Self { ifb, name }
    }

    fn orders(&self, host: &mut Host, action: PlugAction) {
        let word = match action {
            PlugAction::Buffer => "--buffer",
            _ => "--release-one",
        };
        let mut libnl = std::process::Command::new("nl-qdisc-add");
        libnl.arg(format!("--dev={}", self.name));
        libnl.args(["--parent", "root", "--update-only", "plug", word]);
        if let Ok(done) = libnl.output() {
            // Debian 12 looks for its module in a folder that it does not put it into.
            let text = String::from_utf8_lossy(&done.stderr);
            if !text.contains("Unable to load module") {
                assert!(done.status.success(), "{done:?}");
                println!("ordered by libnl: {word}");
                return;
            }
        }
        host.netlink
            .ask("libxl's order", change_plug(self.ifb, action, 0))
            .unwrap();
    }

    fn suspends(&self, host: &mut Host) {
        self.orders(host, PlugAction::Buffer);
    }

    fn commits(&self, host: &mut Host) {
        self.orders(host, PlugAction::ReleaseOne);
    }

    /// As many wait: they were said, and have come as far as the plug.
    fn holds(&self, host: &mut Host, frames: u32) {
        until("the frames", || {
            let root = host.netlink.our_root(self.ifb).unwrap().unwrap();
            (root.counters.backlog_frames == frames).then_some(())
        });
    }
}

fn late() -> Vec<u8> {
    frame([0xff; 6], [0x88, 0xb5], 61)
}

/// Six defects of the script of Xen's have their place here: IPv4 only, mute before the first checkpoint, and
/// what a teardown lets out.
#[test]
fn libxl_orders_the_plug_that_was_set_up() {
    with_plug(|mut host| {
        let before = host.kernel();
        host.set_up().good();
        let libxl = Libxl::reads(&mut host);
        let kinds = kinds();
        // While the guest's memory is copied for the first time it has no backup, and speaks.
        for (name, frame) in &kinds {
            host.guest.send(frame);
            assert_eq!(
                host.witness.receive(),
                *frame,
                "{name}: passes before the first suspend"
            );
        }
        libxl.suspends(&mut host);
        libxl.commits(&mut host);
        let count = u32::try_from(kinds.len()).unwrap();
        let mut carried = 0;
        for _ in 0..3 {
            for (_, frame) in &kinds {
                host.guest.send(frame);
            }
            libxl.holds(&mut host, count + carried);
            assert_eq!(host.frames(), NOTHING, "held");
            libxl.suspends(&mut host);
            host.guest.send(&late());
            libxl.holds(&mut host, count + carried + 1);
            assert_eq!(host.frames(), NOTHING, "suspended is not committed");
            libxl.commits(&mut host);
            let mut expected: Vec<Vec<u8>> = vec![late(); carried as usize];
            expected.extend(kinds.iter().map(|(_, frame)| frame.clone()));
            for frame in &expected {
                assert_eq!(host.witness.receive(), *frame, "in order");
            }
            assert_eq!(host.frames(), NOTHING, "exactly those of the epoch");
            carried = 1;
        }
        // What comes in is never held.
        host.witness.send(&late());
        until("a frame for the guest", || {
            (host.guest.receive() == late()).then_some(())
        });
        // The backup is gone: libxl ends Remus, and the guest goes on here. What it said since is dropped.
        libxl.holds(&mut host, carried);
        host.tear_down().good();
        assert_eq!(host.frames(), NOTHING, "dropped");
        host.guest.send(&late());
        assert_eq!(host.witness.receive(), late(), "speaks for itself again");
        assert_eq!(host.kernel(), before);
        assert_eq!(host.store.paths(), ["/libxl", "/libxl/3"]);
    });
}

/// A guest with QEMU's card and a PV driver: libxl knows one of them.
#[test]
fn both_halves_of_a_card_wait_for_one_release() {
    with_plug(|mut host| {
        let before_twin = host.kernel();
        Host::add_card("emulated", "vif3.0-emu");
        let emulated = crate::wire::Wire::open("emulated");
        let before = host.kernel();
        let mut program = host.program("setup", "vif3.0-emu", 0);
        end(&mut program).good();
        let libxl = Libxl::reads(&mut host);
        libxl.suspends(&mut host);
        libxl.commits(&mut host);
        let mut sent = Vec::new();
        for (number, (_, frame)) in kinds().into_iter().enumerate() {
            let from = if number % 2 == 0 {
                &host.guest
            } else {
                &emulated
            };
            from.send(&frame);
            sent.push(frame);
            libxl.holds(&mut host, u32::try_from(sent.len()).unwrap());
        }
        assert_eq!(host.frames(), NOTHING);
        libxl.suspends(&mut host);
        libxl.commits(&mut host);
        for frame in &sent {
            assert_eq!(host.witness.receive(), *frame, "in the order of both");
        }
        assert_eq!(host.frames(), NOTHING);
        host.guest.send(&late());
        emulated.send(&late());
        libxl.holds(&mut host, 2);
        let mut program = host.program("teardown", "vif3.0-emu", 0);
        end(&mut program).good();
        assert_eq!(host.frames(), NOTHING, "dropped at both");
        for from in [&host.guest, &emulated] {
            from.send(&late());
            assert_eq!(host.witness.receive(), late());
        }
        assert_eq!(host.kernel(), before);
        crate::host::ip("link del emulated");
        assert_eq!(host.kernel(), before_twin);
    });
}

/// `xl remus` was killed: nothing leaves until somebody decides, and then what was held does not.
#[test]
fn a_killed_libxl_leaves_the_output_held() {
    with_plug(|mut host| {
        let before = host.kernel();
        let mut program = host.program("setup", "vif3.0", 0);
        end(asked_by_another(&mut program)).good();
        let libxl = Libxl::reads(&mut host);
        libxl.suspends(&mut host);
        host.guest.send(&late());
        libxl.holds(&mut host, 1);
        let shown = end(&mut host.program("status", "", 0)).text;
        assert!(
            shown.contains("has 1 frames") && shown.contains("is gone"),
            "{shown}"
        );
        assert_eq!(host.frames(), NOTHING);
        // A new one begins anew.
        host.set_up().good();
        assert_eq!(host.frames(), NOTHING, "of an epoch that nobody knows");
        let libxl = Libxl::reads(&mut host);
        host.guest.send(&late());
        assert_eq!(host.witness.receive(), late(), "begins open");
        // Once more, by the process that runs: what holds goes on holding.
        libxl.suspends(&mut host);
        host.guest.send(&late());
        libxl.holds(&mut host, 1);
        host.set_up().good();
        libxl.holds(&mut host, 1);
        assert_eq!(host.frames(), NOTHING);
        host.tear_down().good();
        assert_eq!(host.frames(), NOTHING);
        assert_eq!(host.kernel(), before);
    });
}

/// `xl destroy` on this host ends Remus on purpose, and takes the interface with it.
#[test]
fn an_interface_that_vanished_while_held_is_torn_down() {
    with_plug(|mut host| {
        Host::add_card("other", "vif3.1");
        let other = crate::wire::Wire::open("other");
        let before = host.kernel();
        let mut program = host.program("setup", "vif3.1", 1);
        end(&mut program).good();
        let name = host.store.get("/libxl/3/remus/netbuf/1/ifb").unwrap();
        let ifb = host.index(&name);
        let libxl = Libxl {
            ifb,
            name: name.clone(),
        };
        libxl.suspends(&mut host);
        other.send(&late());
        libxl.holds(&mut host, 1);
        drop(other);
        crate::host::ip("link del vif3.1");
        let mut program = host.program("teardown", "vif3.1", 1);
        end(program.env("REMUS_IFB", &name)).good();
        assert_eq!(host.frames(), NOTHING);
        assert_eq!(host.store.paths(), ["/libxl", "/libxl/3"]);
        assert_ne!(host.kernel(), before);
        assert!(!host.kernel().contains("netbuf-"));
    });
}

/// libxl starts one for each device of a domain at once; each gets a plug of its own.
#[test]
fn many_set_up_at_once_have_a_plug_each() {
    const DEVICES: u32 = 6;
    with_plug(|mut host| {
        for device in 0..DEVICES {
            crate::host::ip(&format!(
                "link add many{device} type veth peer name end{device}"
            ));
        }
        let before = host.kernel();
        for action in ["setup", "teardown"] {
            let start = |device| {
                let mut program = host.program(action, &format!("many{device}"), device);
                program.spawn().unwrap()
            };
            let programs: Vec<_> = (0..DEVICES).map(start).collect();
            for mut program in programs {
                assert!(program.wait().unwrap().success());
            }
            let key = |device| {
                host.store
                    .get(&format!("/libxl/3/remus/netbuf/{device}/ifb"))
            };
            let mut names: Vec<String> = (0..DEVICES).filter_map(key).collect();
            names.sort();
            names.dedup();
            let plugs = host.kernel().matches("plug").count();
            let expected = if action == "setup" {
                DEVICES as usize
            } else {
                0
            };
            assert_eq!((names.len(), plugs), (expected, expected), "{action}");
        }
        assert_eq!(host.kernel(), before);
        assert_eq!(host.store.paths(), ["/libxl", "/libxl/3"]);
    });
}
