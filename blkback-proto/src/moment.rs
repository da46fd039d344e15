//! Moments as people read them. Pure: no clock is looked at.

/// A moment as `2025-11-21 20:55:03.123 UTC`.
#[must_use]
pub fn utc_text_ms(unix_ms: u64) -> String {
    let text = utc_text(unix_ms);
    let (moment, zone) = text.split_at(text.len() - " UTC".len());
    format!("{moment}.{:03}{zone}", unix_ms % 1000)
}

/// A moment as `2025-11-21 20:55:03 UTC`.
#[must_use]
pub fn utc_text(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Counts in
/// years that begin in March, so that the leap day is the last of its year, and in eras of 400
/// years, which all have the same 146,097 days.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097;
    // 0000-03-01 lies 719,468 days before 1970-01-01.
    let days = days + 719_468;
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Five months from March on have 153 days, again and again.
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wrong date in `since` sends whoever looks for the cause to the wrong place in other logs.
    #[test]
    fn dates_around_leap_days_and_centuries() {
        for (unix_s, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (1_763_758_503, "2025-11-21 20:55:03 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc_text(unix_s * 1000 + 999), text);
        }
        let text = "2000-02-29 00:00:00.007 UTC";
        assert_eq!(utc_text_ms(951_782_400_007), text);
    }

    /// Absurd stamps from a peer must print as something, not end the tool.
    #[test]
    fn absurd_stamp_does_not_overflow() {
        assert!(utc_text(u64::MAX).ends_with(" UTC"));
    }
}
