//! Parts of the suite that take a guest.

use super::{Extent, Part, missing_tool, xtask};
use crate::checkout::Checkout;

/// What the demo, the power cuts and the commands with a busy guest do, and planted damage for each.
pub(super) fn parts(checkout: &Checkout, extent: Extent, daemons: &Option<String>) -> Vec<Part> {
    let tools = missing_tool("qemu-system-x86_64").or_else(|| missing_tool("qemu-nbd"));
    let both = daemons.clone().or_else(|| tools.clone());
    let rounds = extent.guest_rounds.to_string();
    let cuts = extent.power_rounds.to_string();
    let part = |name: &str, code: i32, skip: &Option<String>, words: &[&str]| {
        xtask(checkout, name, 15, code, skip, |command| {
            command.args(words).arg("--no-install");
        })
    };
    let selftest = "guest-selftest";
    let mut parts = vec![
        part("guest lab", 0, &tools, &[selftest]),
        part(
            "guest lab finds flip",
            1,
            &tools,
            &[selftest, "--plant", "flip"],
        ),
        part(
            "guest lab finds older-epoch",
            1,
            &tools,
            &[selftest, "--plant", "older-epoch"],
        ),
        part(
            "disk demo, ack flush",
            0,
            &both,
            &["demo-disk", "--rounds", &rounds],
        ),
        part(
            "disk demo, ack local",
            0,
            &both,
            &["demo-disk", "--ack", "local", "--rounds", &rounds],
        ),
        part(
            "disk demo finds flip",
            1,
            &both,
            &["demo-disk", "--plant", "flip"],
        ),
        part(
            "disk demo finds older-epoch",
            1,
            &both,
            &["demo-disk", "--plant", "older-epoch"],
        ),
        part("power cuts", 0, &both, &["power", "--rounds", &cuts]),
        part(
            "power cuts find a missing sync",
            1,
            &both,
            &["power", "--plant", "no-sync", "--rounds", "6"],
        ),
    ];
    parts.extend(demo_parts(checkout, extent));
    parts.extend(postgres_parts(checkout, extent));
    parts.extend(churn_parts(checkout, extent, &both));
    parts.extend(net_parts(checkout, extent));
    parts.extend(tracker_parts(checkout));
    parts
}

/// A whole VM that goes on at the other host, and what must not go unnoticed.
fn demo_parts(checkout: &Checkout, extent: Extent) -> Vec<Part> {
    let tools = missing_tool("qemu-system-x86_64").or_else(|| missing_tool("ip"));
    let rounds = extent.guest_rounds.to_string();
    let part = |name: &str, code: i32, words: &[&str]| {
        xtask(checkout, name, 15, code, &tools, |command| {
            command.arg("demo").args(words);
            command.args(["--seconds", "10", "--no-install"]);
        })
    };
    let mut parts = vec![part("demo", 0, &["--rounds", &rounds])];
    for plant in ["early-release", "older-epoch", "skip-page"] {
        parts.push(part(&format!("demo finds {plant}"), 1, &["--plant", plant]));
    }
    for (name, test) in [
        (
            "memory of a left out page differs",
            "bytes::a_page_that_is_left_out_is_found",
        ),
        (
            "checkpointer killed at every step",
            "kills::killed_at_any_step_it_leaves_a_guest_that_runs_and_is_protected_again",
        ),
    ] {
        parts.push(planted_test(checkout, &tools, name, test));
    }
    parts
}

/// A test with a checkpointer that has bugs and ends to switch on: the one that the demo has built.
fn planted_test(checkout: &Checkout, skip: &Option<String>, name: &str, test: &str) -> Part {
    let mut command = checkout.cargo();
    command.args(["test", "-p", "checkpointer", "--test", "whole", "--"]);
    command.args(["--exact", test]);
    let mut part = Part::new(name, command, 10);
    match checkout
        .metadata()
        .and_then(|metadata| metadata.target_dir())
    {
        Ok(target) => {
            let planted = target.join("planted/checkpointer");
            part.command.env("CHECKPOINTER_PLANTED", planted);
            part.skip.clone_from(skip);
        }
        Err(error) => part.skip = Some(error.to_string()),
    }
    part
}

/// A database that other people wrote, for as long as it takes.
fn postgres_parts(checkout: &Checkout, extent: Extent) -> Vec<Part> {
    if extent.postgres_rounds == 0 {
        return Vec::new();
    }
    // SAFETY: no arguments, cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let skip = (!root).then(|| "network namespaces need root".to_owned());
    let skip = skip.or_else(|| missing_tool("qemu-system-x86_64"));
    let rounds = extent.postgres_rounds.to_string();
    let part = |name: &str, words: &[&str]| {
        xtask(checkout, name, 15, 0, &skip, |command| {
            command.arg("postgres").args(words).arg("--no-install");
        })
    };
    vec![
        part("PostgreSQL", &["--rounds", &rounds]),
        part("a compiler in a Debian guest", &["--load", "compile"]),
    ]
}

/// What holds frames by either mechanism; the tests run the relay without plants themselves.
fn net_parts(checkout: &Checkout, extent: Extent) -> Vec<Part> {
    // SAFETY: no arguments, cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let of_relay = (!root).then(|| "network namespaces need root".to_owned());
    let of_plug = missing_tool("qemu-system-x86_64");
    let [of_relay, of_plug] = [of_relay, of_plug].map(|why| why.or_else(|| missing_tool("tc")));
    let kills = extent.net_kills.to_string();
    let seconds = extent.tcp_seconds.to_string();
    let out = checkout.work().join("test/bench-net");
    let of_bench = (!root).then(|| "network namespaces need root".to_owned());
    let of_bench = of_bench.or_else(|| missing_tool("ip"));
    let bench = xtask(checkout, "bench net runs", 10, 0, &of_bench, |command| {
        command.args(["bench", "net", "--quick", "--no-guest", "--no-install"]);
        command.arg("--out").arg(&out);
    });
    let mut parts = vec![bench];
    parts.push(xtask(
        checkout,
        "netbuf with the plug",
        15,
        0,
        &of_plug,
        |command| {
            command.args(["net", "--mechanism", "plug", "--no-install"]);
            command.args(["--kills", &kills, "--tcp-seconds", &seconds]);
        },
    ));
    for (mechanism, skip) in [("plug", &of_plug), ("relay", &of_relay)] {
        for plant in ["early-release", "ipv4-only", "lost-frame"] {
            let name = format!("netbuf with the {mechanism} finds {plant}");
            parts.push(xtask(checkout, &name, 10, 1, skip, |command| {
                command.args(["net", "--mechanism", mechanism, "--plant", plant]);
                command.arg("--no-install");
            }));
        }
    }
    parts
}

/// Soft-dirty bits, which the kernel of this machine may lack.
fn tracker_parts(checkout: &Checkout) -> Vec<Part> {
    let skip = missing_tool("qemu-system-x86_64");
    let part = |name: &str, code: i32, words: &[&str]| {
        xtask(checkout, name, 10, code, &skip, |command| {
            command.arg("tracker").args(words).arg("--no-install");
        })
    };
    vec![
        part("soft-dirty tracker", 0, &["--rounds", "150"]),
        part(
            "soft-dirty tracker finds cleared",
            1,
            &["--rounds", "50", "--plant", "cleared"],
        ),
    ]
}

/// The guest that keeps its disk busy and knows what it must find there.
fn churn_parts(checkout: &Checkout, extent: Extent, both: &Option<String>) -> Vec<Part> {
    let fio = both.clone().or_else(|| missing_tool("fio"));
    let load = extent.fio_seconds.to_string();
    let moves = extent.migrations.to_string();
    let part = |name: &str, code: i32, skip: &Option<String>, words: &[&str]| {
        xtask(checkout, name, 15, code, skip, |command| {
            command.args(words).arg("--no-install");
        })
    };
    vec![
        part(
            "restarts under a guest",
            0,
            &fio,
            &["restarts", "--kills", "20"],
        ),
        part(
            "restarts find used-index",
            1,
            &fio,
            &["restarts", "--plant", "used-index"],
        ),
        part(
            "fio in a guest",
            0,
            &fio,
            &["guest-fio", "--seconds", &load],
        ),
        part(
            "fio in a guest finds flip",
            1,
            &fio,
            &["guest-fio", "--seconds", "5", "--plant", "flip"],
        ),
        part(
            "fio in a guest finds older-epoch",
            1,
            &fio,
            &["guest-fio", "--seconds", "5", "--plant", "older-epoch"],
        ),
        part("migration", 0, both, &["migrate", "--times", &moves]),
        part(
            "migration finds no-log",
            1,
            both,
            &["migrate", "--plant", "no-log"],
        ),
    ]
}
