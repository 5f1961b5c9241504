// SPDX-License-Identifier: GPL-2.0-only
//! Random streams of messages, occurrences and ioctls against a small model of what the core promises.

mod fake;

use fake::{FakeVcpu, FakeVm, message};
use kvmi_core::{
    KvmError, Occurrence, Phase, Site, VcpuState, VcpuVerdict, VmState, VmVerdict, build_event, vcpu_message,
    vm_message,
};
use kvmi_uapi::{
    MAX_MESSAGE, MAX_PAYLOAD,
    error::{EAGAIN, EINVAL, ENOSYS, EPERM},
    event, msg,
};
use proptest::{collection::vec, prelude::*};

/// One thing that happens to a hooked VM of one vCPU.
#[derive(Clone, Debug)]
enum Step {
    /// A message from the tool. Replies use the sequence number of a recent event, as an offset from the last.
    Message {
        id: u16,
        seq: u32,
        payload: Vec<u8>,
    },
    Reply {
        back: u32,
        event: u8,
        action: u8,
        data: Vec<u8>,
    },
    /// A reply to the open event with its own number and name.
    Answer {
        action: u8,
        data: Vec<u8>,
    },
    Allow {
        event: bool,
        allow: u32,
        id: i32,
    },
    /// Something in the guest; the event is sent at once if there is one.
    Happen(Occurrence),
    /// The exit handler is called again.
    Complete,
    Void,
    FailOpen,
}

fn id() -> impl Strategy<Value = u16> {
    prop_oneof![
        8 => proptest::sample::select(kvmi_core::COMMANDS),
        1 => 0u16..40,
        1 => any::<u16>(),
    ]
}

/// Mostly small numbers: they pass more checks.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![6 => Just(0), 3 => 0u8..12, 1 => any::<u8>()]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => vec(byte(), 0..40),
        1 => vec(byte(), 140..200),
        1 => (any::<u8>(), MAX_PAYLOAD - 2..=MAX_PAYLOAD).prop_map(|(byte, length)| [byte].repeat(length)),
    ]
}

fn occurrence() -> impl Strategy<Value = Occurrence> {
    prop_oneof![
        Just(Occurrence::Pause),
        Just(Occurrence::Hypercall),
        any::<u64>().prop_map(|gpa| Occurrence::Breakpoint { gpa, insn_len: 1 }),
        (proptest::sample::select(&[0u8, 3, 4][..]), any::<u64>(), any::<u64>())
            .prop_map(|(cr, old, new)| Occurrence::Cr { cr, old, new }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let event_id = prop_oneof![8 => proptest::sample::select(&[1u8, 3, 5, 7][..]), 1 => any::<u8>()];
    prop_oneof![
        6 => (id(), any::<u32>(), payload()).prop_map(|(id, seq, payload)| Step::Message { id, seq, payload }),
        6 => (0u32..3, event_id, byte(), vec(byte(), 0..10))
            .prop_map(|(back, event, action, data)| Step::Reply { back, event, action, data }),
        4 => (0u8..3, vec(byte(), 0..10)).prop_map(|(action, data)| Step::Answer { action, data }),
        1 => (any::<bool>(), 0u32..3, -2i32..32).prop_map(|(event, allow, id)| Step::Allow { event, allow, id }),
        4 => occurrence().prop_map(Step::Happen),
        3 => Just(Step::Complete),
        1 => Just(Step::Void),
        1 => Just(Step::FailOpen),
    ]
}

/// What must be true whatever came before.
struct Model {
    vm: VmState,
    fake_vm: FakeVm,
    state: VcpuState,
    fake_vcpu: FakeVcpu,
    out: Vec<u8>,
    seq: u32,
    /// The event that is open.
    open: Option<(u32, Occurrence)>,
    /// Voided events whose reply has not come, of those since the last time that there was none.
    voided: Vec<u32>,
    /// How many replies to voided events are to be ignored yet, and the numbers that they lie between.
    late: (usize, u32, u32),
}

impl Model {
    fn new() -> Self {
        let vm = VmState::new();
        vm.allow_command(1, -1).unwrap();
        vm.allow_event(1, -1).unwrap();
        let mut model = Self {
            vm,
            fake_vm: FakeVm {
                vcpus: 1,
                ..FakeVm::default()
            },
            state: VcpuState::new(),
            fake_vcpu: FakeVcpu::default(),
            out: vec![0; MAX_MESSAGE],
            seq: 0,
            open: None,
            voided: Vec::new(),
            late: (0, 0, 0),
        };
        for event in [event::HYPERCALL, event::BREAKPOINT, event::CR] {
            model.message(
                msg::VCPU_CONTROL_EVENTS,
                0,
                &[0, 0, 0, 0, 0, 0, 0, 0, event as u8, 0, 1],
            );
        }
        for cr in [0, 3, 4] {
            model.message(msg::VCPU_CONTROL_CR, 0, &[0, 0, 0, 0, 0, 0, 0, 0, cr, 1]);
        }
        model
    }

    /// A whole reply lies in `out`; gives its error code.
    fn check_reply(&self, length: usize, id: u16, seq: u32) -> i32 {
        let out = &self.out[..length];
        assert!((16..=MAX_MESSAGE).contains(&length));
        assert_eq!(out[..2], id.to_ne_bytes());
        assert_eq!(usize::from(u16::from_ne_bytes([out[2], out[3]])), length - 8);
        assert_eq!(out[4..8], seq.to_ne_bytes());
        assert_eq!(out[12..16], [0; 4]);
        let err = i32::from_ne_bytes(out[8..12].try_into().unwrap());
        assert!(err <= 0);
        assert!(err == 0 || length == 16);
        err
    }

    fn message(&mut self, id: u16, seq: u32, payload: &[u8]) {
        let bytes = message(id, seq, payload);
        let known = kvmi_core::COMMANDS.contains(&id);
        match vm_message(&self.vm, &mut self.fake_vm, &bytes, &mut self.out) {
            VmVerdict::Answered(length) => {
                let err = self.check_reply(length, id, seq);
                assert!(known || id == msg::VCPU_EVENT || err == -ENOSYS);
                assert!(!known || err != -ENOSYS);
                // Nothing but a bad vCPU header answers an event reply.
                assert!(id != msg::VCPU_EVENT || [-EINVAL, -EAGAIN].contains(&err));
                assert!(!msg::is_vcpu(id) || [-EINVAL, -EAGAIN, -EPERM, -ENOSYS].contains(&err));
            }
            VmVerdict::Queue(vcpu) => {
                assert_eq!(vcpu, 0);
                assert!(msg::is_vcpu(id) && (known || id == msg::VCPU_EVENT));
                self.vcpu_message(id, seq, &bytes);
            }
            VmVerdict::Close => {
                let declared = u16::from_ne_bytes([byte_at(payload, 8), byte_at(payload, 9)]);
                assert_eq!(id, msg::VM_WRITE_PHYSICAL);
                assert!(usize::from(declared) + 16 > payload.len());
            }
        }
    }

    fn vcpu_message(&mut self, id: u16, seq: u32, bytes: &[u8]) {
        let before = self.state.phase();
        let legal = id == msg::VCPU_EVENT && self.is_legal_reply(seq, bytes);
        let outcome = vcpu_message(&self.vm, &mut self.state, &mut self.fake_vcpu, bytes, &mut self.out);
        assert_eq!(outcome.verdict == VcpuVerdict::Replied, legal);
        match outcome.verdict {
            VcpuVerdict::Answered(0) => {
                // As many as were voided, from among them. Which they were exactly is not remembered.
                assert_eq!((id, self.state.phase()), (msg::VCPU_EVENT, before));
                let (left, first, last) = self.late;
                assert!(left > 0 && (first..=last).contains(&seq));
                self.late.0 -= 1;
                self.voided.retain(|voided| *voided != seq);
            }
            VcpuVerdict::Answered(length) => {
                assert_ne!(id, msg::VCPU_EVENT);
                self.check_reply(length, id, seq);
                assert_eq!(self.state.phase(), before);
            }
            VcpuVerdict::Replied => {
                assert_eq!((id, before), (msg::VCPU_EVENT, Phase::Sent));
                let (open, what) = self.open.unwrap();
                assert_eq!((seq, u16::from(bytes[17])), (open, what.event()));
                let crash = bytes[16] == event::CRASH;
                assert_eq!(
                    self.state.phase(),
                    if crash { Phase::Crashed } else { Phase::ReplyHere }
                );
            }
            VcpuVerdict::Close => {
                assert_eq!((id, self.state.phase()), (msg::VCPU_EVENT, before));
                // A tool that answers each event once is never punished for the VMM's doing.
                let honest = self.late.0 == self.voided.len();
                let well_formed = bytes.len() >= 24 && bytes[18..24] == [0; 6];
                assert!(!(honest && well_formed && self.voided.contains(&seq)));
            }
        }
    }

    fn is_legal_reply(&self, seq: u32, bytes: &[u8]) -> bool {
        let Some((open, what)) = self.open.filter(|_| self.state.phase() == Phase::Sent) else {
            return false;
        };
        let (most, actions): (usize, &[u8]) = match what {
            Occurrence::Cr { .. } => (8, &[event::CONTINUE, event::CRASH]),
            Occurrence::Breakpoint { .. } => (0, &[event::CONTINUE, event::RETRY, event::CRASH]),
            _ => (0, &[event::CONTINUE, event::CRASH]),
        };
        seq == open
            && (24..=24 + most).contains(&bytes.len())
            && actions.contains(&bytes[16])
            && u16::from(bytes[17]) == what.event()
            && bytes[18..24] == [0; 6]
    }

    fn happen(&mut self, what: Occurrence) {
        let before = self.state.phase();
        let wanted = self.state.wanted(&self.vm, what.event(), 0);
        let site = self.state.record(&self.vm, &what);
        match (before, site) {
            (Phase::Crashed | Phase::Sent, site) => assert_eq!(site, Site::Defer),
            (Phase::Idle, Site::Defer) => {
                assert!(wanted || matches!(what, Occurrence::Cr { .. }));
                self.seq += 1;
                let length = build_event(&self.state, &mut self.fake_vcpu, self.seq, &mut self.out);
                assert!(length >= 560);
                self.state.event_sent(self.seq);
                self.open = Some((self.seq, what));
            }
            (Phase::Idle, site) => assert_eq!((site, self.state.phase()), (Site::Pass, Phase::Idle)),
            (before, _) => panic!("a step left the phase {before:?}"),
        }
    }

    /// The handler of the exit that was deferred; it must get its answer exactly once.
    fn complete(&mut self) {
        if self.state.phase() == Phase::ReplyHere {
            let (_, what) = self.open.take().unwrap();
            let site = self.state.record(&self.vm, &what);
            assert!(site == Site::Continue || (site == Site::Retry && matches!(what, Occurrence::Breakpoint { .. })));
            self.state.event_done();
            assert_eq!(self.state.phase(), Phase::Idle);
        }
    }

    fn void(&mut self) {
        let paused = matches!(self.open, Some((_, Occurrence::Pause)));
        if !paused
            && self.state.phase() == Phase::Sent
            && let Some((seq, _)) = self.open.take()
        {
            if self.late.0 == 0 {
                self.voided.clear();
                self.late.1 = seq;
            }
            self.late = (self.late.0 + 1, self.late.1, seq);
            self.voided.push(seq);
        }
        self.state.event_void();
    }

    fn allow(&mut self, is_event: bool, allow: u32, id: i32) {
        let outcome = if is_event {
            self.vm.allow_event(allow, id)
        } else {
            self.vm.allow_command(allow, id)
        };
        let table = if is_event { event::ALL } else { msg::COMMANDS };
        let exists = id == -1 || table.iter().any(|(known, _)| i32::from(*known) == id);
        match outcome {
            Ok(()) => assert!(allow <= 1 && exists),
            Err(KvmError(EPERM)) => assert!(!is_event && allow == 0 && [2, 4, 6].contains(&id)),
            Err(error) => assert!(error == KvmError(EINVAL) && (allow > 1 || !exists)),
        }
    }

    fn reply(&mut self, seq: u32, event: u8, action: u8, data: &[u8]) {
        let mut payload = vec![0, 0, 0, 0, 0, 0, 0, 0, action, event, 0, 0, 0, 0, 0, 0];
        payload.extend_from_slice(data);
        self.message(msg::VCPU_EVENT, seq, &payload);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Message { id, seq, payload } => self.message(id, seq, &payload),
            Step::Reply {
                back,
                event,
                action,
                data,
            } => {
                self.reply(self.seq.wrapping_sub(back), event, action, &data);
            }
            Step::Answer { action, data } => {
                if let Some((seq, what)) = self.open {
                    self.reply(seq, what.event() as u8, action, &data);
                }
            }
            Step::Allow { event, allow, id } => self.allow(event, allow, id),
            Step::Happen(what) => {
                self.complete();
                self.happen(what);
            }
            Step::Complete => self.complete(),
            Step::Void => self.void(),
            Step::FailOpen => {
                let before = self.state.phase();
                self.state.event_fail_open();
                let after = if before == Phase::Sent {
                    Phase::ReplyHere
                } else {
                    before
                };
                assert_eq!(self.state.phase(), after);
            }
        }
    }
}

fn byte_at(payload: &[u8], at: usize) -> u8 {
    payload.get(at).copied().unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_stream_is_taken_as_promised(steps in vec(step(), 1..60)) {
        let mut model = Model::new();
        for step in steps {
            // After a hard error the connection would be closed. What the core holds must stay sound all the same.
            model.step(step);
        }
    }

    /// Bytes that need not be a message, in a buffer that need not be large enough.
    #[test]
    fn nothing_panics(bytes in vec(any::<u8>(), 0..80), room in 0usize..700) {
        let (vm, mut state) = (VmState::new(), VcpuState::new());
        vm.allow_command(1, -1).unwrap();
        let mut out = vec![0; room];
        let _ = kvmi_core::header_ok(&bytes);
        let _ = kvmi_core::is_event_reply(&bytes);
        let _ = kvmi_core::build_error_reply(&bytes, KvmError(EINVAL), &mut out);
        let _ = vm_message(&vm, &mut FakeVm::default(), &bytes, &mut out);
        let _ = vcpu_message(&vm, &mut state, &mut FakeVcpu::default(), &bytes, &mut out);
        let mut sized = bytes.clone();
        if let (Some(size), Ok(announced)) = (sized.get_mut(2..4), u16::try_from(bytes.len().saturating_sub(8))) {
            size.copy_from_slice(&announced.to_ne_bytes());
            let _ = vm_message(&vm, &mut FakeVm::default(), &sized, &mut out);
            let _ = vcpu_message(&vm, &mut state, &mut FakeVcpu::default(), &sized, &mut out);
        }
    }
}
