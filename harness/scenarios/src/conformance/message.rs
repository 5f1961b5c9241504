// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is about messages as such, whatever command or event they are (docs/protocol.md, 3.2 to 3.6). Other scenarios show all of it.

use kvmi_uapi::error::{E2BIG, EFAULT, ENOMEM, ENOSYS};

use super::{About, Case, never, there};

pub(super) const NAME: &str = "any message";

pub(super) const CASES: &[Case<()>] = &[
    there(About::Works, "commands::sizes"),
    there(About::Works, "commands::pieces"),
    there(About::Works, "events::pipelined_500_deep"),
    there(About::Error(ENOSYS), "commands::unknown"),
    there(About::Error(ENOMEM), "commands::queue_is_charged"),
    there(About::Closes, "commands::closing"),
    there(About::Closes, "events::too_many_replies"),
    there(About::Closes, "destroy::socket_half_closed"),
    Case {
        what: "no memory for an event reply",
        ..never(About::Closes, "nothing in the lab takes the memory for so little away")
    },
    never(About::Error(E2BIG), "nothing is answered so"),
    never(About::Error(EFAULT), "nothing is answered so"),
];
