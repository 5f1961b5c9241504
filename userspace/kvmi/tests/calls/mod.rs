// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands as calls, each with its answer.

use super::*;

#[test]
fn commands_are_answered() {
    let (kernel, session) = hooked(2);
    let version = session.version().unwrap();
    assert_eq!(
        (version.version, version.max_msg_size, version.features.extension),
        (1, 8184, 2)
    );
    assert_eq!(session.vcpu_count().unwrap(), 2);
    session.check_command(msg::VM_GET_INFO).unwrap();
    session.check_event(event::CR).unwrap();
    session.control_unhook(true).unwrap();
    assert!(kernel.vm().unhook_event_enabled());
    session.control_cleanup(false).unwrap();
    assert!(!kernel.vm().cleanup_enabled());
    session.write_physical(0xffc, b"abcd").unwrap();
    assert_eq!(session.read_physical(0xffb, 5).unwrap(), b"\0abcd");
    assert_eq!(session.read_physical(0x1000, 4096).unwrap(), vec![0; 4096]);
    let entry = |gpa, access| PageAccessEntry {
        gpa,
        access,
        ..Default::default()
    };
    session.set_page_access(&[entry(0x1000, 5), entry(0x2000, 3)]).unwrap();
    assert_eq!(
        session.page_access(&[0x2000, 0x3000, 0x1000]).unwrap(),
        [entry(0x2000, 3), entry(0x3000, 7), entry(0x1000, 5)]
    );
    let refused = session.set_page_access(&[entry(0x1000, 2)]).unwrap_err();
    assert!(
        matches!(
            refused,
            Error::Kernel {
                error: KvmError::NotSupported,
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(session.vcpu(1).tsc_hz().unwrap(), 1_000_001);
    let registers = session.vcpu(0).registers(&[1, 2, 3]).unwrap();
    assert_eq!(
        (registers.mode, registers.regs.rip, registers.msrs.len()),
        (8, 0x1000, 3)
    );
    assert_eq!((registers.msrs[2].index, registers.msrs[2].data), (3, 6));
}

#[test]
fn msrs_are_watched_and_exceptions_injected() {
    let (kernel, session) = hooked(1);
    let vcpu = session.vcpu(0);
    vcpu.control_event(event::MSR, true).unwrap();
    vcpu.control_msr(0x174, true).unwrap();
    for other in 0..kvmi::uapi::MAX_OTHER_MSRS as u32 {
        vcpu.control_msr(0x4000_0000 + other, true).unwrap();
    }
    assert_eq!(
        vcpu.control_msr(0x2000, true).unwrap_err().kernel(),
        Some(KvmError::Busy)
    );
    let write = Occurrence::Msr {
        msr: 0x174,
        old: 1,
        new: 2,
    };
    let completed = kernel.happen(0, write);
    let event = session.next_event().unwrap().msr().unwrap();
    assert_eq!(
        (event.data.msr, event.data.old_value, event.data.new_value),
        (0x174, 1, 2)
    );
    event.reply(WriteDecision::Continue(3)).unwrap();
    assert_eq!(completed.recv().unwrap().value, Some(3));
    vcpu.inject_exception(14, 2, 0x5000).unwrap();
    assert_eq!(
        vcpu.inject_exception(14, 2, 0x5000).unwrap_err().kernel(),
        Some(KvmError::Busy)
    );
    assert_eq!(
        vcpu.inject_exception(3, 0, 0).unwrap_err().kernel(),
        Some(KvmError::Invalid)
    );
}

#[test]
fn a_vcpu_is_asked_for_more_than_registers() {
    let (_kernel, session) = hooked(1);
    let vcpu = session.vcpu(0);
    let leaf = vcpu.cpuid(7, 8).unwrap();
    assert_eq!([leaf.eax, leaf.ebx, leaf.ecx, leaf.edx], [7, 8, 9, 10]);
    assert_eq!(vcpu.cpuid(9, 0).unwrap_err().kernel(), Some(KvmError::NotFound));
    assert_eq!(vcpu.xcr0().unwrap(), 3);
    let mut state = vcpu.xsave().unwrap();
    assert_eq!(state.region, [0; 1024]);
    state.region[1023] = 5;
    vcpu.set_xsave(&state).unwrap();
    assert_eq!(vcpu.xsave().unwrap(), state);
    // Without MTRRs.
    assert_eq!(vcpu.memory_type(0x5000).unwrap(), 6);
    assert_eq!(vcpu.translate(5).unwrap(), Some(4101));
    assert_eq!(vcpu.translate(4096).unwrap(), None);
}

#[test]
fn linear_addresses_are_read_page_by_page() {
    let (_kernel, session) = hooked(1);
    let vcpu = session.vcpu(0);
    session.write_physical(0x3ffe, b"ab").unwrap();
    session.write_physical(0x2000, b"cd").unwrap();
    assert_eq!(vcpu.read_linear(0x8ffe, 4).unwrap(), b"abcd");
    assert_eq!(vcpu.read_linear(0x8000, 0).unwrap(), b"");
    // To the end of what is there: no memory, no translation, no address.
    assert_eq!(vcpu.read_linear(0x8000, 1 << 20).unwrap().len(), 0x2000);
    assert_eq!(vcpu.read_linear(0xffd, 100).unwrap(), [0; 3]);
    assert_eq!(vcpu.read_linear(0x1000, 1).unwrap(), b"");
    assert_eq!(vcpu.read_linear(u64::MAX, 2).unwrap(), b"");
    assert_eq!(vcpu.read_linear(0, 1 << 20).unwrap().len(), 0x1000);
}

#[test]
fn errors_are_typed() {
    let (kernel, session) = hooked(1);
    let kernel_error = |outcome: Result<(), Error>| outcome.unwrap_err().kernel().unwrap();
    assert_eq!(kernel_error(session.check_command(9999)), KvmError::NotFound);
    assert_eq!(
        kernel_error(session.read_physical(1 << 40, 1).map(drop)),
        KvmError::NotFound
    );
    assert_eq!(kernel_error(session.write_physical(0xfff, b"ab")), KvmError::Invalid);
    assert_eq!(kernel_error(session.vcpu(1).control_cr(3, true)), KvmError::Invalid);
    assert_eq!(
        kernel_error(session.vcpu(0).set_registers(&Regs {
            rflags: 2,
            ..Regs::default()
        })),
        KvmError::NotSupported
    );
    assert_eq!(
        kernel_error(session.call_raw(9998, &[]).map(drop)),
        KvmError::NotImplemented
    );
    kernel.vm().allow_command(0, -1).unwrap();
    let refused = session.vcpu_count().unwrap_err();
    assert_eq!(refused.to_string(), "VM_GET_INFO answered EPERM");
    assert!(matches!(session.write_physical(0, &[0; 8180]), Err(Error::Protocol(_))));
}

#[test]
fn states_of_vcpus_are_read_and_stopped_ones_released() {
    let (kernel, session) = hooked(2);
    let states = session.vcpu_states().unwrap();
    assert_eq!(states.iter().map(|state| state.seq).collect::<Vec<_>>(), [0, 1]);
    assert!(states.iter().all(|state| state.state == kvmi::VcpuRunState::HALTED));
    session.release().unwrap();
    assert_eq!(kernel.releases(), 1);
}
