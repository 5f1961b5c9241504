// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tool against a kernel that fails at each of its steps in turn.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};

use kvmi::{Message, RawConnection, message};
use kvmi_uapi::{ErrorCode, GetVersionReply, VcpuEvent, VcpuTranslateGvaReply, VmGetInfoReply, event::PAUSE, msg};
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::*;

/// What the kernel does about the step that is to fail.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Refuses,
    HangsUp,
}

/// A VM with one vCPU, whose kernel's side fails at one step: steps are ioctls, messages, and UNHOOK after a failure does not count.
struct Fake {
    fails_at: usize,
    fault: Fault,
    step: Cell<usize>,
    hooked: Cell<bool>,
    unhooks: Cell<usize>,
    kernel: RefCell<Option<JoinHandle<()>>>,
}

impl Fake {
    fn new(fails_at: usize, fault: Fault) -> Self {
        Self {
            fails_at,
            fault,
            step: Cell::new(0),
            hooked: Cell::new(false),
            unhooks: Cell::new(0),
            kernel: RefCell::new(None),
        }
    }

    fn step(&self) -> Result<(), Errno> {
        let step = self.step.get();
        self.step.set(step + 1);
        if step == self.fails_at {
            Err(Errno::NOMEM)
        } else {
            Ok(())
        }
    }
}

/// HOOK and the two permissions.
const IOCTLS_BEFORE: usize = 3;

impl Ioctls for Fake {
    fn hook(&self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        self.step()?;
        assert!(!self.hooked.replace(true), "hooked twice");
        let connection = RawConnection::from(UnixStream::from(socket.try_clone_to_owned().unwrap()));
        let (fails_at, fault) = (self.fails_at.checked_sub(IOCTLS_BEFORE), self.fault);
        *self.kernel.borrow_mut() = Some(thread::spawn(move || kernel(connection, fails_at, fault)));
        Ok(())
    }

    fn allow_every_command(&self) -> Result<(), Errno> {
        self.step()
    }

    fn allow_every_event(&self) -> Result<(), Errno> {
        self.step()
    }

    fn unhook(&self) -> Result<(), Errno> {
        assert!(self.hooked.replace(false), "UNHOOK of a VM that is not hooked");
        self.unhooks.set(self.unhooks.get() + 1);
        Ok(())
    }
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

fn look_at(fake: Fake, out: &mut impl Write) -> (anyhow::Result<()>, Fake) {
    let hook = Hook::new(fake);
    let result = look(&hook, 7, out);
    let fake = hook.into_ioctls();
    if let Some(kernel) = fake.kernel.borrow_mut().take() {
        kernel.join().unwrap();
    }
    (result, fake)
}

#[test]
fn the_code_is_read_where_the_page_tables_say() {
    let mut out = Vec::new();
    let (result, fake) = look_at(Fake::new(usize::MAX, Fault::Refuses), &mut out);
    result.unwrap();
    assert_eq!((fake.hooked.get(), fake.unhooks.get()), (false, 1));
    let said = String::from_utf8(out).unwrap();
    let code = "  its code at linear address 0xffff800000000ffa: aa aa aa aa aa aa bb bb bb bb bb bb bb bb bb bb";
    assert!(said.lines().any(|line| line == code), "{said}");
}

#[test]
fn whichever_step_fails_the_vm_is_not_left_hooked() {
    for fault in [Fault::Refuses, Fault::HangsUp] {
        for fails_at in 0.. {
            let (result, fake) = look_at(Fake::new(fails_at, fault), &mut Vec::new());
            assert!(!fake.hooked.get(), "step {fails_at}: {result:?}");
            let steps = IOCTLS_BEFORE + 7;
            // The last message is an answer to an event, which nobody can refuse.
            let noticed = fails_at < steps;
            assert_eq!(result.is_err(), noticed, "step {fails_at} {fault:?}: {result:?}");
            if !noticed {
                break;
            }
        }
    }
}

/// Takes so many writes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn whoever_stops_listening_leaves_no_vm_hooked() {
    for writes in 0..20 {
        let (result, fake) = look_at(Fake::new(usize::MAX, Fault::Refuses), &mut Full(writes));
        assert!(result.is_err() && !fake.hooked.get(), "{writes}: {result:?}");
    }
}

struct Panics;

impl Write for Panics {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        std::panic::resume_unwind(Box::new(()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_panic_leaves_no_vm_hooked() {
    let hook = Hook::new(Fake::new(usize::MAX, Fault::Refuses));
    let panicked = catch_unwind(AssertUnwindSafe(|| look(&hook, 7, &mut Panics)));
    assert!(panicked.is_err() && !hook.ioctls().hooked.get());
}

#[test]
fn a_vm_that_another_tool_has_is_left_to_it() {
    let fake = Fake::new(0, Fault::Refuses);
    let (result, fake) = look_at(fake, &mut Vec::new());
    assert!(result.is_err());
    assert_eq!(fake.unhooks.get(), 0);
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
