//! What is larger than the rule or there twice, and why.

use blockrep_tests::tidy::sizes::{Exception, FILE_LINES_HARD};

const fn file(of: &'static str, why: &'static str) -> Exception {
    Exception {
        of,
        lines_max: FILE_LINES_HARD,
        why,
    }
}

const fn function(of: &'static str, lines_max: usize, why: &'static str) -> Exception {
    Exception { of, lines_max, why }
}

const ONE_FORMAT: &str = "one format: struct, bytes, rules and their tests belong together";
const ONE_MACHINE: &str = "one state machine; its transitions are read together";
const CASES: &str = "a list of cases";

/// Files above 400 lines, none above 800.
pub(crate) const LARGE_FILES: &[Exception] = &[
    file(
        "blkback-proto/src/ctl/guest.rs",
        "one report: the words of a guest's status and their bounds",
    ),
    file("blkback-proto/src/ctl/guest/tests.rs", CASES),
    file("blkback-proto/src/ctl/tests.rs", CASES),
    file("blkback-proto/src/link.rs", ONE_FORMAT),
    file("blkback-proto/src/memory/frame.rs", ONE_FORMAT),
    file("blkback-proto/src/memory/tests.rs", CASES),
    file("blkback-proto/src/meta.rs", ONE_FORMAT),
    file("blkback-proto/src/record.rs", ONE_FORMAT),
    file("blockrep/src/daemon/nbd_loop.rs", ONE_MACHINE),
    file("blockrep/src/daemon/net.rs", ONE_MACHINE),
    file(
        "blockrep/src/daemon/status.rs",
        "one report; every part of it is a small function",
    ),
    file("blockrep/src/daemon/thread.rs", ONE_MACHINE),
    file("blockrep/src/engine/backup/mod.rs", ONE_MACHINE),
    file("blockrep/src/engine/backup/serve.rs", ONE_MACHINE),
    file("blockrep/src/engine/backup/session/mod.rs", ONE_MACHINE),
    file("blockrep/src/engine/primary/link.rs", ONE_MACHINE),
    file("blockrep/src/engine/primary/mod.rs", ONE_MACHINE),
    file("blockrep/src/group/backup.rs", ONE_MACHINE),
    file("blockrep/src/group/primary.rs", ONE_MACHINE),
    file("blockrep/src/group/memory/tests.rs", CASES),
    file(
        "blockrep/src/journal/start.rs",
        "one decision: what a volume is when its daemon starts",
    ),
    file("blockrep/src/reactor/tests/files.rs", CASES),
    file(
        "checkpointer/src/memory/store/files.rs",
        "one directory: every file of it is made, read and removed here",
    ),
    file("checkpointer/src/memory/store/mod.rs", ONE_MACHINE),
    file("blkback-proto/src/ctl/words.rs", CASES),
    file(
        "checkpointer/src/protect/guest.rs",
        "one guest: where each written page is at each moment is read together",
    ),
    file("checkpointer/src/protect/mod.rs", ONE_MACHINE),
    file(
        "checkpointer/src/sequence/tests/world.rs",
        "one world: what its parts do to each other is read together",
    ),
    file("tests/src/sim/memory/checkpointer.rs", ONE_MACHINE),
    file(
        "tests/src/sim/memory/mod.rs",
        "the words of all actors of the memory",
    ),
    file("tests/src/sim/plan.rs", CASES),
    file("checkpointer/src/standby/mod.rs", ONE_MACHINE),
    file("checkpointer/tests/store.rs", CASES),
    file("checkpointer/tests/stream.rs", CASES),
    file("netbuf/tests/daemon/failover.rs", CASES),
    file(
        "tests/src/sim/oracle.rs",
        "one judge: what every read and every crash may show",
    ),
    file(
        "tools/src/ctl/render.rs",
        "one report; every part of it is a small function",
    ),
    file("tools/src/load/generator.rs", ONE_MACHINE),
    file("tools/src/load/log.rs", ONE_FORMAT),
    file(
        "tools/src/load/nbd.rs",
        "one client, both sides of its protocol",
    ),
    file(
        "tools/xtask/src/power/round.rs",
        "one round from power-on to verdict",
    ),
    file(
        "tools/xtask/src/suite.rs",
        "one list: the parts of the suite and how each is run",
    ),
];

/// Files above 800 lines, which no reason excuses; this list may only get shorter.
pub(crate) const OVER_THE_HARD_LIMIT: [&str; 0] = [];

/// Functions above 70 lines.
pub(crate) const LARGE_FUNCTIONS: &[Exception] = &[
    function(
        "blockrep/src/engine/primary/link.rs::seal",
        80,
        "one seal, record or empty",
    ),
    function("blkback-proto/src/memory/frame.rs::put_body", 76, CASES),
    function("checkpointer/src/sequence/tests/world.rs::do_it", 74, CASES),
    function("tests/src/sim/guest.rs::ask_at", 75, CASES),
    function("blkback-proto/src/ctl/tests.rs::golden_packets", 150, CASES),
    function("blkback-proto/src/ctl/tests.rs::golden_memory", 90, CASES),
    function("blkback-proto/src/memory/tests.rs::with_all", 95, CASES),
    function("blkback-proto/src/ctl/netbuf/tests.rs::golden", 121, CASES),
    function(
        "blkback-proto/src/diskspec/tests.rs::mistakes_are_shown_where_they_are",
        243,
        CASES,
    ),
    function(
        "blockrep/src/cli/tests.rs::every_flag_reaches_the_configuration",
        105,
        CASES,
    ),
    function(
        "blockrep/src/config/tests/mistakes.rs::mistakes_in_a_file_name_their_line",
        75,
        CASES,
    ),
    function(
        "blockrep/src/config/tests/mistakes.rs::mistakes_of_a_backup",
        99,
        CASES,
    ),
    function(
        "blockrep/src/config/tests/mistakes.rs::mistakes_of_a_primary",
        139,
        CASES,
    ),
    function(
        "blockrep/src/daemon/startup/mod.rs::run_backup",
        100,
        "start-up in the order in which it has to happen",
    ),
    function(
        "blockrep/src/daemon/startup/mod.rs::run_primary",
        90,
        "start-up in the order in which it has to happen",
    ),
    function(
        "blockrep/src/daemon/startup/seed.rs::sprout",
        95,
        "one struct with many fields",
    ),
    function(
        "blockrep/src/daemon/status.rs::volume_status",
        90,
        "one struct with many fields",
    ),
    function(
        "blockrep/src/daemon/status.rs::group_report",
        75,
        "one struct with many fields",
    ),
    function(
        "blockrep/src/engine/primary/link.rs::send_job",
        90,
        "one arm for each kind of job",
    ),
    function(
        "blockrep/src/frontend/nbd/tests/refusals.rs::every_check_has_its_error_number",
        84,
        CASES,
    ),
    function(
        "blockrep/src/group/backup.rs::check_hello",
        75,
        "one check after the other; the first that fails is told",
    ),
    function(
        "blockrep/src/group/primary.rs::volume",
        90,
        "one arm for each kind of message",
    ),
    function(
        "checkpointer/src/config/tests.rs::mistakes_of_one_more_line",
        140,
        CASES,
    ),
    function(
        "checkpointer/src/protect/mod.rs::new",
        110,
        "one struct with many fields",
    ),
    function(
        "checkpointer/src/standby/report.rs::report",
        110,
        "one struct with many fields",
    ),
    function(
        "checkpointer/tests/stream.rs::life",
        125,
        "one life of a guest from its first copy to its end",
    ),
    function(
        "checkpointer/tests/tracker/figures.rs::figures",
        75,
        "one table; each row is measured and printed",
    ),
    function(
        "tests/tests/tidy/bytes.rs::link_tables_are_what_is_sent",
        100,
        "every field of a table",
    ),
    function(
        "tests/tests/tidy/bytes.rs::record_tables_are_what_is_written",
        100,
        "every field of a table",
    ),
    function(
        "tests/tests/tidy/words.rs::codes_of_the_document_are_those_of_the_code",
        90,
        CASES,
    ),
    function(
        "tools/xtask/src/demo/load.rs::run",
        94,
        "the demo from beginning to end, as it is shown",
    ),
];

/// Crates that are locked twice.
pub(crate) const TWICE: &[(&str, &str)] = &[
    (
        "bitflags",
        "tokio-uring, in the load generator only, is unmaintained and holds the old one",
    ),
    ("io-uring", "the same"),
    ("socket2", "the same"),
    (
        "syn",
        "a build-time parser; the derives of zerocopy have not moved on yet",
    ),
    (
        "rustix",
        "virtio-driver, in the bench only, was released last in 2024 and holds the old one",
    ),
    ("linux-raw-sys", "the same"),
    (
        "windows-sys",
        "the same; never built where this project runs",
    ),
];
