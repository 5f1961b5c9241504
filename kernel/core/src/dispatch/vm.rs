// SPDX-License-Identifier: GPL-2.0-only
//! The receive thread's way with a message.

use kvmi_uapi::{
    VcpuHdr,
    error::{EINVAL, ENOSYS, EPERM},
    msg,
    table::{self, VmCommand},
};

use crate::{
    command,
    effects::{KvmError, VmEffects},
    state::vm::VmState,
    wire::{self, Message},
};

/// What becomes of a message that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmVerdict {
    /// It is answered; the reply has so many bytes.
    Answered(usize),
    /// It goes to the vCPU of this index.
    Queue(u16),
    /// The connection is to be closed.
    Close,
}

/// Takes one message, header included. `out` has room for the largest message.
///
/// Order of checks: EPERM, then for a vCPU's message EINVAL (padding), EINVAL (index), EAGAIN; an event reply needs
/// no permission. What the command itself checks comes after.
pub fn vm_message<E: VmEffects>(vm: &VmState, effects: &mut E, bytes: &[u8], out: &mut [u8]) -> VmVerdict {
    let Some(message) = Message::parse(bytes) else {
        return VmVerdict::Close;
    };
    let id = message.hdr.id;
    if id != msg::VCPU_EVENT {
        if table::command(id).is_none() {
            return refuse(message, KvmError(ENOSYS), out);
        }
        if !vm.command_allowed(id) {
            return refuse(message, KvmError(EPERM), out);
        }
    }
    if msg::is_vcpu(id) {
        return match route(effects, message) {
            Ok(vcpu) => VmVerdict::Queue(vcpu),
            Err(err) => refuse(message, err, out),
        };
    }
    VmCommand::from_id(id)
        .and_then(|command| command::vm::run(vm, effects, command, message, out))
        .map_or(VmVerdict::Close, VmVerdict::Answered)
}

/// Finds the vCPU of a message.
fn route<E: VmEffects>(effects: &mut E, message: Message<'_>) -> Result<u16, KvmError> {
    let hdr: VcpuHdr = message.request();
    if hdr.pad1 != 0 || hdr.pad2 != 0 || u32::from(hdr.vcpu) >= effects.vcpu_count() {
        return Err(KvmError(EINVAL));
    }
    effects.vcpu_ready(hdr.vcpu)?;
    Ok(hdr.vcpu)
}

fn refuse(message: Message<'_>, err: KvmError, out: &mut [u8]) -> VmVerdict {
    wire::finish(out, message.hdr, Err(err), 0).map_or(VmVerdict::Close, VmVerdict::Answered)
}
