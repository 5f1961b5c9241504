// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tool against a kernel that is played, and that fails at each of its steps in turn.

use std::os::unix::net::UnixStream;
use std::thread;

use kvmi::{Message, RawConnection, message};
use kvmi_uapi::{ErrorCode, GetVersionReply, VcpuEvent, VcpuTranslateGvaReply, VmGetInfoReply, event::PAUSE, msg};
use zerocopy::{FromZeros, IntoBytes};

use super::*;

/// What the kernel does about the message that is to fail.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Refuses,
    HangsUp,
}

/// Linear address of the code: its first page has 6 bytes left.
const RIP: u64 = 0xffff_8000_0000_0ffa;

/// Answers until the connection ends. The code's first page is at 0x3000, its second at 0x1000.
fn kernel(mut connection: RawConnection, fails_at: Option<usize>, fault: Fault) {
    for step in 0.. {
        let Ok(Message { hdr, payload }) = connection.receive() else {
            return;
        };
        let mut answer = ErrorCode::new_zeroed();
        if Some(step) == fails_at {
            match fault {
                Fault::HangsUp => return,
                Fault::Refuses => answer.err = -1,
            }
        }
        let gva = payload
            .get(8..16)
            .map(|gva| u64::from_ne_bytes(gva.try_into().unwrap()));
        let data = match hdr.id {
            _ if answer.err != 0 => Vec::new(),
            msg::GET_VERSION => GetVersionReply::new_zeroed().as_bytes().to_vec(),
            msg::VM_GET_INFO => {
                let mut info = VmGetInfoReply::new_zeroed();
                info.vcpu_count = 1;
                info.as_bytes().to_vec()
            }
            msg::VCPU_TRANSLATE_GVA => {
                let mut reply = VcpuTranslateGvaReply::new_zeroed();
                reply.gpa = if gva == Some(RIP) { 0x3ffa } else { 0x1000 };
                reply.as_bytes().to_vec()
            }
            msg::VM_READ_PHYSICAL => match u64::from_ne_bytes(payload[..8].try_into().unwrap()) {
                0x3ffa => vec![0xaa; 6],
                0x1000 => vec![0xbb; 10],
                elsewhere => panic!("read at {elsewhere:#x}"),
            },
            _ => Vec::new(),
        };
        let answer = [answer.as_bytes(), &data].concat();
        if connection.send(&message::encode(hdr.id, hdr.seq, &answer)).is_err() {
            return;
        }
        if hdr.id == msg::VM_PAUSE_VCPU && data.is_empty() && answer[..4] == [0; 4] {
            let mut vcpu = VcpuEvent::new_zeroed();
            vcpu.size = size_of::<VcpuEvent>() as u16;
            vcpu.arch.mode = 8;
            vcpu.arch.regs.rip = RIP;
            let event = [&[PAUSE as u8, 0, 0, 0, 0, 0, 0, 0], vcpu.as_bytes()].concat();
            if connection.send(&message::encode(msg::VCPU_EVENT, 1, &event)).is_err() {
                return;
            }
        }
    }
}

/// The tool, and a VM with one vCPU whose kernel's side fails at one message.
fn look_at(fails_at: Option<usize>, fault: Fault, out: &mut impl Write) -> anyhow::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let kernel = thread::spawn(move || kernel(RawConnection::from(theirs), fails_at, fault));
    let session = SessionOptions::new().timeout(PATIENCE).start(ours);
    let result = look(&session, 7, out);
    drop(session);
    kernel.join().unwrap();
    result
}

#[test]
fn the_code_is_read_where_the_page_tables_say() {
    let mut out = Vec::new();
    look_at(None, Fault::Refuses, &mut out).unwrap();
    let said = String::from_utf8(out).unwrap();
    let code = "  its code at linear address 0xffff800000000ffa: aa aa aa aa aa aa bb bb bb bb bb bb bb bb bb bb";
    assert!(said.lines().any(|line| line == code), "{said}");
}

#[test]
fn each_step_that_fails_is_told() {
    const STEPS: usize = 7;
    for fault in [Fault::Refuses, Fault::HangsUp] {
        for fails_at in 0..STEPS {
            let result = look_at(Some(fails_at), fault, &mut Vec::new());
            assert!(result.is_err(), "step {fails_at} {fault:?}: {result:?}");
        }
        // The last message is an answer to an event, which nobody can refuse.
        look_at(Some(STEPS), fault, &mut Vec::new()).unwrap();
    }
}

#[test]
fn the_base_of_cs_counts_outside_of_64_bit_mode() {
    let mut arch = VcpuEventArch::new_zeroed();
    arch.regs.rip = 0xfff0;
    arch.sregs.cs.base = 0xffff_0000;
    for (mode, linear) in [(2, 0xffff_fff0), (4, 0xffff_fff0), (8, 0xfff0)] {
        arch.mode = mode;
        assert_eq!(linear_rip(&arch), linear, "{mode}");
    }
    arch.mode = 4;
    arch.sregs.cs.base = 0xffff_ffff;
    assert_eq!(linear_rip(&arch), 0xffef);
}

#[test]
fn what_can_be_typed() {
    let of = |arguments: &[&str]| typed("introspect", arguments, parse);
    assert_eq!(of(&[]).unwrap(), Typed::This(None));
    assert_eq!(of(&["71"]).unwrap(), Typed::This(Some(71)));
    assert_eq!(of(&["-h"]).unwrap(), Typed::Help);
    for wrong in [&["storm"][..], &["0"], &["-1"], &["1", "2"]] {
        let said = of(wrong).unwrap_err().to_string();
        assert!(said.ends_with("; for help: introspect --help"), "{said}");
    }
}
