// SPDX-License-Identifier: MIT OR Apache-2.0
//! L1 in QEMU: booted once, saved at its snapshot, and restored for each scenario.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use kvmi_lab_control::{HOOK_BEFORE_SNAPSHOT, Lane, Platform, brief};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::boot::{Boot, BootError, Hardware, explain, io_error, read_lossy, wait_for_point};
use crate::cache::{Cache, Key};
use crate::clock::Clock;
use crate::emulator::Emulators;
use crate::machine_event::{MachineEvent, channel, listen};
use crate::process::{Owned, in_short_turns};
use crate::progress::Progress;
use crate::qmp::{Commands, Qmp, QmpError};
use crate::run_folder;
use crate::scenario::{Machine, Request};

/// How long L1 may take from power-on to its snapshot. It takes about 5 s on an idle machine.
const BOOT: Duration = Duration::from_secs(180);

/// How long writing or reading the saved state may take. It takes less than a second.
const STATE: Duration = Duration::from_secs(60);

/// The package that has the emulator.
const PACKAGE: &str = "qemu-system-x86";

/// How long QEMU may take to show registers.
const REGISTERS: Duration = Duration::from_secs(5);

/// The file names in the cache's entry of a saved L1: all but its memory, its memory, what it said.
const STATE_FILE: &str = "state";
const MEMORY_FILE: &str = "memory";
const BOOT_LOG: &str = "boot.log";

/// Kernel arguments where L1 runs in TCG: `isolcpus` and [`HOOK_BEFORE_SNAPSHOT`].
///
/// Nothing but interrupts and kernel threads runs on L1's CPU 0, so no guest does. TCG keeps the chipset's IGNNE# in the same word of its first
/// CPU as "nested paging is on", and whichever CPU loads an x87 state (each KVM_RUN does) rewrites that word without a lock. Where a VMRUN or
/// #VMEXIT of CPU 0 falls between that read and that write, CPU 0 goes on with nested paging off in the guest, or on in L1.
///
/// Nothing is to run what L1's kernel patches. A store drops what was translated of its page, and is done after that: a CPU that translates the page
/// in between keeps what stood there before. To switch a static key the kernel has INT3 stand there for a moment, so that CPU meets one
/// when nobody expects it any more. The key of introspection is switched by the first HOOK.
const TCG_ARGUMENTS: &[&str] = &["isolcpus=0", HOOK_BEFORE_SNAPSHOT];

/// L1's command line on a lane.
fn command_line(lane: Lane, boot: &Boot) -> String {
    let more = if lane.platform() == Platform::Tcg {
        TCG_ARGUMENTS
    } else {
        &[]
    };
    boot.command_line(lane.platform(), more)
}

/// What executes L1's instructions on a lane, for reports.
fn acceleration(lane: Lane) -> String {
    if lane.platform() == Platform::Kvm {
        return format!("KVM of {}", machine());
    }
    "QEMU TCG, emulated".to_owned()
}

/// This machine's processor and kernel: a state that KVM saved fits no other.
fn machine() -> String {
    let cpuinfo = read_lossy(Path::new("/proc/cpuinfo"));
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_once(": ").map_or("", |(_, value)| value).to_owned()
    };
    let kernel = read_lossy(Path::new("/proc/sys/kernel/osrelease"));
    format!(
        "{} (microcode {}), Linux {}",
        field("model name"),
        field("microcode"),
        kernel.trim()
    )
}

/// The machine's arguments; none of them names a file. Its memory is to be an object `memory`. In TCG, two of the three CPUs run guests: [`TCG_ARGUMENTS`].
fn machine_arguments(lane: Lane, clock: Clock, hardware: Hardware) -> Vec<String> {
    // One accelerator is named, so there is no falling back to another one.
    let (accelerator, cpu, cpus) = match lane.platform() {
        Platform::Kvm => ("kvm", "host", 2),
        _ => ("tcg", "EPYC,+svm,+npt,+umip", 3),
    };
    let Hardware { memory_mib, one_thread } = hardware;
    let accelerator = if one_thread && lane.platform() == Platform::Tcg {
        format!("memory-backend=memory -accel {accelerator},thread=single")
    } else {
        format!("accel={accelerator},memory-backend=memory")
    };
    let words = format!(
        "-nodefaults -no-user-config -machine pc-i440fx-10.0,{accelerator} -cpu {cpu} -m {memory_mib} -smp {cpus} \
         -display none -no-reboot \
         -chardev socket,id=qmp,fd=0 -mon chardev=qmp,mode=control -chardev socket,id=control,fd=1 \
         -serial chardev:console -serial chardev:control"
    );
    let words = words.split_whitespace().map(str::to_owned);
    words.chain(clock.arguments()).collect()
}

/// Where L1's memory is.
#[derive(Clone, Copy, Debug)]
enum Memory<'a> {
    /// In a file, which is L1's memory when QEMU has ended.
    In(&'a Path),
    /// What is in a file, read from there when L1 first touches it; the file stays as it is.
    From(&'a Path),
}

impl Memory<'_> {
    fn object(self, memory_mib: u32) -> String {
        let (file, sharing) = match self {
            Self::In(file) => (file, "share=on"),
            Self::From(file) => (file, "share=off,readonly=on,rom=off"),
        };
        format!(
            "memory-backend-file,id=memory,size={memory_mib}M,mem-path={},{sharing}",
            file.display()
        )
    }
}

/// What a machine is made of, and what runs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Parts {
    /// The lane.
    pub lane: Lane,
    /// How time passes in it.
    pub clock: Clock,
    /// Where QEMU is.
    pub emulators: Emulators,
    /// The library by which a CPU that spins lets others run (harness/machine/yielder), where each of its CPUs is a thread in TCG.
    pub library: Option<PathBuf>,
}

impl Parts {
    /// Whether [`Parts::library`] is for machines like this.
    #[must_use]
    pub fn want_library(lane: Lane, clock: Clock) -> bool {
        lane.platform() == Platform::Tcg && clock == Clock::Host
    }
}

/// An L1 saved at its snapshot, with what is needed to restore it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    parts: Parts,
    boot: Boot,
    /// Holds [`STATE_FILE`] and [`MEMORY_FILE`].
    folder: PathBuf,
}

/// Boots L1 and saves it at its snapshot, unless the cache has that.
///
/// `emulators_key` stands for the emulator's version.
///
/// # Errors
///
/// [`BootError`]
pub fn prepare(
    parts: Parts,
    cache: &Cache,
    emulators_key: &str,
    boot: &Boot,
    progress: &Progress,
) -> Result<Saved, BootError> {
    let Parts { lane, clock, .. } = parts;
    let key = Key::of("qemu snapshot 1")
        .text("emulators", emulators_key)
        .text("arguments", &machine_arguments(lane, clock, boot.hardware).join(" "))
        .text("kernel arguments", &command_line(lane, boot))
        .text("acceleration", &acceleration(lane))
        .file("kernel", &boot.kernel)?
        .file("initrd", &boot.initrd)?
        .finish();
    let entry = cache.entry("snapshots", &key, |into| {
        let task = progress.task(format!("boot L1 in QEMU ({lane}, {clock})"));
        // The log of a boot that failed must outlive the entry that was not made.
        let console = cache.work("logs")?.join(format!("{lane}-boot.log"));
        let log = console.with_extension("emulator.log");
        let mut qemu = Process::start(
            &parts,
            boot,
            &console,
            &log,
            &[
                "-object",
                &Memory::In(&into.join(MEMORY_FILE)).object(boot.hardware.memory_mib),
            ],
        )?;
        let control = qemu
            .control
            .try_clone()
            .map_err(io_error("share the control channel"))?;
        let child = &mut qemu.child;
        let snapshot_of = wait_for_point(lane, control, &console, BOOT * boot.slowness, &task, || {
            child.wait().ok()
        });
        snapshot_of.map_err(|e| explain(lane, e, &log))?;
        task.note("save its state");
        let mut qmp = qemu.qmp()?;
        require_acceleration(lane, &mut qmp)?;
        qmp.command("stop", json!({}))?;
        qmp.command("migrate-set-capabilities", capabilities())?;
        qmp.command(
            "migrate",
            json!({ "uri": format!("file:{}", into.join(STATE_FILE).display()) }),
        )?;
        wait_for_migration(&mut qmp)?;
        std::fs::copy(&console, into.join(BOOT_LOG)).map_err(io_error("keep the boot log"))?;
        task.done();
        Ok::<(), BootError>(())
    })?;
    Ok(Saved {
        parts,
        boot: boot.clone(),
        folder: entry,
    })
}

/// That its end is told, and that memory which is in a file stays there.
fn capabilities() -> serde_json::Value {
    let on = |capability: &str| json!({ "capability": capability, "state": true });
    json!({ "capabilities": [on("events"), on("x-ignore-shared")] })
}

fn wait_for_migration(qmp: &mut Qmp) -> Result<(), BootError> {
    qmp.wait_for(STATE, |name, data| {
        let status = data["status"].as_str().unwrap_or_default();
        name == "MIGRATION" && (status == "completed" || status == "failed")
    })?;
    // The event has no reason for a failure, the query has.
    let state = qmp.command("query-migrate", json!({}))?;
    if state["status"] == "failed" {
        let answer = state["error-desc"].as_str().unwrap_or("no reason given").to_owned();
        return Err(QmpError::Refused {
            command: "migrate".into(),
            answer,
        }
        .into());
    }
    Ok(())
}

/// Fails unless QEMU has the acceleration that the lane is for.
fn require_acceleration(lane: Lane, qmp: &mut Qmp) -> Result<(), BootError> {
    let kvm = qmp.command("query-kvm", json!({}))?["enabled"] == true;
    if kvm == (lane.platform() == Platform::Kvm) {
        return Ok(());
    }
    Err(BootError::Acceleration {
        lane,
        has: if kvm { "KVM" } else { "no KVM" },
    })
}

impl Saved {
    /// What executes L1's instructions.
    #[must_use]
    pub fn acceleration(&self) -> String {
        acceleration(self.parts.lane)
    }

    /// Restores L1 for one scenario; it runs on from its snapshot.
    ///
    /// # Errors
    ///
    /// [`BootError`]
    pub fn restore(&self, request: &Request) -> Result<Restored, BootError> {
        let has_order = matches!(self.parts.clock, Clock::Counted(_));
        let (qemu, qmp) = self.resume(&request.folder, &[], has_order.then_some(request))?;
        let (send, events) = channel();
        let commands = watch(qmp, send.clone());
        listen(
            qemu.control
                .try_clone()
                .map_err(io_error("share the control channel"))?,
            send,
        );
        Ok(Restored {
            qemu,
            events,
            commands,
            nothing: has_order.then(io::sink),
        })
    }

    /// Restores L1 for a person; the control channel is theirs. With `gdb`, QEMU's debug stub listens on that unix socket.
    pub(crate) fn enter(&self, folder: &Path, gdb: Option<&Path>) -> Result<(Running, UnixStream), BootError> {
        let stub = gdb.map(|path| format!("unix:{},server=on,wait=off", path.display()));
        let more: Vec<&str> = stub.iter().flat_map(|stub| ["-gdb", stub.as_str()]).collect();
        let (qemu, qmp) = self.resume(folder, &more, None)?;
        let control = qemu.control.try_clone();
        let control = control.map_err(io_error("share the control channel"))?;
        Ok((Running { _qemu: qemu, _qmp: qmp }, control))
    }

    /// A QEMU with the saved L1, which runs on; with this order, where one is given.
    fn resume(&self, folder: &Path, more: &[&str], order: Option<&Request>) -> Result<(Process, Qmp), BootError> {
        let memory = Memory::From(&self.folder.join(MEMORY_FILE)).object(self.boot.hardware.memory_mib);
        let own = ["-object", memory.as_str(), "-incoming", "defer"];
        let more: Vec<&str> = own.iter().chain(more).copied().collect();
        let log = folder.join(run_folder::EMULATOR_LOG);
        let console = folder.join(run_folder::CONSOLE);
        let qemu = Process::start(&self.parts, &self.boot, &console, &log, &more)?;
        fs::write(folder.join(run_folder::EMULATOR), &qemu.described)
            .map_err(io_error("write down how qemu was started"))?;
        match self.load(&qemu, order) {
            Ok(qmp) => Ok((qemu, qmp)),
            Err(error) => Err(explain(self.parts.lane, error, &log)),
        }
    }

    /// Has QEMU take the saved L1 over and go on with it.
    fn load(&self, qemu: &Process, order: Option<&Request>) -> Result<Qmp, BootError> {
        let mut qmp = qemu.qmp()?;
        require_acceleration(self.parts.lane, &mut qmp)?;
        qmp.command("migrate-set-capabilities", capabilities())?;
        qmp.command(
            "migrate-incoming",
            json!({ "uri": format!("file:{}", self.folder.join(STATE_FILE).display()) }),
        )?;
        wait_for_migration(&mut qmp)?;
        if let Some(request) = order {
            give_order(&qemu.control, &mut qmp, request)?;
        }
        qmp.command("cont", json!({}))?;
        Ok(qmp)
    }
}

/// A QEMU in which L1 runs. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Running {
    _qemu: Process,
    _qmp: Qmp,
}

/// Puts the order into L1's serial port while L1 stands still, so that what it does from there on is the same each time.
fn give_order(mut control: &UnixStream, qmp: &mut Qmp, request: &Request) -> Result<(), BootError> {
    let order = brief::brief(&request.scenario, request.seed);
    let order = order.ok_or_else(|| io::Error::other(format!("seed {} is beyond {}", request.seed, brief::MAX_SEED)));
    order
        .and_then(|order| control.write_all(&order))
        .map_err(io_error("give L1 its order"))?;
    // QEMU looks at all of its sockets before it answers on one; the first look may have been under way.
    for _ in 0..3 {
        qmp.command("query-status", json!({}))?;
    }
    Ok(())
}

/// Tells when QEMU stops L1 without ending: an internal error, a panic that the guest reports.
fn watch(qmp: Qmp, to: Sender<MachineEvent>) -> Commands {
    qmp.watch(move |name, data| match name {
        "STOP" | "GUEST_PANICKED" => to
            .send(MachineEvent::Stopped(format!("qemu says {name} {data}")))
            .is_ok(),
        _ => true,
    })
}

/// A running QEMU. Its two channels are its standard input and output, so no file names them and they close with it.
#[derive(Debug)]
struct Process {
    child: Owned,
    control: UnixStream,
    qmp: UnixStream,
    /// Its version and command line.
    described: String,
}

impl Process {
    fn start(parts: &Parts, boot: &Boot, console: &Path, log: &Path, more: &[&str]) -> Result<Self, BootError> {
        let &Parts { lane, clock, .. } = parts;
        let (qmp, qemu_qmp) = UnixStream::pair().map_err(io_error("make a socket pair"))?;
        let (control, qemu_control) = UnixStream::pair().map_err(io_error("make a socket pair"))?;
        let log_file = File::create(log).map_err(io_error(format!("write {}", log.display())))?;
        let mut command: Command = parts.emulators.qemu_with(parts.library.as_deref());
        command
            .arg("-chardev")
            .arg(format!("file,id=console,path={}", console.display()))
            .args(machine_arguments(lane, clock, boot.hardware))
            .arg("-kernel")
            .arg(&boot.kernel)
            .arg("-initrd")
            .arg(&boot.initrd)
            .arg("-append")
            .arg(command_line(lane, boot))
            .args(more)
            .stdin(OwnedFd::from(qemu_qmp))
            .stdout(OwnedFd::from(qemu_control))
            .stderr(log_file);
        let described = parts.emulators.describe(PACKAGE, &command, "");
        let child = Owned::start(in_short_turns(&mut command)).map_err(io_error("run qemu"))?;
        Ok(Self {
            child,
            control,
            qmp,
            described,
        })
    }

    fn qmp(&self) -> Result<Qmp, BootError> {
        Ok(Qmp::start(
            self.qmp.try_clone().map_err(io_error("share qemu's control socket"))?,
        )?)
    }
}

/// An L1 that was restored.
#[derive(Debug)]
pub struct Restored {
    qemu: Process,
    events: Receiver<MachineEvent>,
    commands: Commands,
    /// Where the order goes when L1 has it already.
    nothing: Option<io::Sink>,
}

impl Machine for Restored {
    fn control(&mut self) -> &mut dyn Write {
        match &mut self.nothing {
            Some(nothing) => nothing,
            None => &mut self.qemu.control,
        }
    }

    fn events(&mut self) -> &Receiver<MachineEvent> {
        &self.events
    }

    fn registers(&mut self) -> Result<String, String> {
        self.commands.ask_monitor("info registers -a", REGISTERS)
    }

    fn end(&mut self) {
        self.qemu.child.end();
    }
}
