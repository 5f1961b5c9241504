// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! The table of messages, and what is read from a row.

use kvmi_uapi::{
    EXTENSION_LEVEL, VmWritePhysical, event, layout, msg,
    table::{self, Command, Short, VcpuCommand, VmCommand},
};
use zerocopy::IntoBytes;

fn command(id: u16) -> &'static Command {
    table::command(id).unwrap()
}

#[test]
fn each_id_stands_once() {
    for table in [msg::COMMANDS, event::ALL] {
        let mut ids: Vec<u16> = table.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), table.len());
    }
    assert_eq!(table::COMMANDS.len(), VmCommand::ALL.len() + VcpuCommand::ALL.len());
    for command in table::COMMANDS {
        assert_eq!(VcpuCommand::from_id(command.id).is_some(), msg::is_vcpu(command.id));
        assert_eq!(VmCommand::from_id(command.id).is_some(), !msg::is_vcpu(command.id));
    }
}

/// Ids of v12 are below 128, ours from there; nothing is newer than what GET_VERSION tells.
#[test]
fn levels_go_with_ids() {
    for command in table::COMMANDS {
        assert_eq!(command.since > 0, command.id >= 128, "{}", command.name);
        assert!(command.since <= EXTENSION_LEVEL, "{}", command.name);
    }
    for event in table::EVENTS {
        assert_eq!(event.since > 0, event.id >= 128, "{}", event.name);
        assert!(event.since <= EXTENSION_LEVEL, "{}", event.name);
    }
}

#[test]
fn padding_is_what_is_called_so() {
    let hdr = layout::all_structs().find(|s| s.c_name == "kvmi_vcpu_hdr").unwrap();
    let padding: Vec<_> = hdr.padding().map(|field| (field.offset, field.size)).collect();
    assert_eq!(padding, [(2, 2), (4, 4)]);
    let mut bytes = [0; 9];
    bytes[1] = 1;
    bytes[8] = 1;
    assert!(hdr.padding_is_zero(&bytes));
    assert!(hdr.padding_is_zero(&[]));
    for at in 2..8 {
        let mut bytes = bytes;
        bytes[at] = 0x80;
        assert!(!hdr.padding_is_zero(&bytes), "{at}");
        assert!(hdr.padding_is_zero(&bytes[..at]), "{at}");
    }
}

#[test]
fn a_count_is_read_from_the_request() {
    let write = VmWritePhysical {
        size: 4,
        ..Default::default()
    };
    let whole = [write.as_bytes(), &[1; 4]].concat();
    let row = command(msg::VM_WRITE_PHYSICAL);
    assert_eq!((row.request.bytes(&whole), row.reply.bytes(&whole)), (20, 0));
    assert_eq!(row.short, Short::Closes);
    assert!(!row.is_short(&whole));
    assert!(row.is_short(&whole[..19]) && row.is_short(&whole[..16]));
    // Its size reads as zero: nothing is missing.
    assert!(!row.is_short(&whole[..8]));
    assert_eq!(command(msg::VM_READ_PHYSICAL).reply.bytes(&whole), 4);
    assert_eq!(command(msg::VCPU_GET_REGISTERS).reply.bytes(&[2, 0]), 472 + 2 * 16);
}

#[test]
fn a_structure_alone_is_missed_where_the_row_says_so() {
    let row = command(msg::VCPU_SET_REGISTERS);
    assert!(row.is_short(&[0; 143]) && !row.is_short(&[0; 144]));
    assert!(!command(msg::VCPU_CONTROL_CR).is_short(&[]));
}
