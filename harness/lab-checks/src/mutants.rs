// SPDX-License-Identifier: MIT OR Apache-2.0
//! Do the scenarios notice faults? Mutations of the kernel side, one at a time, each with the scenario that must not pass then.
//!
//! A mutation is applied to a copy of the checkout, never to the checkout. Modules are built in a tree that all mutations have, so that
//! only what one changes is compiled. Images and snapshots are kept apart from those that people work with.

mod copy;
mod table;

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use comfy_table::Table;
use kvmi_lab::e2e::{self, Equipment, Options, Slice};
use kvmi_lab::summary;
use kvmi_lab_control::Lane;
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::output::{self, count};
use kvmi_lab_environment::runs::Runs;
use kvmi_lab_environment::{exit, show};
use kvmi_lab_kernel::{self as kernel, Built, Choice};
use kvmi_lab_machine::cache::Cache;
use kvmi_lab_machine::outcome::Outcome;
use serde_json::json;

use table::Mutation;
pub use table::findings;

/// Which mutations to try.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Parts of the mutations' names; all of them when none is given
    filters: Vec<String>,
    /// Those that are caught on this lane only
    #[arg(long)]
    lane: Option<Lane>,
    /// One part of many of them, e.g. 1/3: a job of CI each
    #[arg(long, value_name = "K/N")]
    slice: Option<Slice>,
}

/// What came of a mutation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// The scenario did not pass: how it ended.
    Caught(String),
    /// The scenario passed all the same.
    Survived,
    /// The scenario did not run, and why.
    Untried(String),
}

impl Found {
    fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Pass => Self::Survived,
            Outcome::Skip { reason } => Self::Untried(format!("skipped: {reason}")),
            other => Self::Caught(other.to_string()),
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Caught(_) => "caught",
            Self::Survived => "SURVIVED",
            Self::Untried(_) => "NOT TRIED",
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Caught(text) | Self::Untried(text) => text,
            Self::Survived => "",
        }
    }
}

/// Tries them one by one and says which of them nobody noticed. While one runs the next one is built.
pub fn run(env: &Environment, wanted: &Arguments, seed: u64, json: bool) -> Result<u8> {
    let mutations = chosen(table::read(&env.checkout)?, wanted)?;
    let equipment = e2e::equip(env)?;
    let work = env.path("target/mutants");
    let kept_apart = Cache::at(work.join("cache"));
    let _lock = kept_apart.lock("mutants")?;
    let folder = env.runs.new_folder()?;
    let place = |mutation: &Mutation| folder.join(mutation.name.replace("::", "."));
    let mut tried = Vec::new();
    thread::scope(|scope| {
        // Nothing is built further ahead.
        let (send, receive) = mpsc::sync_channel(0);
        let (mutations, place, source) = (&mutations, &place, work.join("source"));
        scope.spawn(move || {
            for mutation in mutations {
                let built = build(env, mutation, &source, &place(mutation).join("modules"));
                if send.send((mutation, built)).is_err() {
                    return;
                }
            }
        });
        for (number, (mutation, built)) in (1..).zip(receive) {
            let machine = Environment {
                cache: kept_apart.clone(),
                runs: Runs::below(place(mutation).join("run")),
                ..env.clone()
            };
            let found = built
                .and_then(|built| notice(&machine, mutation, &built, &equipment, seed))
                .unwrap_or_else(|e| Found::Untried(format!("{e:#}")));
            env.progress.say(format!(
                "{number} of {}: {} {} {}",
                mutations.len(),
                mutation.name,
                found.word(),
                found.text().trim_end()
            ));
            // What was noticed leaves its verdict in the table, and modules and logs of no use.
            if matches!(found, Found::Caught(_)) {
                let of_it = place(mutation);
                fs::remove_dir_all(&of_it).with_context(|| format!("remove {}", of_it.display()))?;
            }
            tried.push((mutation, found));
        }
        anyhow::Ok(())
    })?;
    tell(&tried, &folder, json);
    summary::add_table(&as_table(&tried))?;
    let is_well = tried.iter().all(|(_, found)| matches!(found, Found::Caught(_)));
    Ok(if is_well { exit::OK } else { exit::CHECK_FAILED })
}

fn chosen(all: Vec<Mutation>, wanted: &Arguments) -> Result<Vec<Mutation>> {
    let is_meant = |m: &Mutation| {
        let is_named = wanted.filters.is_empty() || wanted.filters.iter().any(|part| m.name.contains(part));
        is_named && wanted.lane.is_none_or(|lane| m.lane == lane)
    };
    let meant: Vec<Mutation> = all.into_iter().filter(is_meant).collect();
    let meant = match wanted.slice {
        Some(slice) => slice.of(meant),
        None => meant,
    };
    ensure!(!meant.is_empty(), "no such mutation in {}", table::FILE);
    Ok(meant)
}

/// Builds the modules with the mutation, which is put into a copy of the checkout.
fn build(env: &Environment, mutation: &Mutation, source: &Path, modules: &Path) -> Result<Built> {
    copy::make_same(&env.checkout, source)?;
    let file = source.join(&mutation.file);
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    fs::write(&file, mutation.apply(&text).map_err(anyhow::Error::msg)?)?;
    let faulty = Environment {
        checkout: source.to_owned(),
        ..env.clone()
    };
    fs::create_dir_all(modules)?;
    kernel::build_faulty(&faulty, &Choice::default(), modules)
}

/// Runs its scenario with these modules.
fn notice(
    machine: &Environment,
    mutation: &Mutation,
    built: &Built,
    equipment: &Equipment,
    seed: u64,
) -> Result<Found> {
    let wanted = Options {
        filter: Some(mutation.catch.clone()),
        lanes: vec![mutation.lane],
        seed,
        ..Options::default()
    };
    let (records, _) = e2e::run_built_quietly(machine, &wanted, built, equipment)?;
    match records.as_slice() {
        [record] => Ok(Found::of(&record.outcome)),
        others => bail!("{} ran {} times", mutation.catch, others.len()),
    }
}

fn tell(tried: &[(&Mutation, Found)], folder: &Path, json: bool) {
    if json {
        for (mutation, found) in tried {
            show!(
                "{}",
                json!({
                    "event": "mutant", "mutation": mutation.name, "file": mutation.file, "scenario": mutation.catch,
                    "lane": mutation.lane, "is": found.word().to_lowercase(), "how": found.text(),
                })
            );
        }
        return;
    }
    show!("\n{}", as_table(tried));
    let others: Vec<_> = tried.iter().filter(|(_, f)| !matches!(f, Found::Caught(_))).collect();
    for (mutation, found) in &others {
        show!(
            "\n{} ({}): {}{}{}",
            mutation.name,
            mutation.why,
            found.word(),
            if found.text().is_empty() { "" } else { ": " },
            found.text()
        );
    }
    let caught = tried.len() - others.len();
    show!("\n{caught} of {} caught", count(tried.len(), "mutation"));
    if !others.is_empty() {
        show!(
            "what a scenario did not notice needs another one; logs are in {}",
            folder.display()
        );
    }
}

/// The first line of a verdict, or what of it fits into a row.
fn short(text: &str) -> String {
    const FITS: usize = 80;
    let line = text.lines().next().unwrap_or_default();
    let mut short: String = line.chars().take(FITS).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}

fn as_table(tried: &[(&Mutation, Found)]) -> Table {
    let mut table = output::table(["mutation", "scenario", "lane", "", "how"]);
    for (mutation, found) in tried {
        table.add_row([
            mutation.name.as_str(),
            &mutation.catch,
            mutation.lane.name(),
            found.word(),
            &short(found.text()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_or_does_not_run_is_not_caught() {
        let fail = Outcome::Fail {
            message: "RIP: 1, not 2".to_owned(),
        };
        let skip = Outcome::Skip {
            reason: "no PKU".to_owned(),
        };
        let words = [Outcome::Pass, skip, fail].map(|outcome| Found::of(&outcome).word());
        assert_eq!(words, ["SURVIVED", "NOT TRIED", "caught"]);
    }

    #[test]
    fn a_row_has_one_short_line() {
        assert_eq!(short("a\nb"), "a");
        assert_eq!(short(&"ä".repeat(100)).chars().count(), 81);
    }
}
