//! What could go wrong: an error that libxl cannot see; a set-up that fails and leaves half; a teardown that
//! leaves the guest mute, or takes what is not its own; two at once.

use crate::host::{Host, PATH, asked_by_another, end, in_namespace};
use netbuf::install::{self, Begin, Root, ifb_name};
use netbuf::netlink::request::set_alias;
use netbuf::script::mark::{Asker, Mark};
use netbuf::script::request::StorePath;

/// As a set-up leaves it, with a root that every kernel has.
fn placed(host: &mut Host, vif: &str, path: &str, asker: Asker) {
    let vif = host.index(vif);
    let root = Root::Pfifo { limit_frames: 100 };
    let ifb = install::install(&mut host.netlink, vif, root, Begin::Open).unwrap();
    let path = StorePath::parse(path).unwrap();
    let mark = Mark {
        path,
        asker,
        twin: 0,
    };
    host.netlink
        .ask("mark", set_alias(ifb, &mark.write()))
        .unwrap();
    host.store.put(&format!("{path}/ifb"), &ifb_name(vif));
    host.store
        .put(&format!("{path}/hotplug-status"), "connected");
}

/// libxl reads no key when the exit code says that it failed: the line on stderr is what an operator sees.
#[test]
fn without_the_plug_it_fails_with_a_line_a_key_and_a_code() {
    in_namespace(|| {
        let mut host = Host::new();
        if netbuf::hold::has_plug(&mut host.netlink).unwrap().is_ok() {
            eprintln!("skipped: this kernel has the plug");
            return;
        }
        let before = host.kernel();
        let failed = host.set_up();
        let text = failed.bad(1);
        assert!(text.contains("sch_plug"), "{text}");
        let get = |key: &str| host.store.get(&format!("{PATH}/{key}"));
        assert_eq!(get("hotplug-error").as_deref(), Some(text));
        assert_eq!(get("hotplug-status").as_deref(), Some("error"));
        assert_eq!(get("ifb"), None);
        assert_eq!(host.kernel(), before);
        // libxl tears down what it could not set up, without REMUS_IFB.
        host.tear_down().good();
        assert_eq!(host.store.paths(), ["/libxl", "/libxl/3"]);
        assert_eq!(host.kernel(), before);
    });
}

#[test]
fn wrong_usage_is_one_line_and_changes_nothing() {
    in_namespace(|| {
        let mut host = Host::new();
        let before = host.kernel();
        for variable in ["vifname", "XENBUS_PATH"] {
            for action in ["setup", "teardown"] {
                let mut unset = host.program(action, "vif3.0", 0);
                let text = end(unset.env_remove(variable)).bad(2).to_owned();
                assert!(
                    text.contains(variable) && text.contains("xl remus -N"),
                    "{text}"
                );
                let mut wrong = host.program(action, "vif3.0", 0);
                let text = end(wrong.env(variable, "/local/domain/0"))
                    .bad(2)
                    .to_owned();
                assert!(text.starts_with(variable), "{text}");
            }
        }
        let mut limited = host.program("setup", "vif3.0", 0);
        end(limited.env("NETBUF_LIMIT", "1")).bad(2);
        assert_eq!(end(&mut host.program("restart", "vif3.0", 0)).code, 2);
        assert_eq!((host.kernel(), host.store.paths()), (before, vec![]));
    });
}

/// Without a store libxl cannot be answered: nothing is made, and what is held is dropped all the same.
#[test]
fn without_a_store_nothing_is_made_and_what_is_held_is_dropped() {
    in_namespace(|| {
        let mut host = Host::new();
        let before = host.kernel();
        let lost = |host: &Host, action: &str| {
            let mut program = host.program(action, "vif3.0", 0);
            program.env("XENSTORED_PATH", host.dir().join("nowhere"));
            end(&mut program)
        };
        let text = lost(&host, "setup").bad(1).to_owned();
        assert!(text.contains("xenstore cannot be reached"), "{text}");
        assert_eq!(host.kernel(), before);
        placed(&mut host, "vif3.0", PATH, Asker::of(std::process::id()));
        lost(&host, "teardown").bad(1);
        assert_eq!(host.kernel(), before);
        host.tear_down().good();
        assert_eq!(host.store.paths(), ["/libxl", "/libxl/3"]);
    });
}

/// The second `xl remus` of a domain fails, and its teardown must not take the first one's plug.
#[test]
fn a_plug_under_a_process_that_runs_is_left_alone() {
    in_namespace(|| {
        let mut host = Host::new();
        placed(&mut host, "vif3.0", PATH, Asker::of(std::process::id()));
        let (kernel, keys) = (host.kernel(), host.store.paths());
        for action in ["setup", "teardown"] {
            let mut program = host.program(action, "vif3.0", 0);
            let ended = end(asked_by_another(&mut program));
            let text = ended.bad(4);
            assert!(text.contains(&std::process::id().to_string()), "{text}");
        }
        assert_eq!((host.kernel(), host.store.paths()), (kernel, keys));
        let connected = host.store.get(&format!("{PATH}/hotplug-status"));
        assert_eq!(connected.as_deref(), Some("connected"));
        let shown = end(&mut host.program("status", "", 0));
        assert!(shown.text.starts_with("vif3.0: libxl's, for"), "{shown:?}");
    });
}

/// `netbuf cleanup` is for what a libxl left that was killed, and not for one that runs.
#[test]
fn cleanup_frees_a_guest_whose_libxl_is_gone() {
    in_namespace(|| {
        let mut host = Host::new();
        let before = host.kernel();
        let cleanup = |host: &Host| {
            let mut netbuf = std::process::Command::new(env!("CARGO_BIN_EXE_netbuf"));
            netbuf
                .arg("cleanup")
                .env("BLOCKREP_RUNTIME_DIR", host.dir());
            end(&mut netbuf)
        };
        let me = Asker::of(std::process::id());
        placed(&mut host, "vif3.0", PATH, me);
        let refused = cleanup(&host);
        assert_eq!(refused.code, 4, "{refused:?}");
        assert!(refused.text.contains("vif3.0") && refused.text.contains("--force"));
        host.tear_down().good();
        let gone = Asker {
            started: me.started - 1,
            ..me
        };
        placed(&mut host, "vif3.0", PATH, gone);
        let cleaned = cleanup(&host);
        assert_eq!(cleaned.code, 0, "{cleaned:?}");
        assert!(cleaned.text.contains("removed netbuf-"), "{cleaned:?}");
        assert_eq!(host.kernel(), before);
    });
}

/// libxl starts one for each device of a domain at once: one takes a directory away in which another works.
#[test]
fn many_at_once_do_their_own_and_no_more() {
    const DEVICES: u32 = 8;
    in_namespace(|| {
        let mut host = Host::new();
        let me = Asker::of(std::process::id());
        let before = host.kernel();
        for device in 0..DEVICES {
            crate::host::ip(&format!(
                "link add many{device} type veth peer name end{device}"
            ));
            let path = format!("/libxl/3/remus/netbuf/{device}");
            placed(&mut host, &format!("many{device}"), &path, me);
        }
        let programs = (0..DEVICES).map(|device| {
            let mut program = host.program("teardown", &format!("many{device}"), device);
            program
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        });
        let programs: Vec<_> = programs.collect();
        for program in programs {
            let output = program.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && text.is_empty(), "{text}");
        }
        assert_eq!(host.store.paths(), ["/libxl", "/libxl/3"]);
        for device in 0..DEVICES {
            crate::host::ip(&format!("link del many{device}"));
        }
        assert_eq!(host.kernel(), before);
    });
}
