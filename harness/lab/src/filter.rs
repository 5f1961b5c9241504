// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which scenarios a person means by a word: the one that has it as its name, or all that have it in theirs, the lane's in front.

use anyhow::{Result, bail};
use kvmi_lab_control::Lane;
use kvmi_lab_scenarios::{Scenario, all, transport};

/// Which scenarios are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// Every scenario that runs without being named.
    #[default]
    All,
    /// A whole name means that one alone, not all that it is the beginning of: it is how failures name what to run again.
    One(String),
    /// A part of the names of tests.
    Part(String),
}

impl Filter {
    /// What a person typed, or nothing. Fails where no name could have it in it: nextest would take it for an expression of its own.
    pub fn of(typed: Option<&str>) -> Result<Self> {
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || "_:-@".contains(c);
        let Some(part) = typed else {
            return Ok(Self::All);
        };
        if transport::names().any(|name| name == part) {
            return Ok(Self::One(part.to_owned()));
        }
        if part.is_empty() || !part.chars().all(is_of_name) {
            bail!(
                "no scenario's name has `{part}` in it: they are of letters, digits, _ and ::; for the list: cargo xtask list"
            )
        }
        let filter = Self::Part(part.to_owned());
        if !all().iter().any(|s| filter.takes(s)) {
            let near = |name: &&str| strsim::jaro_winkler(name, part);
            let names = all().iter().map(|s| s.name);
            let nearest = names.max_by(|a, b| near(a).total_cmp(&near(b))).unwrap_or_default();
            // What is less alike than that was not meant.
            let hint = if near(&nearest) < 0.75 {
                String::new()
            } else {
                format!("; the nearest is {nearest}")
            };
            bail!("no scenario's name has `{part}` in it{hint}; for the list: cargo xtask list")
        }
        Ok(filter)
    }

    /// Whether it is meant on any lane.
    pub fn takes(&self, scenario: &Scenario) -> bool {
        Lane::ALL.iter().any(|&lane| self.takes_on(scenario, lane))
    }

    /// Whether it is meant on this lane, if it can run there.
    pub fn takes_on(&self, scenario: &Scenario, lane: Lane) -> bool {
        match self {
            Self::All => true,
            Self::One(name) => scenario.name == transport::base(name),
            Self::Part(part) => format!("{lane}::{}", scenario.name).contains(transport::base(part)),
        }
    }

    /// The same as an expression of nextest's, where it is not all.
    fn expression(&self) -> Option<String> {
        match self {
            Self::All => None,
            Self::One(name) => Some(format!("test(/^[a-z-]+::{name}$/)")),
            Self::Part(part) if part.contains('@') => Some(format!("test(~{part})")),
            // Over the other transport when that is named.
            Self::Part(part) => Some(format!("test(~{part}) and not test(~@)")),
        }
    }
}

/// nextest's expression for those of them that are wanted on these lanes.
pub fn selection(filter: &Filter, without_introspection: bool, lanes: &[Lane]) -> String {
    let lanes: Vec<String> = lanes.iter().map(|lane| format!("test(/^{lane}::/)")).collect();
    let mut parts = vec![format!("({})", lanes.join(" or "))];
    parts.extend(filter.expression());
    if without_introspection {
        let plain = all().iter().filter(|s| !s.needs.introspection);
        let names: Vec<&str> = plain.map(|s| s.name).collect();
        parts.push(format!("test(/^[a-z-]+::({})$/)", names.join("|")));
    }
    parts.join(" and ")
}

/// Why nothing was selected.
pub fn nothing_matches(filter: &Filter, without_introspection: bool) -> &'static str {
    if without_introspection && all().iter().any(|s| filter.takes(s)) {
        return "those scenarios need introspection; without it run: cargo xtask e2e --without-introspection lab::";
    }
    "no scenario matches; for the list: cargo xtask list"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(typed: &str) -> Filter {
        Filter::of(Some(typed)).unwrap()
    }

    #[test]
    fn a_whole_name_selects_one_and_a_part_many() {
        let selection = |filter, lanes: &[Lane]| selection(&filter, false, lanes);
        assert_eq!(selection(Filter::All, &[Lane::SvmTcg]), "(test(/^svm-tcg::/))");
        assert_eq!(
            selection(of("hook"), &[Lane::SvmTcg, Lane::VmxBochs]),
            "(test(/^svm-tcg::/) or test(/^vmx-bochs::/)) and test(~hook) and not test(~@)"
        );
        assert_eq!(
            selection(of("events::cr0"), &[Lane::VmxBochs]),
            "(test(/^vmx-bochs::/)) and test(/^[a-z-]+::events::cr0$/)"
        );
        for part in ["events::cr", "events::cr0_", "bench::"] {
            assert_eq!(
                selection(of(part), &[Lane::VmxBochs]),
                format!("(test(/^vmx-bochs::/)) and test(~{part}) and not test(~@)")
            );
        }
    }

    #[test]
    fn scenarios_are_taken_as_nextest_selects_them() {
        let names = |filter: Filter| -> Vec<&str> {
            let taken = all().iter().filter(|s| filter.takes(s));
            taken.map(|s| s.name).collect()
        };
        assert_eq!(names(Filter::All).len(), all().len());
        assert_eq!(names(of("events::cr0")), ["events::cr0"]);
        assert_eq!(names(of("events::cr0_")), ["events::cr0_lmsw", "events::cr0_pae"]);
        let lab = of("svm-tcg::lab::guests");
        assert_eq!(names(lab.clone()), ["lab::guests_run"]);
        let guests_run = all().iter().find(|s| s.name == "lab::guests_run").unwrap();
        assert!(lab.takes_on(guests_run, Lane::SvmTcg) && !lab.takes_on(guests_run, Lane::VmxBochs));
    }

    #[test]
    fn what_no_name_has_is_refused() {
        for wrong in ["", "a)", "a b", "=x", "/a/", "a\"b", "ä"] {
            let said = Filter::of(Some(wrong)).unwrap_err().to_string();
            assert!(said.contains(wrong) && said.contains("cargo xtask list"), "{said}");
        }
        let said = Filter::of(Some("lab::guest_run")).unwrap_err().to_string();
        assert!(said.contains("the nearest is lab::guests_run"), "{said}");
        for part in [None, Some("svm-tcg::lab"), Some("cr0_"), Some("::")] {
            Filter::of(part).unwrap();
        }
    }

    #[test]
    fn without_introspection_only_what_needs_none_is_selected() {
        let selection = selection(&of("events::"), true, &[Lane::SvmTcg]);
        assert!(
            selection.contains("lab::guests_run|") && !selection.contains("events::cr3"),
            "{selection}"
        );
        assert!(nothing_matches(&of("events::"), true).contains("need introspection"));
        assert!(nothing_matches(&of("events::"), false).starts_with("no scenario matches"));
    }
}
