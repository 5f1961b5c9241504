// SPDX-License-Identifier: MIT OR Apache-2.0
//! What GitHub runs: YAML that can be read, commands that there are, no more rights than it needs, an end to each job, nothing that changes
//! under its name, and a cache that main alone writes.

use clap::Parser;
use serde_json::{Map, Value};

use super::{Finding, finding};

const WORKFLOWS: &str = ".github/workflows/";

/// How a step begins that is one of ours.
const XTASK: &str = "cargo xtask ";

/// Everything to mend in a workflow or an action; `is_there` says whether a file is in the checkout.
pub(super) fn findings(name: &str, text: &str, is_there: impl Fn(&str) -> bool) -> Vec<Finding> {
    if !name.ends_with(".yml") {
        return Vec::new();
    }
    // So is every key that comes twice.
    let file: Value = match serde_saphyr::from_str(text) {
        Ok(file) => file,
        Err(e) => return vec![finding(name, format!("cannot be read: {e}"))],
    };
    let mut whats = Vec::new();
    if name.starts_with(WORKFLOWS) {
        if file["permissions"] != serde_json::json!({ "contents": "read" }) {
            whats.push("does not limit its permissions to `contents: read`".to_owned());
        }
        for (job, what) in file["jobs"].as_object().into_iter().flatten() {
            let said = of_job(what)
                .into_iter()
                .chain(of_steps(&what["steps"], what, &is_there));
            whats.extend(said.map(|said| format!("{job}: {said}")));
        }
    } else {
        whats.extend(of_steps(&file["runs"]["steps"], &Value::Null, &is_there));
    }
    whats.into_iter().map(|what| finding(name, what)).collect()
}

fn of_job(job: &Value) -> Vec<String> {
    let mut whats = Vec::new();
    if !job["timeout-minutes"].is_u64() {
        whats.push("a job without timeout-minutes".to_owned());
    }
    if !job["permissions"].is_null() {
        whats.push("a job with permissions of its own".to_owned());
    }
    whats
}

fn of_steps(steps: &Value, job: &Value, is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let steps = steps.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut whats = Vec::new();
    for step in steps {
        if let Some(action) = step["uses"].as_str() {
            whats.extend(of_action(action, step, &is_there));
        }
        for line in step["run"].as_str().unwrap_or_default().lines() {
            if let Some((_, command)) = line.split_once(XTASK) {
                whats.extend(of_command(command, &job["strategy"]["matrix"]));
            }
        }
    }
    whats
}

/// What is wrong with the use of an action.
fn of_action(action: &str, step: &Value, is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let mut whats = Vec::new();
    if let Some(own) = action.strip_prefix("./") {
        if !is_there(&format!("{own}/action.yml")) {
            whats.push(format!("there is no action {action}"));
        }
        return whats;
    }
    let (of, version) = action.split_once('@').unwrap_or((action, ""));
    if version.len() != 40 || !version.bytes().all(|b| b.is_ascii_hexdigit()) {
        whats.push(format!("an action without its commit: {action}"));
    }
    if of == "actions/checkout" && step["with"]["persist-credentials"] != false {
        whats.push("a checkout that leaves the job's token behind, without `persist-credentials: false`".to_owned());
    }
    let condition = step["if"].as_str().unwrap_or_default();
    let is_mains = condition.contains("github.ref == 'refs/heads/main'");
    if of == "actions/cache" || (of == "actions/cache/save" && !is_mains) {
        whats.push("a cache that others than main may write".to_owned());
    }
    whats
}

/// What is wrong with a command, whichever values of its job's matrix it gets.
fn of_command(command: &str, matrix: &Value) -> Vec<String> {
    let none = Map::new();
    let mut commands = vec![command.to_owned()];
    for (key, values) in matrix.as_object().unwrap_or(&none) {
        let place = format!("${{{{ matrix.{key} }}}}");
        let values = values.as_array().map(Vec::as_slice).unwrap_or_default();
        let with = |command: &String, value: &Value| command.replace(&place, value.as_str().unwrap_or_default());
        commands = commands
            .iter()
            .flat_map(|command| values.iter().map(move |value| with(command, value)))
            .collect();
    }
    commands.sort();
    commands.dedup();
    let wrong = commands.into_iter().filter_map(|command| {
        let plain = without(&without(&command, "${{", "}}")?, "$((", "))")?;
        let words = ["cargo xtask"].into_iter().chain(plain.split_whitespace());
        let error = crate::Arguments::try_parse_from(words).err()?;
        let why = error.to_string();
        let first = why.lines().next().unwrap_or_default();
        Some(format!("no such command: cargo xtask {command}: {first}"))
    });
    wrong.collect()
}

/// The text with a number in the place of each thing that stands between these two; nothing if one does not end.
fn without(text: &str, begin: &str, end: &str) -> Option<String> {
    let mut rest = text;
    let mut plain = String::new();
    while let Some((before, after)) = rest.split_once(begin) {
        let (_, behind) = after.split_once(end)?;
        plain += before;
        plain += "1";
        rest = behind;
    }
    Some(plain + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn whats(name: &str, text: &str) -> Vec<String> {
        let is_there = |name: &str| name == ".github/actions/a/action.yml";
        findings(name, text, is_there).into_iter().map(|f| f.what).collect()
    }

    fn of_step(step: &str) -> Vec<String> {
        let text = format!(
            "permissions:\n  contents: read\njobs:\n  a:\n    runs-on: b\n    timeout-minutes: 1\n    strategy:\n      matrix:\n        \
             lane: [svm-tcg, no-lane]\n        slice: [1/2]\n    steps:\n      - {step}\n"
        );
        whats(".github/workflows/a.yml", &text)
    }

    #[test]
    fn what_github_could_not_read() {
        // A colon and a space make a map of it.
        let said = of_step("run: cargo xtask e2e lab:: --lane svm-tcg");
        assert!(said.len() == 1 && said[0].starts_with("cannot be read: "), "{said:?}");
        assert_eq!(of_step("run: \"cargo xtask e2e lab:: --lane svm-tcg\""), [""; 0]);
        let twice = "permissions:\n  contents: read\npermissions:\n  contents: write\n";
        assert!(whats(".github/workflows/a.yml", twice)[0].starts_with("cannot be read: "));
    }

    #[test]
    fn jobs_have_an_end_and_few_rights() {
        let name = ".github/workflows/a.yml";
        let job = "jobs:\n  a:\n    runs-on: b\n    steps: []\n";
        assert_eq!(
            whats(name, job),
            [
                "does not limit its permissions to `contents: read`",
                "a: a job without timeout-minutes"
            ]
        );
        let more = "permissions:\n  contents: read\njobs:\n  a:\n    timeout-minutes: 1\n    permissions: write-all\n";
        assert_eq!(whats(name, more), ["a: a job with permissions of its own"]);
        assert_eq!(whats(".github/in-container.sh", job), [""; 0]);
    }

    #[test]
    fn actions_are_pinned_and_there() {
        assert_eq!(of_step(&format!("uses: a/b@{COMMIT} # v1")), [""; 0]);
        assert_eq!(of_step("uses: a/b@v1"), ["a: an action without its commit: a/b@v1"]);
        assert_eq!(of_step("uses: ./.github/actions/a"), [""; 0]);
        assert_eq!(
            of_step("uses: ./.github/actions/b"),
            ["a: there is no action ./.github/actions/b"]
        );
        let checkout = format!("uses: actions/checkout@{COMMIT}");
        assert!(of_step(&checkout)[0].contains("leaves the job's token behind"));
        assert_eq!(
            of_step(&format!("{checkout}\n        with: {{ persist-credentials: false }}")),
            [""; 0]
        );
    }

    #[test]
    fn main_alone_writes_the_cache() {
        let action = |condition: &str| {
            let text = format!("runs:\n  steps:\n    - uses: actions/cache/save@{COMMIT}\n      if: {condition}\n");
            whats(".github/actions/a/action.yml", &text)
        };
        assert_eq!(action("github.ref == 'refs/heads/main'"), [""; 0]);
        assert_eq!(action("success()"), ["a cache that others than main may write"]);
        assert_eq!(
            of_step(&format!("uses: actions/cache@{COMMIT}")),
            ["a: a cache that others than main may write"]
        );
    }

    #[test]
    fn commands_are_those_that_there_are() {
        for right in [
            "run: cargo xtask check",
            "run: cargo xtask e2e --slice ${{ matrix.slice }}",
            "run: .github/in-container.sh cargo xtask e2e --hardware",
            "run: |\n          true\n          cargo xtask explore lab::a --seed $((GITHUB_RUN_NUMBER * 100)) --runs ${{ github.run_number }}",
        ] {
            assert_eq!(of_step(right), [""; 0], "{right}");
        }
        let said = of_step("run: cargo xtask e2e --lane ${{ matrix.lane }}");
        assert!(
            said.len() == 1 && said[0].starts_with("a: no such command: cargo xtask e2e --lane no-lane: error: "),
            "{said:?}"
        );
        assert_eq!(of_step("run: cargo xtask no-such").len(), 1);
    }
}
