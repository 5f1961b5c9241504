// SPDX-License-Identifier: MIT OR Apache-2.0
//! What GitHub runs: YAML, expressions and shell that can be read, commands that there are and that docs/lab.md lists, no more rights than
//! it needs, an end to each job, logs of those that fail, nothing that changes under its name, actions of our own that take what they are
//! given, and a cache that main alone writes.

mod expressions;
mod jobs;

use kvmi_lab_environment::finding::{Finding, finding};
use serde_json::{Map, Value};

use self::expressions::Names;
use self::jobs::{circle, ids, keys, names_of_job, of_needs};
use super::{Refusal, shell};

const WORKFLOWS: &str = ".github/workflows/";

/// The page that lists every command.
const COMMANDS: &str = "docs/lab.md";

/// Runners that stay what they are.
const RUNNERS: &[&str] = &["ubuntu-22.04", "ubuntu-24.04"];

/// The action that keeps what a job that failed has left.
const KEEP_LOGS: &str = "./.github/actions/keep-logs";

/// How a step begins that is one of ours.
const XTASK: &str = "cargo xtask ";

/// Everything to mend in a workflow or an action; `read` gives a file of the checkout, if that is there.
pub(super) fn findings(
    name: &str,
    text: &str,
    refusal: Refusal,
    read: impl Fn(&str) -> Option<String>,
) -> Vec<Finding> {
    if !name.ends_with(".yml") {
        return Vec::new();
    }
    // So is every key that comes twice.
    let file: Value = match serde_saphyr::from_str(text) {
        Ok(file) => file,
        Err(e) => return vec![finding(name, format!("cannot be read: {e}"))],
    };
    let listed = listed(&read(COMMANDS).unwrap_or_default());
    let checkout = Checkout {
        read: &read,
        refusal,
        listed,
    };
    let mut whats = Vec::new();
    if name.starts_with(WORKFLOWS) {
        if file["permissions"] != serde_json::json!({ "contents": "read" }) {
            whats.push("does not limit its permissions to `contents: read`".to_owned());
        }
        whats.extend(expressions::in_value(&file["concurrency"], &Names::default()));
        let none = Map::new();
        let jobs = file["jobs"].as_object().unwrap_or(&none);
        whats.extend(circle(jobs));
        for (job, what) in jobs {
            let said = of_job(what)
                .into_iter()
                .chain(of_needs(what, jobs))
                .chain(expressions::in_value(what, &names_of_job(what)))
                .chain(of_steps(&what["steps"], what, &checkout));
            whats.extend(said.map(|said| format!("{job}: {said}")));
        }
    } else {
        if file["runs"]["using"] != "composite" {
            whats.push("an action that is not composed of steps: nothing is known of it".to_owned());
        }
        let names = Names {
            inputs: keys(&file["inputs"]),
            steps: ids(&file["runs"]["steps"]),
            ..Names::default()
        };
        for part in ["outputs", "runs"] {
            whats.extend(expressions::in_value(&file[part], &names));
        }
        whats.extend(of_steps(&file["runs"]["steps"], &Value::Null, &checkout));
        let steps = file["runs"]["steps"].as_array().into_iter().flatten();
        if steps
            .into_iter()
            .any(|step| !step["run"].is_null() && !step["shell"].is_string())
        {
            whats.push("a step of an action that does not say its shell".to_owned());
        }
    }
    whats.into_iter().map(|what| finding(name, what)).collect()
}

fn of_job(job: &Value) -> Vec<String> {
    let mut whats = Vec::new();
    if !job["timeout-minutes"].is_u64() {
        whats.push("a job without timeout-minutes".to_owned());
    }
    if !job["runs-on"].as_str().is_some_and(|label| RUNNERS.contains(&label)) {
        whats.push(format!(
            "a job on {}, which is none of {}",
            job["runs-on"],
            RUNNERS.join(", ")
        ));
    }
    if !job["permissions"].is_null() {
        whats.push("a job with permissions of its own".to_owned());
    }
    let has = |is_it: &dyn Fn(&Value) -> bool| job["steps"].as_array().into_iter().flatten().any(is_it);
    let works = has(&|step| step["run"].as_str().is_some_and(|run| run.contains(XTASK)));
    let keeps = has(&|step| {
        step["uses"] == KEEP_LOGS
            && step["if"]
                .as_str()
                .is_some_and(|condition| condition.contains("failure()"))
    });
    if works && !keeps {
        whats.push(format!(
            "a job that leaves nothing when it fails, without `if: failure()` and `uses: {KEEP_LOGS}`"
        ));
    }
    whats
}

/// What of the checkout workflows are held to.
struct Checkout<'a> {
    read: &'a dyn Fn(&str) -> Option<String>,
    refusal: Refusal,
    /// Commands that the page lists.
    listed: Vec<String>,
}

fn of_steps(steps: &Value, job: &Value, checkout: &Checkout<'_>) -> Vec<String> {
    let steps = steps.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut whats = Vec::new();
    for step in steps {
        if let Some(action) = step["uses"].as_str() {
            whats.extend(of_action(action, step, checkout));
        }
        let script = step["run"].as_str().unwrap_or_default();
        let is_bash = step["shell"].as_str().unwrap_or("bash") == "bash";
        if let Some(plain) = without(script, "${{", "}}").filter(|_| is_bash) {
            whats.extend(shell::complaint(&plain).map(|what| format!("a command that bash cannot read: {what}")));
        }
        for line in script.lines() {
            if let Some((_, command)) = line.split_once(XTASK) {
                whats.extend(of_command(command, &job["strategy"]["matrix"], checkout.refusal));
                if !is_listed(command, &checkout.listed) {
                    whats.push(format!(
                        "a command that {COMMANDS} does not list: cargo xtask {command}"
                    ));
                }
            }
        }
    }
    whats
}

/// What is wrong with the use of an action.
fn of_action(action: &str, step: &Value, checkout: &Checkout<'_>) -> Vec<String> {
    let mut whats = Vec::new();
    if let Some(own) = action.strip_prefix("./") {
        return match (checkout.read)(&format!("{own}/action.yml")) {
            // One that cannot be read is told of at its own place.
            Some(text) => of_inputs(action, step, &serde_saphyr::from_str(&text).unwrap_or_default()),
            None => vec![format!("there is no action {action}")],
        };
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

/// What is wrong with what an action of ours is given.
fn of_inputs(action: &str, step: &Value, file: &Value) -> Vec<String> {
    let none = Map::new();
    let given = step["with"].as_object().unwrap_or(&none);
    let inputs = file["inputs"].as_object().unwrap_or(&none);
    let unknown = given.keys().filter(|name| !inputs.contains_key(*name));
    let needs = |(name, input): &(&String, &Value)| input["default"].is_null() && !given.contains_key(*name);
    let missing = inputs.iter().filter(needs).map(|(name, _)| name);
    unknown
        .map(|name| format!("{action} takes no `{name}`"))
        .chain(missing.map(|name| format!("{action} is not given its `{name}`")))
        .collect()
}

/// The commands of a page, each of which begins a line.
fn listed(page: &str) -> Vec<String> {
    let commands = page.lines().filter_map(|line| line.trim().strip_prefix(XTASK));
    // What it does stands behind it.
    let command = |line: &str| line.split(" #").next().unwrap_or_default().to_owned();
    commands.map(command).collect()
}

/// Whether some lines have the command with each of its switches, whatever their values are.
fn is_listed(command: &str, listed: &[String]) -> bool {
    let mut words = command.split_whitespace();
    let name = words.next().unwrap_or_default();
    // What comes before the switches is a name of a scenario, or one of a step.
    let step = words
        .clone()
        .next()
        .filter(|word| word.chars().all(|c| c.is_ascii_lowercase()));
    let begin: Vec<&str> = std::iter::once(name).chain(step).collect();
    let switches = words.filter(|word| word.starts_with("--"));
    let of_it: Vec<Vec<&str>> = listed
        .iter()
        .map(|line| {
            line.split([' ', '[', ']'])
                .filter(|word| !word.is_empty())
                .collect::<Vec<_>>()
        })
        .filter(|line| line.starts_with(&begin))
        .collect();
    let has = |word: &str| of_it.iter().any(|line| line.contains(&word));
    !of_it.is_empty() && switches.into_iter().all(has)
}

/// What is wrong with a command, whichever values of its job's matrix it gets.
fn of_command(command: &str, matrix: &Value, refusal: Refusal) -> Vec<String> {
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
        let words: Vec<&str> = plain.split_whitespace().collect();
        let why = refusal(&words)?;
        Some(format!("no such command: cargo xtask {command}: {why}"))
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

    const JOB: &str = "permissions:\n  contents: read\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    timeout-minutes: 1\n    strategy:\n      matrix:\n        \
                       lane: [svm-tcg, no-lane]\n        slice: [1/2]\n    steps:\n";

    const LISTED: &str = "cargo xtask check  # the rest\n  cargo xtask e2e lab:: --lane LANE --slice 1/2\ncargo xtask e2e [--hardware] # `--json`\n\
                          cargo xtask explore SCENARIO --seed 7 --runs 100\ncargo xtask kernels run\n";

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn whats(name: &str, text: &str) -> Vec<String> {
        let read = |name: &str| match name {
            ".github/actions/a/action.yml" => Some("inputs:\n  of: { default: b }\n  to: {}\n".to_owned()),
            ".github/actions/keep-logs/action.yml" => Some(String::new()),
            COMMANDS => Some(LISTED.to_owned()),
            _ => None,
        };
        findings(name, text, refusal, read)
            .into_iter()
            .map(|f| f.what)
            .collect()
    }

    fn refusal(words: &[&str]) -> Option<String> {
        let is_wrong = |word: &&&str| ["chekc", "no-such", "no-lane"].contains(*word);
        words.iter().find(is_wrong).map(|word| format!("error: `{word}`"))
    }

    fn of_step(step: &str) -> Vec<String> {
        let keep = format!("      - if: failure()\n        uses: {KEEP_LOGS}\n");
        whats(".github/workflows/a.yml", &format!("{JOB}      - {step}\n{keep}"))
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
        let job = "jobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps: []\n";
        assert_eq!(
            whats(name, job),
            [
                "does not limit its permissions to `contents: read`",
                "a: a job without timeout-minutes"
            ]
        );
        let more = "permissions:\n  contents: read\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    timeout-minutes: 1\n    permissions: write-all\n";
        assert_eq!(whats(name, more), ["a: a job with permissions of its own"]);
        assert_eq!(whats(".github/in-container.sh", job), [""; 0]);
    }

    #[test]
    fn jobs_run_on_what_there_is_and_after_what_there_is() {
        let jobs = |jobs: &str| {
            whats(
                ".github/workflows/a.yml",
                &format!("permissions:\n  contents: read\njobs:\n{jobs}"),
            )
        };
        let job = |name: &str, more: &str| {
            format!("  {name}:\n    runs-on: ubuntu-24.04\n    timeout-minutes: 1\n    {more}\n")
        };
        assert_eq!(
            jobs(&(job("a", "") + &job("b", "needs: a") + &job("c", "needs: [a, b]"))),
            [""; 0]
        );
        assert_eq!(jobs(&job("a", "needs: b")), ["a: needs b, which is no job here"]);
        assert_eq!(
            jobs(&(job("a", "needs: b") + &job("b", "needs: a"))),
            ["jobs that wait for each other, or for such ones: a, b"]
        );
        let other = job("a", "").replace("ubuntu-24.04", "ubuntu-latest");
        assert!(
            jobs(&other)[0].starts_with("a: a job on \"ubuntu-latest\""),
            "{:?}",
            jobs(&other)
        );
    }

    #[test]
    fn expressions_and_scripts_can_be_read() {
        assert_eq!(of_step("run: echo ${{ matrix.lane }}"), [""; 0]);
        assert!(of_step("run: echo ${{ matrix.lance }}")[0].starts_with("a: there is no matrix.lance here"));
        assert!(of_step("run: if true; then")[0].starts_with("a: a command that bash cannot read: line "));
        assert_eq!(of_step("run: \"for x in ${{ matrix.slice }}; do true; done\""), [""; 0]);
        let action = "outputs:\n  hit:\n    value: ${{ steps.b.outputs.c }}\nruns:\n  using: composite\n  steps:\n    - run: 'true'\n      shell: bash\n      id: a\n";
        assert_eq!(
            whats(".github/actions/a/action.yml", action),
            ["there is no steps.b.outputs.c here: steps.b.outputs.c"]
        );
    }

    #[test]
    fn actions_are_pinned_and_there() {
        assert_eq!(of_step(&format!("uses: a/b@{COMMIT} # v1")), [""; 0]);
        assert_eq!(of_step("uses: a/b@v1"), ["a: an action without its commit: a/b@v1"]);
        assert_eq!(of_step("uses: ./.github/actions/a\n        with: { to: c }"), [""; 0]);
        assert_eq!(
            of_step("uses: ./.github/actions/a\n        with: { too: c }"),
            [
                "a: ./.github/actions/a takes no `too`",
                "a: ./.github/actions/a is not given its `to`"
            ]
        );
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
            let text = format!(
                "runs:\n  using: composite\n  steps:\n    - uses: actions/cache/save@{COMMIT}\n      if: {condition}\n"
            );
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
    fn steps_of_actions_are_looked_at_as_well() {
        let action = |runs: &str| whats(".github/actions/a/action.yml", &format!("runs:\n{runs}"));
        let of_step = |step: &str| action(&format!("  using: composite\n  steps:\n    - {step}\n"));
        assert_eq!(of_step("run: cargo xtask check\n      shell: bash"), [""; 0]);
        assert_eq!(
            of_step("run: true"),
            ["a step of an action that does not say its shell"]
        );
        assert!(of_step("run: cargo xtask chekc\n      shell: bash")[0].starts_with("no such command"));
        assert_eq!(of_step("uses: a/b@v1"), ["an action without its commit: a/b@v1"]);
        assert!(action("  using: node20\n")[0].contains("not composed of steps"));
    }

    #[test]
    fn a_job_that_fails_leaves_its_logs() {
        let of_steps = |steps: &str| whats(".github/workflows/a.yml", &format!("{JOB}{steps}"));
        let works = "      - run: cargo xtask check\n";
        assert_eq!(of_steps("      - run: ls\n"), [""; 0]);
        assert!(of_steps(works)[0].starts_with("a: a job that leaves nothing when it fails"));
        let keeps = format!("{works}      - uses: {KEEP_LOGS}\n");
        assert!(of_steps(&keeps)[0].starts_with("a: a job that leaves nothing when it fails"));
        assert_eq!(of_steps(&format!("{keeps}        if: failure()\n")), [""; 0]);
    }

    #[test]
    fn commands_are_listed() {
        let said = |command: &str| of_step(&format!("run: {command}"));
        for right in [
            "cargo xtask check",
            "cargo xtask e2e --hardware --slice ${{ matrix.slice }}",
            "cargo xtask kernels run",
        ] {
            assert_eq!(said(right), [""; 0], "{right}");
        }
        for wrong in ["cargo xtask tidy", "cargo xtask kernels take", "cargo xtask e2e --json"] {
            assert_eq!(
                said(wrong),
                [format!("a: a command that {COMMANDS} does not list: {wrong}")]
            );
        }
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
        assert!(of_step("run: cargo xtask no-such")[0].starts_with("a: no such command"));
    }
}
