use clap::{Command, CommandFactory};

use super::*;
use crate::config::{
    BACKPRESSURE_TIMEOUT_DEFAULT, EPOCH_DEFAULT, EPOCH_MAX, EPOCH_MIN, JOURNAL_BYTES_DEFAULT,
    JOURNAL_BYTES_MAX, JOURNAL_BYTES_MIN, Key, LOG_DEFAULT, LOSS_POLICY_DEFAULT, OutputClass,
    journal_segment_bytes,
};
use blkback_proto::diskspec::DEFAULT_LINK_PORT;
use blkback_proto::units::{exact_bytes, exact_duration};
use blockrep_host::ctl::{RUNTIME_DIR, RUNTIME_DIR_VARIABLE};

fn args(program: &str, line: &[&str]) -> Vec<OsString> {
    std::iter::once(program)
        .chain(line.iter().copied())
        .map(OsString::from)
        .collect()
}

fn primary_fails(line: &[&str]) -> String {
    primary(args("blockrep", line))
        .expect_err("is refused")
        .report("blockrep")
}

fn backup_fails(line: &[&str]) -> String {
    backup(args("blockrep-backup", line))
        .expect_err("is refused")
        .report("blockrep-backup")
}

fn printed<C: fmt::Debug>(start: Result<Start<C>, CliError>) -> String {
    match start {
        Ok(Start::Print(text)) => text,
        other => panic!("nothing to print: {other:?}"),
    }
}

/// The help text with its line breaks taken out.
fn help(command: &mut Command) -> String {
    let text = command.render_long_help().to_string();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

// A flag without its default in --help is one people set "to be sure", wrongly.
#[test]
fn help_names_every_default() {
    for mut command in [PrimaryArgs::command(), BackupArgs::command()] {
        command.build();
        for arg in command.get_arguments() {
            let id = arg.get_id().as_str().to_owned();
            if ["help", "version"].contains(&id.as_str()) {
                continue;
            }
            let text = arg
                .get_help()
                .map(|help| help.to_string())
                .unwrap_or_default();
            assert!(
                text.contains("[default: ") || text.contains("[no default"),
                "{} --{id}: {text}",
                command.get_name()
            );
        }
    }
}

// A default that was changed in the code alone: the help then tells a lie.
#[test]
fn help_agrees_with_the_constants() {
    let both = [
        format!("[default: {}]", exact_bytes(JOURNAL_BYTES_DEFAULT)),
        format!(
            "{} to {}",
            exact_bytes(JOURNAL_BYTES_MIN),
            exact_bytes(JOURNAL_BYTES_MAX)
        ),
        format!(
            "segments of {}",
            exact_bytes(journal_segment_bytes(JOURNAL_BYTES_DEFAULT))
        ),
        format!("[default: {RUNTIME_DIR}/GROUP.sock, of a backup {RUNTIME_DIR}/GROUP.backup.sock]"),
        format!("{RUNTIME_DIR_VARIABLE} names another directory"),
        format!("[default: {LOG_DEFAULT}]"),
        format!("port {DEFAULT_LINK_PORT} when left out"),
    ];
    let (open, held) = (
        OutputClass::Open.default_ack(),
        OutputClass::Held.default_ack(),
    );
    let primary = [
        format!("[default: {}]", exact_duration(EPOCH_DEFAULT)),
        format!(
            "{} to {}",
            exact_duration(EPOCH_MIN),
            exact_duration(EPOCH_MAX)
        ),
        format!(
            "[default: {}]",
            exact_duration(BACKPRESSURE_TIMEOUT_DEFAULT)
        ),
        format!("[default: {LOSS_POLICY_DEFAULT}]"),
        format!("[default: {open}; {held} while"),
        "[possible values: local, flush, write]".to_owned(),
    ];
    let primary_help = help(&mut PrimaryArgs::command());
    let backup_help = help(&mut BackupArgs::command());
    for text in &both {
        assert!(
            primary_help.contains(text) && backup_help.contains(text),
            "{text}"
        );
    }
    for text in &primary {
        assert!(primary_help.contains(text), "{text} in {primary_help}");
    }
    for (code, text) in ExitCode::ALL {
        let line = format!("{} {text}", code.code());
        assert!(
            primary_help.contains(&line) && backup_help.contains(&line),
            "{line}"
        );
    }
}

// "A file for everything flags can say" breaks silently when a flag is added alone.
#[test]
fn every_flag_is_a_key_and_every_key_a_flag() {
    for (program, mut command) in [
        (Program::Primary, PrimaryArgs::command()),
        (Program::Backup, BackupArgs::command()),
    ] {
        command.build();
        let mut flags: Vec<String> = command
            .get_arguments()
            .filter_map(|arg| arg.get_long())
            .filter(|long| !["help", "version", "config", "check-config"].contains(long))
            .map(str::to_owned)
            .collect();
        let mut keys: Vec<String> = Key::ALL
            .iter()
            .filter(|key| key.belongs_to(program))
            .map(|key| key.name().to_owned())
            .collect();
        flags.sort();
        keys.sort();
        assert_eq!(flags, keys, "{}", program.name());
    }
}

// A flag that is parsed and then forgotten: the daemon runs with the default instead.
#[test]
fn every_flag_reaches_the_configuration() {
    let text = printed(primary(args(
        "blockrep",
        &[
            "-n",
            "remus:10.0.0.2|aio:/srv/a.raw",
            "-n",
            "remus:10.0.0.2:9001|aio:/srv/b.raw",
            "--group",
            "db",
            "--nbd",
            "unix:/run/db.nbd",
            "--control",
            "/run/db.ctl",
            "--epoch",
            "manual",
            "--ack",
            "write",
            "--on-backup-loss",
            "pause",
            "--backpressure-timeout",
            "2min",
            "--state",
            "/var/lib/db",
            "--journal-size",
            "64M",
            "--assume-identical",
            "--same-image",
            "--insecure-plaintext",
            "--log",
            "debug",
            "--check-config",
        ],
    )));
    assert_eq!(
        text,
        r#"disk = ["remus:10.0.0.2:9000|aio:/srv/a.raw", "remus:10.0.0.2:9001|aio:/srv/b.raw"]
group = "db"
nbd = "unix:/run/db.nbd"
control = "/run/db.ctl"
state = "/var/lib/db"
journal-size = "64MiB"
same-image = true
insecure-plaintext = true
log = "debug"
epoch = "manual"
ack = "write"
on-backup-loss = "pause"
backpressure-timeout = "2min"
assume-identical = true
"#
    );
    let text = printed(backup(args(
        "blockrep-backup",
        &[
            "--listen",
            "0.0.0.0:9000",
            "--image",
            "/srv/a.raw",
            "--listen",
            "0.0.0.0:9001",
            "--image",
            "/srv/b.raw",
            "--group",
            "db",
            "--nbd",
            "tcp:127.0.0.1:10809",
            "--control",
            "/run/db.ctl",
            "--state",
            "/var/lib/db",
            "--journal",
            "/fast/db",
            "--journal-size",
            "64M",
            "--throttle-apply",
            "2MB/s",
            "--throttle-link",
            "1MiB/s",
            "--same-image",
            "--insecure-plaintext",
            "--log",
            "warn",
            "--check-config",
        ],
    )));
    assert_eq!(
        text,
        r#"listen = ["0.0.0.0:9000", "0.0.0.0:9001"]
image = ["/srv/a.raw", "/srv/b.raw"]
group = "db"
nbd = "tcp:127.0.0.1:10809"
control = "/run/db.ctl"
state = "/var/lib/db"
journal = "/fast/db"
journal-size = "64MiB"
same-image = true
insecure-plaintext = true
log = "warn"
throttle-apply = "2MB/s"
throttle-link = "1MiB/s"
"#
    );
}

// The first thing a new user sees of a mistake.
#[test]
fn mistakes_on_the_command_line() {
    assert_eq!(
        primary_fails(&[]),
        "blockrep: no disk is given; give -n 'remus:HOST:PORT|aio:/PATH'\n"
    );
    assert_eq!(
        primary_fails(&["-n", "remus:10.0.0.2:70000|aio:/img"]),
        "blockrep: -n: 'remus:10.0.0.2:70000|aio:/img', column 16: there is no such port; \
         expected HOST:PORT with a port of 1 to 65535\n  \
         remus:10.0.0.2:70000|aio:/img\n                 ^^^^^\n"
    );
    assert_eq!(
        primary_fails(&["-n", ""]),
        "blockrep: -n: nothing is given; expected aio:/PATH or remus:HOST:PORT|aio:/PATH\n"
    );
    assert_eq!(
        primary_fails(&["--epock", "25ms"]),
        "blockrep: unexpected argument '--epock' found, did you mean --epoch; see --help\n"
    );
    assert_eq!(
        primary_fails(&["--epoch"]),
        "blockrep: a value is required for '--epoch <TIME|manual>' but none was supplied; \
         see --help\n"
    );
    assert_eq!(
        primary_fails(&["--epoch", "1s", "--epoch", "2s"]),
        "blockrep: the argument '--epoch <TIME|manual>' cannot be used multiple times; \
         see --help\n"
    );
    assert_eq!(
        primary_fails(&["--\u{1b}[2J\nblockrep: all is well"]),
        "blockrep: unexpected argument '--; see --help\n"
    );
    assert_eq!(
        backup_fails(&["/img"]),
        "blockrep-backup: unexpected argument '/img' found; see --help\n"
    );
    assert_eq!(
        primary_fails(&["--config", "/nowhere/blockrep.toml"]),
        "blockrep: --config: cannot read '/nowhere/blockrep.toml': no such file or directory; \
         give a readable file\n"
    );
    assert_eq!(
        primary_fails(&["--config", "/"]),
        "blockrep: --config: cannot read '/': is a directory; give a readable file\n"
    );
    assert_eq!(
        primary_fails(&["--config", "/dev/zero"]),
        "blockrep: --config: cannot read '/dev/zero': it is longer than 1 MiB; \
         give a readable file\n"
    );
}

// Help that ends with an error code breaks the scripts that look for a program.
#[test]
fn help_and_version_are_no_mistakes() {
    assert!(printed(primary(args("blockrep", &["--help"]))).contains("Usage: blockrep"));
    assert!(printed(backup(args("blockrep-backup", &["-h"]))).contains("Exit codes:"));
    let version = printed(primary(args("blockrep", &["--version"])));
    assert_eq!(version, format!("blockrep {}\n", env!("CARGO_PKG_VERSION")));
}

// A setting in the file that beats the flag an operator just typed.
#[test]
fn flags_win_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blockrep.toml");
    let file = "disk = 'remus:h:9000|aio:/srv/a.raw'\nepoch = '5ms'\nack = 'local'\n";
    std::fs::write(&path, file).unwrap();
    let config = path.to_str().unwrap();
    let start = primary(args("blockrep", &["--config", config, "--epoch", "7ms"]));
    let Ok(Start::Run(config)) = start else {
        panic!("{start:?}")
    };
    assert_eq!(config.epoch.to_string(), "7ms");
    assert_eq!(config.ack_for(OutputClass::Open).name(), "local");
    assert_eq!(config.volumes.len(), 1);
}

// Exit codes are read by cluster agents: a number that moves is a wrong decision.
#[test]
fn exit_codes_are_fixed() {
    let codes: Vec<u8> = ExitCode::ALL.iter().map(|(code, _)| code.code()).collect();
    assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(ExitCode::Store.code(), 3);
    assert_eq!(ExitCode::NotPromotable.code(), 7);
}
