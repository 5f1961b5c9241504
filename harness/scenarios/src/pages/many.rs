// SPDX-License-Identifier: MIT OR Apache-2.0
//! Many restricted pages: what they cost.

use std::fs;
use std::time::{Duration, Instant};

use kvmi_guests::{Access, layout};
use kvmi_uapi::MAX_PAGE_ACCESS_ENTRIES;

use super::{ALL, PAGE, R, W, Watched, X};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "pages::full_message",
        "511 pages in one message, set, read back, each told, and lifted",
        full_message,
    ),
    scenario(
        "pages::million",
        "a million restricted pages: at most 64 bytes each, and none of it left after UNHOOK",
        million,
    ),
];

fn full_message(context: &mut Context) -> Result<(), Failure> {
    let mut watched = Watched::start(context, 1)?;
    let gpas: Vec<_> = (0..MAX_PAGE_ACCESS_ENTRIES as u64)
        .map(|i| layout::SCRATCH + i * PAGE)
        .collect();
    context.stage("set", Duration::from_secs(10));
    let set: Vec<_> = gpas.iter().zip([R | X, R, 0, R | W].into_iter().cycle()).collect();
    let set: Vec<_> = set.into_iter().map(|(&gpa, access)| (gpa, access)).collect();
    check_eq!(watched.wire.set_page_access(&set)?, Ok(vec![]), "VM_SET_PAGE_ACCESS");
    let got = watched.wire.page_access(&gpas)?;
    check_eq!(
        got,
        set.iter().map(|(_, access)| *access).collect::<Vec<_>>(),
        "VM_GET_PAGE_ACCESS"
    );
    context.stage("write each", Duration::from_secs(60));
    for &(gpa, access) in &set {
        let told: &[_] = if access & W == 0 { &[(W, gpa)] } else { &[] };
        watched.told(context, (Access::Write, [gpa, gpa, 0]), told)?;
        check_eq!(watched.word(gpa)?, gpa, "the word at {gpa:#x}");
    }
    context.stage("lift", Duration::from_secs(10));
    let all: Vec<_> = gpas.iter().map(|&gpa| (gpa, ALL)).collect();
    check_eq!(watched.wire.set_page_access(&all)?, Ok(vec![]), "VM_SET_PAGE_ACCESS");
    check_eq!(
        watched.wire.page_access(&gpas)?,
        vec![ALL; MAX_PAGE_ACCESS_ENTRIES],
        "VM_GET_PAGE_ACCESS"
    );
    let words = gpas.len() as u64 * PAGE / 8;
    watched.silent(context, Access::Fill, [layout::SCRATCH, 0x77, words])?;
    for &gpa in &gpas {
        check_eq!(watched.word(gpa)?, 0x77, "the word at {gpa:#x}");
    }
    watched.vm.exit()
}

/// Bytes of the nodes of all xarrays and radix trees of L1's kernel.
fn tree_bytes() -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/slabinfo")?;
    let mut fields = text
        .lines()
        .find_map(|line| line.strip_prefix("radix_tree_node "))
        .ok_or_else(|| Failure::new("no radix_tree_node in /proc/slabinfo"))?
        .split_whitespace()
        .map(str::parse::<u64>);
    // Objects in use, objects in all, bytes of each.
    let (used, size) = (fields.next(), fields.nth(1));
    match (used, size) {
        (Some(Ok(used)), Some(Ok(size))) => Ok(used * size),
        _ => Err(Failure::new("radix_tree_node of /proc/slabinfo cannot be read")),
    }
}

fn million(context: &mut Context) -> Result<(), Failure> {
    const PAGES: u64 = 1 << 20;
    const MOST_BYTES: f64 = 64.0;
    let mut watched = Watched::start(context, 1)?;
    watched.vm.add_slot(layout::SPARSE_SLOT, PAGES * PAGE)?;
    let page = |i| layout::SPARSE_SLOT + i * PAGE;
    context.stage("restrict", Duration::from_secs(240));
    let before = tree_bytes()?;
    let start = Instant::now();
    let all: Vec<_> = (0..PAGES).map(|i| (page(i), R | X)).collect();
    watched.wire.restrict(&all)?;
    let seconds = start.elapsed().as_secs_f64();
    let map = tree_bytes()?.saturating_sub(before);
    let bytes = map as f64 / PAGES as f64;
    context.measure("bytes of a restricted page", bytes, "bytes");
    context.measure("pages restricted in a second", PAGES as f64 / seconds, "pages/s");
    let fits = bytes <= MOST_BYTES;
    check!(fits, "{bytes} bytes a page");
    context.stage("look", Duration::from_secs(20));
    let some = [0, 1, PAGES / 3, PAGES - 1].map(page);
    check_eq!(watched.wire.page_access(&some)?, [R | X; 4], "access of some");
    context.stage("a page of RAM among them", Duration::from_secs(20));
    watched.wire.restrict(&[(layout::SCRATCH, R | X)])?;
    watched.told(
        context,
        (Access::Write, [layout::SCRATCH, 1, 0]),
        &[(W, layout::SCRATCH)],
    )?;
    context.stage("unhook", Duration::from_secs(60));
    check_eq!(watched.vm.unhook()?, 0, "errno of UNHOOK");
    // Nodes are freed after a grace period of RCU. What is free in the slabs that a CPU keeps to itself, some hundred nodes on each, counts as
    // in use: not all of the map is seen to go.
    context.wait_for("the map to be freed", || {
        Ok(tree_bytes()?.saturating_sub(before) < map / 2)
    })?;
    watched.vm.exit()
}
