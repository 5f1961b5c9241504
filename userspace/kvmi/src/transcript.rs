// SPDX-License-Identifier: MIT OR Apache-2.0
//! What went over the wire, one line a message.

use std::fmt;

use kvmi_uapi::{
    ErrorCode, EventHdr, MsgHdr, VcpuEvent, VcpuEventReply, VcpuHdr,
    event::{self, Breakpoint, Cr, CrReply, Descriptor, Msr, Trap, Xsetbv},
    layout::Struct,
    msg, table,
};
use zerocopy::FromBytes;

use crate::KvmError;

/// Which way a message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Tool to kernel.
    Sent,
    /// Kernel to tool.
    Received,
}

/// A message that went over the wire. Displays as one line without an end.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Which way.
    pub direction: Direction,
    /// Header and payload; raw bytes need not be a message.
    pub bytes: &'a [u8],
}

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.direction {
            Direction::Sent => "> ",
            Direction::Received => "< ",
        })?;
        let Some((hdr, payload)) = read::<MsgHdr>(self.bytes) else {
            return write!(f, "{} bytes: {}", self.bytes.len(), Hex(self.bytes));
        };
        write!(f, "#{} ", hdr.seq)?;
        match (self.direction, hdr.id) {
            (Direction::Sent, msg::VCPU_EVENT) => event_reply(f, payload),
            (Direction::Sent, id) => command(f, id, payload),
            (Direction::Received, msg::VM_EVENT) => vm_event(f, payload),
            (Direction::Received, msg::VCPU_EVENT) if payload.len() > size_of::<ErrorCode>() => vcpu_event(f, payload),
            (Direction::Received, id) => reply(f, id, payload),
        }
    }
}

fn command(f: &mut fmt::Formatter<'_>, id: u16, payload: &[u8]) -> fmt::Result {
    match read::<VcpuHdr>(payload) {
        Some((hdr, rest)) if msg::is_vcpu(id) => write!(f, "{} vcpu {} {}", Name(id), hdr.vcpu, Hex(rest)),
        _ => write!(f, "{} {}", Name(id), Hex(payload)),
    }
}

fn reply(f: &mut fmt::Formatter<'_>, id: u16, payload: &[u8]) -> fmt::Result {
    let Some((code, data)) = read::<ErrorCode>(payload) else {
        return write!(f, "{} reply too short: {}", Name(id), Hex(payload));
    };
    match KvmError::from_err(code.err) {
        Some(error) => write!(f, "{} {error}", Name(id)),
        None => write!(f, "{} ok {}", Name(id), Hex(data)),
    }
}

fn event_reply(f: &mut fmt::Formatter<'_>, payload: &[u8]) -> fmt::Result {
    let parts = read::<VcpuHdr>(payload).and_then(|(hdr, rest)| Some((hdr, read::<VcpuEventReply>(rest)?)));
    let Some((hdr, (answer, data))) = parts else {
        return write!(f, "event reply too short: {}", Hex(payload));
    };
    write!(f, "answer {} vcpu {} ", event_name(u16::from(answer.event)), hdr.vcpu)?;
    let mut actions = event::ACTIONS.constants.iter();
    match actions.find(|action| action.value == u64::from(answer.action)) {
        Some(action) => f.write_str(action.name)?,
        None => write!(f, "action {}", answer.action)?,
    }
    match read::<CrReply>(data) {
        Some((value, [])) => write!(f, " value {:#x}", value.new_val),
        _ if data.is_empty() => Ok(()),
        _ => write!(f, " {}", Hex(data)),
    }
}

fn vm_event(f: &mut fmt::Formatter<'_>, payload: &[u8]) -> fmt::Result {
    match read::<EventHdr>(payload) {
        Some((hdr, data)) => write!(f, "event {} {}", event_name(hdr.event), Hex(data)),
        None => write!(f, "event too short: {}", Hex(payload)),
    }
}

fn vcpu_event(f: &mut fmt::Formatter<'_>, payload: &[u8]) -> fmt::Result {
    let parts = read::<EventHdr>(payload).and_then(|(hdr, rest)| Some((hdr, read::<VcpuEvent>(rest)?)));
    let Some((hdr, (vcpu, data))) = parts else {
        return write!(f, "event too short: {}", Hex(payload));
    };
    write!(
        f,
        "event {} vcpu {} rip {:#x}",
        event_name(hdr.event),
        vcpu.vcpu,
        vcpu.arch.regs.rip
    )?;
    match event_data(hdr.event, data) {
        Some(text) => write!(f, " {text}"),
        None if data.is_empty() => Ok(()),
        None => write!(f, " {}", Hex(data)),
    }
}

/// What an event carries, in words, or field by field; `None` for one that has none, or too few.
fn event_data(id: u16, data: &[u8]) -> Option<String> {
    Some(match id {
        event::CR => {
            let (cr, _) = read::<Cr>(data)?;
            format!("cr{} {:#x} -> {:#x}", cr.cr, cr.old_value, cr.new_value)
        }
        event::BREAKPOINT => {
            let (bp, _) = read::<Breakpoint>(data)?;
            format!("gpa {:#x} insn_len {}", bp.gpa, bp.insn_len)
        }
        event::TRAP => {
            let (trap, _) = read::<Trap>(data)?;
            format!(
                "exception {} error code {:#x} address {:#x}",
                trap.nr, trap.error_code, trap.address
            )
        }
        event::XSETBV => {
            let (write, _) = read::<Xsetbv>(data)?;
            format!("xcr{} {:#x} -> {:#x}", write.xcr, write.old_value, write.new_value)
        }
        event::DESCRIPTOR => {
            let (access, _) = read::<Descriptor>(data)?;
            let what = if access.write == 0 { "read" } else { "loaded" };
            format!("register {} {what}", access.descriptor)
        }
        event::MSR => {
            let (write, _) = read::<Msr>(data)?;
            format!("msr {:#x} {:#x} -> {:#x}", write.msr, write.old_value, write.new_value)
        }
        _ => return fields(table::event(id)?.data?, data),
    })
}

/// Each field of a structure with its value.
fn fields(s: &Struct, data: &[u8]) -> Option<String> {
    let mut text = Vec::new();
    for field in s.fields.iter().filter(|field| !field.is_padding()) {
        let bytes = data.get(field.offset..field.offset + field.size)?;
        let mut value = [0; 8];
        value.get_mut(..bytes.len())?.copy_from_slice(bytes);
        text.push(format!("{} {:#x}", field.c_name(), u64::from_le_bytes(value)));
    }
    Some(text.join(" "))
}

fn read<T: FromBytes>(bytes: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(bytes).ok()
}

pub(crate) fn event_name(id: u16) -> String {
    table::event(id).map_or_else(|| format!("{id}"), |event| event.name.to_owned())
}

struct Name(u16);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match table::command(self.0) {
            Some(command) => f.write_str(command.name),
            None => write!(f, "message {}", self.0),
        }
    }
}

/// The first bytes.
struct Hex<'a>(&'a [u8]);

const HEX_BYTES: usize = 24;

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.iter().take(HEX_BYTES) {
            write!(f, "{byte:02x}")?;
        }
        if self.0.len() > HEX_BYTES {
            write!(f, "... ({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{encode, encode_event_reply, encode_vcpu};

    fn line(direction: Direction, bytes: &[u8]) -> String {
        Entry { direction, bytes }.to_string()
    }

    #[test]
    fn lines_tell_what_it_was() {
        use Direction::{Received, Sent};
        assert_eq!(line(Sent, &encode(2, 1, &[])), "> #1 GET_VERSION ");
        assert_eq!(
            line(Sent, &encode_vcpu(13, 2, 1, &[3, 1])),
            "> #2 VCPU_CONTROL_CR vcpu 1 0301"
        );
        assert_eq!(
            line(Sent, &encode_event_reply(0, 9, 7, 0, &16u64.to_ne_bytes())),
            "> #9 answer CR vcpu 0 CONTINUE value 0x10"
        );
        let mut error = [0; 8];
        error[..4].copy_from_slice(&(-22i32).to_ne_bytes());
        assert_eq!(line(Received, &encode(4, 3, &error)), "< #3 VM_CHECK_COMMAND EINVAL");
        assert_eq!(line(Received, &encode(1, 3, &error)), "< #3 message 1 EINVAL");
        assert_eq!(line(Received, &encode(0, 4, &[0; 8])), "< #4 event UNHOOK ");
        let mut event = vec![0; 552];
        event[0] = 3;
        assert_eq!(
            line(Received, &encode(1, 5, &event)),
            "< #5 event HYPERCALL vcpu 0 rip 0x0"
        );
        for (id, data, text) in [
            (
                event::MSR,
                &[
                    0x74, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,
                ][..],
                "MSR vcpu 0 rip 0x0 msr 0x174 0x1 -> 0x2",
            ),
            (
                event::XSETBV,
                &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
                "XSETBV vcpu 0 rip 0x0 xcr0 0x1 -> 0x3",
            ),
            (
                event::DESCRIPTOR,
                &[2, 1, 0, 0, 0, 0, 0, 0],
                "DESCRIPTOR vcpu 0 rip 0x0 register 2 loaded",
            ),
            (
                event::TRAP,
                &[14, 0, 0, 0, 2, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0],
                "TRAP vcpu 0 rip 0x0 exception 14 error code 0x2 address 0x5000",
            ),
            (event::CR, &[3], "CR vcpu 0 rip 0x0 03"),
            (
                event::PF,
                &[
                    0, 0x70, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,
                ],
                "PF vcpu 0 rip 0x0 gva 0x7000 gpa 0x5000 access 0x2",
            ),
        ] {
            let mut bytes = vec![0; 552];
            bytes[0] = id as u8;
            bytes.extend_from_slice(data);
            assert_eq!(line(Received, &encode(1, 6, &bytes)), format!("< #6 event {text}"));
        }
        assert_eq!(line(Sent, &[1, 2, 3]), "> 3 bytes: 010203");
    }
}
