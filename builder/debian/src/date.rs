//! The one date form of Release files: `Sat, 11 Jul 2026 10:17:11 UTC`.

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Seconds since 1970 (UTC) of a Release file's date, or `None` when it is not one.
pub fn parse_date(text: &str) -> Option<u64> {
    let rest = text.trim().split_once(',').map_or(text, |(_, rest)| rest);
    let mut words = rest.split_ascii_whitespace();
    let day: u64 = number(words.next()?, 2)?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|m| *m == month)? as u64 + 1;
    let year: u64 = number(words.next()?, 4)?;
    let mut clock = words.next()?.split(':').map(|part| number(part, 2));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let zone = words.next()?;
    let known_zone = matches!(zone, "UTC" | "GMT" | "Z" | "+0000");
    if !known_zone || words.next().is_some() || clock.next().is_some() {
        return None;
    }
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(days_from_epoch(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

fn number(text: &str, digits_max: usize) -> Option<u64> {
    let plain = !text.is_empty() && text.len() <= digits_max && text.bytes().all(|c| c.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar, years counted from March.
fn days_from_epoch(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    days - 719_468
}

/// Writes seconds since 1970 as `2026-07-11 10:17:11 UTC`, for messages.
pub fn format_utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970 + days / 366;
    while days_from_epoch(year + 1, 1, 1) <= days {
        year += 1;
    }
    let month = (1..=12).rev().find(|&m| days_from_epoch(year, m, 1) <= days).unwrap_or(1);
    let day = days - days_from_epoch(year, month, 1) + 1;
    let (hour, minute, second) = (rest / 3_600, rest % 3_600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_round_trip() {
        assert_eq!(parse_date("Sat, 11 Jul 2026 10:17:11 UTC"), Some(1_783_765_031));
        assert_eq!(parse_date("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        assert_eq!(
            parse_date("Thu, 29 Feb 2024 23:59:59 UTC").map(format_utc).as_deref(),
            Some("2024-02-29 23:59:59 UTC")
        );
        for days in (0..80_000).step_by(13) {
            let text = format_utc(days * 86_400);
            let (year, month, day) = (&text[..4], &text[5..7], &text[8..10]);
            let month = MONTHS[month.parse::<usize>().unwrap() - 1];
            assert_eq!(
                parse_date(&format!("X, {day} {month} {year} 00:00:00 UTC")),
                Some(days * 86_400),
                "{text}"
            );
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "2026-07-11",
            "Sat, 11 Jul 2026 10:17:11 CEST",
            "Sat, 11 Jul 2026 10:17:11",
            "Sat, 32 Jul 2026 10:17:11 UTC",
            "Sat, 11 Jul 2026 25:17:11 UTC",
            "Sat, 11 Jul 2026 10:17:11 UTC x",
        ] {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }
}
