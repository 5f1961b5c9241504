// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a kernel says when something is wrong with it: two lists, and the lines of a log that they find.
//!
//! The lists fail closed: one that cannot be understood, or that holds an allowance whose time is over, is itself a complaint about every log.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// What kind of complaint it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// The kernel cannot go on, or not as before.
    Oops,
    /// WARN and its kind.
    Warning,
    /// Something does not go on: soft and hard lockups, RCU stalls, hung tasks.
    Lockup,
    /// Lockdep and its kind.
    Locking,
    /// Memory that was misused.
    Memory,
    /// Something was left behind.
    Leak,
    /// KVM's own.
    Kvm,
    /// A module that does not fit the kernel.
    Module,
    /// Not the kernel's: the lists themselves cannot be used.
    Lists,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Oops => "oops",
            Self::Warning => "warning",
            Self::Lockup => "lockup",
            Self::Locking => "locking",
            Self::Memory => "memory",
            Self::Leak => "leak",
            Self::Kvm => "kvm",
            Self::Module => "module",
            Self::Lists => "lists",
        })
    }
}

/// A line in which a kernel complains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// What kind it is.
    pub class: Class,
    /// The line, without white space at its end.
    pub line: String,
}

/// Why a list cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// It is no such list.
    #[error("the list of splats {list}.toml cannot be read: {reason}")]
    Unreadable {
        /// `deny` or `allow`.
        list: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// Nothing would be found.
    #[error("the list of splats deny.toml is empty")]
    Empty,
    /// A text that is empty, or shorter than what tells anything.
    #[error("the list of splats {list}.toml has the text {text:?}, which matches too much")]
    TooShort {
        /// `deny` or `allow`.
        list: &'static str,
        /// The text.
        text: String,
    },
    /// A text stands there twice.
    #[error("the list of splats {list}.toml has {text:?} twice")]
    Twice {
        /// `deny` or `allow`.
        list: &'static str,
        /// The text.
        text: String,
    },
    /// A class that only the lab gives.
    #[error("the list of splats deny.toml uses the class `lists`, which is not a kernel's")]
    NotAKernels,
    /// An allowance that begins to hold where it holds already.
    #[error(
        "the allowance for {text:?} in allow.toml holds after {after:?}, which is a text of the same kind of line: name another place"
    )]
    NoPlace {
        /// The text.
        text: String,
        /// Where it is to begin.
        after: String,
    },
    /// An allowance without a reason.
    #[error("the allowance for {0:?} in allow.toml gives no reason")]
    NoReason(String),
    /// An allowance whose last day is none.
    #[error("the allowance for {text:?} in allow.toml: {until:?} is no day of the form 2027-06-30: {error}")]
    Date {
        /// The text.
        text: String,
        /// What stands there in place of a day.
        until: String,
        /// What is wrong with it.
        error: String,
    },
    /// An allowance whose time is over.
    #[error(
        "the allowance for {text:?} in allow.toml ended on {until}: mend the cause or give a new reason and day ({reason})"
    )]
    Expired {
        /// The text.
        text: String,
        /// Its last day.
        until: Date,
        /// Why it was allowed.
        reason: String,
    },
    /// An allowance that is meant for ever.
    #[error("the allowance for {text:?} in allow.toml lasts until {until}, more than a year")]
    TooLong {
        /// The text.
        text: String,
        /// Its last day.
        until: Date,
    },
}

/// The shortest text that may stand in a list, in bytes.
const MIN_TEXT_BYTES: usize = 4;

/// A line of each report of the kernel's, denied by itself: it comes behind the line that says what is wrong, and before the report's end.
const TRACE: &str = "Call Trace:";
const END_OF_REPORT: &str = "---[ end trace";

/// How long an allowance may last from the day on which it is read, in days.
const MAX_ALLOWANCE_DAYS: i32 = 366;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DenyFile {
    deny: Vec<Deny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Deny {
    class: Class,
    texts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowFile {
    #[serde(default)]
    allow: Vec<Allow>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allow {
    text: String,
    /// It holds only behind the first line that has this; everywhere if there is none.
    after: Option<String>,
    reason: String,
    until: String,
}

/// Both lists, understood.
#[derive(Debug)]
pub struct Lists {
    deny: Vec<Deny>,
    allow: Vec<Allow>,
}

impl Lists {
    /// Understands both lists, as of a day.
    ///
    /// # Errors
    ///
    /// [`ListError`]
    pub fn parse(deny: &str, allow: &str, today: Date) -> Result<Self, ListError> {
        let unreadable = |list| {
            move |e: toml::de::Error| ListError::Unreadable {
                list,
                reason: e.message().to_owned(),
            }
        };
        let DenyFile { deny } = toml::from_str(deny).map_err(unreadable("deny"))?;
        let AllowFile { allow } = toml::from_str(allow).map_err(unreadable("allow"))?;
        if deny.iter().any(|d| d.class == Class::Lists) {
            return Err(ListError::NotAKernels);
        }
        if deny.is_empty() || deny.iter().any(|d| d.texts.is_empty()) {
            return Err(ListError::Empty);
        }
        check_texts("deny", deny.iter().flat_map(|d| &d.texts))?;
        check_texts("allow", allow.iter().map(|a| &a.text))?;
        for after in allow.iter().filter_map(|a| a.after.as_ref()) {
            check_texts("allow", [after].into_iter())?;
        }
        allow.iter().try_for_each(|a| a.check(today))?;
        Ok(Self { deny, allow })
    }

    /// The lines of a kernel's log in which it complains, in order.
    #[must_use]
    pub fn complaints(&self, log: &str) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        let mut holds: Vec<bool> = self.allow.iter().map(|a| a.after.is_none()).collect();
        // Whether the next trace belongs to a line that was allowed. One does.
        let mut trace_is_allowed = false;
        for line in log.lines() {
            let denied = |d: &&Deny| d.texts.iter().any(|t| line.contains(t));
            if let Some(Deny { class, .. }) = self.deny.iter().find(denied) {
                let mut allowances = self.allow.iter().zip(&holds);
                if allowances.any(|(a, holds)| *holds && line.contains(&a.text)) {
                    trace_is_allowed = true;
                } else if !(trace_is_allowed && line.contains(TRACE)) {
                    let line = line.trim_end().to_owned();
                    complaints.push(Complaint { class: *class, line });
                } else {
                    trace_is_allowed = false;
                }
            }
            trace_is_allowed &= !line.contains(END_OF_REPORT);
            for (allow, holds) in self.allow.iter().zip(&mut holds) {
                *holds |= allow.after.as_ref().is_some_and(|after| line.contains(after));
            }
        }
        complaints
    }
}

fn check_texts<'t>(list: &'static str, texts: impl Iterator<Item = &'t String>) -> Result<(), ListError> {
    let mut seen = BTreeSet::new();
    for text in texts {
        if text.trim().len() < MIN_TEXT_BYTES {
            return Err(ListError::TooShort {
                list,
                text: text.clone(),
            });
        }
        if !seen.insert(text) {
            return Err(ListError::Twice {
                list,
                text: text.clone(),
            });
        }
    }
    Ok(())
}

impl Allow {
    fn check(&self, today: Date) -> Result<(), ListError> {
        let text = || self.text.clone();
        if self.reason.trim().is_empty() {
            return Err(ListError::NoReason(text()));
        }
        // A line that is allowed would say by itself that it is.
        if let Some(after) = self.after.as_ref().filter(|after| self.text.contains(*after)) {
            return Err(ListError::NoPlace {
                text: text(),
                after: after.clone(),
            });
        }
        let until: Date = self.until.parse().map_err(|error: jiff::Error| ListError::Date {
            text: text(),
            until: self.until.clone(),
            error: error.to_string(),
        })?;
        match (until - today).get_days() {
            ..0 => Err(ListError::Expired {
                text: text(),
                until,
                reason: self.reason.clone(),
            }),
            0..=MAX_ALLOWANCE_DAYS => Ok(()),
            _ => Err(ListError::TooLong { text: text(), until }),
        }
    }
}

/// The present day, in UTC.
#[must_use]
pub fn today() -> Date {
    TimeZone::UTC.to_datetime(Timestamp::now()).date()
}

/// The lab's own lists, as of today.
static LISTS: LazyLock<Result<Lists, ListError>> = LazyLock::new(|| {
    let (deny, allow) = (
        include_str!("../splats/deny.toml"),
        include_str!("../splats/allow.toml"),
    );
    Lists::parse(deny, allow, today())
});

/// The lines in which a kernel complains, by the lab's own lists. If these cannot be used, that is what is complained of.
#[must_use]
pub fn complaints(log: &str) -> Vec<Complaint> {
    match &*LISTS {
        Ok(lists) => lists.complaints(log),
        Err(e) => vec![Complaint {
            class: Class::Lists,
            line: e.to_string(),
        }],
    }
}
