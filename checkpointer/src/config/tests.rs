//! A setting that is misread or passed over is found out at the failover. An example that is not what the code does
//! is copied by everybody.

use super::*;

const LEAST: &str = "guest = \"vm1\"\noutput.interfaces = [\"tap0\"]\nmemory.backup = \"b:7100\"\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse("vm1.toml", text, Side::Protect, "a")
}

fn standby(text: &str) -> Result<Config, ConfigError> {
    Config::parse("vm1.toml", text, Side::Standby, "b")
}

/// Every key of both is taken; and what the examples call defaults are the defaults.
#[test]
fn the_examples_are_what_the_code_does() {
    let example = parse(PROTECT_EXAMPLE).unwrap();
    let mut least = parse(LEAST).unwrap();
    assert_eq!(
        (least.output.bridge.take(), least.output.stations.len()),
        (None, 0)
    );
    least.output.bridge = example.output.bridge.clone();
    least.output.stations = example.output.stations.clone();
    least.memory.backup = Some("10.0.0.2:7100".into());
    assert_eq!(least, example);
    assert_eq!(example.output.stations[0].addresses, ["192.0.2.7"]);

    let example = standby(STANDBY_EXAMPLE).unwrap();
    let text =
        "guest = \"vm1\"\noutput.interfaces = [\"tap0\"]\nmemory.listen = \"0.0.0.0:7100\"\n";
    let mut least = standby(text).unwrap();
    least.output.bridge = example.output.bridge.clone();
    least.output.stations = example.output.stations.clone();
    assert_eq!(least, example);
    assert_eq!(
        example.disks.unwrap(),
        Path::new("/run/blockrep/vm1.backup.sock")
    );
}

/// What stands commented out in an example is copied, too.
#[test]
fn the_other_lines_of_the_examples_are_taken() {
    let adaptive = PROTECT_EXAMPLE
        .replace("interval_ms = 25 ", "# ")
        .replace("# [epochs.adaptive]", "[epochs.adaptive]")
        .replace("# min_ms", "min_ms")
        .replace("# max_ms", "max_ms")
        .replace("# pause_percent", "pause_percent");
    let interval = Interval::Adaptive {
        min_ms: 25,
        max_ms: 200,
        pause_percent: 5,
    };
    assert_eq!(parse(&adaptive).unwrap().epochs.interval, interval);
    let command = STANDBY_EXAMPLE
        .replace("manual = true", "# ")
        .replace("# command", "command")
        .replace("promote = \"by-hand\"", "# ");
    let config = standby(&command).unwrap();
    assert_eq!(config.standby.promote, Promote::Auto);
    assert!(
        matches!(&config.authority, AuthorityChoice::Command { command, .. } if command.len() == 2)
    );
    assert!(
        config
            .authority
            .open("vm1", "b")
            .words()
            .contains("/usr/local/sbin/fence")
    );
    let file = STANDBY_EXAMPLE
        .replace("manual = true", "# ")
        .replace("record = ", "# ")
        .replace("# file", "file");
    assert!(matches!(
        standby(&file).unwrap().authority,
        AuthorityChoice::File(_)
    ));
    let none = PROTECT_EXAMPLE.replace("control = \"/run/blockrep/vm1.sock\"", "none = true");
    assert_eq!(parse(&none).unwrap().disks, None);
    let open = LEAST.to_owned() + "output.held = false\n";
    assert_eq!(parse(&open).unwrap().epochs.on_loss, OnLoss::Degrade);
    let qemu =
        LEAST.to_owned() + "[qemu]\nprogram = \"qemu-system-x86_64\"\nargs = [\"-nodefaults\"]\n";
    assert_eq!(parse(&qemu).unwrap().qemu.len(), 2);
}

#[test]
fn what_the_sequence_gets_is_in_its_units() {
    let text = LEAST.to_owned() + "epochs.interval_ms = 50\nepochs.in_flight_max = 3\n";
    let settings = parse(&text).unwrap().epochs.settings(1);
    assert_eq!(settings.interval_ns, 50_000_000);
    assert_eq!(settings.pause_max_ns, 1_000_000_000);
    assert_eq!((settings.in_flight_max, settings.output_cuts_max), (3, 1));
    let slow = LEAST.to_owned() + "epochs.interval_ms = 10000\n";
    assert!(parse(&slow).unwrap().epochs.answer_max_ms > 10_000);
}

/// One line, the right line, and what to write.
#[test]
fn mistakes_of_one_more_line() {
    for (line, expected) in [
        (
            "host = \"a b\"",
            "4: host \"a b\" is not usable; write host",
        ),
        ("hots = \"a\"", "4: unknown field `hots`, expected one of"),
        ("disks = 3", "4: invalid type: integer `3`"),
        (
            "disks.none = true\ndisks.control = \"/x\"",
            "4: none = true contradicts control",
        ),
        (
            "disks.control = \"x\"",
            "4: control = \"x\" is no whole path; write one that begins with /",
        ),
        (
            "output.bridge = \"a/b\"",
            "4: \"a/b\" is no name of a network device",
        ),
        ("output.colour = 1", "4: unknown field `colour`"),
        (
            "output.stations = [{ mac = \"03:00:00:aa:bb:cc\" }]",
            "4: mac \"03:00:00:aa:bb:cc\" is none",
        ),
        (
            "output.stations = [{ mac = \"02:00:00:aa:bb\" }]",
            "4: mac \"02:00:00:aa:bb\" is none",
        ),
        (
            "output.stations = [{ mac = \"02:00:00:aa:bb:cc\", addresses = [\"192.0.2.7/24\"] }]",
            "4: address \"192.0.2.7/24\" is none; write an IPv4",
        ),
        (
            "output.stations = [{ mac = \"02:00:00:aa:bb:cc\", vlan = 4095 }]",
            "4: vlan is out of bounds",
        ),
        (
            "memory.listen = \"7100\"",
            "4: listen \"7100\" is no address with a port",
        ),
        (
            "memory.listen = \"[::1:7100\"",
            "4: listen \"[::1:7100\" is no address",
        ),
        ("memory.listen = \"a:0\"", "4: listen \"a:0\" is no address"),
        (
            "memory.buffer_mib = 1",
            "4: buffer_mib = 1 is out of bounds; write 16 to 65536",
        ),
        (
            "memory.buffer_mib = \"1\"",
            "4: invalid type: string \"1\", expected u64; write for example",
        ),
        (
            "memory.copy_mib_per_s = -1",
            "4: invalid value: integer `-1`",
        ),
        (
            "epochs.interval_ms = 4",
            "4: interval_ms = 4 is out of bounds; write 5 to 10000",
        ),
        (
            "\n[epochs]\ninterval_ms = 9\nadaptive = {}",
            "6: interval_ms contradicts [epochs.adaptive]",
        ),
        (
            "\n[epochs.adaptive]\n\nmin_ms = 300\nmax_ms = 250",
            "7: min_ms = 300 is above max_ms = 250",
        ),
        (
            "[epochs.adaptive]\npause_percent = 51",
            "5: pause_percent = 51 is out of bounds; write 1 to 50",
        ),
        (
            "epochs.interval_ms = 500\nepochs.answer_max_ms = 500",
            "5: answer_max_ms = 500 is not longer",
        ),
        (
            "epochs.on_loss = \"stop\"",
            "4: unknown variant `stop`, expected `hold` or `degrade`",
        ),
        (
            "output.held = false\nepochs.on_loss = \"hold\"",
            "5: on_loss = \"hold\" contradicts held = false: nothing is held; write on_loss = \"degrade\"",
        ),
        (
            "standby.promote = \"auto\"",
            "4: promote = \"auto\" cannot be: the authority is an operator; write",
        ),
        (
            "output.held = false\nauthority.file = \"/f\"\nstandby.promote = \"auto\"",
            "6: promote = \"auto\" cannot be: held = false needs a fence",
        ),
        (
            "standby.silence_ms = 1",
            "4: silence_ms = 1 is out of bounds",
        ),
        (
            "authority.manual = false",
            "4: nobody is the authority; write one of",
        ),
        (
            "authority.manual = true\nauthority.file = \"/f\"",
            "4: there is more than one authority; write one of",
        ),
        (
            "authority.file = \"/f\"\nauthority.record = \"/r\"",
            "5: record contradicts file",
        ),
        (
            "authority.command = []",
            "4: command begins with no whole path",
        ),
        (
            "authority.command = [\"fence\"]",
            "4: command begins with no whole path",
        ),
        ("guest = \"vm2\"", "4: duplicate key"),
        ("epochs.interval_ms =", "4: "),
    ] {
        let error = parse(&format!("{LEAST}{line}\n"))
            .expect_err(line)
            .to_string();
        let expected = format!("vm1.toml:{expected}");
        assert!(
            error.starts_with(&expected),
            "{line}: {error} instead of {expected}"
        );
        assert!(
            error.contains("write ") || error.contains("leave out"),
            "{error}"
        );
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn what_is_missing_is_named() {
    for (text, expected) in [
        (
            "",
            "1: missing field `guest`; write for example guest = \"vm1\"",
        ),
        ("guest = \"../vm1\"", "1: guest \"../vm1\" is not usable"),
        (
            "guest = \"vm1.standby\"",
            "1: guest \"vm1.standby\" is not usable",
        ),
        (
            "guest = \"vm1\"",
            "1: what the guest says has no place; write interfaces",
        ),
        (
            "guest = \"vm1\"\n[output]\nheld = true",
            "2: interfaces is missing; write interfaces",
        ),
        (
            "guest = \"vm1\"\n[output]\ninterfaces = [\"a\", \"a\"]",
            "3: a stands there twice",
        ),
        (
            "guest = \"vm1\"\n[output]\ninterfaces = []\n[memory]\n",
            "4: backup is missing; write backup = ",
        ),
        (
            "guest = \"vm1\"\n[output]\ninterfaces = []\nstations = [{}]",
            "4: missing field `mac`; write for example",
        ),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(
            error.starts_with(&format!("vm1.toml:{expected}")),
            "{text}: {error}"
        );
    }
    let error = standby(LEAST).unwrap_err().to_string();
    assert!(
        error.contains("listen is missing; write listen = "),
        "{error}"
    );
    let missing = Config::read(Path::new("/no/such.toml"), Side::Protect).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("/no/such.toml:1: cannot be read: "),
        "{missing}"
    );
    let dir = Config::read(Path::new("/"), Side::Protect).unwrap_err();
    assert_eq!(
        dir.to_string(),
        "/:1: is no configuration; name another file"
    );
    // A host without a name of its own.
    let error = Config::parse("f", LEAST, Side::Protect, "").unwrap_err();
    assert!(error.to_string().contains("write host = "), "{error}");
}

#[test]
fn both_sides_may_be_in_one_file() {
    let text = LEAST.to_owned() + "memory.listen = \"[::]:7100\"\nauthority.file = \"/f\"\n";
    let (a, b) = (parse(&text).unwrap(), standby(&text).unwrap());
    assert_eq!((a.host.as_str(), b.host.as_str()), ("a", "b"));
    assert_eq!(b.standby.promote, Promote::Auto);
    assert_eq!(a.disks.unwrap(), Path::new("/run/blockrep/vm1.sock"));
    assert_eq!(b.disks.unwrap(), Path::new("/run/blockrep/vm1.backup.sock"));
}
