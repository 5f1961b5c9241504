// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a check of the sources finds.

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, or what else it is about.
    pub at: String,
    /// What is wrong with it.
    pub what: String,
}

/// A finding.
pub fn finding(at: impl Into<String>, what: impl Into<String>) -> Finding {
    Finding {
        at: at.into(),
        what: what.into(),
    }
}
