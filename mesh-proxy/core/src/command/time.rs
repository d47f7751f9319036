//! Forms of a time, as `%START_TIME(%Y/%m/%d %H:%M:%S.%3f)%` names them. UTC only: a log of many nodes has one clock.

use std::io::Write;

/// A form, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeFormat(Vec<Piece>);

/// A directive that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no part of a time")]
pub struct BadTime(String);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Year,
    ShortYear,
    Month,
    Day,
    SpacedDay,
    DayOfYear,
    Hour,
    Minute,
    Second,
    MonthName(bool),
    WeekdayName(bool),
    Epoch,
    /// Digits of the second's fraction.
    Fraction(usize),
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Default for TimeFormat {
    /// `2026-01-31T12:34:56.789Z`, as Envoy writes it.
    fn default() -> Self {
        use Piece::{Day, Fraction, Hour, Minute, Month, Second, Text, Year};
        let text = |t: &str| Text(t.into());
        let date = [Year, text("-"), Month, text("-"), Day, text("T"), Hour, text(":"), Minute, text(":")];
        Self(date.into_iter().chain([Second, text("."), Fraction(3), text("Z")]).collect())
    }
}

impl TimeFormat {
    /// Compiles a form; an empty one is the default.
    pub fn parse(form: &str) -> Result<Self, BadTime> {
        if form.is_empty() {
            return Ok(Self::default());
        }
        let mut pieces = Vec::new();
        let mut rest = form;
        while !rest.is_empty() {
            let Some(directive) = rest.strip_prefix('%') else {
                let end = rest.find('%').unwrap_or(rest.len());
                pieces.push(Piece::Text(rest[..end].into()));
                rest = &rest[end..];
                continue;
            };
            let length = directive_of(directive, &mut pieces)
                .ok_or_else(|| BadTime(format!("%{}", directive.chars().take(3).collect::<String>())))?;
            rest = &directive[length..];
        }
        Ok(Self(pieces))
    }

    /// Appends the time that is so many seconds and nanoseconds after 1970.
    pub fn write(&self, seconds: u64, nanos: u32, out: &mut Vec<u8>) {
        let date = Civil::of(seconds);
        for piece in &self.0 {
            // Writing to a Vec cannot fail.
            let _ = match piece {
                Piece::Text(text) => out.write_all(text.as_bytes()),
                Piece::Year => write!(out, "{:04}", date.year),
                Piece::ShortYear => write!(out, "{:02}", date.year % 100),
                Piece::Month => write!(out, "{:02}", date.month),
                Piece::Day => write!(out, "{:02}", date.day),
                Piece::SpacedDay => write!(out, "{:2}", date.day),
                Piece::DayOfYear => write!(out, "{:03}", date.day_of_year),
                Piece::Hour => write!(out, "{:02}", seconds % 86_400 / 3600),
                Piece::Minute => write!(out, "{:02}", seconds % 3600 / 60),
                Piece::Second => write!(out, "{:02}", seconds % 60),
                Piece::MonthName(short) => name(out, MONTHS[date.month as usize - 1], *short),
                Piece::WeekdayName(short) => {
                    name(out, WEEKDAYS[((seconds / 86_400 + 4) % 7) as usize], *short)
                }
                Piece::Epoch => write!(out, "{seconds}"),
                Piece::Fraction(digits) => {
                    let text = [nanos / 10_u32.pow(9 - u32::try_from(*digits).unwrap_or(9).min(9))];
                    write!(out, "{:0width$}", text[0], width = *digits)
                }
            };
        }
    }
}

fn name(out: &mut Vec<u8>, name: &str, short: bool) -> std::io::Result<()> {
    out.write_all(if short { &name.as_bytes()[..3] } else { name.as_bytes() })
}

/// Compiles what follows a percent sign; says how long it was.
fn directive_of(text: &str, pieces: &mut Vec<Piece>) -> Option<usize> {
    use Piece::{Day, DayOfYear, Epoch, Fraction, Hour, Minute, Month, MonthName, Second, Year};
    let literal = |t: &str| Piece::Text(t.into());
    let mut chars = text.chars();
    let first = chars.next()?;
    let found = match first {
        'Y' => vec![Year],
        'y' => vec![Piece::ShortYear],
        'm' => vec![Month],
        'd' => vec![Day],
        'e' => vec![Piece::SpacedDay],
        'j' => vec![DayOfYear],
        'H' => vec![Hour],
        'M' => vec![Minute],
        'S' => vec![Second],
        'b' | 'h' => vec![MonthName(true)],
        'B' => vec![MonthName(false)],
        'a' => vec![Piece::WeekdayName(true)],
        'A' => vec![Piece::WeekdayName(false)],
        's' => vec![Epoch],
        'f' => vec![Fraction(9)],
        'z' => vec![literal("+0000")],
        'Z' => vec![literal("UTC")],
        'F' => vec![Year, literal("-"), Month, literal("-"), Day],
        'T' => vec![Hour, literal(":"), Minute, literal(":"), Second],
        '%' => vec![literal("%")],
        '1'..='9' if chars.next() == Some('f') => {
            pieces.push(Fraction(first.to_digit(10)? as usize));
            return Some(2);
        }
        // `%E3S`: seconds with their fraction.
        'E' => {
            let digits = chars.next()?.to_digit(10)? as usize;
            if chars.next() != Some('S') || !(1..=9).contains(&digits) {
                return None;
            }
            pieces.extend([Second, literal("."), Fraction(digits)]);
            return Some(3);
        }
        _ => return None,
    };
    pieces.extend(found);
    Some(first.len_utf8())
}

/// A day of the Gregorian calendar.
struct Civil {
    year: u64,
    month: u64,
    day: u64,
    day_of_year: u64,
}

impl Civil {
    /// After H. Hinnant's `civil_from_days`, for days since 1970.
    const fn of(seconds: u64) -> Self {
        let days = seconds / 86_400 + 719_468;
        let era = days / 146_097;
        let of_era = days % 146_097;
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        // Years that begin in March.
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
        let day_of_year = before + day + if leap && month > 2 { 1 } else { 0 };
        Self { year, month, day, day_of_year }
    }
}
