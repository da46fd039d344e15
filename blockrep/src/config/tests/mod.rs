mod mistakes;

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// `KEY=VALUE` words as the flags of a program.
fn flags(words: &[&str]) -> Settings {
    let mut settings = Settings::default();
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, "true"));
        let key = Key::named(name).expect("the test names a key");
        settings.add(key, value, Place::Flag(key));
    }
    settings
}

fn primary_file(text: &str) -> Result<PrimaryConfig, ConfigError> {
    PrimaryConfig::new(&Settings::from_toml(Program::Primary, "b.toml", text)?)
}

fn backup_file(text: &str) -> Result<BackupConfig, ConfigError> {
    BackupConfig::new(&Settings::from_toml(Program::Backup, "b.toml", text)?)
}

const DISK: &str = "disk=remus:10.0.0.2:9000|aio:/srv/db.raw";

// Defaults nobody decided on are decided by the first incident.
#[test]
fn defaults_of_a_primary() {
    let config = PrimaryConfig::new(&flags(&[DISK])).unwrap();
    assert_eq!(config.common.group, "db");
    assert_eq!(config.common.control, Path::new("/run/blockrep/db.sock"));
    assert_eq!(config.common.state, Path::new("/srv/db.raw.blockrep"));
    assert_eq!(
        config.common.journal,
        Path::new("/srv/db.raw.blockrep/journal")
    );
    assert_eq!(config.common.journal_bytes, 1 << 30);
    assert_eq!(config.common.nbd, None);
    assert_eq!(config.epoch, EpochMode::Every(Duration::from_millis(25)));
    assert_eq!(config.ack_for(OutputClass::Open), AckMode::Flush);
    assert_eq!(config.ack_for(OutputClass::Held), AckMode::Local);
    assert_eq!(config.on_backup_loss, LossPolicy::Degrade);
    assert_eq!(config.backpressure_timeout, Duration::from_secs(30));
    assert!(!config.assume_identical && !config.common.insecure_plaintext);
    assert!(!config.is_standalone());
    assert!(
        PrimaryConfig::new(&flags(&["disk=/srv/db.raw"]))
            .unwrap()
            .is_standalone()
    );
}

// The backup must listen where the primary's own spec says, and nowhere else.
#[test]
fn a_backup_is_named_by_spec_or_by_pairs() {
    let by_spec =
        BackupConfig::new(&flags(&["disk=tap:remus:127.0.0.1:9000|aio:/srv/db.raw"])).unwrap();
    let by_pair = BackupConfig::new(&flags(&["listen=127.0.0.1", "image=/srv/db.raw"])).unwrap();
    assert_eq!(by_spec, by_pair);
    assert_eq!(by_spec.volumes[0].listen.to_string(), "127.0.0.1:9000");
    // Not the primary's: both may run on one host.
    assert_eq!(
        by_spec.common.control,
        Path::new("/run/blockrep/db.backup.sock")
    );
    let any_port = BackupConfig::new(&flags(&["listen=127.0.0.1:0", "image=/a"])).unwrap();
    assert_eq!(any_port.volumes[0].listen.to_string(), "127.0.0.1:0");
    let device =
        BackupConfig::new(&flags(&["listen=127.0.0.1", "image=/dev/vg/a", "state=/s"])).unwrap();
    assert_eq!(device.common.state, Path::new("/s"));
    assert_eq!(device.common.journal, Path::new("/s/journal"));
}

// A file that an operator keeps for both ways of naming volumes must not mix with the flags.
#[test]
fn flags_set_the_file_aside() {
    let file = |text: &str| Settings::from_toml(Program::Backup, "b.toml", text).unwrap();
    let pairs = "listen = '127.0.0.1:9000'\nimage = '/a'\nlog = 'debug'\njournal-size = 67108864";
    let by_spec = flags(&["disk=remus:127.0.0.1:9005|/b"]).over(file(pairs));
    let config = BackupConfig::new(&by_spec).unwrap();
    assert_eq!(config.volumes[0].image, Path::new("/b"));
    assert_eq!(
        (config.common.log, config.common.journal_bytes),
        (LogLevel::Debug, 64 << 20)
    );
    let moved = flags(&["listen=127.0.0.1:9009", "log=warn"]).over(file(pairs));
    let config = BackupConfig::new(&moved).unwrap();
    assert_eq!(config.volumes[0].listen.to_string(), "127.0.0.1:9009");
    assert_eq!(config.volumes[0].image, Path::new("/a"));
    assert_eq!(config.common.log, LogLevel::Warn);
    let spec = "disk = ['remus:127.0.0.1:1|/b']";
    let pair = flags(&["listen=127.0.0.1:2", "image=/c"]).over(file(spec));
    assert_eq!(
        BackupConfig::new(&pair).unwrap().volumes[0].image,
        Path::new("/c")
    );
}

// A journal that the format cannot number is found out when the first lap ends.
#[test]
fn segments_stay_within_the_format() {
    for (journal, segment) in [
        (JOURNAL_BYTES_MIN, 4 << 20),
        (JOURNAL_BYTES_DEFAULT, 4 << 20),
        (4 << 30, 4 << 20),
        ((4 << 30) + 1, 8 << 20),
        (16 << 30, 16 << 20),
        (JOURNAL_BYTES_MAX, SEGMENT_BYTES_MAX),
    ] {
        assert_eq!(journal_segment_bytes(journal), segment, "{journal}");
    }
    assert!(JOURNAL_BYTES_DEFAULT.is_multiple_of(journal_segment_bytes(JOURNAL_BYTES_DEFAULT)));
    assert_eq!(JOURNAL_BYTES_MIN, 32 << 20);
}

fn any_path() -> impl Strategy<Value = String> {
    "(/[a-z \"\\\\'=]{0,6}[a-z0-9]){1,3}"
}

/// A VMM given the socket of another volume would have the wrong disk.
#[test]
fn every_volume_has_a_vhost_user_socket_of_its_own() {
    let disks = [
        "disk=remus:10.0.0.2:9000|aio:/a.img",
        "vhost-user=unix:/run/vu",
        "group=g",
    ];
    let one = PrimaryConfig::new(&flags(&disks)).unwrap();
    assert_eq!(one.common.vhost_user, [PathBuf::from("/run/vu")]);
    assert_eq!(primary_file(&one.to_string()).unwrap(), one);
    let more = [&disks[..], &["disk=remus:10.0.0.2:9001|aio:/b.img"]].concat();
    let two = PrimaryConfig::new(&flags(&more)).unwrap();
    let paths = ["/run/vu.0", "/run/vu.1"].map(PathBuf::from);
    assert_eq!(two.common.vhost_user, paths);
    assert_eq!(primary_file(&two.to_string()).unwrap(), two);
}

proptest! {
    // --check-config prints a file: whoever saves it must get the very same daemon.
    #[test]
    fn a_printed_primary_reads_back(
        (image, state, control) in (any_path(), any_path(), any_path()),
        epoch_ms in 1u64..=10_000,
        manual: bool,
        ack in proptest::option::of(prop_oneof![
            Just(AckMode::Local), Just(AckMode::Flush), Just(AckMode::Write),
        ]),
        journal in JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX,
        switches: [bool; 2],
        timeout_us in 0u64..=3_600_000_000,
    ) {
        prop_assume!(state != image && control != state && control != image);
        prop_assume!(control != format!("{state}/journal"));
        prop_assume!(image != format!("{state}/journal"));
        let mut settings = flags(&[]);
        let mut add = |key, text: String| settings.add(key, text, Place::Flag(key));
        add(Key::Disk, format!("remus:10.0.0.2:9000|aio:{image}"));
        add(Key::State, state);
        add(Key::Control, control);
        let epoch = if manual { "manual".to_owned() } else { format!("{epoch_ms}ms") };
        add(Key::Epoch, epoch);
        if let Some(ack) = ack {
            add(Key::Ack, ack.to_string());
        }
        add(Key::JournalSize, journal.next_multiple_of(journal_segment_bytes(journal)).to_string());
        add(Key::BackpressureTimeout, format!("{timeout_us}us"));
        add(Key::AssumeIdentical, switches[0].to_string());
        add(Key::InsecurePlaintext, switches[1].to_string());
        let config = PrimaryConfig::new(&settings).unwrap();
        prop_assert_eq!(primary_file(&config.to_string()).unwrap(), config);
    }

    // As above, for the backup.
    #[test]
    fn a_printed_backup_reads_back(
        (image, state, journal) in (any_path(), any_path(), any_path()),
        port in 0u16..=u16::MAX,
        apply in proptest::option::of(THROTTLE_BYTES_PER_S_MIN..=THROTTLE_BYTES_PER_S_MAX),
    ) {
        prop_assume!(state != image && journal != state && journal != image);
        let mut settings = flags(&["control=/run/blockrep/0.sock"]);
        let mut add = |key, text: String| settings.add(key, text, Place::Flag(key));
        add(Key::Listen, format!("127.0.0.1:{port}"));
        add(Key::Image, image);
        add(Key::State, state);
        add(Key::Journal, journal);
        if let Some(rate) = apply {
            add(Key::ThrottleApply, format!("{rate}B/s"));
        }
        let config = BackupConfig::new(&settings).unwrap();
        prop_assert_eq!(backup_file(&config.to_string()).unwrap(), config);
    }

    // A file from anywhere is answered by a line, not by a panic of a daemon under a guest.
    #[test]
    fn any_file_is_read_or_refused_in_one_line(
        text in prop_oneof![
            "\\PC{0,60}",
            "((disk|epoch|ack|x|\\[|\\]|=|'|\"|\n|#|25|true|,|\\.|\\{|\\}| )){0,16}",
        ],
    ) {
        for error in [primary_file(&text).err(), backup_file(&text).err()].into_iter().flatten() {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }
}

// `--image b.img` is what everybody types first; the paths of a file are not of any one directory.
#[test]
fn paths_of_flags_are_those_of_the_shell() {
    let mut given = flags(&[
        "listen=127.0.0.1",
        "image=b.img",
        "state=./s",
        "journal=../j",
        "control=b.ctl",
        "nbd=unix:b.nbd",
    ]);
    given.made_absolute("/srv/vm");
    let config = BackupConfig::new(&given).unwrap();
    assert_eq!(config.volumes[0].image, Path::new("/srv/vm/b.img"));
    assert_eq!(config.common.state, Path::new("/srv/vm/s"));
    assert_eq!(config.common.journal, Path::new("/srv/vm/../j"));
    assert_eq!(config.common.control, Path::new("/srv/vm/b.ctl"));
    let nbd = NbdListen::Unix("/srv/vm/b.nbd".into());
    assert_eq!(config.common.nbd, Some(nbd));
    // What is no path stays what was typed, for its own message.
    for word in [
        "image=aio:b.img",
        "image=remus:h:1|/a",
        "image= b",
        "nbd=tcp:1",
        "state=",
    ] {
        let mut given = flags(&[word]);
        given.made_absolute("/srv/vm");
        assert_eq!(given, flags(&[word]));
    }
}
