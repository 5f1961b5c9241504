// SPDX-License-Identifier: GPL-2.0-only
//! A million random steps of tool, guest, VMM and signals: the core, in a kernel that is played ([`kernel`]), and a small
//! reference written from docs/protocol.md ([`spec`]) must say and do the same after each of them.
//!
//! The seed is printed. `KVMI_MODEL_SEED=… cargo nextest run -p kvmi-core --test model` takes the same steps again,
//! `KVMI_MODEL_STEPS` says how many, `KVMI_MODEL_TABLE=1` prints how often each outcome occurred. What fails is shrunk and
//! told step by step.
//!
//! A new command is a row in `commands/vm.rs` or `commands/vcpu.rs`, a new event one in [`events`]. What a row lists has
//! to occur among the steps, or the test fails: see [`coverage`].

mod commands;
mod coverage;
mod events;
#[path = "../fake/mod.rs"]
mod fake;
mod kernel;
mod spec;
mod steps;
mod tool;
mod view;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{SystemTime, UNIX_EPOCH},
};

use commands::Command;
use coverage::Coverage;
use kernel::Kernel;
use kvmi_uapi::{event, msg};
use proptest::{
    collection::vec,
    strategy::Strategy,
    test_runner::{Config, RngAlgorithm, RngSeed, TestCaseError, TestError, TestRunner},
};
use spec::Spec;
use steps::{Input, Step};
use tool::Tool;

const STEPS: u64 = 1_000_000;
/// Of one VM, at most.
const STREAM: usize = 600;
const SEED: &str = "KVMI_MODEL_SEED";

#[test]
fn the_core_does_what_the_protocol_says() {
    let seed = number(SEED).unwrap_or_else(fresh_seed);
    let wanted = number("KVMI_MODEL_STEPS").unwrap_or(STEPS);
    println!("{wanted} random steps; the same again with {SEED}={seed}");
    let mut runner = TestRunner::new(Config {
        rng_algorithm: RngAlgorithm::XorShift,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 50_000,
        ..Config::default()
    });
    let streams = vec(steps::step(), 1..STREAM);
    let (seen, taken) = (RefCell::new(Coverage::default()), Cell::new(0));
    while taken.get() < wanted {
        let stream = streams.new_tree(&mut runner).expect("a strategy that rejects nothing");
        let outcome = runner.run_one(stream, |steps| {
            taken.set(taken.get() + steps.len() as u64);
            let mut pair = Pair::new(seen.take());
            let outcome = steps.iter().try_for_each(|step| pair.step(step));
            seen.replace(pair.spec.seen);
            outcome.map_err(TestCaseError::fail)
        });
        if let Err(error) = outcome {
            let TestError::Fail(_, steps) = error else {
                panic!("{error}")
            };
            println!("\nthey differ; the least that shows it:");
            let mut pair = Pair::new(Coverage::default());
            let outcome = least(inputs(&steps))
                .iter()
                .try_for_each(|input| pair.input(input, true));
            let why = outcome.expect_err("it failed before");
            panic!("{why}\nto repeat it: {SEED}={seed} cargo nextest run -p kvmi-core --test model");
        }
    }
    let seen = seen.into_inner();
    println!("{}", seen.summary());
    let (missing, unlisted) = (seen.missing(), seen.unlisted());
    if env::var_os("KVMI_MODEL_TABLE").is_some() || !missing.is_empty() || !unlisted.is_empty() {
        println!("{seen}");
    }
    assert!(
        missing.is_empty() || wanted < STEPS,
        "has to occur and never did: {missing:?}"
    );
    assert!(unlisted.is_empty(), "no row lists it: {unlisted:?}");
}

/// What this kernel has, the reference has.
#[test]
fn the_reference_is_complete() {
    let commands: BTreeSet<u16> = Command::all().map(|command| command.id).collect();
    let known: BTreeSet<u16> = msg::COMMANDS.iter().map(|(id, _)| *id).collect();
    let missing: Vec<_> = known.symmetric_difference(&commands).collect();
    assert!(
        missing.is_empty(),
        "tests/model/commands: a row for each command, but for {missing:?}"
    );

    let mut events: BTreeSet<u16> = events::EVENTS.iter().map(|row| row.id).collect();
    events.insert(event::UNHOOK);
    let known: BTreeSet<u16> = event::ALL.iter().map(|(id, _)| *id).collect();
    let missing: Vec<_> = known.symmetric_difference(&events).collect();
    assert!(
        missing.is_empty(),
        "tests/model/events.rs: a row for each event, but for {missing:?}"
    );
}

/// What steps come to, up to the one that fails.
fn inputs(steps: &[Step]) -> Vec<Input> {
    let mut inputs = Vec::new();
    let mut pair = Pair::new(Coverage::default());
    // A panic of the core is a failure like another.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        for step in steps {
            for input in pair.tool.resolve(step, &pair.spec) {
                inputs.push(input.clone());
                if pair.input(&input, false).is_err() {
                    return;
                }
            }
        }
    }));
    inputs
}

/// Takes out what is not needed: a step of proptest's may be many inputs, and it tries but once to do without.
fn least(mut inputs: Vec<Input>) -> Vec<Input> {
    let fails = |inputs: &[Input]| {
        let mut pair = Pair::new(Coverage::default());
        catch_unwind(AssertUnwindSafe(|| {
            inputs.iter().any(|input| pair.input(input, false).is_err())
        }))
        .unwrap_or(true)
    };
    let mut at = 0;
    while at < inputs.len() {
        let input = inputs.remove(at);
        if fails(&inputs) {
            at = 0;
        } else {
            inputs.insert(at, input);
            at += 1;
        }
    }
    inputs
}

fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {value:?}")),
    )
}

fn fresh_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock that is set");
    now.as_micros() as u64
}

/// Core and reference, side by side.
struct Pair {
    kernel: Kernel,
    spec: Spec,
    tool: Tool,
}

impl Pair {
    fn new(seen: Coverage) -> Self {
        Self {
            kernel: Kernel::new(2),
            spec: Spec::new(2, seen),
            tool: Tool::default(),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let inputs = self.tool.resolve(step, &self.spec);
        inputs.iter().try_for_each(|input| self.input(input, false))
    }

    /// Err tells where they part.
    fn input(&mut self, input: &Input, aloud: bool) -> Result<(), String> {
        if !input.is_about_one_of(self.spec.cpus.len()) {
            return Ok(());
        }
        let effect = self.spec.take(input);
        if aloud {
            println!("  {}\n    {effect}", describe(input));
        }
        let by_core = self.kernel.take(input);
        if by_core != effect {
            return Err(format!("{}\nprotocol: {effect}\ncore:     {by_core}", describe(input)));
        }
        let (view, by_core) = (self.spec.view(), self.kernel.view());
        if by_core != view {
            return Err(format!(
                "{}\nprotocol: {view:?}\ncore:     {by_core:?}",
                describe(input)
            ));
        }
        self.tool.hear(&effect.sent);
        Ok(())
    }
}

fn describe(input: &Input) -> String {
    match input {
        Input::Message(bytes) => format!("the tool sends {}", view::message(bytes)),
        other => format!("{other:?}"),
    }
}
