// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which VMs there are, and who has them.

use kvmi::{
    host::{self, AttachError, HostVm},
    ioctls::Status,
    uapi::ioctl::{STATUS_ENDING, STATUS_HOOKED, STATUS_LOST, STATUS_STOPPED},
};
use serde_json::{Value, json};

use crate::output::{Output, table};

pub(crate) fn list(output: &Output) -> anyhow::Result<()> {
    let all = host::list()?;
    let stands: Vec<_> = all.vms.iter().map(|vm| (vm, vm.status())).collect();
    let vms: Vec<Value> = stands.iter().map(|(vm, status)| described(vm, status)).collect();
    output.say("list", json!({ "vms": vms, "hidden_processes": all.hidden }), || {
        let mut said = String::new();
        if stands.is_empty() {
            said.push_str("no VM runs here, as far as this user can see\n");
        } else {
            let mut table = table(["pid", "descriptor", "program", "name", "introspected"]);
            for (vm, status) in &stands {
                table.add_row([
                    vm.pid.to_string(),
                    vm.descriptor.to_string(),
                    vm.program.clone(),
                    vm.name.clone().unwrap_or_default(),
                    in_words(status),
                ]);
            }
            said.push_str(&format!("{table}\n"));
        }
        if all.hidden > 0 {
            said.push_str(&format!(
                "{} processes could not be looked into; root sees all\n",
                all.hidden
            ));
        }
        said
    })
}

/// Ends a session, whoever began it.
pub(crate) fn free(vm: &HostVm, output: &Output) -> anyhow::Result<()> {
    let before = vm.status()?;
    vm.free()?;
    let was_hooked = before.state & STATUS_HOOKED != 0;
    output.say(
        "free",
        json!({ "vm": identity(vm), "was_introspected": was_hooked }),
        || {
            if was_hooked {
                format!("{vm} is free; it was introspected by {}", owner(&before))
            } else {
                format!("{vm} was free already")
            }
        },
    )
}

/// What names a VM.
pub(crate) fn identity(vm: &HostVm) -> Value {
    json!({ "pid": vm.pid, "descriptor": vm.descriptor, "program": vm.program, "name": vm.name, "uuid": vm.uuid })
}

/// The same, and who introspects it.
pub(crate) fn described(vm: &HostVm, status: &Result<Status, AttachError>) -> Value {
    let mut all = identity(vm);
    match status {
        Ok(status) => {
            let is = |bit| status.state & bit != 0;
            all["introspected"] = json!(is(STATUS_HOOKED));
            if is(STATUS_HOOKED) {
                all["session"] = json!({
                    "pid": (status.pid != 0).then_some(status.pid),
                    "since_boot_ns": status.since_ns,
                    "tool_lost": is(STATUS_LOST),
                    "ending": is(STATUS_ENDING),
                    "vcpus_stopped": is(STATUS_STOPPED),
                });
            }
        }
        Err(error) => all["error"] = json!(error.to_string()),
    }
    all
}

/// The same for people.
pub(crate) fn in_words(status: &Result<Status, AttachError>) -> String {
    match status {
        Ok(status) if status.state & STATUS_HOOKED == 0 => "no".to_owned(),
        Ok(status) if status.state & STATUS_LOST != 0 => format!("yes, its tool is lost ({})", owner(status)),
        Ok(status) => format!("yes, by {}", owner(status)),
        Err(error) => error.to_string(),
    }
}

fn owner(status: &Status) -> String {
    match status.pid {
        0 => "a process that is gone, or out of sight".to_owned(),
        pid => format!("process {pid}"),
    }
}
