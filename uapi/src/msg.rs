// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Message ids. Even: about the VM. Odd: about one vCPU. From 128 up: not in the twelfth posting. What belongs to each
//! id: [`crate::table`].

use crate::layout::constants;
pub use crate::table::command_ids::*;

constants! {
    /// Messages that are no commands.
    EVENT_MESSAGES:

    /// Message id of each VM event, kernel to tool.
    KVMI_VM_EVENT = VM_EVENT: u16 = 0;
    /// Message id of each vCPU event, kernel to tool, and of the reply to it.
    KVMI_VCPU_EVENT = VCPU_EVENT: u16 = 1;
}

/// Whether a message id is about one vCPU: its payload then begins with a [`crate::VcpuHdr`].
pub const fn is_vcpu(id: u16) -> bool {
    id & 1 == 1
}
