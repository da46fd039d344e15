//! fio's figures of a disk, point after point.
//!
//! The kernel's command line says which: `points=randread/1,randwrite/32` (fio's name of the pattern, requests
//! in flight), `seconds=S` for each of them, and `write-mib=M`, after which a point that writes ends, too.
//! Told is `LEDGER-READY` when the first begins, `POINT randread/1 LINE` with fio's line in the terse format of
//! each, and `LEDGER-DONE`.

use crate::fio;
use crate::system::{CommandLine, Outcome};

/// What is done before the first point and not told: drivers, caches and an emulated processor are cold.
const WARM_UP: [&str; 3] = ["--rw=randread", "--time_based=1", "--runtime=1"];

/// Measures all points.
pub(crate) fn measure(disk: &str, line: &CommandLine) -> Outcome<()> {
    let (seconds, write_mib) = (line.number("seconds=")?, line.number("write-mib=")?);
    let points = line.word("points=").ok_or("points= is missing")?;
    fio::measure(disk, 1, &WARM_UP.map(str::to_owned))?;
    println!("LEDGER-READY");
    for point in points.split(',') {
        let parts = point
            .split_once('/')
            .and_then(|(pattern, depth)| Some((pattern, depth.parse().ok()?)));
        let (pattern, depth) = parts.ok_or_else(|| format!("{point} is not PATTERN/DEPTH"))?;
        let mut words = vec![format!("--rw={pattern}"), format!("--runtime={seconds}")];
        words.push(match pattern {
            "randwrite" => format!("--io_size={write_mib}m"),
            _ => "--time_based=1".to_owned(),
        });
        println!("POINT {point} {}", fio::measure(disk, depth, &words)?);
    }
    println!("LEDGER-DONE");
    Ok(())
}
