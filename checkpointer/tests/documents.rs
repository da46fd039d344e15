//! What could go wrong: a stranger types what the README says, and is told that it is wrong.

#![allow(
    clippy::unwrap_used,
    reason = "a test program: a failed unwrap is a failed test"
)]

use checkpointer::config::{Config, PROTECT_EXAMPLE, Promote, STANDBY_EXAMPLE, Side};
use checkpointer::hypervisor::qemu::spec::Spec;

const README: &str = include_str!("../../README.md");

/// The blocks of the README that are TOML, in their order.
fn blocks() -> Vec<String> {
    let blocks = README.split("```toml\n").skip(1);
    let inside = blocks.map(|rest| rest.split("```").next().unwrap().to_owned());
    inside.collect()
}

#[test]
fn both_files_of_the_readme_are_taken() {
    let [primary, standby] = blocks().try_into().unwrap();
    let primary = Config::parse("vm1.toml", &primary, Side::Protect, "x").unwrap();
    let standby = Config::parse("vm1.toml", &standby, Side::Standby, "x").unwrap();
    assert_eq!(
        (primary.guest.as_str(), primary.host.as_str()),
        ("vm1", "a")
    );
    // The primary's name for the standby is the standby's own.
    assert_eq!(primary.memory.backup_host, standby.host);
    assert_eq!(primary.memory.backup, standby.memory.listen);
    assert_eq!(standby.standby.promote, Promote::ByHand);
    let spec = Spec::of(&standby.guest, &standby.qemu).unwrap();
    assert_eq!(spec.memory_bytes(), 4 << 30);
}

/// Commented out, since what starts QEMU is not wanted by everybody; copied all the same.
#[test]
fn the_examples_describe_a_qemu_that_can_be_started() {
    for (text, side) in [
        (PROTECT_EXAMPLE, Side::Protect),
        (STANDBY_EXAMPLE, Side::Standby),
    ] {
        let (head, qemu) = text.split_once("# [qemu]").unwrap();
        let qemu: String = qemu.lines().fold(String::new(), |text, line| {
            text + line.strip_prefix("# ").unwrap_or(line) + "\n"
        });
        let config = Config::parse("vm1.toml", &format!("{head}[qemu]{qemu}"), side, "x").unwrap();
        let spec = Spec::of(&config.guest, &config.qemu).unwrap();
        assert_eq!(spec.memory_bytes(), 4 << 30);
        assert!(!spec.qemu.args.is_empty());
    }
}

/// A head line with a command that is not there is typed, and refused.
#[test]
fn the_examples_name_the_commands_that_there_are() {
    assert!(PROTECT_EXAMPLE.contains("checkpointer protect --config FILE"));
    assert!(STANDBY_EXAMPLE.contains("checkpointer receive --config FILE"));
}
