// SPDX-License-Identifier: MIT OR Apache-2.0
//! Days of the calendar, as `2027-06-30`.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// A day, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    year: i32,
    month: u8,
    day: u8,
}

/// A text that is no day.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no day of the form 2027-06-30")]
pub struct NoDate(String);

const MONTHS: u8 = 12;

fn is_leap(year: i32) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of(year: i32, month: u8) -> u8 {
    match month {
        2 => 28 + u8::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl Date {
    /// The present day.
    #[must_use]
    pub fn today() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::of_unix_day(i64::try_from(since.as_secs() / 86_400).unwrap_or(0))
    }

    fn of_unix_day(days: i64) -> Self {
        let mut left = days;
        let mut date = Self {
            year: 1970,
            month: 1,
            day: 1,
        };
        loop {
            let in_year = if is_leap(date.year) { 366 } else { 365 };
            if left < in_year {
                break;
            }
            left -= in_year;
            date.year += 1;
        }
        while left >= i64::from(days_of(date.year, date.month)) {
            left -= i64::from(days_of(date.year, date.month));
            date.month += 1;
        }
        date.day += u8::try_from(left).unwrap_or(0);
        date
    }

    fn unix_day(self) -> i64 {
        let years: i64 = (1970..self.year).map(|y| if is_leap(y) { 366 } else { 365 }).sum();
        let months: i64 = (1..self.month).map(|m| i64::from(days_of(self.year, m))).sum();
        years + months + i64::from(self.day) - 1
    }

    /// How many days later than `other` it is; negative if earlier.
    #[must_use]
    pub fn days_after(self, other: Self) -> i64 {
        self.unix_day() - other.unix_day()
    }
}

impl FromStr for Date {
    type Err = NoDate;

    fn from_str(text: &str) -> Result<Self, NoDate> {
        let no_date = || NoDate(text.to_owned());
        let is_form = text.len() == 10
            && text.bytes().enumerate().all(|(at, b)| {
                if at == 4 || at == 7 {
                    b == b'-'
                } else {
                    b.is_ascii_digit()
                }
            });
        if !is_form {
            return Err(no_date());
        }
        let number = |range: std::ops::Range<usize>| text[range].parse::<u16>().map_err(|_| no_date());
        let (year, month, day) = (i32::from(number(0..4)?), number(5..7)? as u8, number(8..10)? as u8);
        let is_day = year >= 1970 && (1..=MONTHS).contains(&month) && (1..=days_of(year, month)).contains(&day);
        if is_day {
            Ok(Self { year, month, day })
        } else {
            Err(no_date())
        }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_count_as_the_calendar_does() {
        for (days, text) in [
            (0, "1970-01-01"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (20_454, "2026-01-01"),
        ] {
            let date: Date = text.parse().unwrap();
            assert_eq!((date.unix_day(), Date::of_unix_day(days)), (days, date), "{text}");
            assert_eq!(date.to_string(), text);
        }
        for text in [
            "2026-02-29",
            "2026-13-01",
            "2026-1-1",
            "never",
            "1969-12-31",
            "2026-04-31",
            "2026/01/01",
            "日本日",
        ] {
            assert!(text.parse::<Date>().is_err(), "{text}");
        }
    }
}
