//! Go-style durations: what `time.ParseDuration` accepts, no more and no less.

/// Text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration")]
pub struct BadDuration(pub String);

const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Nanoseconds of a duration such as `1h30m`, `1.5s`, `-2ms` or `0`.
pub fn parse(text: &str) -> Result<i64, BadDuration> {
    parse_inner(text).ok_or_else(|| BadDuration(text.to_owned()))
}

fn parse_inner(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let whole_end = digits(rest);
        let whole = &rest[..whole_end];
        rest = &rest[whole_end..];
        let mut fraction = "";
        if let Some(after) = rest.strip_prefix('.') {
            let end = digits(after);
            fraction = &after[..end];
            rest = &after[end..];
        }
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = UNITS.iter().find(|(name, _)| *name == &rest[..unit_end])?.1;
        rest = &rest[unit_end..];
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?.checked_add(fraction_of(fraction, unit))?;
    }
    Some(if negative { -total } else { total })
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// `0.fraction` of a unit, rounded down. Digits beyond a nanosecond of an hour decide nothing.
fn fraction_of(fraction: &str, unit: i64) -> i64 {
    let mut out: i128 = 0;
    let mut scale: i128 = 1;
    for digit in fraction.bytes().take(18) {
        out = out * 10 + i128::from(digit - b'0');
        scale *= 10;
    }
    i64::try_from(out * i128::from(unit) / scale).unwrap_or(0)
}

/// A duration in Go's spelling: `1m30s`, `1.5s`, `25ms`, `0s`.
pub fn format_millis(millis: u64) -> String {
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    let (seconds, part) = (millis / 1000 % 60, millis % 1000);
    let mut out = String::new();
    if hours > 0 {
        out.push_str(&format!("{hours}h"));
    }
    if hours > 0 || minutes > 0 {
        out.push_str(&format!("{minutes}m"));
    }
    out.push_str(&seconds.to_string());
    if part > 0 {
        out.push_str(format!(".{part:03}").trim_end_matches('0'));
    }
    out.push('s');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        for (text, want) in [
            ("0", 0),
            ("-0", 0),
            ("1s", 1_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("-2ms", -2_000_000),
            ("100us", 100_000),
            ("1m0.5s", 60_500_000_000),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
        for text in ["", "1", "s", ".s", "1x", "1 s", "1d", "-", "99999999999h", "1s1", "é"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn prints_what_go_prints() {
        for (millis, want) in
            [(0, "0s"), (25, "25ms"), (1500, "1.5s"), (60_000, "1m0s"), (3_600_000, "1h0m0s"), (5_000, "5s")]
        {
            assert_eq!(format_millis(millis), want);
        }
    }
}
