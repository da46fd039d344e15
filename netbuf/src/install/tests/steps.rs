//! What could go wrong: killed half way, the next start opens what was held, fails on what is there,
//! or leaves things behind.

use super::lan::{Lan, ROOT, frame, in_namespace, ip};
use crate::install::{
    Begin, InstallError, REMOVALS, Root, STEPS, Standing, adopt, cleanup, ifb_name, install,
    install_first, look, uninstall, uninstall_first,
};
use crate::netlink::request;

fn passes(lan: &Lan) -> bool {
    lan.say(&frame(&[0xff; 6], &[0x88, 0xb5], 60, 1));
    lan.hear(300).is_some()
}

fn nothing_of_ours(lan: &mut Lan) {
    let found = look(&mut lan.netlink, lan.vif).unwrap();
    assert_eq!(found.standing(), Standing::Absent);
    assert!(!found.ingress && found.ifb.is_none() && found.foreign.is_none());
    let links = lan.netlink.links().unwrap();
    assert!(links.iter().all(|link| !link.name.starts_with("netbuf-")));
}

#[test]
fn killed_after_every_step_of_an_installation() {
    in_namespace(|| {
        let mut lan = Lan::new();
        let vif = lan.vif;
        for count in 0..=STEPS.len() {
            for and_then in ["cleanup", "install"] {
                install_first(&mut lan.netlink, vif, ROOT, Begin::Open, count).unwrap();
                assert!(passes(&lan), "a guest was cut off after {count} steps");
                let through = lan.passed();
                assert_eq!(through > 0, count == STEPS.len(), "after {count} steps");
                let standing = adopt(&mut lan.netlink, vif, ROOT).unwrap();
                match count {
                    0 => assert_eq!(standing, Standing::Absent),
                    6 => assert!(matches!(standing, Standing::Whole { .. })),
                    _ => assert_eq!(standing, Standing::Unfinished, "after {count} steps"),
                }
                if and_then == "install" {
                    let ifb = install(&mut lan.netlink, vif, ROOT, Begin::Open).unwrap();
                    let again = install(&mut lan.netlink, vif, ROOT, Begin::Open).unwrap();
                    assert_eq!(ifb, again);
                    let before = lan.passed();
                    assert!(passes(&lan));
                    assert_eq!(lan.passed(), before + 1);
                }
                let removed = cleanup(&mut lan.netlink).unwrap();
                assert_eq!(
                    removed.len(),
                    usize::from(count > 0 || and_then == "install")
                );
                assert!(cleanup(&mut lan.netlink).unwrap().is_empty());
                nothing_of_ours(&mut lan);
                assert!(passes(&lan));
            }
        }
    });
}

#[test]
fn killed_after_every_step_of_a_removal() {
    in_namespace(|| {
        let mut lan = Lan::new();
        let vif = lan.vif;
        for count in 0..=REMOVALS.len() {
            install(&mut lan.netlink, vif, ROOT, Begin::Open).unwrap();
            uninstall_first(&mut lan.netlink, vif, count).unwrap();
            let standing = adopt(&mut lan.netlink, vif, ROOT).unwrap();
            match count {
                0 => assert!(matches!(standing, Standing::Whole { .. })),
                1 => {
                    assert_eq!(standing, Standing::Shut);
                    assert!(!passes(&lan), "the IFB is down and redirected to");
                    let refused = install(&mut lan.netlink, vif, ROOT, Begin::Open);
                    assert!(matches!(refused, Err(InstallError::Shut(_))));
                }
                2 => assert_eq!(standing, Standing::Unfinished),
                _ => assert_eq!(standing, Standing::Absent),
            }
            uninstall(&mut lan.netlink, vif).unwrap();
            uninstall(&mut lan.netlink, vif).unwrap();
            nothing_of_ours(&mut lan);
        }
    });
}

#[test]
fn what_is_not_ours_is_left_alone() {
    in_namespace(|| {
        let mut lan = Lan::new();
        let vif = lan.vif;
        ip("link add netbuf-x type ifb");
        ip("link add ifb7 type ifb");
        ip("link add netbuf-7fff type bridge");
        let far = lan.netlink.link("far").unwrap().unwrap().index;
        lan.netlink
            .ask("foreign", request::make_ingress(far))
            .unwrap();
        install(&mut lan.netlink, vif, ROOT, Begin::Open).unwrap();
        assert_eq!(cleanup(&mut lan.netlink).unwrap(), [ifb_name(vif)]);
        for name in ["netbuf-x", "ifb7", "netbuf-7fff"] {
            assert!(lan.netlink.link(name).unwrap().is_some(), "{name} is gone");
        }
        // An ingress qdisc of somebody's: refused by name, and still there.
        let refused = install(&mut lan.netlink, far, ROOT, Begin::Open).unwrap_err();
        println!("{refused}");
        assert!(matches!(refused, InstallError::Foreign { .. }));
        uninstall(&mut lan.netlink, far).unwrap();
        let qdiscs = lan.netlink.qdiscs(far).unwrap();
        assert!(qdiscs.iter().any(|q| q.kind == "ingress"));
        let refused = install(&mut lan.netlink, 0x7fff, ROOT, Begin::Open).unwrap_err();
        assert!(matches!(refused, InstallError::Foreign { .. }), "{refused}");
        let refused = install(&mut lan.netlink, 0x7ffe, ROOT, Begin::Open).unwrap_err();
        assert!(matches!(refused, InstallError::NoInterface(_)));
    });
}

#[test]
fn an_interface_that_vanishes_leaves_its_ifb_to_cleanup() {
    in_namespace(|| {
        let mut lan = Lan::new();
        let vif = lan.vif;
        install(&mut lan.netlink, vif, ROOT, Begin::Open).unwrap();
        ip("link del vif");
        let standing = adopt(&mut lan.netlink, vif, ROOT).unwrap();
        assert_eq!(standing, Standing::Unfinished);
        let gone = install(&mut lan.netlink, vif, ROOT, Begin::Open);
        assert!(matches!(gone, Err(InstallError::NoInterface(_))));
        assert_eq!(cleanup(&mut lan.netlink).unwrap(), [ifb_name(vif)]);
        nothing_of_ours(&mut lan);
    });
}

/// What a hold asks many times a second is answered as the list of everything is.
#[test]
fn the_root_alone_is_what_the_list_has() {
    in_namespace(|| {
        let mut lan = Lan::new();
        let ifb = install(&mut lan.netlink, lan.vif, ROOT, Begin::Open).unwrap();
        assert!(passes(&lan));
        let listed = look(&mut lan.netlink, lan.vif).unwrap().root;
        assert!(listed.is_some());
        assert_eq!(lan.netlink.our_root(ifb).unwrap(), listed);
        let vif = lan.vif;
        assert_eq!(lan.netlink.our_root(vif).unwrap(), None);
        assert_eq!(lan.netlink.our_root(0x7fff).unwrap(), None);
    });
}

/// An IFB that somebody deleted: the guest is cut off, which is told and can be ended.
#[test]
fn a_redirect_without_its_ifb_is_recognised_and_removed() {
    in_namespace(|| {
        let mut lan = Lan::new();
        let vif = lan.vif;
        let ifb = install(&mut lan.netlink, vif, ROOT, Begin::Open).unwrap();
        lan.netlink
            .ask("delete", request::delete_link(ifb))
            .unwrap();
        assert_eq!(adopt(&mut lan.netlink, vif, ROOT).unwrap(), Standing::Shut);
        assert!(!passes(&lan));
        uninstall(&mut lan.netlink, vif).unwrap();
        nothing_of_ours(&mut lan);
        assert!(passes(&lan));
    });
}

/// A kernel without plug says so before anything is redirected.
#[test]
fn without_a_plug_the_guest_stays_as_it_was() {
    in_namespace(|| {
        let mut lan = Lan::new();
        let vif = lan.vif;
        let root = Root::Plug {
            limit_bytes: 10_000_000,
        };
        match install(&mut lan.netlink, vif, root, Begin::Open) {
            Ok(_) => assert!(passes(&lan), "a plug, and opened"),
            Err(InstallError::Netlink(error)) => {
                println!("{error}");
                assert!(error.is(libc::ENOENT), "{error}");
                assert!(passes(&lan));
            }
            Err(other) => panic!("{other}"),
        }
        uninstall(&mut lan.netlink, vif).unwrap();
        nothing_of_ours(&mut lan);
    });
}
