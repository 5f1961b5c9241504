// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lists of splats against fixtures: what they find in logs, and that a list which is not in order is not used.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::civil::Date;
use kvmi_lab_machine::complaint::{Complaint, Lists, complaints};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/splats")
}

#[test]
fn a_list_that_is_not_in_order_is_refused() {
    let today: Date = "2026-06-30".parse().unwrap();
    let mut tried = 0;
    for case in fs::read_dir(fixtures()).unwrap().map(|e| e.unwrap().path()) {
        let Ok(expected) = fs::read_to_string(case.join("expected")) else {
            continue;
        };
        let read = |name| fs::read_to_string(case.join(name)).unwrap();
        let said = match Lists::parse(&read("deny.toml"), &read("allow.toml"), today) {
            Ok(_) => "ok".to_owned(),
            Err(e) => e.to_string(),
        };
        assert!(said.contains(expected.trim()), "{}: {said}", case.display());
        tried += 1;
    }
    assert_eq!(tried, 19, "fixtures");
}

#[test]
fn an_allowance_holds_through_its_last_day() {
    let read = |name| fs::read_to_string(fixtures().join("good").join(name)).unwrap();
    let on = |day: &str| Lists::parse(&read("deny.toml"), &read("allow.toml"), day.parse().unwrap());
    assert!(on("2027-01-01").is_err());
    let lists = on("2026-12-31").unwrap();
    let found = lists.complaints("[ 1.0] BUG: known\n[ 1.1] BUG: unknown \r\n[ 1.2] fine\n");
    let lines: Vec<&str> = found.iter().map(|c| c.line.as_str()).collect();
    assert_eq!(lines, ["[ 1.1] BUG: unknown"]);
}

#[test]
fn a_quiet_log_has_none_and_each_kind_is_heard() {
    let quiet = fs::read_to_string(fixtures().join("logs/quiet.log")).unwrap();
    assert_eq!(complaints(&quiet), []);
    for line in fs::read_to_string(fixtures().join("logs/complaints.log"))
        .unwrap()
        .lines()
    {
        let (class, line) = line.split_once(": ").unwrap();
        let found = complaints(&format!("[    2.0] fine\r\n{line}\r\n[    3.0] fine\r\n"));
        let found: Vec<(String, &str)> = found.iter().map(|c| (c.class.to_string(), c.line.as_str())).collect();
        assert_eq!(found, [(class.to_owned(), line)]);
    }
}

/// The line of a log without its time.
fn said(complaint: &Complaint) -> &str {
    complaint.line.split_once("] ").unwrap().1
}

#[test]
fn an_allowance_that_names_a_place_holds_behind_it() {
    let read = |name| fs::read_to_string(fixtures().join("after").join(name)).unwrap();
    let lists = Lists::parse(&read("deny.toml"), &read("allow.toml"), "2026-06-30".parse().unwrap()).unwrap();
    let found =
        lists.complaints("[ 1.0] BUG: known\n[ 1.1] reboot: Power down\n[ 1.2] BUG: known\n[ 1.3] BUG: other\n");
    assert_eq!(found.iter().map(said).collect::<Vec<_>>(), ["BUG: known", "BUG: other"]);
    // The line that names the place is not behind it.
    let found = lists.complaints("[ 1.0] BUG: known, Power down\n");
    assert_eq!(found.len(), 1);
}

#[test]
fn what_is_allowed_at_power_off_is_so_with_its_trace_and_nothing_else() {
    let log = fs::read_to_string(fixtures().join("logs/power-off.log")).unwrap();
    assert_eq!(complaints(&log), []);
    let warning = "WARNING: CPU: 2 PID: 0 at arch/x86/kernel/apic/ipi.c:70 native_smp_send_reschedule+0x2d/0x40";
    let without_place: String = log
        .lines()
        .filter(|l| !l.contains("Power down"))
        .map(|l| format!("{l}\n"))
        .collect();
    let found = complaints(&without_place);
    assert_eq!(found.iter().map(said).collect::<Vec<_>>(), [warning, "Call Trace:"]);
    for more in ["[    2.1] Call Trace:\n", "[    2.1] BUG: sleeping\n"] {
        // Behind the report, and within it.
        assert_eq!(complaints(&(log.clone() + more)).len(), 1, "{more}");
        let within = log.replace("[    6.731149]", &format!("{more}[    6.731149]"));
        assert_eq!(complaints(&within).len(), 1, "{more}");
    }
}
