//! Sizes, times and counts as people read them.

/// `1.5 MiB`; whole bytes below 1 KiB.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // Tenths of the largest unit that is not above the count, rounded to nearest; rounding may
    // reach the next unit.
    let mut unit = count.ilog2() as usize / 10;
    let tenths_of = |unit: usize| {
        let scale = 1u128 << (10 * unit);
        (u128::from(count) * 10 + scale / 2) / scale
    };
    if tenths_of(unit) >= 10_240 && unit < UNITS.len() {
        unit += 1;
    }
    let tenths = tenths_of(unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit - 1])
}

/// `45 s`, `12 min`, `3 h 2 min`, `5 days 3 h`.
pub(super) fn seconds(count: u64) -> String {
    let (minutes, hours, days) = (count / 60, count / 3600, count / 86_400);
    match count {
        0..120 => format!("{count} s"),
        120..7200 => format!("{minutes} min"),
        7200..172_800 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} days {} h", hours % 24),
    }
}

/// `25 ms`, `1.8 s`, then as [`seconds`].
pub(super) fn millis(count: u64) -> String {
    match count {
        0..1000 => format!("{count} ms"),
        1000..120_000 => format!("{}.{} s", count / 1000, count % 1000 / 100),
        _ => seconds(count / 1000),
    }
}

/// `830 us`, `1.8 ms`, then as [`millis`].
pub(super) fn micros(count: u64) -> String {
    match count {
        0..1000 => format!("{count} us"),
        1000..1_000_000 => format!("{}.{} ms", count / 1000, count % 1000 / 100),
        _ => millis(count / 1000),
    }
}

/// Part of a whole in percent, 0 to 100; of nothing, all.
pub(super) fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 100;
    }
    let percent = u128::from(part) * 100 / u128::from(whole);
    u64::try_from(percent).unwrap_or(u64::MAX).min(100)
}

/// `[####----------------]`
pub(super) fn bar(percent: u64) -> String {
    const WIDTH: usize = 20;
    let full = usize::try_from(percent.min(100)).expect("at most 100") * WIDTH / 100;
    format!("[{}{}]", "#".repeat(full), "-".repeat(WIDTH - full))
}

/// `1 event`, `2 events`.
pub(super) fn counted(count: u64, one: &str) -> String {
    if count == 1 {
        format!("1 {one}")
    } else {
        format!("{count} {one}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lag shown in the wrong unit is believed.
    #[test]
    fn units_change_at_their_borders() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_048_576, "1.0 MiB"),
            (17_179_869_184, "16.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (count, text) in [
            (119, "119 s"),
            (120, "2 min"),
            (7199, "119 min"),
            (10_920, "3 h 2 min"),
            (172_800, "2 days 0 h"),
        ] {
            assert_eq!(seconds(count), text);
        }
        assert_eq!(millis(999), "999 ms");
        assert_eq!(millis(1850), "1.8 s");
        assert_eq!(millis(120_000), "2 min");
        assert_eq!(micros(999), "999 us");
        assert_eq!(micros(1830), "1.8 ms");
        assert_eq!(micros(1_000_000), "1.0 s");
    }

    /// Absurd numbers of a broken daemon must print, not end the tool.
    #[test]
    fn absurd_numbers_print() {
        assert_eq!(percent(u64::MAX, 1), 100);
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(1, 3), 33);
        assert_eq!(bar(u64::MAX), "[####################]");
        assert_eq!(bar(12), "[##------------------]");
        assert!(seconds(u64::MAX).ends_with(" h"));
        assert_eq!(
            (counted(1, "error"), counted(0, "error")),
            ("1 error".into(), "0 errors".into())
        );
    }
}
