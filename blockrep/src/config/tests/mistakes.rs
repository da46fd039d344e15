//! Golden texts: each mistake, and the one line it is refused with.

use super::*;

/// Flags of a program, and the line they are refused with.
type Refused = (&'static [&'static str], &'static str);

// Each of these runs with a surprise, or dies with a riddle, when it is not refused like this.
#[test]
fn mistakes_of_a_primary() {
    let table: &[Refused] = &[
        (&[], "no disk is given; give -n 'remus:HOST:PORT|aio:/PATH'"),
        (
            &[DISK, "vhost-user=/run/a.vu"],
            "--vhost-user: '/run/a.vu' is no socket for vhost-user; give unix:/PATH of at most 107 bytes",
        ),
        (
            &[DISK, "epoch=25"],
            "--epoch: 25 has no unit; give 25ms or 25s, or manual",
        ),
        (
            &[DISK, "epoch=manuel"],
            "--epoch: 'manuel' is not readable; give a number and ns, us, ms, s, min or h, \
             as in 25ms, or manual",
        ),
        (
            &[DISK, "epoch=999us"],
            "--epoch: 999us is out of range; give 1ms to 10s",
        ),
        (
            &[DISK, "epoch=11s"],
            "--epoch: 11s is out of range; give 1ms to 10s",
        ),
        (
            &[DISK, "ack=fulsh"],
            "--ack: 'fulsh' is no ack mode (did you mean flush?); give local, flush or write",
        ),
        (
            &[DISK, "on-backup-loss=ignore"],
            "--on-backup-loss: 'ignore' is no loss policy; give pause or degrade",
        ),
        (
            &[DISK, "backpressure-timeout=2h"],
            "--backpressure-timeout: 2h is out of range; give 0ns to 1h",
        ),
        (
            &[DISK, "log=verbose"],
            "--log: 'verbose' is no log level; give error, warn, info, debug or trace",
        ),
        (
            &[DISK, "journal-size=1M"],
            "--journal-size: 1MiB is out of range; give 32MiB to 1TiB",
        ),
        (
            &[DISK, "journal-size=38M"],
            "--journal-size: 38MiB is no multiple of the segment size 4MiB; give 40MiB",
        ),
        (
            &[DISK, "journal-size=5001M"],
            "--journal-size: 5001MiB is no multiple of the segment size 8MiB; give 5008MiB",
        ),
        (
            &[DISK, "journal-size=1XB"],
            "--journal-size: 'XB' is not a unit here; give a number and B, KiB, MiB, GiB or TiB, \
             as in 64MiB",
        ),
        (
            &[DISK, "state=state"],
            "--state: 'state' is no absolute path in printable characters; \
             give one such as /var/lib/blockrep",
        ),
        (
            &[DISK, "state=/srv/db.raw"],
            "--state: /srv/db.raw is already an image; give another path",
        ),
        (
            &[DISK, "control=run/x"],
            "--control: 'run/x' is no absolute path for a socket; give --control /PATH of at most 107 bytes",
        ),
        (
            &[DISK, "control=/run/x", "nbd=unix:/run/x"],
            "--nbd: /run/x is already the control socket; give another path",
        ),
        (
            &[DISK, "nbd=/run/x"],
            "--nbd: '/run/x' is no address for NBD; give unix:/PATH or tcp:127.0.0.1:10809",
        ),
        (
            &[DISK, "nbd=tcp:10809"],
            "--nbd: 'tcp:10809' is no address for NBD; give unix:/PATH or tcp:127.0.0.1:10809",
        ),
        (
            &[DISK, "nbd=unix:x"],
            "--nbd: 'x' is no absolute path for a socket; give unix:/PATH of at most 107 bytes",
        ),
        (
            &[DISK, "nbd=tcp:0.0.0.0:10809"],
            "--nbd: 0.0.0.0:10809 can be reached from other hosts and is not encrypted; \
             say --insecure-plaintext, or listen on 127.0.0.1",
        ),
        (
            &[DISK, "group=a/b"],
            "--group: 'a/b' is no group name; give up to 63 letters, digits, '.', '_' or '-', \
             beginning with a letter or digit and not ending in .backup",
        ),
        (
            &[DISK, "disk=remus:10.0.0.2:9001|aio:/srv//db.raw"],
            "-n: image /srv//db.raw is given twice; give each volume an image of its own",
        ),
        (
            &[DISK, "disk=remus:10.0.0.2|aio:/srv/log.raw"],
            "-n: 10.0.0.2:9000 is given twice; give each volume a port of its own",
        ),
        (
            &[DISK, "disk=aio:/srv/log.raw"],
            "-n: volume /srv/log.raw has no backup while others have; \
             give 'remus:HOST:PORT|aio:/srv/log.raw'",
        ),
        (
            &["disk=remus:h|phy:/dev/vg/db"],
            "--state is needed, because /dev/vg/db is a device with no place beside it; \
             give --state /var/lib/blockrep/db",
        ),
        (
            &["disk=/srv/db.raw", "ack=write"],
            "--ack: 'write' needs a backup and no volume has one; \
             give -n 'remus:HOST:PORT|aio:/PATH', or leave it out",
        ),
        (
            &["disk=/srv/db.raw", "on-backup-loss=pause"],
            "--on-backup-loss: 'pause' needs a backup and no volume has one; \
             give -n 'remus:HOST:PORT|aio:/PATH', or leave it out",
        ),
    ];
    for (words, line) in table {
        let error = PrimaryConfig::new(&flags(words)).expect_err(line);
        assert_eq!(error.to_string(), *line);
    }
    let many: Vec<String> = (0..17)
        .map(|n| format!("disk=remus:h:{}|/{n}", 9000 + n))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let error = PrimaryConfig::new(&flags(&many)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "17 volumes are given; give at most 16 to a daemon"
    );
}

// As above, for the side that holds the only other copy.
#[test]
fn mistakes_of_a_backup() {
    let table: &[Refused] = &[
        (
            &[],
            "no image is given; give -n 'remus:HOST:PORT|aio:/PATH', \
             or --listen HOST:PORT with --image /PATH",
        ),
        (
            &["disk=/srv/db.raw"],
            "-n: the spec names no address to listen on; give 'remus:HOST:PORT|aio:/srv/db.raw'",
        ),
        (
            &[DISK],
            "-n: 10.0.0.2:9000 can be reached from other hosts and is not encrypted; \
             say --insecure-plaintext, or listen on 127.0.0.1",
        ),
        (
            &["listen=backup.example:9000", "image=/a"],
            "--listen: backup.example:9000 can be reached from other hosts and is not encrypted; \
             say --insecure-plaintext, or listen on 127.0.0.1",
        ),
        (
            &["listen=[::]:0", "image=/a"],
            "--listen: [::]:0 can be reached from other hosts and is not encrypted; \
             say --insecure-plaintext, or listen on 127.0.0.1",
        ),
        (
            &[DISK, "image=/b", "listen=127.0.0.1:1"],
            "--image: volumes are named by -n already; \
             give either -n, or --listen and --image",
        ),
        (
            &["listen=127.0.0.1:9000", "image=/a", "image=/b"],
            "2 --image and 1 --listen do not pair up; \
             give one --listen HOST:PORT per --image, in the same order",
        ),
        (
            &["image=/a"],
            "1 --image and 0 --listen do not pair up; \
             give one --listen HOST:PORT per --image, in the same order",
        ),
        (
            &["listen=9000", "image=/a"],
            "--listen: '9000', column 1: this is no host name or address; \
             expected HOST:PORT, as in 10.0.0.2:9000 or backup.example:9000",
        ),
        (
            &["listen=127.0.0.1:9000", "image=a.raw"],
            "--image: 'a.raw', column 1: the image path is not absolute; \
             expected an absolute path, as in /srv/disk.img",
        ),
        (
            &["listen=127.0.0.1:9000", "image=remus:h:1|/a"],
            "--image: an address does not belong here; give --image /PATH, or the spec with -n",
        ),
        (
            &[
                "listen=127.0.0.1:9000",
                "image=/a",
                "listen=127.0.0.1",
                "image=/b",
            ],
            "--listen: 127.0.0.1:9000 is given twice; give each volume a port of its own",
        ),
        (
            &[
                "listen=127.0.0.1:9000",
                "image=/a",
                "listen=127.0.0.1:9001",
                "image=/a",
            ],
            "--image: image /a is given twice; give each volume an image of its own",
        ),
        (
            &[
                "listen=127.0.0.1:9000",
                "image=/a",
                "nbd=tcp:127.0.0.1:9000",
            ],
            "--nbd: 127.0.0.1:9000 is given twice; give each volume a port of its own",
        ),
        (
            &["listen=127.0.0.1", "image=/a", "state=/s", "journal=/s"],
            "--journal: /s is already the state directory; give another path",
        ),
        (
            &["listen=127.0.0.1", "image=/a", "throttle-apply=2MB"],
            "--throttle-apply: 2MB is an amount, not a rate; give 2MB/s",
        ),
        (
            &["listen=127.0.0.1", "image=/a", "throttle-link=0B/s"],
            "--throttle-link: 0B/s is out of range; give 4KiB/s to 1TiB/s",
        ),
    ];
    for (words, line) in table {
        let error = BackupConfig::new(&flags(words)).expect_err(line);
        assert_eq!(error.to_string(), *line);
    }
}

// An operator looks for the line that the message names.
#[test]
fn mistakes_in_a_file_name_their_line() {
    let disk = "disk = 'remus:h:9000|aio:/a'\n";
    for (text, line) in [
        ("disk = \n", "b.toml:1: "),
        (
            "\n\nepoch = '25'\n",
            "b.toml:3: epoch: 25 has no unit; give 25ms or 25s, or manual",
        ),
        (
            "epoch = 25\n",
            "b.toml:1: epoch: 25 has no unit; give 25ms or 25s, or manual",
        ),
        (
            "on_backup_loss = 'pause'\n",
            "b.toml:2: unknown key 'on_backup_loss'; did you mean on-backup-loss?",
        ),
        (
            "\ncolour = 1\n",
            "b.toml:3: unknown key 'colour'; the keys are the long flags of --help",
        ),
        (
            "[group]\nname = 'x'\n",
            "b.toml:2: group is of the wrong kind; give a string in quotes",
        ),
        (
            "[primary]\n",
            "b.toml:2: unknown key 'primary'; the keys are the long flags of --help",
        ),
        (
            "check-config = true\n",
            "b.toml:2: unknown key 'check-config'",
        ),
        (
            "image = '/a'\n",
            "b.toml:2: key 'image' is not one of blockrep; take it out",
        ),
        (
            "assume-identical = 'yes'\n",
            "b.toml:2: assume-identical is of the wrong kind; give true or false",
        ),
        (
            "ack = ['local']\n",
            "b.toml:2: ack is of the wrong kind; give a string in quotes",
        ),
        (
            "epoch = 1.5\n",
            "b.toml:2: epoch is of the wrong kind; give a string in quotes",
        ),
        (
            "ack = 'local'\nack = 'flush'\n",
            "b.toml:3: duplicate key 'ack'; leave one of the two out",
        ),
    ] {
        let whole = if line.contains(":1:") || text.starts_with("\n\n") {
            format!("{text}{disk}")
        } else {
            format!("{disk}{text}")
        };
        let error = primary_file(&whole).expect_err(line).to_string();
        assert!(error.starts_with(line), "{error}\nis not\n{line}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let error = primary_file("disk = [\n  'remus:h:1|/a',\n  'remus:h:0|/b',\n]\n").unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("b.toml:3: disk: 'remus:h:0|/b', column 9: "),
        "{error}"
    );
    let error = backup_file("disk = [1]").unwrap_err();
    assert_eq!(
        error.to_string(),
        "b.toml:1: disk is of the wrong kind; give a string in quotes, or a list of them"
    );
}

/// One hint for every mistake was right for none of them.
#[test]
fn what_is_no_toml_gets_the_hint_that_fits() {
    for (text, hint) in [
        (
            "same-image = yes\n",
            "; put the value in quotes, or give true or",
        ),
        ("disk = ['a'\n", "; a list is KEY = ["),
        ("disk\n", "; give lines of the form KEY = "),
    ] {
        let error = backup_file(text).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
}
