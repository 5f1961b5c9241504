// SPDX-License-Identifier: MIT OR Apache-2.0
//! L1 from inside. As process 1 it sets L1 up, runs one scenario and powers off; started with an argument it is one of the scenario's
//! processes. Scenario and VMM are told what to do over a socket on their standard input.
//!
//! ```text
//! init (1) ── scenario ──┬── vmm     the L2 VMM
//!                        └── tool …  an introspection tool that is to be killed
//! init (1) ── shell … ──┬── vmm
//!                       └── terminal …  becomes a shell, in which a person calls `vm`, `introspect`, `kvmi`
//! ```

mod init;
mod runner;
mod selftest;
mod shell;
mod vmm;

use std::process::ExitCode;

use anyhow::bail;

use crate::shell::Screen;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::main();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if args.first() == Some(&"kvmi") {
        return kvmi_cli::main(args.iter().map(Into::into));
    }
    match role(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}: {e:#}", shell::command(&args).unwrap_or("kvmi-lab-l1"));
            ExitCode::FAILURE
        }
    }
}

fn role(args: &[&str]) -> anyhow::Result<()> {
    match *args {
        ["scenario"] => runner::scenario(),
        ["vmm"] => vmm::main(),
        ["tool", vcpus] => kvmi_lab_scenarios::tool_process(vcpus).map_err(|failure| anyhow::anyhow!("{failure:?}")),
        ["shell", order] => shell::shell(order),
        ["terminal", rows, columns, terminal] => shell::terminal(Screen {
            rows,
            columns,
            terminal,
        }),
        ["vm", ref arguments @ ..] => shell::vm(arguments),
        ["introspect", ref arguments @ ..] => shell::introspect(arguments),
        _ => bail!(
            "this is process 1 of the lab's L1; roles are `scenario`, `vmm`, `tool VCPUS`, `shell …`, `terminal …`, `vm …`, `introspect …` and `kvmi …`, not {args:?}"
        ),
    }
}
