// SPDX-License-Identifier: MIT OR Apache-2.0
//! docs/scenarios.md: every scenario, what it shows and on which emulated lanes it runs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use kvmi_lab_control::Lane;
use kvmi_lab_scenarios::{Scenario, all};

use kvmi_lab_environment::finding::{Finding, finding};

const PAGE: &str = "docs/scenarios.md";

/// What the scenarios of a group are about.
const GROUPS: &[(&str, &str)] = &[
    ("bench", "what introspection costs, for `cargo xtask bench`"),
    ("client", "the handshake and the client library, against a real kernel"),
    (
        "commands",
        "each command's own rules, the queue of a vCPU, malformed messages",
    ),
    (
        "conformance",
        "each command and event, and each of its errors: the rows of [parity.md](parity.md)",
    ),
    (
        "descriptor",
        "a session that is a descriptor: its end, its errors, its limits",
    ),
    ("destroy", "a tool or a VMM that dies at a bad moment"),
    (
        "differential",
        "the same guest and script on each lane: no vendor may be told from the other",
    ),
    (
        "events",
        "each event: when it arises, what a reply does, what makes it void",
    ),
    ("fuzz", "messages at random, right ones and wrong ones"),
    ("lab", "the lab's own guests and VMM; they need no introspection"),
    (
        "lifecycle",
        "HOOK, PREUNHOOK and UNHOOK, sockets of all kinds, permissions, leaks",
    ),
    ("nested", "a guest that is a hypervisor itself"),
    (
        "pages",
        "restrictions of page access: kinds, emulated accesses, many pages, changes of memory slots",
    ),
    ("pause", "VM_PAUSE_VCPU and PAUSE"),
    ("planted", "failures on purpose, for `cargo xtask planted`"),
    ("reset", "INIT, reset and power-off of a guest while it is watched"),
    (
        "step",
        "single-stepping: instructions, interrupts, exceptions, modes of the CPU",
    ),
    ("storm", "many events on many vCPUs for a while"),
    ("unhook", "UNHOOK at any moment"),
];

/// Writes the page anew; whether that changed it.
pub fn write(checkout: &Path) -> Result<bool> {
    let path = checkout.join(PAGE);
    let new = page(all());
    if fs::read_to_string(&path).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    fs::write(&path, new).with_context(|| format!("write {PAGE}"))?;
    Ok(true)
}

/// What is stale.
pub fn findings(checkout: &Path) -> Option<Finding> {
    let old = fs::read_to_string(checkout.join(PAGE)).unwrap_or_default();
    (old != page(all())).then(|| finding(PAGE, "is stale: cargo xtask docs"))
}

fn group(scenario: &Scenario) -> &'static str {
    scenario.name.split("::").next().unwrap_or_default()
}

/// The lanes that any machine has.
fn lanes() -> impl Iterator<Item = Lane> {
    Lane::ALL.iter().copied().filter(|lane| lane.platform().is_emulated())
}

const HEAD: &str = "\
# Scenarios

Every scenario of the lab, and on which emulated lanes it runs. `cargo xtask docs` writes this page.
A scenario is a test: it starts a guest in the host under test, hooks it, and checks what the
protocol promises. `cargo xtask e2e NAME --lane LANE` runs it and says how it ended. What runs have
shown is in [parity.md](parity.md).

Lanes on real hardware, svm-kvm and vmx-kvm, are offered where a machine can carry them.
";

/// The page for these scenarios.
fn page(scenarios: &[Scenario]) -> String {
    let lanes: Vec<Lane> = lanes().collect();
    let names: Vec<&str> = lanes.iter().map(|lane| lane.name()).collect();
    let mut of_groups = format!(
        "\n| group | about | {} |\n|---|---|{}\n",
        names.join(" | "),
        "---|".repeat(lanes.len())
    );
    let mut of_scenarios = String::new();
    for (name, about) in GROUPS {
        let mut members: Vec<&Scenario> = scenarios.iter().filter(|s| group(s) == *name).collect();
        if members.is_empty() {
            continue;
        }
        members.sort_by_key(|s| s.name);
        let counts: Vec<String> = lanes
            .iter()
            .map(|lane| {
                members
                    .iter()
                    .filter(|s| s.needs.why_not_on(*lane).is_none())
                    .count()
                    .to_string()
            })
            .collect();
        of_groups += &format!("| [{name}](#{name}) | {about} | {} |\n", counts.join(" | "));
        of_scenarios += &format!(
            "\n## {name}\n\n| scenario | shows | {} |\n|---|---|{}\n",
            names.join(" | "),
            "---|".repeat(lanes.len())
        );
        for scenario in members {
            let cells: Vec<&str> = lanes.iter().map(|lane| cell(scenario, *lane)).collect();
            let shows = scenario.summary.replace('|', "\\|");
            of_scenarios += &format!("| `{}` | {shows} | {} |\n", scenario.name, cells.join(" | "));
        }
    }
    format!("{HEAD}{of_groups}{of_scenarios}")
}

fn cell(scenario: &Scenario, lane: Lane) -> &'static str {
    match scenario.needs.why_not_on(lane) {
        Some(why) => why,
        None if scenario.needs.by_default => "runs",
        None => "when named",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scenario_is_on_the_page() {
        let page = page(all());
        for scenario in all() {
            let row = format!("| `{}` |", scenario.name);
            assert!(
                page.contains(&row),
                "{}: give its group a row in GROUPS of harness/lab/src/scenarios_page.rs",
                scenario.name
            );
        }
    }

    #[test]
    fn each_group_has_scenarios() {
        for (name, _) in GROUPS {
            assert!(
                all().iter().any(|s| group(s) == *name),
                "no scenario is in the group {name}"
            );
        }
    }

    #[test]
    fn a_cell_says_why_not() {
        let find = |name: &str| all().iter().find(|s| s.name == name).unwrap();
        assert_eq!(cell(find("lab::guests_run"), Lane::SvmTcg), "runs");
        assert_eq!(cell(find("bench::exits_stock"), Lane::SvmTcg), "when named");
        assert_eq!(
            cell(find("reset::watch_holds_emulated"), Lane::SvmTcg),
            "AMD's CPUs run each state of a guest"
        );
    }
}
