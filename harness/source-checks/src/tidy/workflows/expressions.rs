// SPDX-License-Identifier: MIT OR Apache-2.0
//! GitHub's expressions, `${{ … }}` and the values of `if`: what they name has to be there, and what strangers write must not become code.

use std::collections::BTreeSet;

use serde_json::Value;

/// Functions that GitHub knows.
const FUNCTIONS: &[&str] = &[
    "contains",
    "startsWith",
    "endsWith",
    "format",
    "join",
    "toJSON",
    "fromJSON",
    "hashFiles",
    "success",
    "always",
    "cancelled",
    "failure",
];

/// Words that are values.
const LITERALS: &[&str] = &["true", "false", "null"];

/// Contexts whose members are GitHub's affair.
const CONTEXTS: &[&str] = &["github", "env", "vars", "job", "strategy", "runner", "secrets"];

/// What whoever opens a pull request can choose: as text of a command it would be run.
const UNTRUSTED: &[&str] = &["github.event.", "github.head_ref", "github.ref_name"];

/// What a job or an action offers to expressions in it.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) matrix: BTreeSet<String>,
    pub(super) needs: BTreeSet<String>,
    pub(super) inputs: BTreeSet<String>,
    /// Steps with an id.
    pub(super) steps: BTreeSet<String>,
}

/// What is wrong with the expressions in a value, at whatever depth.
pub(super) fn in_value(value: &Value, names: &Names) -> Vec<String> {
    match value {
        Value::String(text) => in_text(text, names),
        Value::Array(all) => all.iter().flat_map(|one| in_value(one, names)).collect(),
        Value::Object(all) => all
            .iter()
            .flat_map(|(key, one)| {
                let bare = match one {
                    // The one place where the braces may be left out.
                    Value::String(text) if key == "if" && !text.contains("${{") => check(text, names),
                    _ => Vec::new(),
                };
                let code = match one {
                    Value::String(text) if key == "run" => injected(text),
                    _ => Vec::new(),
                };
                bare.into_iter().chain(code).chain(in_value(one, names))
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// The expressions of a text, without their braces; `Err` if one does not end.
fn expressions(text: &str) -> Result<Vec<&str>, &str> {
    let mut all = Vec::new();
    let mut rest = text;
    while let Some((_, behind)) = rest.split_once("${{") {
        let (expression, after) = behind.split_once("}}").ok_or(behind)?;
        all.push(expression.trim());
        rest = after;
    }
    Ok(all)
}

fn in_text(text: &str, names: &Names) -> Vec<String> {
    match expressions(text) {
        Ok(all) => all.into_iter().flat_map(|one| check(one, names)).collect(),
        Err(rest) => vec![format!("an expression that does not end: ${{{{{rest}")],
    }
}

fn injected(run: &str) -> Vec<String> {
    let all = expressions(run).unwrap_or_default();
    let is_untrusted = |one: &&str| UNTRUSTED.iter().any(|name| one.contains(name));
    all.into_iter()
        .filter(is_untrusted)
        .map(|one| format!("a command with text that strangers choose, `{one}`: give it by `env`"))
        .collect()
}

/// What is wrong with one expression.
fn check(expression: &str, names: &Names) -> Vec<String> {
    let Some(tokens) = tokens(expression) else {
        return vec![format!("an expression that cannot be read: {expression}")];
    };
    let mut depth = 0_i32;
    let mut whats = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match *token {
            "(" => depth += 1,
            ")" => depth -= 1,
            word if word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') => {
                let is_call = tokens.get(at + 1) == Some(&"(");
                if let Some(what) = unknown(word, is_call, names) {
                    whats.push(format!("{what}: {expression}"));
                }
            }
            _ => {}
        }
        if depth < 0 {
            break;
        }
    }
    if depth != 0 || tokens.is_empty() {
        whats.push(format!("an expression that cannot be read: {expression}"));
    }
    whats
}

/// Why a word has no meaning here.
fn unknown(word: &str, is_call: bool, names: &Names) -> Option<String> {
    if is_call {
        return (!FUNCTIONS.contains(&word)).then(|| format!("there is no function {word}"));
    }
    let mut parts = word.split('.');
    let (context, member) = (parts.next().unwrap_or_default(), parts.next());
    let among = |known: &BTreeSet<String>| !member.is_some_and(|member| known.contains(member));
    let is_unknown = match context {
        "matrix" => among(&names.matrix),
        "needs" => among(&names.needs),
        "inputs" => among(&names.inputs),
        "steps" => among(&names.steps),
        _ if member.is_none() => !LITERALS.contains(&context),
        _ => !CONTEXTS.contains(&context),
    };
    is_unknown.then(|| format!("there is no {word} here"))
}

/// Names with their members, numbers, texts and signs; nothing if something else is among them.
fn tokens(expression: &str) -> Option<Vec<&str>> {
    let mut all = Vec::new();
    let mut rest = expression.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first == '\'' {
            rest[1..].find('\'')? + 2
        } else if first.is_ascii_alphanumeric() || first == '_' {
            let is_in_word = |c: char| c.is_ascii_alphanumeric() || "_-.*".contains(c);
            rest.find(|c| !is_in_word(c)).unwrap_or(rest.len())
        } else if let Some(sign) = ["==", "!=", "&&", "||", "<=", ">="]
            .iter()
            .find(|s| rest.starts_with(**s))
        {
            sign.len()
        } else if "()[],!<>".contains(first) {
            1
        } else {
            return None;
        };
        all.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(value: &Value) -> Vec<String> {
        let set = |name: &str| BTreeSet::from([name.to_owned()]);
        let names = Names {
            matrix: set("lane"),
            needs: set("first"),
            inputs: set("of"),
            steps: set("cache"),
        };
        in_value(value, &names)
    }

    #[test]
    fn what_is_there_may_be_named() {
        for right in [
            "${{ matrix.lane }}",
            "a ${{ needs.first.outputs.x }} b ${{ inputs.of }}",
            "${{ hashFiles('Cargo.lock', 'kernel/**') }}",
            "${{ github.ref != 'refs/heads/main' && !(steps.cache.outputs.hit == 'true' || true) }}",
        ] {
            assert_eq!(said(&serde_json::json!({ "run": right })), [""; 0], "{right}");
        }
        assert_eq!(
            said(&serde_json::json!({ "if": "failure() && matrix.lane == 'a b'" })),
            [""; 0]
        );
    }

    #[test]
    fn what_is_not_there_may_not() {
        for (wrong, why) in [
            ("${{ matrix.lance }}", "there is no matrix.lance here"),
            (
                "${{ steps.cash.outputs.hit }}",
                "there is no steps.cash.outputs.hit here",
            ),
            ("${{ gitlab.ref }}", "there is no gitlab.ref here"),
            ("${{ needs.second.outputs.a }}", "there is no needs.second"),
            ("${{ fail() }}", "there is no function fail"),
            ("${{ (github.ref }}", "cannot be read"),
            ("${{ github.ref == \"a\" }}", "cannot be read"),
            ("${{ }}", "cannot be read"),
            ("${{ github.ref", "does not end"),
            ("echo ${{ github.event.pull_request.title }}", "strangers choose"),
        ] {
            let said = said(&serde_json::json!([{ "run": wrong }]));
            assert!(said.len() == 1 && said[0].contains(why), "{wrong}: {said:?}");
        }
        let said = said(&serde_json::json!({ "if": "matrix.slice == 1" }));
        assert_eq!(said, ["there is no matrix.slice here: matrix.slice == 1"]);
    }
}
