// SPDX-License-Identifier: GPL-2.0-only
//! A VM and vCPUs that only remember what was asked of them, and messages to try on them.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

use std::collections::BTreeMap;

use kvmi_core::{
    Control, KvmError, Occurrence, Site, VcpuEffects, VcpuOutcome, VcpuState, VcpuVerdict, VmEffects, VmState,
    VmVerdict, vcpu_message, vm_message,
};
use kvmi_uapi::{
    ErrorCode, MAX_MESSAGE, MsgHdr, VcpuEventReply, VcpuHdr, VcpuRunState,
    error::{EAGAIN, EBUSY, EINVAL, ENOENT, EPERM},
    msg,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Guest memory: two pages from 0, the second read-only.
pub const MEMORY: u64 = 8192;
/// The MSR that vCPUs do not have.
pub const NO_MSR: u32 = 0xdead;

#[derive(Debug)]
pub struct FakeVm {
    pub vcpus: u32,
    /// vCPUs that are not initialised.
    pub asleep: Vec<u16>,
    pub memory: Vec<u8>,
    pub pauses: Vec<(u16, bool)>,
    /// vCPUs that have as many PAUSE requests as they may.
    pub too_many_pauses: Vec<u16>,
    pub access: BTreeMap<u64, u8>,
    /// Nothing was set since it was last put in force.
    pub in_force: bool,
    pub access_bits: u8,
    /// Times that VM_RELEASE came.
    pub releases: usize,
}

impl Default for FakeVm {
    fn default() -> Self {
        let memory = (0..MEMORY).map(|at| at as u8).collect();
        Self {
            vcpus: 2,
            asleep: Vec::new(),
            memory,
            pauses: Vec::new(),
            too_many_pauses: Vec::new(),
            access: BTreeMap::new(),
            in_force: true,
            access_bits: 7,
            releases: 0,
        }
    }
}

/// The state that each vCPU of the fake VM is in.
pub fn vcpu_state(vcpu: u16) -> VcpuRunState {
    VcpuRunState {
        state: VcpuRunState::HELD,
        event: 5,
        in_run: 1,
        pad: 0,
        seq: 0x100 + u32::from(vcpu),
    }
}

impl VmEffects for FakeVm {
    fn vcpu_count(&mut self) -> u32 {
        self.vcpus
    }

    fn vcpu_ready(&mut self, vcpu: u16) -> Result<(), KvmError> {
        assert!(u32::from(vcpu) < self.vcpus);
        if self.asleep.contains(&vcpu) {
            Err(KvmError(EAGAIN))
        } else {
            Ok(())
        }
    }

    fn read_physical(&mut self, gpa: u64, out: &mut [u8]) -> Result<(), KvmError> {
        assert_one_page(gpa, out.len());
        if gpa >= MEMORY {
            return Err(KvmError(ENOENT));
        }
        out.copy_from_slice(&self.memory[gpa as usize..][..out.len()]);
        Ok(())
    }

    fn write_physical(&mut self, gpa: u64, data: &[u8]) -> Result<(), KvmError> {
        assert_one_page(gpa, data.len());
        match gpa {
            ..4096 => self.memory[gpa as usize..][..data.len()].copy_from_slice(data),
            4096..MEMORY => return Err(KvmError(EPERM)),
            _ => return Err(KvmError(ENOENT)),
        }
        Ok(())
    }

    fn pause_vcpu(&mut self, vcpu: u16, wait: bool) -> Result<(), KvmError> {
        assert!(u32::from(vcpu) < self.vcpus);
        if self.too_many_pauses.contains(&vcpu) {
            return Err(KvmError(EBUSY));
        }
        self.pauses.push((vcpu, wait));
        Ok(())
    }

    fn set_page_access(&mut self, view: u16, gfn: u64, access: u8) -> Result<(), KvmError> {
        assert_eq!(view, 0);
        if gfn >= MEMORY / 4096 {
            return Err(KvmError(EINVAL));
        }
        self.access.insert(gfn, access);
        self.in_force = false;
        Ok(())
    }

    fn page_access_set(&mut self) {
        self.in_force = true;
    }

    fn page_access(&mut self, view: u16, gfn: u64) -> Result<u8, KvmError> {
        assert_eq!(view, 0);
        if gfn >= MEMORY / 4096 {
            return Err(KvmError(EINVAL));
        }
        Ok(*self.access.get(&gfn).unwrap_or(&7))
    }

    fn vcpu_state(&mut self, vcpu: u16) -> VcpuRunState {
        assert!(u32::from(vcpu) < self.vcpus);
        vcpu_state(vcpu)
    }

    fn release(&mut self) {
        self.releases += 1;
    }

    fn access_bits(&mut self) -> u8 {
        self.access_bits
    }

    fn singlestep(&mut self) -> bool {
        true
    }
}

fn assert_one_page(gpa: u64, len: usize) {
    assert!((1..=4096).contains(&len));
    assert_eq!(gpa / 4096, (gpa + len as u64 - 1) / 4096);
}

/// Four levels of page tables from 0x1000, 40 bits of physical address.
pub const LONG_MODE: Control = Control {
    cr0: 0x8000_0011,
    cr3: 0x1000,
    cr4: 0x20,
    efer: 0xd00,
    rflags: 2,
    pdptrs: [0; 4],
    nested_root: 0,
    physical_bits: 40,
    long_code: 1,
    delivers_interrupt: 0,
    has_pdptrs: 0,
    nested_levels: 0,
    nested_ept: 0,
    nested_pse: 0,
    pad: 0,
};

#[derive(Debug)]
pub struct FakeVcpu {
    pub index: u16,
    pub breakpoint_answer: Result<(), KvmError>,
    /// EDX of CPUID leaf 1, the one leaf that there is.
    pub cpuid_edx: u32,
    /// MSRs that hold something else than what [`FakeVcpu::msr`] makes up.
    pub msrs: BTreeMap<u32, u64>,
    /// Long mode, as a program of the lab's has it.
    pub control: Control,
    /// Page tables: 8 bytes by their address.
    pub tables: BTreeMap<u64, u64>,
    pub xsave: [u8; 4096],
    pub xsave_answer: Result<(), KvmError>,
    pub msr_answer: Result<(), KvmError>,
    pub descriptor_answer: Result<(), KvmError>,
    pub injection_answer: Result<(), KvmError>,
    pub can_singlestep: bool,
    pub singlestep_answer: Result<(), KvmError>,
}

impl Default for FakeVcpu {
    fn default() -> Self {
        Self {
            index: 0,
            breakpoint_answer: Ok(()),
            cpuid_edx: 0,
            msrs: BTreeMap::new(),
            control: LONG_MODE,
            // The first GiB is the second one.
            tables: BTreeMap::from([(0x1000, 0x2001), (0x2000, 0x4000_0081)]),
            xsave: [0xdd; 4096],
            xsave_answer: Ok(()),
            msr_answer: Ok(()),
            descriptor_answer: Ok(()),
            injection_answer: Ok(()),
            can_singlestep: true,
            singlestep_answer: Ok(()),
        }
    }
}

impl VcpuEffects for FakeVcpu {
    fn index(&mut self) -> u16 {
        self.index
    }

    fn tsc_hz(&mut self) -> u64 {
        2_000_000_000
    }

    fn mode(&mut self) -> u8 {
        8
    }

    fn arch(&mut self, out: &mut [u8; 536]) {
        assert_eq!(*out, [0; 536]);
        out.fill(0xaa);
    }

    fn regs(&mut self, out: &mut [u8; 144]) {
        out.fill(0xbb);
    }

    fn sregs(&mut self, out: &mut [u8; 312]) {
        out.fill(0xcc);
    }

    fn msr(&mut self, index: u32) -> Result<u64, KvmError> {
        if index == NO_MSR {
            Err(KvmError(EINVAL))
        } else {
            Ok(self.msrs.get(&index).copied().unwrap_or(u64::from(index) << 8))
        }
    }

    fn cpuid(&mut self, function: u32, index: u32) -> Result<[u32; 4], KvmError> {
        if (function, index) == (1, 0) {
            Ok([1, 2, 3, self.cpuid_edx])
        } else {
            Err(KvmError(ENOENT))
        }
    }

    fn xcr0(&mut self) -> u64 {
        7
    }

    fn xsave(&mut self, out: &mut [u8; 4096]) -> Result<(), KvmError> {
        *out = self.xsave;
        self.xsave_answer
    }

    fn set_xsave(&mut self, state: &[u8; 4096]) -> Result<(), KvmError> {
        self.xsave = *state;
        self.xsave_answer
    }

    fn control(&mut self) -> Control {
        self.control
    }

    fn read_table(&mut self, gpa: u64, out: &mut [u8]) -> Result<(), KvmError> {
        let word = self.tables.get(&(gpa & !7)).ok_or(KvmError(ENOENT))?;
        let at = (gpa % 8) as usize;
        out.copy_from_slice(&word.to_le_bytes()[at..at + out.len()]);
        Ok(())
    }

    fn msr_write_allowed(&mut self, _: u32) -> Result<(), KvmError> {
        self.msr_answer
    }

    fn descriptor_exits(&mut self) -> Result<(), KvmError> {
        self.descriptor_answer
    }

    fn injection_free(&mut self) -> Result<(), KvmError> {
        self.injection_answer
    }

    fn breakpoint_free(&mut self) -> Result<(), KvmError> {
        self.breakpoint_answer
    }

    fn can_singlestep(&mut self) -> bool {
        self.can_singlestep
    }

    fn singlestep_free(&mut self) -> Result<(), KvmError> {
        self.singlestep_answer
    }
}

/// A VM with one vCPU to talk to, everything allowed.
pub struct Guest {
    pub vm: VmState,
    pub fake_vm: FakeVm,
    pub state: VcpuState,
    pub fake_vcpu: FakeVcpu,
    pub out: Vec<u8>,
}

impl Default for Guest {
    fn default() -> Self {
        let vm = VmState::new();
        vm.allow_command(1, -1).unwrap();
        vm.allow_event(1, -1).unwrap();
        Self {
            vm,
            fake_vm: FakeVm::default(),
            state: VcpuState::new(),
            fake_vcpu: FakeVcpu::default(),
            out: vec![0xee; MAX_MESSAGE],
        }
    }
}

impl Guest {
    pub fn vm_message(&mut self, bytes: &[u8]) -> VmVerdict {
        vm_message(&self.vm, &mut self.fake_vm, bytes, &mut self.out)
    }

    pub fn vcpu_message(&mut self, bytes: &[u8]) -> VcpuOutcome {
        vcpu_message(&self.vm, &mut self.state, &mut self.fake_vcpu, bytes, &mut self.out)
    }

    /// Sends a VM command that is answered; gives the error code and the reply's data.
    pub fn vm_call(&mut self, id: u16, request: &(impl IntoBytes + Immutable + ?Sized)) -> (i32, Vec<u8>) {
        let VmVerdict::Answered(length) = self.vm_message(&message(id, 7, request.as_bytes())) else {
            panic!("not answered");
        };
        self.answer(id, length)
    }

    /// Sends a vCPU command the whole way; gives the error code and the reply's data.
    pub fn vcpu_call(&mut self, id: u16, request: &(impl IntoBytes + Immutable + ?Sized)) -> (i32, Vec<u8>) {
        let bytes = vcpu_bytes(id, 7, 0, request);
        match self.vm_message(&bytes) {
            VmVerdict::Answered(length) => return self.answer(id, length),
            verdict => assert_eq!(verdict, VmVerdict::Queue(0)),
        }
        let VcpuVerdict::Answered(length) = self.vcpu_message(&bytes).verdict else {
            panic!("not answered")
        };
        self.answer(id, length)
    }

    fn answer(&self, id: u16, length: usize) -> (i32, Vec<u8>) {
        let (hdr, payload) = MsgHdr::read_from_prefix(&self.out[..length]).unwrap();
        assert_eq!((hdr.id, hdr.seq, usize::from(hdr.size)), (id, 7, payload.len()));
        let (code, data) = ErrorCode::read_from_prefix(payload).unwrap();
        assert_eq!(code.pad, 0);
        assert!(code.err == 0 || data.is_empty());
        (code.err, data.to_vec())
    }

    /// Records an occurrence that is wanted, and sends its event.
    pub fn send_event(&mut self, what: Occurrence, seq: u32) {
        assert_eq!(self.state.record(&self.vm, &what), Site::Defer);
        assert_ne!(
            kvmi_core::build_event(&self.state, &mut self.fake_vcpu, seq, &mut self.out),
            0
        );
        self.state.event_sent(seq);
    }

    /// Answers an event.
    pub fn reply(&mut self, seq: u32, event: u16, action: u8, data: &[u8]) -> VcpuVerdict {
        let bytes = reply_bytes(seq, event as u8, action, data);
        assert_eq!(self.vm_message(&bytes), VmVerdict::Queue(0));
        let outcome = self.vcpu_message(&bytes);
        assert!(!outcome.intercepts_changed);
        outcome.verdict
    }
}

pub fn message(id: u16, seq: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = MsgHdr {
        id,
        size: payload.len() as u16,
        seq,
    }
    .as_bytes()
    .to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

pub fn vcpu_bytes(id: u16, seq: u32, vcpu: u16, request: &(impl IntoBytes + Immutable + ?Sized)) -> Vec<u8> {
    let mut payload = VcpuHdr { vcpu, pad1: 0, pad2: 0 }.as_bytes().to_vec();
    payload.extend_from_slice(request.as_bytes());
    message(id, seq, &payload)
}

pub fn reply_bytes(seq: u32, event: u8, action: u8, data: &[u8]) -> Vec<u8> {
    let mut reply = VcpuEventReply {
        action,
        event,
        pad1: 0,
        pad2: 0,
    }
    .as_bytes()
    .to_vec();
    reply.extend_from_slice(data);
    vcpu_bytes(msg::VCPU_EVENT, seq, 0, &reply[..])
}
