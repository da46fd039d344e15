//! What fio does in the guest, and what it says of it.

use std::fmt;

use anyhow::{Context, Result, bail};

use super::session::Stack;

/// 4K blocks anywhere on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) writes: bool,
    /// Requests in flight.
    pub(super) depth: u32,
}

const fn point(writes: bool, depth: u32) -> Point {
    Point { writes, depth }
}

/// What was measured; times from the submission of a request to its completion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figures {
    pub(super) iops: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// What was read or written.
    pub(super) kib: u64,
}

/// Figures, and of what they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) round: u32,
    pub(super) stack: Stack,
    pub(super) point: Point,
    pub(super) figures: Figures,
}

impl Point {
    /// In the order in which they are measured: what is written has the backup busy for a while.
    pub(super) const ALL: [Self; 4] = [
        point(false, 1),
        point(false, 32),
        point(true, 1),
        point(true, 32),
    ];

    /// How the guest's program knows it.
    pub(super) fn word(self) -> String {
        format!("{}/{}", self.pattern(), self.depth)
    }

    /// fio's name of it.
    pub(super) fn pattern(self) -> &'static str {
        match self.writes {
            true => "randwrite",
            false => "randread",
        }
    }

    /// Reads fio's line for this point, version 3 of its terse format (`HOWTO`, "Terse output"): five
    /// fields about the job, 41 about reads, as many about writes.
    pub(super) fn read(self, terse: &str) -> Result<Figures> {
        let fields: Vec<&str> = terse.split(';').collect();
        if fields.first() != Some(&"3") {
            bail!("fio's line is not of version 3: {terse}");
        }
        let side = if self.writes { 46 } else { 5 };
        let number = |at: usize| -> Result<u64> {
            let text = fields.get(at).copied().unwrap_or_default();
            let number = text.parse();
            number.with_context(|| format!("field {at} of fio's line is {text:?}"))
        };
        let error = number(4)?;
        if error != 0 {
            bail!("fio met error {error} (errno)");
        }
        let percentiles = fields.get(side + 12..side + 32).unwrap_or_default();
        let percentile = |wanted: &str| -> Result<f64> {
            let found = percentiles.iter().find_map(|one| one.strip_prefix(wanted));
            let text = found.with_context(|| format!("fio's line has no {wanted}"))?;
            text.parse().with_context(|| format!("{wanted}{text}"))
        };
        let figures = Figures {
            iops: number(side + 2)? as f64,
            p50_us: percentile("50.000000%=")?,
            p99_us: percentile("99.000000%=")?,
            kib: number(side)?,
        };
        if figures.kib == 0 || figures.iops == 0.0 {
            bail!("fio did nothing");
        }
        Ok(figures)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.writes { "write" } else { "read" };
        write!(f, "4K random {what} QD{}", self.depth)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (iops, p50, p99) = (self.iops, self.p50_us, self.p99_us);
        write!(f, "{iops:.0} IOPS, p50 {p50:.0} us, p99 {p99:.0} us")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One side of a line of fio 3.33.
    const WRITTEN: &str = "8192;59795;14948;137;6;4975;29.320075;190.335938;68;35836;2091.166148;\
        4689.202641;50.000000%=667;99.000000%=35913;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;\
        0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;75;36370;2120.486223;4694.372057;0;0;0.000000%;\
        0.000000;0.000000";
    const NOTHING: &str = "0;0;0;0;0;0;0.000000;0.000000;0;0;0.000000;0.000000;50.000000%=0;\
        99.000000%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;\
        0%=0;0%=0;0;0;0.000000;0.000000;0;0;0.000000%;0.000000;0.000000";

    fn line(error: u32, read: &str, written: &str) -> String {
        format!("3;fio-3.33;guest;0;{error};{read};{written};2.9%;25.0%;114;0;1;0.1%;vda;0;1795")
    }

    // A figure of the wrong side, or of the wrong column, looks like any other figure.
    #[test]
    fn each_side_is_read_from_its_own_columns() {
        let expected = Figures {
            iops: 14948.0,
            p50_us: 667.0,
            p99_us: 35913.0,
            kib: 8192,
        };
        let write = point(true, 32).read(&line(0, NOTHING, WRITTEN));
        assert_eq!(write.expect("a write"), expected);
        let read = point(false, 32).read(&line(0, WRITTEN, NOTHING));
        assert_eq!(read.expect("a read"), expected);
    }

    // fio that failed, or whose line was cut on its way, must not become a point.
    #[test]
    fn what_is_no_figure_is_refused() {
        let refused = |terse: &str| {
            let read = point(true, 1).read(terse);
            read.expect_err("no figures").to_string()
        };
        assert_eq!(
            refused(&line(5, NOTHING, WRITTEN)),
            "fio met error 5 (errno)"
        );
        assert_eq!(refused(&line(0, WRITTEN, NOTHING)), "fio did nothing");
        assert!(refused("5;fio-9").contains("not of version 3"));
        let whole = line(0, NOTHING, WRITTEN);
        let percentiles_end = whole.find("0%=0;75;").expect("it is there");
        for end in 0..percentiles_end {
            refused(&whole[..end]);
        }
        assert!(refused("").contains("version"));
    }
}
