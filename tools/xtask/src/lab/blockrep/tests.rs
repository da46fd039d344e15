//! The lab against stand-ins of the daemons.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// Programs that answer as the daemons do; what they were told is in `said`.
fn stand_ins(dir: &Path) -> Programs {
    let daemon = "#!/bin/sh\necho \"${0##*/} $*\" >> \"${0%/*}/said\"\nexec sleep 60\n";
    let ctl = r#"#!/bin/sh
here="${0%/*}"
echo "$1 ${2##*-} $3 $4" >> "$here/said"
case "$3" in
status)
echo x >> "$here/asked"
state=resyncing
[ "$(wc -l < "$here/asked")" -ge 3 ] && state=protected
echo '{"group":{"state":"'$state'","reason":"first copy"},"epochs":{"open":5,"committed":5},
    "volumes":[{"sync":{"done_bytes":1,"total_bytes":4}}],
    "commit_latency":{"p50_us":900,"p99_us":4000}}' ;;
promote)
[ -e "$here/refused" ] || { : > "$here/refused"; echo "the link is alive" >&2; exit 3; }
echo '{"epoch":41,"cut_unix_ns":1700000000000000000,"lineage":"ab"}' ;;
esac
"#;
    for (name, text) in [
        ("blockrep", daemon),
        ("blockrep-backup", daemon),
        ("blockrepctl", ctl),
    ] {
        let path = dir.join(name);
        fs::write(&path, text).expect("the directory was made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }
    Programs {
        dir: dir.to_owned(),
    }
}

// A misread answer would judge the round by a wrong epoch, or start it before there is a copy.
#[test]
fn a_round_waits_for_protection_and_asks_for_promotion_until_it_is_granted() {
    let dir = std::env::temp_dir().join(format!("xtask-lab-{}", std::process::id()));
    fs::create_dir(&dir).expect("no other process has this number");
    let image = dir.join("a.img");
    fs::write(&image, [0u8; 4096]).expect("the directory was made");
    let setup = Setup {
        programs: stand_ins(&dir),
        ack: "flush",
        image: image.clone(),
        vhost_user: false,
        journal_size: JOURNAL_SIZE,
        faults: None,
        mutant: None,
    };
    let place = Place {
        dir: dir.clone(),
        sockets: dir.join("s-"),
    };
    let mut lab = Blockrep::start(place, &setup, None, |_| ()).expect("it becomes protected");
    assert_eq!(
        fs::metadata(lab.backup_image()).expect("it was made").len(),
        4096
    );
    lab.settle().expect("committed equals open");
    let latency = lab
        .commit_latency()
        .expect("status answers")
        .expect("it has figures");
    assert_eq!((latency.p50_us, latency.p99_us), (900, 4000));
    lab.kill_primary();
    assert!(lab.check().is_err(), "a dead primary is noticed");
    let promotion = lab.promote().expect("granted at the second time");
    assert_eq!(
        (promotion.epoch, promotion.cut_unix_ns),
        (41, 1_700_000_000_000_000_000)
    );
    let said = fs::read_to_string(dir.join("said")).expect("every program writes there");
    drop(lab);
    fs::remove_dir_all(&dir).expect("it is ours");
    assert!(
        said.contains(&format!("|aio:{} --nbd unix:", image.display())),
        "{said}"
    );
    assert!(said.contains("--epoch 25ms --ack flush"), "{said}");
    assert_eq!(
        said.matches("--control b.ctl promote --json").count(),
        2,
        "{said}"
    );
}
