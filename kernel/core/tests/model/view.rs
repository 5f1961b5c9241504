// SPDX-License-Identifier: GPL-2.0-only
//! What core and reference are compared by: what each step did, and how things stand afterwards.

use std::fmt;

use kvmi_core::{Phase, Site};
use kvmi_uapi::msg;

use crate::commands::{Command, Request};

/// What a step did.
#[derive(Debug, PartialEq)]
pub(crate) struct Effect {
    pub(crate) outcome: Outcome,
    /// Messages to the tool.
    pub(crate) sent: Vec<Vec<u8>>,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    Nothing,
    /// 0 or an error.
    Ioctl(i32),
    Site(Site),
    Turn(Turn),
}

/// What a vCPU's thread did with its turn.
#[derive(Debug, PartialEq)]
pub(crate) enum Turn {
    /// The guest runs.
    Entered,
    /// KVM_RUN returned EINTR.
    Interrupted,
    /// KVM_RUN returned SHUTDOWN.
    Shutdown,
    /// For the tool.
    Waits,
    /// A command, or what was left of one.
    Answered,
    /// A command was carried out, and its tool is gone.
    NobodyHears,
    /// An event reply.
    Replied,
    /// The late reply to a void event.
    Ignored,
    /// What it took closes the connection.
    Closed,
    PauseIsDue,
    CreationIsDue,
    TrapIsDue,
    SentEvent,
    /// The exit that the event was about: the tool's registers, and what each site was told, with the reply's value.
    Completed {
        registers: Option<Vec<u8>>,
        sites: Vec<(Site, Option<u64>)>,
    },
}

/// How things stand.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct View {
    pub(crate) hooked: bool,
    pub(crate) lost: bool,
    pub(crate) last_seq: u32,
    pub(crate) cleanup: bool,
    /// PREUNHOOK would send its event.
    pub(crate) unhook_event: bool,
    pub(crate) vcpus: Vec<VcpuView>,
    /// Of each page.
    pub(crate) access: Vec<u8>,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct VcpuView {
    pub(crate) in_guest: bool,
    pub(crate) intercepts: u32,
    pub(crate) phase: Phase,
    /// Of the phase; 0 for none.
    pub(crate) event: u16,
    pub(crate) pauses: usize,
    /// Messages that wait, and events whose reply was not taken: while the tool is there.
    pub(crate) queued: usize,
    pub(crate) unanswered: usize,
    /// A bit for each example of the table of events.
    pub(crate) wanted: u32,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.outcome)?;
        self.sent
            .iter()
            .try_for_each(|sent| write!(f, ", sent {}", message(sent)))
    }
}

/// A message in a line: its name, and as much of its bytes as one reads.
pub(crate) fn message(bytes: &[u8]) -> String {
    const SHOWN: usize = 40;
    let header = Request { bytes, pads: &[] };
    let (id, size, seq) = (header.u16(0), header.u16(2), header.u32(4));
    let name = match id {
        msg::VM_EVENT => "VM event",
        msg::VCPU_EVENT => "vCPU event or reply",
        _ => Command::by_id(id).map_or("unknown", |command| command.name),
    };
    let payload = bytes.get(8..).unwrap_or_default();
    let (shown, more) = payload.split_at(payload.len().min(SHOWN));
    let more = if more.is_empty() { "" } else { ".." };
    format!("{name} (id {id}, size {size}, seq {seq}) {shown:?}{more}")
}
