// SPDX-License-Identifier: MIT OR Apache-2.0
//! What introspection costs when it is off, idle or merely loaded: L1's TSC over 100,000 CPUID exits. On Bochs the TSC counts
//! instructions, so the figures are exact there; elsewhere they are times.

use std::time::Duration;

use kvmi_guests::Op;

use crate::modules::{self, Origin};
use crate::vmm::{Until, Vm};
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

const EXITS: u64 = 100_000;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let row = |name, summary, run| scenario(name, summary, run).when_named();
    vec![
        row(
            "bench::exits_stock",
            "100,000 CPUID exits with the distribution's modules",
            |c| exits(c, Origin::Stock, false, false),
        ),
        row(
            "bench::exits_off",
            "100,000 CPUID exits with our modules, introspection=0",
            |c| exits(c, Origin::Kvmi, false, false),
        ),
        row(
            "bench::exits_unhooked",
            "100,000 CPUID exits with our modules, introspection=1, no VM hooked",
            |c| exits(c, Origin::Kvmi, true, false),
        ),
        row(
            "bench::exits_hooked",
            "100,000 CPUID exits with our modules, hooked, no event enabled",
            |c| exits(c, Origin::Kvmi, true, true),
        ),
    ]
}

/// L1's TSC ticks for the exits, once.
fn run_once(vm: &Vm, marks_before: usize) -> Result<u64, Failure> {
    vm.command(0, Op::Cpuid, [EXITS, 0, 0, 0])?;
    let status = vm.wait(0, Until::Marks(marks_before + 2))?;
    let marks = &status.marks[marks_before..];
    check_eq!((marks[0].value, marks[1].value), (1, 2), "marks");
    check!(marks[1].tsc > marks[0].tsc, "the TSC stands still: {marks:?}");
    Ok(marks[1].tsc - marks[0].tsc)
}

fn exits(context: &mut Context, origin: Origin, introspection: bool, hooked: bool) -> Result<(), Failure> {
    context.stage("load the modules", Duration::from_secs(60));
    modules::unload_kvm(context.backend)?;
    modules::load_kvm(origin, context.backend, introspection)?;
    let vm = context.running_vm("exits", 1)?;
    let wire = if hooked { Some(context.hook(&vm)?) } else { None };
    context.stage("warm up", Duration::from_secs(120));
    run_once(&vm, 0)?;
    context.stage("measure", Duration::from_secs(120));
    let ticks = run_once(&vm, 2)?;
    context.measure("CPUID exits", EXITS as f64, "exits");
    context.measure("L1 ticks", ticks as f64, "ticks");
    context.measure("L1 ticks per exit", ticks as f64 / EXITS as f64, "ticks");
    drop(wire);
    vm.exit()
}
