// SPDX-License-Identifier: MIT OR Apache-2.0
//! One vCPU: a thread that owns its descriptor and does what it is told between two `KVM_RUN`.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuExit, VcpuFd};
use kvmi_guests::{CONSOLE_PORT, MARK_PORT};
use kvmi_lab_control::FromL1;
use kvmi_lab_scenarios::say;
use kvmi_lab_scenarios::vmm::{Mark, Refusal, VcpuStatus};
use vmm_sys_util::signal::Killable;

use super::statistics::Exits;
use super::{refuse, rseq, signals, slice, state};

type Job = Box<dyn FnOnce(&mut VcpuFd) + Send>;

/// What the thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Options {
    Run,
    StayOut,
    End,
}

struct State {
    wanted: Options,
    /// To stay out when the guest has read the port of the marks.
    stops_at_input: bool,
    /// To be given to the guest when it takes an interrupt.
    in_window: Option<u8>,
    jobs: VecDeque<Job>,
    status: VcpuStatus,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }
}

/// A vCPU and its thread. Dropped, the thread ends and the vCPU is closed.
pub(super) struct Vcpu {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    exits: Exits,
}

impl Vcpu {
    /// Starts the thread; it stays out of `KVM_RUN` until [`Vcpu::resume`].
    pub(super) fn start(index: usize, vcpu: VcpuFd, without_rseq: bool) -> Result<Self, Refusal> {
        let exits = Exits::of(&vcpu)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                wanted: Options::StayOut,
                stops_at_input: false,
                in_window: None,
                jobs: VecDeque::new(),
                status: VcpuStatus::default(),
            }),
            changed: Condvar::new(),
        });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu-{index}"))
            .spawn(move || {
                Runner {
                    index,
                    vcpu,
                    without_rseq,
                    shared: for_thread,
                    line: Vec::new(),
                }
                .run()
            })
            .map_err(|e| refuse(format!("start the thread of vCPU {index}: {e}")))?;
        Ok(Self {
            shared,
            thread: Some(thread),
            exits,
        })
    }

    pub(super) fn exits(&self) -> Result<u64, Refusal> {
        self.exits.count()
    }

    pub(super) fn resume(&self) {
        self.shared.lock().wanted = Options::Run;
        self.shared.changed.notify_all();
    }

    pub(super) fn kick(&self) -> Result<(), Refusal> {
        let thread = self
            .thread
            .as_ref()
            .ok_or_else(|| refuse("the vCPU's thread has ended"))?;
        thread.kill(signals::KICK).map_err(|e| Refusal {
            errno: e.errno(),
            what: "signal the vCPU's thread".to_owned(),
        })
    }

    /// Takes the vCPU out of `KVM_RUN`; returns when it is.
    pub(super) fn pause(&self) -> Result<(), Refusal> {
        let mut state = self.shared.lock();
        state.wanted = Options::StayOut;
        if state.status.running {
            self.kick()?;
        }
        while state.status.running {
            state = self.shared.wait(state);
        }
        Ok(())
    }

    /// Has the thread do something with the vCPU while it is out.
    pub(super) fn while_out<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut VcpuFd) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let mut state = self.shared.lock();
        if state.wanted != Options::StayOut {
            return Err(refuse("the vCPU is not out of KVM_RUN, pause it first"));
        }
        state.jobs.push_back(Box::new(move |vcpu| {
            // The receiver waits below.
            let _ = send.send(job(vcpu));
        }));
        drop(state);
        self.shared.changed.notify_all();
        receive.recv().map_err(|_| refuse("the vCPU's thread has ended"))?
    }

    pub(super) fn stop_at_input(&self) {
        self.shared.lock().stops_at_input = true;
    }

    /// Asks KVM for the moment at which it takes this interrupt, and gives it then.
    pub(super) fn interrupt_in_window(&self, vector: u8) -> Result<(), Refusal> {
        self.shared.lock().in_window = Some(vector);
        self.while_out(|vcpu| {
            vcpu.get_kvm_run().request_interrupt_window = 1;
            Ok(())
        })
    }

    pub(super) fn status(&self) -> VcpuStatus {
        self.shared.lock().status.clone()
    }

    pub(super) fn wait_until(&self, condition: impl Fn(&VcpuStatus) -> bool) -> VcpuStatus {
        let mut state = self.shared.lock();
        while !condition(&state.status) {
            state = self.shared.wait(state);
        }
        state.status.clone()
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.shared.lock().wanted = Options::End;
        self.shared.changed.notify_all();
        // A thread that ended by itself cannot be signalled and need not be.
        let _ = self.kick();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Runner {
    index: usize,
    vcpu: VcpuFd,
    without_rseq: bool,
    shared: Arc<Shared>,
    /// The line the guest is writing to its console.
    line: Vec<u8>,
}

impl Runner {
    fn run(mut self) {
        if let Err(e) = signals::block_kick().and_then(|()| signals::unblock_in_kvm_run(&self.vcpu)) {
            self.log(format!("vCPU {}: cannot arrange signals: {e}", self.index));
            return;
        }
        if let Err(e) = slice::give_way() {
            self.log(format!("vCPU {}: cannot ask for time slices: {e}", self.index));
            return;
        }
        if self.without_rseq
            && let Err(e) = rseq::unregister()
        {
            self.log(format!("vCPU {}: cannot do without rseq(2): {e}", self.index));
            return;
        }
        while self.may_run() {
            self.run_once();
        }
    }

    /// Does what there is to do outside of `KVM_RUN`; false when the thread is to end.
    fn may_run(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job(&mut self.vcpu);
                state = shared.lock();
                continue;
            }
            let running = state.wanted == Options::Run;
            if state.status.running != running {
                state.status.running = running;
                shared.changed.notify_all();
            }
            match state.wanted {
                Options::Run => return true,
                Options::End => return false,
                Options::StayOut => state = shared.wait(state),
            }
        }
    }

    fn run_once(&mut self) {
        let index = self.index;
        let (name, goes_on) = match self.vcpu.run() {
            Ok(VcpuExit::IoOut(MARK_PORT, data)) => {
                let tsc = signals::time_stamp();
                let value = data.try_into().map_or(0, u32::from_le_bytes);
                self.note(|status| status.marks.push(Mark { value, tsc }));
                ("io".to_owned(), true)
            }
            Ok(VcpuExit::IoOut(CONSOLE_PORT, data)) => {
                let bytes = data.to_vec();
                self.console(&bytes);
                ("io".to_owned(), true)
            }
            Ok(VcpuExit::IoIn(MARK_PORT, data)) => {
                // As many reads as there are words: a REP instruction makes several at once.
                let mut state = self.shared.lock();
                for word in data.chunks_exact_mut(size_of::<u32>()) {
                    word.copy_from_slice(&state.status.inputs.to_le_bytes());
                    state.status.inputs += 1;
                }
                ("io".to_owned(), !std::mem::take(&mut state.stops_at_input))
            }
            Ok(VcpuExit::IoOut(..) | VcpuExit::IoIn(..)) => ("io".to_owned(), true),
            Ok(VcpuExit::MmioRead(_, data)) => {
                let mut state = self.shared.lock();
                let before = u64::from(state.status.device_reads).to_le_bytes();
                // KVM asks for eight bytes at most.
                data.copy_from_slice(&before[..data.len()]);
                state.status.device_reads += 1;
                ("mmio".to_owned(), true)
            }
            Ok(VcpuExit::MmioWrite(..)) => ("mmio".to_owned(), true),
            Ok(VcpuExit::Intr) => ("intr".to_owned(), true),
            Ok(VcpuExit::IrqWindowOpen) => {
                self.interrupt();
                ("interrupt window".to_owned(), true)
            }
            Ok(VcpuExit::Hlt) => ("hlt".to_owned(), false),
            Ok(VcpuExit::Shutdown) => ("shutdown".to_owned(), false),
            Ok(VcpuExit::Debug(_)) => ("debug".to_owned(), false),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                self.log(format!("vCPU {index}: entry failed, hardware reason {reason:#x}"));
                ("fail entry".to_owned(), false)
            }
            Ok(VcpuExit::InternalError) => {
                self.log(format!("vCPU {index}: KVM internal error"));
                ("internal error".to_owned(), false)
            }
            Ok(other) => (format!("{other:?}"), false),
            Err(e) if e.errno() == rustix::io::Errno::INTR.raw_os_error() => {
                signals::take_kick();
                self.note(|status| status.interrupted += 1);
                return;
            }
            // An uninitialised AP: it waits inside KVM_RUN and comes back with EAGAIN when something woke it.
            Err(e) if e.errno() == rustix::io::Errno::AGAIN.raw_os_error() => ("errno 11".to_owned(), true),
            Err(e) => (format!("errno {}", e.errno()), false),
        };
        if !goes_on {
            self.log(format!("vCPU {index} stopped: {name}"));
        }
        let mut state = self.shared.lock();
        *state.status.exits.entry(name).or_default() += 1;
        if !goes_on && state.wanted == Options::Run {
            state.wanted = Options::StayOut;
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Gives the guest the interrupt that it takes now.
    fn interrupt(&mut self) {
        self.vcpu.get_kvm_run().request_interrupt_window = 0;
        let vector = self.shared.lock().in_window.take();
        if let Some(vector) = vector
            && let Err(e) = state::interrupt(&self.vcpu, vector.into())
        {
            self.log(format!("vCPU {}: KVM_INTERRUPT: {e}", self.index));
        }
    }

    fn note(&self, change: impl FnOnce(&mut VcpuStatus)) {
        change(&mut self.shared.lock().status);
        self.shared.changed.notify_all();
    }

    fn console(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line).into_owned();
                say(&FromL1::Log {
                    source: "guest".to_owned(),
                    text: format!("vCPU {}: {line}", self.index),
                });
                self.line.clear();
            } else {
                self.line.push(byte);
            }
        }
    }

    fn log(&self, text: String) {
        say(&FromL1::Log {
            source: "vmm".to_owned(),
            text,
        });
    }
}
