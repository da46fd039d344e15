//! Ends that nobody planned, and what others have there.

use super::*;

/// libxl was killed: the guest is mute until somebody begins anew, which drops what was held.
#[test]
fn a_dead_process_is_succeeded_and_what_it_held_is_dropped() {
    in_namespace(|netlink| {
        let (before, mut store) = (left(netlink), Memory::default());
        set_up(netlink, &mut store, &asked(), dead(), ROOT).unwrap();
        let lines = crate::script::lines(netlink).unwrap();
        assert!(lines[0].contains("is gone"), "{lines:?}");
        let old = ifb(netlink);
        set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap();
        let new = ifb(netlink);
        assert_ne!(old, new, "its queue would go on counting");
        assert!(is_whole(netlink, "vif3.0"));
        take_away(netlink, &asked(), alive()).unwrap();
        assert_eq!(left(netlink), before);
        // By cleanup, or by hand.
        set_up(netlink, &mut store, &asked(), dead(), ROOT).unwrap();
        assert_eq!(crate::script::cleanup(netlink, false).unwrap().len(), 1);
        set_up(netlink, &mut store, &asked(), dead(), ROOT).unwrap();
        take_away(netlink, &asked(), alive()).unwrap();
        assert_eq!(left(netlink), before);
    });
}

/// The guest was destroyed before teardown: that is how `xl destroy` ends a Remus on purpose.
#[test]
fn an_interface_that_is_gone_is_taken_away_too() {
    in_namespace(|netlink| {
        types("ip link add vif3.0-emu type veth peer name emulated");
        let mut store = Memory::default();
        set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap();
        types("ip link del vif3.0");
        let lines = crate::script::lines(netlink).unwrap();
        assert!(lines[0].contains("vanished and vif3.0-emu"), "{lines:?}");
        take_away(netlink, &asked(), alive()).unwrap();
        let rest = left(netlink);
        assert!(
            !rest.contains("ingress") && !rest.contains("netbuf-"),
            "{rest}"
        );
        // A new interface of the same name, after a libxl that never tore down.
        types("ip link add vif3.0 type veth peer name guest");
        set_up(netlink, &mut store, &asked(), dead(), ROOT).unwrap();
        types("ip link del vif3.0");
        types("ip link add vif3.0 type veth peer name guest");
        set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap();
        assert_eq!(mark::all(netlink).unwrap().len(), 1);
        assert!(is_whole(netlink, "vif3.0"));
    });
}

/// A fully virtualised guest speaks by either of two interfaces, and libxl names one.
#[test]
fn the_other_half_of_a_card_is_held_with_it() {
    in_namespace(|netlink| {
        types("ip link add vif3.0-emu type veth peer name emulated");
        let before = left(netlink);
        let mut store = Memory::default();
        for vif in ["vif3.0", "vif3.0-emu"] {
            let request = Request {
                vif: vif.into(),
                ..asked()
            };
            let name = set_up(netlink, &mut store, &request, alive(), ROOT).unwrap();
            let ifb = index(netlink, &name);
            for half in ["vif3.0", "vif3.0-emu"] {
                let half = index(netlink, half);
                let filters = netlink.ingress_filters(half).unwrap();
                assert!(filters.iter().any(|filter| filter.is_ours(ifb)), "{vif}");
            }
            // What is whole is only whole with both.
            types(&format!(
                "tc qdisc del dev {} ingress",
                if vif == "vif3.0" {
                    "vif3.0-emu"
                } else {
                    "vif3.0"
                }
            ));
            set_up(netlink, &mut store, &request, alive(), ROOT).unwrap();
            let twin = index(netlink, "vif3.0-emu");
            assert!(!netlink.ingress_filters(twin).unwrap().is_empty());
            take_away(netlink, &request, alive()).unwrap();
            assert_eq!(left(netlink), before);
        }
        // Where it cannot be held, nothing is.
        types("tc qdisc add dev vif3.0-emu clsact");
        let before = left(netlink);
        let error = set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap_err();
        assert!(
            error.is_refusal() && error.to_string().contains("clsact"),
            "{error}"
        );
        assert_eq!(left(netlink), before);
    });
}

/// Whatever stands there of others stays as it is.
#[test]
fn of_others_nothing_is_touched() {
    in_namespace(|netlink| {
        let mut store = Memory::default();
        types("tc qdisc add dev vif3.0 ingress");
        let before = left(netlink);
        let error = set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap_err();
        assert!(error.is_refusal(), "{error}");
        take_away(netlink, &asked(), alive()).unwrap();
        assert_eq!(left(netlink), before, "somebody's ingress qdisc");
        types("tc qdisc del dev vif3.0 ingress");
        // The daemon's, and what a daemon has left held.
        let vif = index(netlink, "vif3.0");
        let ifb = install(netlink, vif, ROOT, Begin::Held).unwrap();
        for (alias, says) in [("vm1", "vm1"), ("", "cleanup")] {
            netlink
                .ask("alias", request::set_alias(ifb, alias))
                .unwrap();
            let before = left(netlink);
            let error = set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap_err();
            assert!(
                error.is_refusal() && error.to_string().contains(says),
                "{error}"
            );
            take_away(netlink, &asked(), alive()).unwrap();
            assert_eq!(left(netlink), before);
            assert!(is_whole(netlink, "vif3.0"));
        }
    });
}

/// Killed by libxl after 40 s, or with its host's memory: after each step the next set-up goes on, and a
/// teardown takes away what is there.
#[test]
fn killed_after_any_step_it_is_set_up_or_taken_away() {
    in_namespace(|netlink| {
        let (before, mut store) = (left(netlink), Memory::default());
        let vif = index(netlink, "vif3.0");
        let mark = Mark {
            path: asked().path,
            asker: dead(),
            twin: 0,
        };
        for marked in [false, true] {
            for steps in 1..=if marked { 6 } else { 1 } {
                for again in [false, true] {
                    let ifb =
                        crate::install::install_first(netlink, vif, ROOT, Begin::Open, 1).unwrap();
                    if marked {
                        netlink
                            .ask("mark", request::set_alias(ifb, &mark.write()))
                            .unwrap();
                    }
                    crate::install::install_first(netlink, vif, ROOT, Begin::Open, steps).unwrap();
                    if again {
                        set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap();
                        assert!(is_whole(netlink, "vif3.0"));
                        assert_eq!(mark::all(netlink).unwrap()[0].mark.asker, alive());
                    }
                    take_away(netlink, &asked(), alive()).unwrap();
                    assert_eq!(left(netlink), before, "{marked} {steps} {again}");
                }
            }
        }
    });
}

/// Somebody deleted the IFB: the kernel drops what the guest says. Ours by its key, a daemon's without.
#[test]
fn a_redirect_whose_ifb_was_deleted_is_taken_away_if_it_is_ours() {
    in_namespace(|netlink| {
        let (before, mut store) = (left(netlink), Memory::default());
        for ours in [false, true] {
            let name = set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap();
            types(&format!("ip link del {name}"));
            let key = format!("{PATH}/ifb");
            if !ours {
                store.remove(&key).unwrap();
            }
            forget_lost(netlink, &mut store, &asked()).unwrap();
            assert_eq!(left(netlink) == before, ours);
            store.write(&key, &name).unwrap();
            forget_lost(netlink, &mut store, &asked()).unwrap();
            assert_eq!(left(netlink), before);
        }
    });
}

/// Teardown drops: its IFB is down before the redirect goes, so nothing that is held passes.
#[test]
fn one_that_was_shut_is_begun_anew_by_the_same_process() {
    in_namespace(|netlink| {
        let mut store = Memory::default();
        let name = set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap();
        let ifb = index(netlink, &name);
        carry_out(netlink, ifb, Order::Shut).unwrap();
        assert!(crate::script::lines(netlink).unwrap()[0].contains("is down"));
        set_up(netlink, &mut store, &asked(), alive(), ROOT).unwrap();
        assert!(is_whole(netlink, "vif3.0"));
        assert_ne!(index(netlink, &name), ifb);
    });
}
