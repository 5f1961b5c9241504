// SPDX-License-Identifier: MIT OR Apache-2.0
//! What there is: scenarios, where each of them runs, and kernels. Nothing is booted but, with `--why`, a probe guest where KVM looks as if
//! it could carry one.

use anyhow::Result;
use kvmi_lab_control::Lane;
use kvmi_lab_scenarios::{Scenario, all};
use serde_json::json;

use crate::hardware::{self, Facts};
use crate::kernel::{self, Lists};
use crate::output::{self, show};
use crate::workshop::Workshop;

/// Every scenario, in a line each.
pub(crate) fn scenarios(json: bool) {
    if json {
        for s in all() {
            show!(
                "{}",
                json!({ "event": "listed", "scenario": s.name, "summary": s.summary, "lanes": s.needs.lanes().collect::<Vec<_>>(), "by_default": s.needs.by_default })
            );
        }
        return;
    }
    let mut table = output::table(["scenario", "shows"]);
    for s in all() {
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

/// Each scenario and lane: runs here, or why not.
pub(crate) fn why(shop: &Workshop, json: bool) -> Result<()> {
    let facts = hardware::probe(shop)?;
    if json {
        for s in all() {
            for &lane in Lane::ALL {
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
    let mut table = output::table(std::iter::once("scenario").chain(Lane::ALL.iter().map(|l| l.name())));
    for s in all() {
        let cells = Lane::ALL
            .iter()
            .map(|&lane| why_not(s, lane, &facts).unwrap_or_else(|| "runs".to_owned()));
        table.add_row(std::iter::once(s.name.to_owned()).chain(cells));
    }
    show!("{table}\n");
    for &lane in Lane::ALL {
        let text = hardware::lack(&facts, lane).map_or_else(|| "runs here".to_owned(), |lack| lack.text());
        show!("{lane}: {text}");
    }
    Ok(())
}

/// Every kernel that `--kernel` takes.
pub(crate) fn kernels(shop: &Workshop, json: bool) -> Result<()> {
    let matrix = kernel::matrix();
    let mut table = output::table(["kernel", "suite", "packages", "for"]);
    for suite in &matrix.suites {
        let (_, kernels) = kernel::on_offer(shop, suite, Lists::Fresh)?;
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
