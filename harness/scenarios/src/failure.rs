// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a scenario did not pass.

use std::error::Error;
use std::fmt;
use std::panic::Location;

use kvmi_lab_control::Verdict;

/// What a scenario ends with when it does not pass. Any error becomes one by `?`, with the place where that happened.
#[derive(Clone, Debug)]
pub enum Failure {
    /// Something was otherwise than it must be.
    Failed(String),
    /// It cannot run here, for this reason.
    Skipped(String),
}

impl Failure {
    /// A failure at the caller's place.
    #[track_caller]
    #[must_use]
    pub fn new(message: impl fmt::Display) -> Self {
        let place = Location::caller();
        Self::Failed(format!("{message} ({}:{})", place.file(), place.line()))
    }

    /// The same, with what it came after.
    #[must_use]
    pub(crate) fn after(self, what: &str) -> Self {
        match self {
            Self::Failed(message) => Self::Failed(format!("{what}: {message}")),
            skipped => skipped,
        }
    }

    /// The verdict that says it.
    #[must_use]
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Failed(message) => Verdict::Fail { message },
            Self::Skipped(reason) => Verdict::Skip { reason },
        }
    }
}

impl<E: Error> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Self::new(message)
    }
}

/// Fails the scenario unless the condition holds; says what was expected.
macro_rules! check {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err($crate::Failure::new(format!($($what)+)));
        }
    };
}

pub(crate) use check;

/// Fails the scenario unless both are equal; says what was compared.
macro_rules! check_eq {
    ($got:expr, $wanted:expr, $($what:tt)+) => {
        match (&$got, &$wanted) {
            (got, wanted) => {
                if *got != *wanted {
                    let what = format!($($what)+);
                    return Err($crate::Failure::new(format!("{what}: expected {wanted:?}, got {got:?}")));
                }
            }
        }
    };
}
pub(crate) use check_eq;
