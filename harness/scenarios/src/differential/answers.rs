// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each command answers to a request with which nothing is wrong: the requests are those of `conformance::`.

use kvmi::command::{GetCpuid, GetRegisters, TranslateGva};
use kvmi_uapi::event::{self, CONTINUE};
use kvmi_uapi::{VcpuRunState, msg};

use super::{Script, fields};
use crate::conformance::good_requests;
use crate::lifecycle::becomes;
use crate::{Context, Failure};

const UNDEFINED: u64 = 6;

pub(super) fn answers(context: &mut Context) -> Result<(), Failure> {
    let mut script = Script::start(context, "halt")?;
    script.vm.tolerate(&[UNDEFINED])?;
    // Registers are said of each event.
    for (id, name, request) in good_requests().filter(|(id, ..)| *id != msg::VCPU_GET_REGISTERS) {
        let name = format!("{name}, good");
        // A vCPU is held until it has taken its reply, which is some time after the tool has sent it.
        if id == msg::VM_GET_VCPU_STATES {
            becomes(script.context, &mut script.wire, 0, VcpuRunState::HALTED)?;
        }
        if msg::is_vcpu(id) {
            script.vcpu(&name, id, &request[..])?;
        } else {
            script.vm(&name, id, &request[..])?;
        }
        // These two have an event follow, whose state is that of a guest that sleeps or is about to.
        if matches!(id, msg::VM_PAUSE_VCPU | msg::VCPU_INJECT_EXCEPTION) {
            let event = script.wire.event()?;
            let data = fields::of_data(&event.data);
            script.say(&format!("{name} event: id={} {data}", event.id));
            script.wire.reply(&event, CONTINUE)?;
        }
    }
    // Leaves that do not say which CPU it is: what a hypervisor is called, and one that there is not.
    for function in [0x4000_0000, 0x1234_5678] {
        let command = GetCpuid {
            vcpu: 0,
            function,
            index: 0,
        };
        script.ask(&format!("VCPU_GET_CPUID of {function:#x}"), &command)?;
    }
    for gva in [1 << 30, 1 << 63] {
        let command = TranslateGva {
            vcpu: 0,
            gva,
            root: None,
        };
        script.ask(&format!("VCPU_TRANSLATE_GVA of {gva:#x}"), &command)?;
    }
    // EFER, PAT and the APIC's base; and one that there is not.
    for msrs in [[0xc000_0080, 0x277, 0x1b], [0xc000_0080, 0x277, 0x1234_5678u32]] {
        let answer = script.wire.ask(&GetRegisters { vcpu: 0, msrs: &msrs })?;
        let name = format!("VCPU_GET_REGISTERS of MSR {:#x}", msrs[2]);
        // The registers before them belong to such a guest.
        script.say_answer(&name, &answer.map(|data| data[data.len() - 3 * 16..].to_vec()));
    }
    for event in [event::MSR, event::DESCRIPTOR, event::PF, event::SINGLESTEP] {
        script.wire.control_event(0, event, true)?;
    }
    script.end()
}
