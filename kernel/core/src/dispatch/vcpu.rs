// SPDX-License-Identifier: GPL-2.0-only
//! The vCPU thread's way with a message.

use kvmi_uapi::{VcpuHdr, msg, table::VcpuCommand};

use crate::{
    command,
    effects::VcpuEffects,
    event::reply::{self, Taken},
    state::{vcpu::VcpuState, vm::VmState},
    wire::Message,
};

/// What becomes of a message in the vCPU thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuVerdict {
    /// It is done; the reply has so many bytes, 0 when there is none.
    Answered(usize),
    /// It was the awaited event reply: the phase is [`crate::Phase::ReplyHere`] or [`crate::Phase::Crashed`] now.
    Replied,
    /// The connection is to be closed.
    Close,
}

/// What a message did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuOutcome {
    /// What becomes of the message.
    pub verdict: VcpuVerdict,
    /// [`VcpuState::wants_breakpoint`] or one of its neighbours may say something else now: it is to be in force before
    /// the guest runs again.
    pub intercepts_changed: bool,
}

/// Takes one message, header included, that [`crate::VmVerdict::Queue`] sent here. `out` has room for the largest
/// message.
pub fn vcpu_message<E: VcpuEffects>(
    vm: &VmState,
    state: &mut VcpuState,
    effects: &mut E,
    bytes: &[u8],
    out: &mut [u8],
) -> VcpuOutcome {
    let switches = state.switches();
    let verdict = take(vm, state, effects, bytes, out);
    let intercepts_changed = switches != state.switches();
    if intercepts_changed {
        state.forget_unwanted();
    }
    VcpuOutcome {
        verdict,
        intercepts_changed,
    }
}

fn take<E: VcpuEffects>(
    vm: &VmState,
    state: &mut VcpuState,
    effects: &mut E,
    bytes: &[u8],
    out: &mut [u8],
) -> VcpuVerdict {
    let Some(message) = Message::parse(bytes) else {
        return VcpuVerdict::Close;
    };
    if message.hdr.id == msg::VCPU_EVENT {
        return match reply::take(state, message) {
            Taken::Answer => VcpuVerdict::Replied,
            Taken::Ignored => VcpuVerdict::Answered(0),
            Taken::Illegal => VcpuVerdict::Close,
        };
    }
    let request = message.skip(size_of::<VcpuHdr>());
    VcpuCommand::from_id(message.hdr.id)
        .and_then(|command| command::vcpu::run(vm, state, effects, command, request, out))
        .map_or(VcpuVerdict::Close, VcpuVerdict::Answered)
}
