// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is about messages as such, whatever command or event they are (docs/protocol.md, 3.2 to 3.6). Other scenarios show all of it.

use kvmi_uapi::error::{E2BIG, EFAULT, ENOMEM, ENOSYS};

use super::{Aspect, Case, never, there};

pub(super) const NAME: &str = "any message";

pub(super) const CASES: &[Case<()>] = &[
    there(Aspect::Works, "commands::sizes"),
    there(Aspect::Works, "commands::pieces"),
    there(Aspect::Works, "events::pipelined_500_deep"),
    there(Aspect::Error(ENOSYS), "commands::unknown"),
    there(Aspect::Error(ENOMEM), "commands::queue_is_charged"),
    there(Aspect::Closes, "commands::closing"),
    there(Aspect::Closes, "events::too_many_replies"),
    there(Aspect::Closes, "destroy::socket_half_closed"),
    Case {
        what: "no memory for an event reply",
        ..never(Aspect::Closes, "nothing in the lab takes the memory for so little away")
    },
    never(Aspect::Error(E2BIG), "nothing is answered so"),
    never(Aspect::Error(EFAULT), "nothing is answered so"),
];
