// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tool that a selftest meets: it hooks each VM that the test makes, watches everything, and agrees to everything.
//!
//! The test asks (harness/selftests/hook.c) when it has made a VM, whose descriptor it passes, and before a vCPU runs for the first time. It
//! goes on when it has its answer.

mod watches;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use kvmi::ioctls;
use kvmi::{Error, Event, PageAccessEntry, Session};
use kvmi_lab_control::SelftestMode;
use kvmi_uapi::ioctl;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType, accept, bind, listen, recvmsg, send, shutdown, socket_with,
};

use watches::Watches;

/// The tool's abstract socket.
const SOCKET: &str = "kvmi-selftest";

/// How many questions may wait.
const BACKLOG: i32 = 64;

/// What a question is about: a VM that was made, a vCPU that is about to run for the first time, memory that a VM was given.
const VM_MADE: u32 = 1;
const VCPU_RUNS: u32 = 2;
const MEMORY_SET: u32 = 3;

/// How many bytes a question has.
const QUESTION_BYTES: usize = 24;

/// How much of each slot is protected, in pages: what a test has its code, stack and page tables in, and not the gigabytes of some.
const PROTECTED_PAGES: u64 = 4096;

const PAGE_BYTES: u64 = 4096;

/// The longest time between two pauses, in microseconds.
const PAUSE_US: u64 = 4000;

/// The tool, at work on threads of this process.
pub(crate) struct Tool {
    listener: Arc<OwnedFd>,
    vms: Arc<Mutex<Vms>>,
    accepts: JoinHandle<()>,
}

/// What it has done and seen.
pub(crate) struct Seen {
    /// How often something was done or told, by its name.
    pub(crate) counts: BTreeMap<String, u32>,
    /// What went wrong that must not.
    pub(crate) errors: Vec<String>,
}

/// What a test asks, as hook.c has it.
#[derive(Debug)]
struct Question {
    about: u32,
    vm: u32,
    vcpu: u32,
    pages: u32,
    gpa: u64,
}

/// All VMs of a test. Their numbers begin at 1.
struct Vms {
    mode: SelftestMode,
    all: Vec<Vm>,
    /// Those that KVM does not let be hooked.
    refused: u32,
    errors: Vec<String>,
}

struct Vm {
    session: Session,
    agrees: JoinHandle<Agreed>,
    vcpus: u32,
    watches: Watches,
    /// The vCPUs that may be paused: those that are watched, and answer no pause.
    free: Arc<Mutex<BTreeSet<u16>>>,
    pauses: Option<JoinHandle<Option<String>>>,
}

/// How many events of each kind were agreed to, and what ended that before the VM's end.
type Agreed = (BTreeMap<String, u32>, Option<String>);

impl Tool {
    /// Starts it; it can be asked from now on.
    pub(crate) fn start(mode: SelftestMode) -> anyhow::Result<Self> {
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        bind(&listener, &SocketAddrUnix::new_abstract_name(SOCKET.as_bytes())?).context("name the tool's socket")?;
        listen(&listener, BACKLOG)?;
        let listener = Arc::new(listener);
        let vms = Arc::new(Mutex::new(Vms {
            mode,
            all: Vec::new(),
            refused: 0,
            errors: Vec::new(),
        }));
        let accepts = thread::spawn({
            let (listener, vms) = (listener.clone(), vms.clone());
            // Ends when the socket is shut down.
            move || {
                loop {
                    let link = accept(&*listener);
                    let mut vms = vms.lock().unwrap_or_else(PoisonError::into_inner);
                    let answered = match link {
                        Ok(link) => vms.answer(&link),
                        Err(Errno::INTR) => Ok(()),
                        Err(Errno::INVAL) => return,
                        Err(e) => {
                            // The test would wait for an answer to what nobody hears.
                            let _ = shutdown(&*listener, Shutdown::Both);
                            return vms.errors.push(format!("hear the test: {e}"));
                        }
                    };
                    if let Err(e) = answered {
                        vms.errors.push(format!("answer the test: {e:#}"));
                    }
                }
            }
        });
        Ok(Self { listener, vms, accepts })
    }

    /// The name of its abstract socket.
    #[expect(clippy::unused_self, reason = "there is a socket while there is a tool")]
    pub(crate) fn socket(&self) -> &'static str {
        SOCKET
    }

    /// Ends it, when the test has ended.
    pub(crate) fn end(self) -> Seen {
        // It is not connected; what waits in accept() is woken all the same.
        let _ = shutdown(&*self.listener, Shutdown::Both);
        let accepted = self.accepts.join();
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        if accepted.is_err() {
            vms.errors.push("its thread panicked".to_owned());
        }
        vms.end()
    }
}

impl Vms {
    /// Answers one question.
    fn answer(&mut self, link: &OwnedFd) -> anyhow::Result<()> {
        let (question, vm) = receive(link).context("read the question")?;
        let Question {
            about,
            vm: number,
            vcpu,
            ..
        } = question;
        let answer = match (about, vm) {
            (VM_MADE, Some(vm)) => self.vm_made(&vm),
            (VCPU_RUNS, None) => self.vcpu_runs(number, vcpu),
            (MEMORY_SET, None) => self.memory_set(&question),
            _ => Err(anyhow::anyhow!("it makes no sense: {question:?}")),
        };
        let [error, number] = match answer {
            Ok(answer) => answer,
            Err(e) => {
                self.errors.push(format!("{e:#}"));
                [Errno::IO.raw_os_error().unsigned_abs(), 0]
            }
        };
        let bytes = [error.to_ne_bytes(), number.to_ne_bytes()].concat();
        send(link, &bytes, SendFlags::NOSIGNAL).context("send the answer")?;
        Ok(())
    }

    /// Hooks a VM; its number, 0 for one that cannot be hooked.
    fn vm_made(&mut self, vm: &OwnedFd) -> anyhow::Result<[u32; 2]> {
        let (ours, theirs) = UnixStream::pair()?;
        match ioctls::hook(vm.as_fd(), theirs.as_raw_fd(), 0, *b"kvm's selftests!") {
            Ok(()) => {}
            // Its memory is private or encrypted.
            Err(Errno::OPNOTSUPP) => {
                self.refused += 1;
                return Ok([0, 0]);
            }
            Err(e) => return Err(e).context("HOOK"),
        }
        ioctls::permit_command(vm.as_fd(), 1, ioctl::ALL).context("allow all commands")?;
        ioctls::permit_event(vm.as_fd(), 1, ioctl::ALL).context("allow all events")?;
        let session = Session::from(ours);
        let free: Arc<Mutex<BTreeSet<u16>>> = Arc::default();
        let agrees = thread::spawn({
            let (session, free) = (session.clone(), free.clone());
            move || agree(&session, &free)
        });
        let pauses = (self.mode == SelftestMode::Paused).then(|| {
            let (session, free) = (session.clone(), free.clone());
            let seed = self.all.len() as u64 + 1;
            thread::spawn(move || pause(&session, &free, seed))
        });
        self.all.push(Vm {
            session,
            agrees,
            vcpus: 0,
            watches: Watches::default(),
            free,
            pauses,
        });
        Ok([0, u32::try_from(self.all.len())?])
    }

    fn vm(&mut self, number: u32) -> anyhow::Result<&mut Vm> {
        let index = usize::try_from(number)?.checked_sub(1);
        let vm = index.and_then(|index| self.all.get_mut(index));
        vm.with_context(|| format!("there is no VM {number}"))
    }

    /// Protects memory that a VM was given, in the mode that does.
    fn memory_set(&mut self, question: &Question) -> anyhow::Result<[u32; 2]> {
        let number = question.vm;
        if self.mode == SelftestMode::Protected {
            let vm = self.vm(number)?;
            let pages = u64::from(question.pages).min(PROTECTED_PAGES);
            let protected = vm.protect(question.gpa, pages);
            protected.with_context(|| format!("protect {pages} pages at {:#x} of VM {number}", question.gpa))?;
        }
        Ok([0, number])
    }

    /// Has a vCPU tell everything from its first instruction on.
    fn vcpu_runs(&mut self, number: u32, vcpu: u32) -> anyhow::Result<[u32; 2]> {
        let steps = self.mode == SelftestMode::Stepped;
        let watched = self.vm(number)?.watch(u16::try_from(vcpu)?, steps);
        let error = if watched.with_context(|| format!("watch vCPU {vcpu} of VM {number}"))? {
            0
        } else {
            Errno::AGAIN.raw_os_error().unsigned_abs()
        };
        Ok([error, number])
    }

    fn end(&mut self) -> Seen {
        let mut counts = BTreeMap::new();
        let mut add = |name: &str, more: u32| *counts.entry(name.to_owned()).or_insert(0) += more;
        add("VMs refused", self.refused);
        for vm in self.all.drain(..) {
            // The VM is gone, and so the connection closes by itself; a VM that stays is found later.
            let agreed = vm.agrees.join();
            match vm.pauses.map(JoinHandle::join) {
                None | Some(Ok(None)) => {}
                Some(Ok(Some(error))) => self.errors.push(error),
                Some(Err(_)) => self.errors.push("a thread that pauses panicked".to_owned()),
            }
            add("VMs", 1);
            add("vCPUs", vm.vcpus);
            self.errors.extend(vm.watches.errors());
            match agreed {
                Ok((events, error)) => {
                    self.errors.extend(error);
                    for (name, times) in events {
                        add(&name, times);
                    }
                }
                Err(_) => self.errors.push("a thread that agrees panicked".to_owned()),
            }
        }
        Seen {
            counts,
            errors: std::mem::take(&mut self.errors),
        }
    }
}

impl Vm {
    /// Whether the vCPU takes commands; they wait for it then.
    fn watch(&mut self, vcpu: u16, steps: bool) -> Result<bool, Error> {
        if !self.watches.begin(&self.session, vcpu, steps)? {
            return Ok(false);
        }
        self.vcpus += 1;
        self.free.lock().unwrap_or_else(PoisonError::into_inner).insert(vcpu);
        Ok(true)
    }

    /// Takes the right to write from pages.
    fn protect(&self, gpa: u64, pages: u64) -> Result<(), Error> {
        let access = PageAccessEntry::READ | PageAccessEntry::EXEC;
        let entry = |page: u64| PageAccessEntry {
            gpa: gpa + page * PAGE_BYTES,
            access,
            ..PageAccessEntry::default()
        };
        let entries: Vec<PageAccessEntry> = (0..pages).map(entry).collect();
        let mut parts = entries.chunks(kvmi::uapi::MAX_PAGE_ACCESS_ENTRIES);
        parts.try_for_each(|part| self.session.set_page_access(part))
    }
}

/// Pauses vCPUs at random moments until the VM ends; what went wrong.
fn pause(session: &Session, free: &Mutex<BTreeSet<u16>>, mut random: u64) -> Option<String> {
    loop {
        // Xorshift, for moments that are the same in each run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        if session.wait_closed(Duration::from_micros(random % PAUSE_US)).is_ok() {
            return None;
        }
        let vcpus = std::mem::take(&mut *free.lock().unwrap_or_else(PoisonError::into_inner));
        for vcpu in vcpus {
            match session.pause_vcpu(vcpu, false) {
                Ok(()) => {}
                Err(Error::Closed(_)) => return None,
                Err(e) => return Some(e.to_string()),
            }
        }
    }
}

/// Agrees to each event until the VM ends. A vCPU whose pause is answered may be paused again.
fn agree(session: &Session, free: &Mutex<BTreeSet<u16>>) -> Agreed {
    let mut events = BTreeMap::new();
    loop {
        let event = match session.next_event() {
            Ok(event) => event,
            Err(Error::Closed(_)) => return (events, None),
            Err(Error::Timeout { .. }) => continue,
            Err(e) => return (events, Some(e.to_string())),
        };
        *events.entry(event.name()).or_insert(0) += 1;
        let vm_event = matches!(event, Event::Unhook(_));
        let paused = if let Event::Pause(_) = &event {
            event.vcpu()
        } else {
            None
        };
        match event.proceed() {
            Err(Error::Closed(_)) => return (events, None),
            Err(e) => return (events, Some(e.to_string())),
            Ok(()) if vm_event => return (events, Some("UNHOOK came".to_owned())),
            Ok(()) => free.lock().unwrap_or_else(PoisonError::into_inner).extend(paused),
        }
    }
}

/// A question, and the descriptor beside it.
fn receive(link: &OwnedFd) -> anyhow::Result<(Question, Option<OwnedFd>)> {
    let mut bytes = [0; QUESTION_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        let mut into = [IoSliceMut::new(&mut bytes)];
        recvmsg(link, &mut into, &mut beside, RecvFlags::CMSG_CLOEXEC)
    })?;
    if got.bytes != bytes.len() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let fds = beside.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fd = fds.flatten().next();
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let question = Question {
        about: word(0),
        vm: word(4),
        vcpu: word(8),
        pages: word(12),
        gpa: u64::from(word(16)) | u64::from(word(20)) << 32,
    };
    Ok((question, fd))
}
