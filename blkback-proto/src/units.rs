//! Times, byte counts and rates as people type and read them.
//!
//! | kind | typed | meaning |
//! |---|---|---|
//! | time | `25ms`, `2s`, `1.5min`, `500us`, `1h` | a unit is needed: `25` alone is refused |
//! | bytes | `512`, `64K`, `64KiB`, `1GiB`, `2MB` | `K M G T` and `KiB…TiB`: 1024; `KB…TB`: 1000 |
//! | rate | `2MB/s`, `2MiB/s`, `4096B/s` | bytes as above, per second |
//!
//! For each kind: `parse_*` reads, `exact_*` prints a text that reads back as the same value,
//! `human_*` prints what a person wants to see, rounded to one decimal.
//!
//! Numbers may have decimals (`1.5GiB`) as long as they come out even. All arithmetic is checked.

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::diskspec::text::quoted;

/// Longest text read, in bytes.
const TEXT_BYTES_MAX: usize = 40;
/// Most decimals read.
const DECIMALS_MAX: usize = 9;

const NS_PER_US: u64 = 1_000;
const NS_PER_MS: u64 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;
const NS_PER_MIN: u64 = 60 * NS_PER_S;
const NS_PER_H: u64 = 60 * NS_PER_MIN;

/// Units of time in nanoseconds, the smallest first; the first spelling is the printed one.
const TIME_UNITS: [(u64, &[&str]); 6] = [
    (1, &["ns"]),
    (NS_PER_US, &["us", "µs", "μs"]),
    (NS_PER_MS, &["ms"]),
    (NS_PER_S, &["s", "sec"]),
    (NS_PER_MIN, &["min"]),
    (NS_PER_H, &["h"]),
];

/// Units in bytes, powers of 1024, the smallest first; the first spelling is the printed one.
const BINARY_UNITS: [(u64, &[&str]); 5] = [
    (1, &["B"]),
    (1 << 10, &["KiB", "K", "k"]),
    (1 << 20, &["MiB", "M"]),
    (1 << 30, &["GiB", "G"]),
    (1 << 40, &["TiB", "T"]),
];

/// Units in bytes, powers of 1000.
const DECIMAL_UNITS: [(u64, &[&str]); 4] = [
    (1_000, &["kB", "KB"]),
    (1_000_000, &["MB"]),
    (1_000_000_000, &["GB"]),
    (1_000_000_000_000, &["TB"]),
];

const TIME_FORM: &str = "a number and ns, us, ms, s, min or h, as in 25ms";
const BYTES_FORM: &str = "a number and B, KiB, MiB, GiB or TiB, as in 64MiB";
const RATE_FORM: &str = "bytes per second, as in 2MB/s or 2MiB/s";

/// Why a time, byte count or rate was refused. One line each, with what to type instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a number with a unit at all.
    #[error("{} is not readable; give {form}", quoted(text))]
    Unreadable { text: String, form: &'static str },
    /// A number alone, where the unit is not clear.
    #[error("{text} has no unit; give {text}{} or {text}{}", hints[0], hints[1])]
    NoUnit {
        text: String,
        hints: [&'static str; 2],
    },
    /// A unit nobody knows, or one that could mean two things.
    #[error("{} is not a unit here; give {form}", quoted(unit))]
    UnknownUnit { unit: String, form: &'static str },
    /// A rate that does not say per what.
    #[error("{text} is an amount, not a rate; give {text}/s")]
    NotPerSecond { text: String },
    /// More than 64 bits of nanoseconds or bytes hold.
    #[error("{text} is too large to be meant")]
    TooLarge { text: String },
    /// A fraction of the smallest unit.
    #[error("{text} does not come out even; give it in a smaller unit")]
    Uneven { text: String },
}

/// A number as typed: `mantissa / 10^decimals`, and the text behind it.
struct Number<'a> {
    mantissa: u128,
    decimals: u32,
    unit: &'a str,
}

/// Splits `text` into number and unit; one blank may stand between them.
fn number<'a>(text: &'a str, form: &'static str) -> Result<Number<'a>, UnitError> {
    let unreadable = || UnitError::Unreadable {
        text: text.to_owned(),
        form,
    };
    if text.len() > TEXT_BYTES_MAX {
        return Err(unreadable());
    }
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let (whole, fraction) = match digits.split_once('.') {
        Some((_, "")) => return Err(unreadable()),
        Some((whole, fraction)) => (whole, fraction),
        None => (digits, ""),
    };
    if whole.is_empty() || fraction.contains('.') || fraction.len() > DECIMALS_MAX {
        return Err(unreadable());
    }
    // At most TEXT_BYTES_MAX digits, so this may pass u128 and is checked by the parser.
    let mantissa = format!("{whole}{fraction}")
        .parse()
        .map_err(|_| UnitError::TooLarge {
            text: text.to_owned(),
        })?;
    let decimals = u32::try_from(fraction.len()).expect("bounded by DECIMALS_MAX");
    Ok(Number {
        mantissa,
        decimals,
        unit: unit.strip_prefix(' ').unwrap_or(unit),
    })
}

fn find(units: &[(u64, &[&str])], name: &str) -> Option<u64> {
    units
        .iter()
        .find(|(_, names)| names.contains(&name))
        .map(|&(size, _)| size)
}

impl Number<'_> {
    fn times(&self, unit: u64, text: &str) -> Result<u64, UnitError> {
        let too_large = || UnitError::TooLarge {
            text: text.to_owned(),
        };
        let scaled = self
            .mantissa
            .checked_mul(u128::from(unit))
            .ok_or_else(too_large)?;
        let divisor = 10u128.pow(self.decimals);
        if scaled % divisor != 0 {
            return Err(UnitError::Uneven {
                text: text.to_owned(),
            });
        }
        u64::try_from(scaled / divisor).map_err(|_| too_large())
    }
}

/// Reads a time such as `25ms`.
///
/// # Errors
/// No unit, an unknown one, no number, or more than 584 years.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let number = number(text, TIME_FORM)?;
    if number.unit.is_empty() {
        return Err(UnitError::NoUnit {
            text: text.trim_end().to_owned(),
            hints: ["ms", "s"],
        });
    }
    let Some(unit) = find(&TIME_UNITS, number.unit) else {
        return Err(UnitError::UnknownUnit {
            unit: number.unit.to_owned(),
            form: TIME_FORM,
        });
    };
    number.times(unit, text).map(Duration::from_nanos)
}

/// Reads a byte count such as `64MiB`, `64M` or `512`.
///
/// # Errors
/// An unknown unit, no number, or more than 64 bits.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    bytes(text, BYTES_FORM)
}

fn bytes(text: &str, form: &'static str) -> Result<u64, UnitError> {
    let number = number(text, form)?;
    let unit = match number.unit {
        "" => Some(1),
        name => find(&BINARY_UNITS, name).or_else(|| find(&DECIMAL_UNITS, name)),
    };
    let Some(unit) = unit else {
        return Err(UnitError::UnknownUnit {
            unit: number.unit.to_owned(),
            form,
        });
    };
    number.times(unit, text)
}

/// Reads a rate such as `2MB/s`, in bytes per second.
///
/// # Errors
/// As [`parse_bytes`], and an amount without `/s`.
pub fn parse_rate(text: &str) -> Result<u64, UnitError> {
    match text.strip_suffix("/s") {
        Some(amount) => bytes(amount, RATE_FORM),
        None => {
            let amount = number(text, RATE_FORM)?;
            let known = find(&BINARY_UNITS, amount.unit).or(find(&DECIMAL_UNITS, amount.unit));
            match known {
                Some(_) => Err(UnitError::NotPerSecond {
                    text: text.to_owned(),
                }),
                None if amount.unit.is_empty() => Err(UnitError::NoUnit {
                    text: text.to_owned(),
                    hints: ["MB/s", "KiB/s"],
                }),
                None => Err(UnitError::UnknownUnit {
                    unit: amount.unit.to_owned(),
                    form: RATE_FORM,
                }),
            }
        }
    }
}

/// Largest unit that divides `value` without rest, as `(count, name)`.
fn largest_even(value: u128, units: &[(u64, &'static [&'static str])]) -> (u128, &'static str) {
    let even = |&&(size, _): &&(u64, &[&str])| value.is_multiple_of(u128::from(size));
    // Zero is divided by everything; it is printed in the smallest unit.
    let found = units
        .iter()
        .rev()
        .filter(|_| value > 0)
        .find(even)
        .unwrap_or(&units[0]);
    (value / u128::from(found.0), found.1[0])
}

/// A text that [`parse_duration`] reads back as the same time: `25ms`, `90s`.
pub fn exact_duration(time: Duration) -> String {
    let (count, unit) = largest_even(time.as_nanos(), &TIME_UNITS);
    format!("{count}{unit}")
}

/// A text that [`parse_bytes`] reads back as the same count: `64MiB`, `513B`.
pub fn exact_bytes(bytes: u64) -> String {
    let (count, unit) = largest_even(u128::from(bytes), &BINARY_UNITS);
    format!("{count}{unit}")
}

/// A text that [`parse_rate`] reads back as the same rate: `2MB/s`, `2MiB/s`, `513B/s`.
pub fn exact_rate(bytes_per_s: u64) -> String {
    let value = u128::from(bytes_per_s);
    let binary = largest_even(value, &BINARY_UNITS);
    let decimal = largest_even(value, &DECIMAL_UNITS);
    let decimal_is_shorter = value > 0 && value.is_multiple_of(1_000) && decimal.0 < binary.0;
    let (count, unit) = if decimal_is_shorter { decimal } else { binary };
    format!("{count}{unit}/s")
}

/// `value` in the largest unit in which it is at least 1, rounded to one decimal.
fn human(value: u128, units: &[(u64, &'static [&'static str])]) -> String {
    let tenths = |size: u64| (value * 10 + u128::from(size / 2)) / u128::from(size);
    let mut chosen = &units[0];
    for unit in &units[1..] {
        // Rounded first, so that nothing prints as "1024.0 KiB".
        if tenths(unit.0) >= 10 {
            chosen = unit;
        }
    }
    let tenths = if chosen.0 == 1 {
        value * 10
    } else {
        tenths(chosen.0)
    };
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, chosen.1[0]),
        tenth => format!("{}.{tenth} {}", tenths / 10, chosen.1[0]),
    }
}

/// A time for people: `25 ms`, `1.5 s`, `0 s`.
pub fn human_duration(time: Duration) -> String {
    if time.is_zero() {
        "0 s".to_owned()
    } else {
        human(time.as_nanos(), &TIME_UNITS)
    }
}

/// A byte count for people: `12.3 MiB`, `512 B`.
pub fn human_bytes(bytes: u64) -> String {
    human(u128::from(bytes), &BINARY_UNITS)
}

/// A rate for people: `12.3 MiB/s`.
pub fn human_rate(bytes_per_s: u64) -> String {
    format!("{}/s", human_bytes(bytes_per_s))
}
