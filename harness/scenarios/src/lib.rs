//! What is proved, grouped by subject.
