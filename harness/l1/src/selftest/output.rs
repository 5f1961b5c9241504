// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a selftest says and how it ends, as a verdict.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use kvmi_lab_control::Verdict;

/// The exit status of a test that cannot run where it is.
const SKIPPED: i32 = 4;

/// How many lines of a test's output are kept, of its beginning and of its end each.
const LINES: usize = 60;

/// The lines of an output that are worth keeping.
pub(crate) fn some_lines(output: &str) -> Vec<&str> {
    let lines: Vec<&str> = output.lines().collect();
    let end = lines.len().saturating_sub(LINES).max(LINES.min(lines.len()));
    let (first, last) = (&lines[..lines.len().min(LINES)], &lines[end..]);
    first.iter().chain(last).copied().collect()
}

/// How a test ended. The text of a verdict is the same in each run that ends in the same way: it has no values.
pub(crate) fn verdict(status: ExitStatus, output: &str) -> Verdict {
    match status.code() {
        Some(0) => Verdict::Pass,
        Some(SKIPPED) => Verdict::Skip {
            reason: skip_reason(output).unwrap_or("it gives no reason").to_owned(),
        },
        code => {
            let how = match (code, status.signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => status.to_string(),
            };
            let mut parts = vec![how];
            parts.extend(failed_assertion(output));
            parts.extend(failed_parts(output));
            Verdict::Fail {
                message: parts.join("; "),
            }
        }
    }
}

/// Behind `# SKIP` on a line of its own, or on that of the plan; the last line of a test that does not say it so.
fn skip_reason(output: &str) -> Option<&str> {
    let said = output.lines().rev().find_map(|line| line.split_once("SKIP"));
    let reason = said.map(|(_, reason)| reason);
    let reason = reason.or_else(|| output.lines().rfind(|line| !line.trim().is_empty()))?;
    let reason = reason.trim_start_matches([' ', '-', ':']).trim_end();
    (!reason.is_empty()).then_some(reason)
}

/// Where an assertion of the library's failed: the line behind its headline, which has the place and what was asserted.
fn failed_assertion(output: &str) -> Option<String> {
    let mut lines = output.lines();
    let headline = lines.find(|line| line.contains("==== Test Assertion Failure ===="))?;
    let at = headline.len() - headline.trim_start().len();
    let place = lines.next()?.get(at..)?.trim();
    Some(place.to_owned())
}

/// The parts of a test that failed, by the test's own names.
fn failed_parts(output: &str) -> Vec<String> {
    let failed = output
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("not ok "));
    failed.map(|line| format!("not ok {}", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    fn fail(message: &str) -> Verdict {
        Verdict::Fail {
            message: message.to_owned(),
        }
    }

    #[test]
    fn a_test_that_ends_well_or_not() {
        assert_eq!(verdict(exit(0), "ok\n"), Verdict::Pass);
        assert_eq!(verdict(exit(1), ""), fail("exit status 1"));
        assert_eq!(verdict(ExitStatus::from_raw(11), ""), fail("signal 11"));
    }

    #[test]
    fn a_skip_has_the_tests_own_reason() {
        let skip = |output| match verdict(exit(SKIPPED), output) {
            Verdict::Skip { reason } => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            skip("1..0 # SKIP - Requirement not met: kvm_cpu_has(X86_FEATURE_AMX_TILE)\n"),
            "Requirement not met: kvm_cpu_has(X86_FEATURE_AMX_TILE)"
        );
        assert_eq!(
            skip("Random seed: 0x1\nMCG_CMCI_P is not supported\n\n"),
            "MCG_CMCI_P is not supported"
        );
        assert_eq!(skip("\n"), "it gives no reason");
    }

    #[test]
    fn a_failed_assertion_is_named_without_values() {
        let output = "Random seed: 0x6b8b4567\n\
            ==== Test Assertion Failure ====\n  x86_64/debug_regs.c:116: run->exit_reason == KVM_EXIT_DEBUG\n  \
            pid=67 tid=67 errno=4 - Interrupted system call\n  INT3: exit 3 exception -1\n";
        assert_eq!(
            verdict(exit(254), output),
            fail("exit status 254; x86_64/debug_regs.c:116: run->exit_reason == KVM_EXIT_DEBUG")
        );
    }

    #[test]
    fn failed_parts_are_named() {
        let output = "TAP version 13\n1..3\nok 1 a\nnot ok 2 b\nnot ok 3 c\n";
        assert_eq!(verdict(exit(1), output), fail("exit status 1; not ok 2 b; not ok 3 c"));
    }

    #[test]
    fn a_long_output_keeps_its_beginning_and_its_end() {
        let text = (0..1000).map(|n| format!("{n}\n")).collect::<String>();
        let kept = some_lines(&text);
        assert_eq!((kept.len(), kept[0], kept[2 * LINES - 1]), (2 * LINES, "0", "999"));
        assert_eq!(some_lines("a\nb\n"), ["a", "b"]);
        let few = (0..LINES + 3).map(|n| format!("{n}\n")).collect::<String>();
        assert_eq!(some_lines(&few).len(), LINES + 3);
    }
}
