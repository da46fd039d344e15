use proptest::prelude::*;

use super::*;

// `--epoch 25` read as seconds would hold a guest's output for half a minute.
#[test]
fn times_are_read_with_their_unit_only() {
    for (text, ns) in [
        ("25ms", 25 * NS_PER_MS),
        ("25 ms", 25 * NS_PER_MS),
        ("2s", 2 * NS_PER_S),
        ("1.5s", 1_500 * NS_PER_MS),
        ("10min", 10 * NS_PER_MIN),
        ("500us", 500 * NS_PER_US),
        ("500µs", 500 * NS_PER_US),
        ("1h", NS_PER_H),
        ("0s", 0),
        ("18446744073709551615ns", u64::MAX),
    ] {
        assert_eq!(parse_duration(text), Ok(Duration::from_nanos(ns)), "{text}");
    }
    for (text, line) in [
        ("25", "25 has no unit; give 25ms or 25s"),
        (
            "",
            "'' is not readable; give a number and ns, us, ms, s, min or h, as in 25ms",
        ),
        (
            "ms",
            "'ms' is not readable; give a number and ns, us, ms, s, min or h, as in 25ms",
        ),
        (
            "-1s",
            "'-1s' is not readable; give a number and ns, us, ms, s, min or h, as in 25ms",
        ),
        (
            "1..5s",
            "'1..5s' is not readable; give a number and ns, us, ms, s, min or h, as in 25ms",
        ),
        (
            "5m",
            "'m' is not a unit here; give a number and ns, us, ms, s, min or h, as in 25ms",
        ),
        (
            "0.5ns",
            "0.5ns does not come out even; give it in a smaller unit",
        ),
        (
            "18446744073709551616ns",
            "18446744073709551616ns is too large to be meant",
        ),
        (
            "9999999999999999999999999999999999999999",
            "9999999999999999999999999999999999999999 is too large to be meant",
        ),
        (
            "999999999999999999999999999999h",
            "999999999999999999999999999999h is too large to be meant",
        ),
    ] {
        assert_eq!(parse_duration(text).unwrap_err().to_string(), line);
    }
}

// A journal of 1000-byte kilobytes would be refused as uneven, or made smaller than asked.
#[test]
fn bytes_are_read_in_powers_of_1024() {
    for (text, bytes) in [
        ("512", 512),
        ("512B", 512),
        ("64K", 64 << 10),
        ("64KiB", 64 << 10),
        ("64M", 64 << 20),
        ("1.5GiB", 3 << 29),
        ("1 GiB", 1 << 30),
        ("2T", 2 << 40),
        ("2MB", 2_000_000),
        ("0", 0),
    ] {
        assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
    }
    for (text, line) in [
        (
            "1XB",
            "'XB' is not a unit here; give a number and B, KiB, MiB, GiB or TiB, as in 64MiB",
        ),
        (
            "1m",
            "'m' is not a unit here; give a number and B, KiB, MiB, GiB or TiB, as in 64MiB",
        ),
        (
            "0.3B",
            "0.3B does not come out even; give it in a smaller unit",
        ),
        ("16777216T", "16777216T is too large to be meant"),
        (
            "big",
            "'big' is not readable; give a number and B, KiB, MiB, GiB or TiB, as in 64MiB",
        ),
    ] {
        assert_eq!(parse_bytes(text).unwrap_err().to_string(), line);
    }
}

// A throttle read in the wrong unit makes the memory test measure nothing.
#[test]
fn rates_need_their_per_second() {
    for (text, rate) in [
        ("2MB/s", 2_000_000),
        ("2MiB/s", 2 << 20),
        ("2M/s", 2 << 20),
        ("4096/s", 4096),
    ] {
        assert_eq!(parse_rate(text), Ok(rate), "{text}");
    }
    for (text, line) in [
        ("2MB", "2MB is an amount, not a rate; give 2MB/s"),
        ("2", "2 has no unit; give 2MB/s or 2KiB/s"),
        (
            "2Mbit/s",
            "'Mbit' is not a unit here; give bytes per second, as in 2MB/s or 2MiB/s",
        ),
        (
            "2Mbps",
            "'Mbps' is not a unit here; give bytes per second, as in 2MB/s or 2MiB/s",
        ),
        (
            "/s",
            "'' is not readable; give bytes per second, as in 2MB/s or 2MiB/s",
        ),
    ] {
        assert_eq!(parse_rate(text).unwrap_err().to_string(), line);
    }
}

// "1024.0 KiB" and "0.0 s" in a status line make people doubt the rest of it.
#[test]
fn people_see_rounded_values() {
    for (bytes, text) in [
        (0, "0 B"),
        (512, "512 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1 MiB"),
        (12_897_485, "12.3 MiB"),
        (u64::MAX, "16777216 TiB"),
    ] {
        assert_eq!(human_bytes(bytes), text, "{bytes}");
    }
    for (ns, text) in [
        (0, "0 s"),
        (1, "1 ns"),
        (25 * NS_PER_MS, "25 ms"),
        (999_960_000, "1 s"),
        (1_500 * NS_PER_MS, "1.5 s"),
        (90 * NS_PER_S, "1.5 min"),
        (36 * NS_PER_H, "36 h"),
    ] {
        assert_eq!(human_duration(Duration::from_nanos(ns)), text, "{ns}");
    }
    assert_eq!(human_duration(Duration::MAX).chars().last(), Some('h'));
    assert_eq!(human_rate(2 << 20), "2 MiB/s");
}

// The effective configuration that is printed must be the one that would be read.
#[test]
fn exact_texts_use_the_largest_even_unit() {
    assert_eq!(exact_duration(Duration::from_millis(25)), "25ms");
    assert_eq!(exact_duration(Duration::from_secs(90)), "90s");
    assert_eq!(exact_duration(Duration::ZERO), "0ns");
    assert_eq!(exact_bytes(64 << 20), "64MiB");
    assert_eq!(exact_bytes(1000), "1000B");
    assert_eq!(exact_rate(2_000_000), "2MB/s");
    assert_eq!(exact_rate(2 << 20), "2MiB/s");
    assert_eq!(exact_rate(513), "513B/s");
    assert_eq!(exact_rate(0), "0B/s");
}

proptest! {
    // As above, for every value.
    #[test]
    fn exact_texts_read_back(value in any::<u64>(), shift in 0u32..64) {
        let value = value >> shift;
        let time = Duration::from_nanos(value);
        prop_assert_eq!(parse_duration(&exact_duration(time)), Ok(time));
        prop_assert_eq!(parse_bytes(&exact_bytes(value)), Ok(value));
        prop_assert_eq!(parse_rate(&exact_rate(value)), Ok(value));
    }

    // A hostile number must be refused in one line, never panic or wrap around.
    #[test]
    fn any_text_is_read_or_refused(
        text in prop_oneof![".{0,50}", "[0-9.]{0,50}( ?[a-zA-Zµ]{1,4})?(/s)?"],
    ) {
        let lines = [
            parse_duration(&text).err().map(|e| e.to_string()),
            parse_bytes(&text).err().map(|e| e.to_string()),
            parse_rate(&text).err().map(|e| e.to_string()),
        ];
        for line in lines.into_iter().flatten() {
            prop_assert_eq!(line.lines().count(), 1);
        }
    }
}
