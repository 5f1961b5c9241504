// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command `vm`: another VM beside the one that runs when the prompt appears.

use std::fs;

use anyhow::{Context as _, bail, ensure};
use kvmi_guests::layout::MAX_VCPUS;
use kvmi_lab_scenarios::{Context, modules};

use super::{Typed, readable, typed};

/// `vm GUEST [VCPUS]`: a VM that runs until the command is ended.
pub(crate) fn vm(arguments: &[&str]) -> anyhow::Result<()> {
    let guests = guests()?;
    let (guest, vcpus) = match typed("vm", arguments, |arguments| parse(arguments, &guests))? {
        Typed::Help => {
            println!("{}", help(&guests));
            return Ok(());
        }
        Typed::This(wanted) => wanted,
    };
    let context = Context::new(modules::backend()?, 0);
    let vm = context.running_vm(&guest, vcpus).map_err(readable)?;
    println!(
        "guest {guest} runs on {vcpus} vCPUs; its VMM is process {}",
        vm.process_id()
    );
    loop {
        std::thread::park();
    }
}

fn help(guests: &[String]) -> String {
    format!(
        "usage: vm GUEST [VCPUS]

Starts a VM with a program as its guest, on 1 vCPU or so many, at most {MAX_VCPUS}. It runs until the
command is ended:

  vm storm 2 &
  introspect PID    PID as `vm` says it
  kill %1

Guests, each a file in guests/src/bin of the sources:

  {}",
        guests.join("\n  ")
    )
}

fn parse(arguments: &[&str], guests: &[String]) -> anyhow::Result<(String, usize)> {
    let (guest, vcpus) = match *arguments {
        [] => bail!("no guest is named; guests are: {}", guests.join(", ")),
        [guest] => (guest, "1"),
        [guest, vcpus] => (guest, vcpus),
        [_, _, more, ..] => bail!("`{more}` is too much: a guest and a number of vCPUs are all"),
    };
    ensure!(
        guests.iter().any(|name| name == guest),
        "no guest `{guest}`; guests are: {}",
        guests.join(", ")
    );
    let count = vcpus.parse().ok().filter(|count| (1..=MAX_VCPUS).contains(count));
    let count = count.with_context(|| format!("`{vcpus}` is no number of vCPUs from 1 to {MAX_VCPUS}"))?;
    Ok((guest.to_owned(), count))
}

fn guests() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/guests").context("list /guests")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_typed() {
        let guests = ["counter".to_owned(), "storm".to_owned()];
        let of = |arguments: &[&str]| typed("vm", arguments, |arguments| parse(arguments, &guests));
        assert_eq!(of(&["storm"]).unwrap(), Typed::This(("storm".to_owned(), 1)));
        assert_eq!(of(&["storm", "15"]).unwrap(), Typed::This(("storm".to_owned(), 15)));
        assert_eq!(of(&["storm", "--help"]).unwrap(), Typed::Help);
        for (wrong, says) in [
            (&[][..], "guests are: counter, storm"),
            (&["strom"], "no guest `strom`; guests are: counter, storm"),
            (&["storm", "0"], "`0` is no number of vCPUs from 1 to 15"),
            (&["storm", "16"], "`16` is no"),
            (&["storm", "two"], "`two` is no"),
            (&["storm", "2", "3"], "`3` is too much"),
        ] {
            let said = of(wrong).unwrap_err().to_string();
            assert!(said.contains(says) && said.ends_with("; for help: vm --help"), "{said}");
        }
        assert!(help(&guests).lines().all(|line| line.len() <= 100));
    }
}
