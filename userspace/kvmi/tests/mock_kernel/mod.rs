// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's side of a session without a kernel: the real core, a thread a vCPU, memory that is a vector.

use std::{
    collections::HashMap,
    collections::VecDeque,
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
};

use kvmi_core::{
    Control, KvmError, Occurrence, Phase, Site, VcpuEffects, VcpuState, VcpuVerdict, VmEffects, VmState, VmVerdict,
    build_event, build_unhook_event, header_ok, vcpu_message, vm_message,
};
use kvmi_uapi::{MAX_MESSAGE, Regs, VcpuRunState, error::ENOENT};

/// Bytes of guest memory.
const MEMORY: usize = 64 << 10;

/// Where the guest's page directory is, beside that memory.
const DIRECTORY: u64 = 0x1000_0000;

/// What became of an occurrence in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completed {
    pub(crate) site: Site,
    pub(crate) value: Option<u64>,
    pub(crate) regs: Option<Regs>,
    pub(crate) crashed: bool,
}

enum Work {
    Job(Vec<u8>),
    Happen(Occurrence, Sender<Completed>),
    End,
}

struct Shared {
    vm: VmState,
    memory: Mutex<Vec<u8>>,
    /// Access of restricted gfns.
    access: Mutex<HashMap<u64, u8>>,
    vcpus: Vec<Sender<Work>>,
    /// Times that VM_RELEASE came.
    releases: AtomicUsize,
    /// The writer's end and the sequence number of the last event.
    out: Mutex<(UnixStream, u32)>,
}

/// A hooked VM on the other end of a socket.
pub(crate) struct MockKernel {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl MockKernel {
    /// Everything is allowed.
    pub(crate) fn hook(stream: UnixStream, vcpus: u16) -> Self {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..vcpus).map(|_| mpsc::channel()).unzip();
        let vm = VmState::new();
        vm.allow_command(1, -1).unwrap();
        vm.allow_event(1, -1).unwrap();
        let out = Mutex::new((stream.try_clone().unwrap(), 0));
        let shared = Arc::new(Shared {
            vm,
            memory: Mutex::new(vec![0; MEMORY]),
            access: Mutex::default(),
            releases: AtomicUsize::new(0),
            vcpus: senders,
            out,
        });
        let mut threads = vec![thread::spawn({
            let shared = shared.clone();
            move || read(&shared, stream)
        })];
        for (index, receiver) in receivers.into_iter().enumerate() {
            let vcpu = Vcpu {
                shared: shared.clone(),
                state: VcpuState::new(),
                effects: Effects {
                    index: index as u16,
                    xsave: [0; 4096],
                },
                queue: VecDeque::new(),
                receiver,
            };
            threads.push(thread::spawn(move || vcpu.run()));
        }
        Self { shared, threads }
    }

    pub(crate) fn vm(&self) -> &VmState {
        &self.shared.vm
    }

    pub(crate) fn releases(&self) -> usize {
        self.shared.releases.load(Ordering::Relaxed)
    }

    /// Lets something happen in the guest.
    pub(crate) fn happen(&self, vcpu: u16, what: Occurrence) -> Receiver<Completed> {
        let (sender, receiver) = mpsc::channel();
        self.shared.vcpus[usize::from(vcpu)]
            .send(Work::Happen(what, sender))
            .unwrap();
        receiver
    }

    pub(crate) fn send_unhook(&self) {
        let mut buffer = vec![0; MAX_MESSAGE];
        self.shared.send_event(|seq| {
            let length = build_unhook_event(seq, &mut buffer);
            buffer[..length].to_vec()
        });
    }

    /// Closes the connection from this side.
    pub(crate) fn hang_up(&self) {
        self.shared.hang_up();
    }
}

impl Drop for MockKernel {
    fn drop(&mut self) {
        self.hang_up();
        for vcpu in &self.shared.vcpus {
            // A vCPU that came to its end has no receiver.
            let _ = vcpu.send(Work::End);
        }
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Shared {
    fn send(&self, bytes: &[u8]) {
        // A tool that is gone hears nothing.
        let _ = self.out.lock().unwrap().0.write_all(bytes);
    }

    fn send_event(&self, build: impl FnOnce(u32) -> Vec<u8>) -> u32 {
        let mut out = self.out.lock().unwrap();
        out.1 += 1;
        let bytes = build(out.1);
        let _ = out.0.write_all(&bytes);
        out.1
    }

    fn hang_up(&self) {
        let _ = self.out.lock().unwrap().0.shutdown(Shutdown::Both);
    }
}

/// The receive thread.
fn read(shared: &Arc<Shared>, mut stream: UnixStream) {
    let mut out = vec![0; MAX_MESSAGE];
    loop {
        let mut message = vec![0; 8];
        if stream.read_exact(&mut message).is_err() {
            break;
        }
        let Some(size) = header_ok(&message) else { break };
        message.resize(8 + size, 0);
        if stream.read_exact(&mut message[8..]).is_err() {
            break;
        }
        match vm_message(&shared.vm, &mut VmSide(shared), &message, &mut out) {
            VmVerdict::Answered(length) => shared.send(&out[..length]),
            VmVerdict::Queue(vcpu) => shared.vcpus[usize::from(vcpu)].send(Work::Job(message)).unwrap(),
            VmVerdict::Close => break,
        }
    }
    shared.hang_up();
    for vcpu in &shared.vcpus {
        let _ = vcpu.send(Work::End);
    }
}

struct VmSide<'a>(&'a Shared);

impl VmEffects for VmSide<'_> {
    fn vcpu_count(&mut self) -> u32 {
        self.0.vcpus.len() as u32
    }

    fn vcpu_ready(&mut self, _: u16) -> Result<(), KvmError> {
        Ok(())
    }

    fn read_physical(&mut self, gpa: u64, out: &mut [u8]) -> Result<(), KvmError> {
        let memory = self.0.memory.lock().unwrap();
        let from = memory.get(gpa as usize..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(from.ok_or(KvmError(ENOENT))?);
        Ok(())
    }

    fn write_physical(&mut self, gpa: u64, data: &[u8]) -> Result<(), KvmError> {
        let mut memory = self.0.memory.lock().unwrap();
        let to = memory
            .get_mut(gpa as usize..)
            .and_then(|rest| rest.get_mut(..data.len()));
        to.ok_or(KvmError(ENOENT))?.copy_from_slice(data);
        Ok(())
    }

    fn pause_vcpu(&mut self, vcpu: u16, _: bool) -> Result<(), KvmError> {
        let (sender, _) = mpsc::channel();
        self.0.vcpus[usize::from(vcpu)]
            .send(Work::Happen(Occurrence::Pause, sender))
            .unwrap();
        Ok(())
    }

    fn set_page_access(&mut self, _: u16, gfn: u64, access: u8) -> Result<(), KvmError> {
        self.0.access.lock().unwrap().insert(gfn, access);
        Ok(())
    }

    fn page_access_set(&mut self) {}

    fn page_access(&mut self, _: u16, gfn: u64) -> Result<u8, KvmError> {
        Ok(*self.0.access.lock().unwrap().get(&gfn).unwrap_or(&7))
    }

    fn vcpu_state(&mut self, vcpu: u16) -> VcpuRunState {
        VcpuRunState {
            state: VcpuRunState::HALTED,
            in_run: 1,
            seq: vcpu.into(),
            ..Default::default()
        }
    }

    fn release(&mut self) {
        self.0.releases.fetch_add(1, Ordering::Relaxed);
    }

    fn access_bits(&mut self) -> u8 {
        7
    }

    fn singlestep(&mut self) -> bool {
        true
    }
}

struct Effects {
    index: u16,
    xsave: [u8; 4096],
}

impl VcpuEffects for Effects {
    fn index(&mut self) -> u16 {
        self.index
    }

    fn tsc_hz(&mut self) -> u64 {
        1_000_000 + u64::from(self.index)
    }

    fn mode(&mut self) -> u8 {
        8
    }

    fn arch(&mut self, out: &mut [u8; 536]) {
        out[0] = 8;
        // rip
        out[8 + 128..][..8].copy_from_slice(&0x1000u64.to_ne_bytes());
    }

    fn regs(&mut self, out: &mut [u8; 144]) {
        out[128..136].copy_from_slice(&0x1000u64.to_ne_bytes());
    }

    fn sregs(&mut self, _: &mut [u8; 312]) {}

    fn msr(&mut self, index: u32) -> Result<u64, KvmError> {
        Ok(u64::from(index) * 2)
    }

    fn cpuid(&mut self, function: u32, index: u32) -> Result<[u32; 4], KvmError> {
        if function == 7 {
            Ok([7, index, 9, 10])
        } else {
            Err(KvmError(ENOENT))
        }
    }

    fn xcr0(&mut self) -> u64 {
        3
    }

    fn xsave(&mut self, out: &mut [u8; 4096]) -> Result<(), KvmError> {
        *out = self.xsave;
        Ok(())
    }

    fn set_xsave(&mut self, state: &[u8; 4096]) -> Result<(), KvmError> {
        self.xsave = *state;
        Ok(())
    }

    /// Two levels of tables, with entries of 4 bytes.
    fn control(&mut self) -> Control {
        Control {
            cr0: 1 << 31 | 1,
            cr3: DIRECTORY,
            rflags: 2,
            physical_bits: 40,
            ..Control::default()
        }
    }

    fn read_table(&mut self, gpa: u64, out: &mut [u8]) -> Result<(), KvmError> {
        let page: u32 = match gpa.checked_sub(DIRECTORY).map(|at| at / 4) {
            // The directory's first table, and its pages.
            Some(0) => (DIRECTORY >> 12) as u32 + 1,
            Some(1024) => 1,
            // Two pages in another order than memory has them, then one where there is no memory.
            Some(1032) => 3,
            Some(1033) => 2,
            Some(1034) => 0xf_ffff,
            Some(_) => 0,
            None => return Err(KvmError(ENOENT)),
        };
        let entry = if page == 0 { 0 } else { page << 12 | 1 };
        out.copy_from_slice(&entry.to_le_bytes());
        Ok(())
    }

    fn msr_write_allowed(&mut self, _: u32) -> Result<(), KvmError> {
        Ok(())
    }

    fn descriptor_exits(&mut self) -> Result<(), KvmError> {
        Ok(())
    }

    fn injection_free(&mut self) -> Result<(), KvmError> {
        Ok(())
    }

    fn breakpoint_free(&mut self) -> Result<(), KvmError> {
        Ok(())
    }

    fn can_singlestep(&mut self) -> bool {
        true
    }

    fn singlestep_free(&mut self) -> Result<(), KvmError> {
        Ok(())
    }
}

struct Vcpu {
    shared: Arc<Shared>,
    state: VcpuState,
    effects: Effects,
    /// Occurrences that came while an event was open.
    queue: VecDeque<(Occurrence, Sender<Completed>)>,
    receiver: Receiver<Work>,
}

impl Vcpu {
    fn run(mut self) {
        while self.state.phase() != Phase::Crashed {
            if let Some((what, sender)) = self.queue.pop_front() {
                let completed = self.happen(&what);
                // The test need not listen.
                let _ = sender.send(completed);
            } else if !self.work() {
                return;
            }
        }
    }

    /// Takes one piece of work; false at the end.
    fn work(&mut self) -> bool {
        match self.receiver.recv() {
            Ok(Work::Job(message)) => self.job(&message),
            Ok(Work::Happen(what, sender)) => self.queue.push_back((what, sender)),
            Ok(Work::End) | Err(_) => return false,
        }
        true
    }

    fn job(&mut self, message: &[u8]) {
        let mut out = vec![0; MAX_MESSAGE];
        match vcpu_message(&self.shared.vm, &mut self.state, &mut self.effects, message, &mut out).verdict {
            VcpuVerdict::Answered(0) | VcpuVerdict::Replied => {}
            VcpuVerdict::Answered(length) => self.shared.send(&out[..length]),
            VcpuVerdict::Close => self.shared.hang_up(),
        }
    }

    /// The exit handler, called once or, around an event, twice.
    fn happen(&mut self, what: &Occurrence) -> Completed {
        let mut regs = None;
        let mut value = None;
        let mut site = self.state.record(&self.shared.vm, what);
        if site == Site::Defer {
            let mut out = vec![0; MAX_MESSAGE];
            let (state, effects) = (&self.state, &mut self.effects);
            let seq = self.shared.send_event(|seq| {
                let length = build_event(state, effects, seq, &mut out);
                out[..length].to_vec()
            });
            self.state.event_sent(seq);
            while self.state.phase() == Phase::Sent {
                if !self.work() {
                    self.state.event_fail_open();
                }
            }
            value = match what {
                Occurrence::Cr { cr, .. } => self.state.reply_value(what.event(), u32::from(*cr)),
                Occurrence::Msr { msr, .. } => self.state.reply_value(what.event(), *msr),
                _ => None,
            };
            regs = self.state.take_registers();
            site = self.state.record(&self.shared.vm, what);
            self.state.event_done();
        }
        Completed {
            site,
            value,
            regs,
            crashed: self.state.phase() == Phase::Crashed,
        }
    }
}
