use std::path::Path;

use proptest::prelude::*;

use super::*;

fn read(spec: &str) -> (Option<(String, u16)>, String) {
    let disk = DiskSpec::parse(spec).unwrap_or_else(|error| panic!("{error}"));
    (
        disk.remote.map(|r| (r.host, r.port)),
        disk.image.to_str().unwrap().to_owned(),
    )
}

// A spec that worked for blktap2 and is read otherwise here replicates to the wrong place.
#[test]
fn every_accepted_form_reads_alike() {
    let remote = Some(("10.0.0.2".to_owned(), 9000));
    for spec in [
        "tap:remus:10.0.0.2:9000|aio:/img",
        "tap:tapdisk:remus:10.0.0.2:9000|aio:/img",
        "tap2:remus:10.0.0.2:9000|aio:/img",
        "tap2:tapdisk:remus:10.0.0.2:9000|aio:/img",
        "tapdisk:remus:10.0.0.2:9000|aio:/img",
        "remus:10.0.0.2:9000|aio:/img",
        "remus:10.0.0.2|aio:/img",
        "remus:10.0.0.2:09000|file:/img",
        "remus:10.0.0.2:9000|phy:/img",
        "remus:10.0.0.2:9000|/img",
    ] {
        assert_eq!(read(spec), (remote.clone(), "/img".to_owned()), "{spec}");
        let canonical = DiskSpec::parse(spec).unwrap().to_string();
        assert_eq!(canonical, "remus:10.0.0.2:9000|aio:/img", "{spec}");
    }
    for spec in [
        "aio:/img",
        "/img",
        "file:/img",
        "phy:/img",
        "tap:aio:/img",
        "tap:tapdisk:/img",
    ] {
        assert_eq!(read(spec), (None, "/img".to_owned()), "{spec}");
        assert_eq!(
            DiskSpec::parse(spec).unwrap().to_string(),
            "aio:/img",
            "{spec}"
        );
    }
    assert_eq!(read("phy:/dev/vg0/vm-disk").1, "/dev/vg0/vm-disk");
    // Colons, commas and equal signs are fine in a path.
    assert_eq!(read("/srv/a:b,c=d,e f.raw").1, "/srv/a:b,c=d,e f.raw");
}

// Without the right caret a person stares at a line that "looks fine".
#[test]
fn mistakes_are_shown_where_they_are() {
    // Spec, the wrong part ("" = something is missing, its byte offset), the one line.
    let table: &[(&str, &str, usize, &str)] = &[
        (
            "",
            "",
            0,
            "nothing is given; expected aio:/PATH or remus:HOST:PORT|aio:/PATH",
        ),
        (
            "oai:/img",
            "oai:",
            0,
            "'oai:/img', column 1: unknown driver 'oai:' (did you mean aio:?); expected aio:/PATH",
        ),
        (
            "sync:/img",
            "sync:",
            0,
            "'sync:/img', column 1: unknown driver 'sync:' (did you mean aio:?); \
             expected aio:/PATH",
        ),
        (
            "remsu:h:9000|aio:/img",
            "remsu:",
            0,
            "'remsu:h:9000|aio:/img', column 1: unknown driver 'remsu:' (did you mean remus:?); \
             expected remus:HOST:PORT|aio:/PATH",
        ),
        (
            "tap:qcow2:/img",
            "qcow2:",
            4,
            "'tap:qcow2:/img', column 5: only raw images are served, not qcow2; \
             expected aio:/PATH of a raw image ('qemu-img convert -O raw' makes one)",
        ),
        (
            "remus:h:9000|vhd:/img",
            "vhd:",
            13,
            "'remus:h:9000|vhd:/img', column 14: only raw images are served, not vhd; \
             expected aio:/PATH of a raw image ('qemu-img convert -O raw' makes one)",
        ),
        (
            "remus:h:|aio:/img",
            "",
            8,
            "'remus:h:|aio:/img', column 9: the port is not a number; \
             expected HOST:PORT with a port of 1 to 65535",
        ),
        (
            "remus:h:9k|aio:/img",
            "9k",
            8,
            "'remus:h:9k|aio:/img', column 9: the port is not a number; \
             expected HOST:PORT with a port of 1 to 65535",
        ),
        (
            "remus:h:+90|aio:/img",
            "+90",
            8,
            "'remus:h:+90|aio:/img', column 9: the port is not a number; \
             expected HOST:PORT with a port of 1 to 65535",
        ),
        (
            "remus:h:0|aio:/img",
            "0",
            8,
            "'remus:h:0|aio:/img', column 9: there is no such port; \
             expected HOST:PORT with a port of 1 to 65535",
        ),
        (
            "remus:h:70000|aio:/img",
            "70000",
            8,
            "'remus:h:70000|aio:/img', column 9: there is no such port; \
             expected HOST:PORT with a port of 1 to 65535",
        ),
        (
            "remus::9000|aio:/img",
            "",
            6,
            "'remus::9000|aio:/img', column 7: the host is empty; \
             expected HOST:PORT, as in 10.0.0.2:9000 or backup.example:9000",
        ),
        (
            "remus:[]:9000|aio:/img",
            "[]",
            6,
            "'remus:[]:9000|aio:/img', column 7: the host is empty; \
             expected HOST:PORT, as in 10.0.0.2:9000 or backup.example:9000",
        ),
        (
            "remus:10.0.0.256:9000|aio:/img",
            "10.0.0.256",
            6,
            "'remus:10.0.0.256:9000|aio:/img', column 7: this is no host name or address; \
             expected HOST:PORT, as in 10.0.0.2:9000 or backup.example:9000",
        ),
        (
            "remus:[fd00::2:9000|aio:/img",
            "[",
            6,
            "'remus:[fd00::2:9000|aio:/img', column 7: the bracket has no partner; \
             expected [ADDRESS]:PORT, as in [fd00::2]:9000",
        ),
        (
            "remus:fd00::2]:9000|aio:/img",
            "]",
            13,
            "'remus:fd00::2]:9000|aio:/img', column 14: the bracket has no partner; \
             expected [ADDRESS]:PORT, as in [fd00::2]:9000",
        ),
        (
            "remus:fd00::2:9000|aio:/img",
            "fd00::2:9000",
            6,
            "'remus:fd00::2:9000|aio:/img', column 7: an IPv6 address needs brackets; \
             expected [ADDRESS]:PORT, as in [fd00::2]:9000",
        ),
        (
            "remus:[10.0.0.2]:9000|aio:/img",
            "10.0.0.2",
            7,
            "'remus:[10.0.0.2]:9000|aio:/img', column 8: this is no IPv6 address; \
             expected [ADDRESS]:PORT, as in [fd00::2]:9000",
        ),
        (
            "remus:[fd00::2]9000|aio:/img",
            "9000",
            15,
            "'remus:[fd00::2]9000|aio:/img', column 16: this is no IPv6 address; \
             expected [ADDRESS]:PORT, as in [fd00::2]:9000",
        ),
        (
            "aio:img.raw",
            "img.raw",
            4,
            "'aio:img.raw', column 5: the image path is not absolute; \
             expected an absolute path, as in /srv/disk.img",
        ),
        (
            "./img.raw",
            "./img.raw",
            0,
            "'./img.raw', column 1: the image path is not absolute; \
             expected an absolute path, as in /srv/disk.img",
        ),
        (
            "remus:h:9000",
            "",
            12,
            "'remus:h:9000', column 13: the image is missing; expected remus:HOST:PORT|aio:/PATH",
        ),
        (
            "remus:127.0.0.1:9500,aio:/img",
            ",aio:/img",
            20,
            "'remus:127.0.0.1:9500,aio:/img', column 21: '|' has to stand between the address and \
             the image; expected remus:HOST:PORT|aio:/PATH",
        ),
        (
            "remus:h:9000|aio:",
            "",
            17,
            "'remus:h:9000|aio:', column 18: the image is missing; \
             expected remus:HOST:PORT|aio:/PATH",
        ),
        (
            "remus:h:9000|aio:/img|log:/x",
            "log:/x",
            22,
            "'remus:h:9000|aio:/img|log:/x', column 23: this part is too much; \
             expected one image: aio:/PATH or remus:HOST:PORT|aio:/PATH",
        ),
        (
            "aio:/a|aio:/b|aio:/c",
            "aio:/b|aio:/c",
            7,
            "'aio:/a|aio:/b|aio:/c', column 8: this part is too much; \
             expected one image: aio:/PATH or remus:HOST:PORT|aio:/PATH",
        ),
        (
            "aio:/img|remus:h:9000",
            "remus:h:9000",
            9,
            "'aio:/img|remus:h:9000', column 10: remus: must come first; \
             expected remus:HOST:PORT|aio:/PATH",
        ),
        (
            "aio:/img,remus:h:9000",
            ",remus:h:9000",
            8,
            "'aio:/img,remus:h:9000', column 9: remus: must come first; \
             expected remus:HOST:PORT|aio:/PATH",
        ),
        (
            "aio:/srv/images/",
            "/srv/images/",
            4,
            "'aio:/srv/images/', column 5: the image path names a directory; \
             expected the path of a file or block device",
        ),
        (
            "aio:/im\ng",
            "\n",
            7,
            "'aio:/im\u{fffd}g', column 8: control character U+000A; \
             expected printable characters only",
        ),
        (
            "aio:/img ",
            " ",
            8,
            "'aio:/img ', column 9: a blank stands at its edge; \
             expected the spec without blanks around it",
        ),
        (
            "tap:remus:h:9000|aio:/img,xvda,w",
            ",xvda,w",
            25,
            "'tap:remus:h:9000|aio:/img,xvda,w', column 26: this tail belongs to xl; \
             expected the spec alone, as in aio:/PATH: leave that part to xl",
        ),
        (
            "format=raw,vdev=xvda,target=remus:h:9000|aio:/img",
            "format=raw,vdev=xvda,target=",
            0,
            "'format=raw,vdev=xvda,target=remus:h:9000|aio:/img', column 1: this is a disk line of xl, \
             not a disk spec; \
             expected only what stands after target=, as in remus:HOST:PORT|aio:/PATH",
        ),
    ];
    for &(spec, wrong, at, line) in table {
        let error = DiskSpec::parse(spec).expect_err(spec);
        assert_eq!(error.to_string(), line);
        assert_eq!(
            (&spec[error.span()], error.span().start),
            (wrong, at),
            "{spec}"
        );
    }
}

// The drawing is the only part of the message most people read.
#[test]
fn the_caret_stands_under_the_wrong_part() {
    let caret = |spec: &str| DiskSpec::parse(spec).unwrap_err().caret();
    assert_eq!(
        caret("remus:h:70000|aio:/img"),
        "remus:h:70000|aio:/img\n        ^^^^^"
    );
    assert_eq!(caret("remus:h:9000"), "remus:h:9000\n            ^");
    assert_eq!(caret(""), "\n^");
    // Counted in characters, not in bytes.
    assert_eq!(
        caret("/tür/disk,xvda,w"),
        "/tür/disk,xvda,w\n         ^^^^^^^"
    );
    // A spec wider than a terminal is cut around the mistake.
    let long = caret(&format!("aio:/{}/", "d/".repeat(500)));
    let lines: Vec<&str> = long.lines().collect();
    assert_eq!(lines[0].chars().count(), 73);
    assert_eq!(lines[1], format!("{}{}", " ".repeat(4), "^".repeat(68)));
}

// Bounds: a spec from a config file must not make a message of megabytes.
#[test]
fn absurd_lengths_are_refused() {
    let error = DiskSpec::parse(&"x".repeat(1 << 20)).unwrap_err();
    assert_eq!(*error.kind(), SpecErrorKind::TooLong);
    assert!(error.to_string().len() < 400 && error.caret().len() < 400);
    let error = DiskSpec::parse(&format!("/{}", "d".repeat(IMAGE_PATH_BYTES_MAX))).unwrap_err();
    assert_eq!(*error.kind(), SpecErrorKind::PathTooLong);
    let path = format!("/{}", "d".repeat(IMAGE_PATH_BYTES_MAX - 1));
    assert_eq!(DiskSpec::parse(&path).unwrap().image, Path::new(&path));
    let name = format!("{}:1", "h".repeat(64));
    assert_eq!(
        *name.parse::<Endpoint>().unwrap_err().kind(),
        SpecErrorKind::BadHost
    );
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let host = prop_oneof![
        any::<std::net::Ipv4Addr>().prop_map(|ip| ip.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|ip| ip.to_string()),
        "[a-z][a-z0-9_]{0,8}(\\.[a-z0-9]{1,8}){0,2}",
    ];
    (host, 1..=u16::MAX).prop_map(|(host, port)| Endpoint { host, port })
}

proptest! {
    // blockrepctl and the hotplug scripts pass the printed form on; it must mean the same disk.
    #[test]
    fn printed_specs_read_back(
        remote in proptest::option::of(any_endpoint()),
        image in "(/[a-zA-Z0-9 ._:-]{0,8}[a-z0-9]){1,4}",
        alias in prop_oneof![Just(""), Just("tap:"), Just("tap2:"), Just("tap:tapdisk:")],
    ) {
        let disk = DiskSpec { remote, image: PathBuf::from(image) };
        prop_assert_eq!(&DiskSpec::parse(&disk.to_string()).unwrap(), &disk);
        prop_assert_eq!(&DiskSpec::parse(&format!("{alias}{disk}")).unwrap(), &disk);
        let json = serde_json::to_string(&disk).unwrap();
        prop_assert_eq!(&serde_json::from_str::<DiskSpec>(&json).unwrap(), &disk);
    }

    // Whatever is typed, the daemon answers with a line and never with a panic.
    #[test]
    fn any_text_is_read_or_refused_in_one_line(
        spec in prop_oneof![
            ".{0,40}",
            "(tap:|remus:|aio:|\\[|\\]|:|\\||/|,|9000|xvda|w|é|=|%|target=|\n| ){0,12}",
        ],
    ) {
        match DiskSpec::parse(&spec) {
            Ok(disk) => {
                prop_assert!(disk.image.is_absolute());
                prop_assert_eq!(DiskSpec::parse(&disk.to_string()).unwrap(), disk);
            }
            Err(error) => {
                prop_assert!(spec.get(error.span()).is_some());
                prop_assert_eq!(error.to_string().lines().count(), 1);
                prop_assert_eq!(error.caret().split('\n').count(), 2);
            }
        }
    }
}
