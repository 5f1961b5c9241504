// SPDX-License-Identifier: MIT OR Apache-2.0
//! What there is: scenarios, where each of them runs, and kernels. Nothing is booted but, with `--why`, a probe guest where KVM looks as if
//! it could carry one.

use std::collections::BTreeMap;

use anyhow::Result;
use kvmi_lab_control::Lane;
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::output::{self, count};
use kvmi_lab_environment::show;
use kvmi_lab_kernel::{self as kernel, Lists};
use kvmi_lab_scenarios::{Scenario, all};
use serde_json::json;

use crate::filter::Filter;
use crate::hardware::{self, Facts};

/// The scenarios that are meant, in a line each.
pub fn scenarios(filter: &Filter, json: bool) {
    let meant = all().iter().filter(|s| filter.takes(s));
    if json {
        for s in meant {
            show!(
                "{}",
                json!({ "event": "listed", "scenario": s.name, "summary": s.summary, "lanes": s.needs.lanes().collect::<Vec<_>>(), "by_default": s.needs.by_default })
            );
        }
        return;
    }
    let mut table = output::table(["scenario", "shows"]);
    for s in meant {
        table.add_row([s.name, s.summary]);
    }
    show!("{table}");
}

/// Why a scenario does not run on a lane here, in a few words; nothing where it does.
fn why_not(scenario: &Scenario, lane: Lane, facts: &Facts) -> Option<String> {
    if let Some(why) = scenario.needs.why_not_on(lane) {
        return Some(why.to_owned());
    }
    if let Some(lack) = hardware::lack(facts, lane) {
        return Some(format!("not here: step {}", lack.step));
    }
    (!scenario.needs.by_default).then(|| "when named".to_owned())
}

/// Which lanes run here, and where the scenarios that are meant do not run, and why not. A program is told of each scenario and lane.
pub fn why(env: &Environment, filter: &Filter, json: bool) -> Result<()> {
    let facts = hardware::probe(env)?;
    if json {
        for s in all() {
            for &lane in Lane::ALL.iter().filter(|&&lane| filter.takes_on(s, lane)) {
                let why_not = why_not(s, lane, &facts);
                let lack = hardware::lack(&facts, lane);
                show!(
                    "{}",
                    json!({ "event": "why", "scenario": s.name, "lane": lane, "why_not": why_not, "lack": lack })
                );
            }
        }
        return Ok(());
    }
    for &lane in Lane::ALL {
        let text = hardware::lack(&facts, lane).map_or_else(
            || "runs here".to_owned(),
            |lack| format!("does not run here: {}", lack.text()),
        );
        show!("{}", output::wrapped(&format!("{lane:9}  {text}"), 11));
    }
    let groups = Groups::of(all().iter().filter(|s| filter.takes(s)));
    for ((reason, lanes), scenarios) in &groups.not_on {
        let lanes: Vec<&str> = lanes.iter().map(|lane| lane.name()).collect();
        show_group(&format!("not on {}: {reason}", lanes.join(", ")), scenarios);
    }
    if !groups.when_named.is_empty() {
        show_group("only when named, on each lane that runs here", &groups.when_named);
    }
    let others = count(groups.everywhere.len(), "more scenario");
    match filter {
        _ if groups.everywhere.is_empty() => {}
        // For them there is `list`.
        Filter::All => show!("\n{others}, on each lane that runs here"),
        _ => show_group("on each lane that runs here", &groups.everywhere),
    }
    Ok(())
}

/// Scenarios, by where they do not run.
#[derive(Debug, Default)]
struct Groups {
    /// By the reason, and the lanes for which it holds.
    not_on: BTreeMap<(&'static str, Vec<Lane>), Vec<&'static str>>,
    when_named: Vec<&'static str>,
    everywhere: Vec<&'static str>,
}

impl Groups {
    fn of(scenarios: impl Iterator<Item = &'static Scenario>) -> Self {
        let mut groups = Self::default();
        for scenario in scenarios {
            let mut lanes: BTreeMap<&str, Vec<Lane>> = BTreeMap::new();
            for &lane in Lane::ALL {
                if let Some(reason) = scenario.needs.why_not_on(lane) {
                    lanes.entry(reason).or_default().push(lane);
                }
            }
            if !scenario.needs.by_default {
                groups.when_named.push(scenario.name);
            } else if lanes.is_empty() {
                groups.everywhere.push(scenario.name);
            }
            for group in lanes {
                groups.not_on.entry(group).or_default().push(scenario.name);
            }
        }
        groups
    }
}

fn show_group(what: &str, scenarios: &[&str]) {
    show!("\n{}", output::wrapped(what, 4));
    for name in scenarios {
        show!("    {name}");
    }
}

/// Every kernel that `--kernel` takes.
pub fn kernels(env: &Environment, json: bool) -> Result<()> {
    let matrix = kernel::matrix();
    let mut table = output::table(["kernel", "suite", "packages", "for"]);
    for suite in &matrix.suites {
        let (_, kernels) = kernel::on_offer(env, suite, Lists::Fresh)?;
        for version in kernels {
            if json {
                show!(
                    "{}",
                    json!({ "event": "kernel", "release": version.release(), "version": version })
                );
                continue;
            }
            let flavour = matrix.flavours.iter().find(|f| f.name == version.flavour);
            let summary = flavour.map_or("", |f| f.summary.as_str());
            table.add_row([&version.release(), &version.suite, &version.package, summary]);
        }
    }
    if !json {
        show!(
            "{table}\n\n--kernel takes any of them by release, version, suite or flavour, e.g. 6.12.115, trixie, trixie-amd64."
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_once_for_all_that_it_keeps_off_the_same_lanes() {
        let groups = Groups::of(all().iter());
        let amd = (
            "AMD's CPUs run each state of a guest",
            vec![Lane::SvmTcg, Lane::SvmBochs, Lane::SvmKvm],
        );
        assert!(groups.not_on[&amd].contains(&"reset::watch_holds_emulated"));
        assert!(groups.when_named.contains(&"bench::exits_stock"));
        assert!(groups.everywhere.contains(&"lab::guests_run"));
        let kept_off = all()
            .iter()
            .filter(|s| s.needs.lanes().count() < Lane::ALL.len())
            .count();
        assert_eq!(
            groups.when_named.len() + groups.everywhere.len() + kept_off,
            all().len()
        );
    }

    #[test]
    fn a_scenario_runs_where_its_lane_does_and_where_it_wants_to() {
        let hollow = r#"{ "open": { "Ok": null }, "create_vm": { "Ok": null }, "extensions": [], "nested": null, "in_a_guest": true, "guest": null }"#;
        let facts: Facts = serde_json::from_str(hollow).unwrap();
        let find = |name: &str| all().iter().find(|s| s.name == name).unwrap();
        assert_eq!(why_not(find("lab::guests_run"), Lane::SvmTcg, &facts), None);
        let here = why_not(find("lab::guests_run"), Lane::VmxKvm, &facts);
        assert_eq!(here.as_deref(), Some("not here: step 3"));
        let bench = why_not(find("bench::exits_stock"), Lane::VmxBochs, &facts);
        assert_eq!(bench.as_deref(), Some("when named"));
    }
}
